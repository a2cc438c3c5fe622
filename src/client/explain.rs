//! What the API server says, or that it does not answer, in words that say what to do about it.

use std::{error::Error as _, fmt::Display};

use kube::core::Status;
use vitrine_engine::error::{Error, Kind, Result};

use crate::api::GROUP;

/// Says what was being done when a request failed, and what to do now.
pub trait Explain<T> {
    /// `doing` is said before the reason, as in `reading Image x: …`.
    ///
    /// # Errors
    /// The same in plain words.
    fn explain<D: Display>(self, doing: impl FnOnce() -> D) -> Result<T>;
}

impl<T> Explain<T> for kube::Result<T> {
    fn explain<D: Display>(self, doing: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|error| explain(&error).context(doing()))
    }
}

/// The error in plain words.
pub fn explain(error: &kube::Error) -> Error {
    match error {
        kube::Error::Api(status) => of_status(status),
        kube::Error::Auth(cause) => Error::new(
            Kind::Denied,
            format!(
                "your kubeconfig's way to prove who you are does not work: {cause}; `kubectl auth whoami` tries it too"
            ),
        ),
        kube::Error::SerdeError(cause) => Error::new(
            Kind::Internal,
            format!(
                "the cluster's answer cannot be understood ({cause}): it may be of another version of Vitrine than this program, see \
                 `kubectl vitrine version`"
            ),
        ),
        kube::Error::HyperError(_) | kube::Error::Service(_) | kube::Error::ReadEvents(_) => Error::new(
            Kind::Unavailable,
            format!(
                "the API server cannot be reached: {}; is the context the right one, and the cluster up?",
                chain(error)
            ),
        ),
        other => Error::new(Kind::Unavailable, chain(other)),
    }
}

/// Every cause, each once: what a caller of the library sees twice is of no more use.
fn chain(error: &kube::Error) -> String {
    let (mut text, mut cause) = (String::new(), error.source());
    while let Some(next) = cause {
        let said = next.to_string();
        if !text.contains(&said) {
            text = if text.is_empty() { said } else { format!("{text}: {said}") };
        }
        cause = next.source();
    }
    if text.is_empty() { error.to_string() } else { text }
}

fn of_status(status: &Status) -> Error {
    let said = status.message.trim();
    let (kind, text) = match status.code {
        401 => (
            Kind::Denied,
            "the API server does not accept your credentials, or not any more: log in again; `kubectl auth whoami` tries it too"
                .to_owned(),
        ),
        403 if status.message.contains("cannot") => (Kind::Denied, format!("{said}. {}", ask_for(said))),
        403 => (Kind::Denied, said.to_owned()),
        404 if status.message.contains("could not find the requested resource") => (
            Kind::NotFound,
            "this cluster does not know Vitrine's kinds: Vitrine is not installed, or this is another context than you meant; see \
             `kubectl vitrine doctor`"
                .to_owned(),
        ),
        404 => (Kind::NotFound, format!("{}; is the namespace the right one?", plain_kind(said))),
        409 if status.reason == "AlreadyExists" => (Kind::AlreadyExists, plain_kind(said)),
        409 => (Kind::Conflict, format!("{said}; somebody else changed it at the same moment: try again")),
        400 | 422 => (Kind::InvalidInput, plain_kind(said)),
        code => (Kind::Unavailable, format!("the API server answered {code}: {said}")),
    };
    Error::new(kind, text)
}

/// Whom a person turns to who may not do something.
fn ask_for(said: &str) -> &'static str {
    if said.contains("cluster scope") {
        "That is for administrators of the cluster"
    } else {
        "The role view of the namespace allows looking at Images and edit changing them: ask whoever administers it"
    }
}

/// `images.vitrine.dev "x"` as people say it.
fn plain_kind(said: &str) -> String {
    let mut text = said.to_owned();
    for (plural, kind) in [("images", "Image"), ("imagestores", "ImageStore"), ("imagetasks", "ImageTask")] {
        text = text.replace(&format!("{plural}.{GROUP}"), kind);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(code: u16, reason: &str, message: &str) -> Error {
        let status = Status { code, reason: reason.to_owned(), message: message.to_owned(), ..Status::default() };
        explain(&kube::Error::Api(Box::new(status)))
    }

    #[test]
    fn refusals_say_what_to_do() {
        let error = said(404, "NotFound", "images.vitrine.dev \"x\" not found");
        assert_eq!(error.to_string(), "Image \"x\" not found; is the namespace the right one?");
        assert_eq!(error.kind(), Kind::NotFound);
        let error = said(404, "NotFound", "the server could not find the requested resource");
        assert!(error.to_string().contains("not installed"), "{error}");
        let error = said(
            403,
            "Forbidden",
            "imagestores.vitrine.dev is forbidden: User \"u\" cannot list resource \"imagestores\" in API group \
             \"vitrine.dev\" at the cluster scope",
        );
        assert!(error.to_string().ends_with("administrators of the cluster"), "{error}");
        let error = said(403, "Forbidden", "'Image t/x is protected: set spec.protected to false first'");
        assert!(!error.to_string().contains("role"), "a policy is no lack of a role: {error}");
        assert_eq!(said(409, "AlreadyExists", "images.vitrine.dev \"x\" already exists").kind(), Kind::AlreadyExists);
        assert_eq!(said(409, "Conflict", "modified").kind(), Kind::Conflict);
        assert_eq!(said(500, "", "boom").kind(), Kind::Unavailable);
    }
}
