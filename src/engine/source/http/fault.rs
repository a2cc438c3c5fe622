//! What went wrong with one try, and whether another one may help.
//!
//! Everything that reqwest or hyper say is stripped of URLs before it becomes a message: a query may be a credential.

use std::time::Duration;

use reqwest::{StatusCode, header::HeaderMap};

use crate::{
    error::{Error, Kind, find},
    source::Refusal,
};

/// The failure of one try.
#[derive(Debug)]
pub(super) enum Fault {
    /// Trying again cannot help, or is not this module's to decide (a changed source needs a fresh start).
    Final(Error),
    /// Trying again may help, not before `after` if the server said so.
    Passing { error: Error, after: Option<Duration> },
    /// The server sent the whole file when a range was asked for.
    NoRanges,
}

impl Fault {
    pub fn passing(context: impl Into<String>) -> Self {
        Self::Passing { error: Error::new(Kind::Unavailable, context), after: None }
    }

    pub fn last(kind: Kind, context: impl Into<String>) -> Self {
        Self::Final(Error::new(kind, context))
    }

    /// What a request, or the reading of a body, that failed means.
    pub fn of_transport(doing: &str, error: reqwest::Error) -> Self {
        let error = error.without_url();
        if let Some(refusal) = find::<Refusal>(&error) {
            return Self::Final(refusal.clone().into());
        }
        if let Some(tls) = find::<rustls::Error>(&error)
            && let Some(advice) = tls_advice(tls)
        {
            return Self::Final(Error::with_source(Kind::InvalidInput, format!("{doing}: {advice}"), tls.clone()));
        }
        if error.is_builder() {
            return Self::Final(Error::with_source(Kind::InvalidInput, doing, error));
        }
        Self::Passing { error: Error::with_source(Kind::Unavailable, doing, error), after: None }
    }

    /// What a status that is no success means.
    pub fn of_status(what: &str, status: StatusCode, headers: &HeaderMap) -> Self {
        let said = format!("{what}: the server answered {status}");
        match status.as_u16() {
            401 | 407 => Self::last(Kind::Denied, format!("{said}: it wants credentials; give them as headers")),
            403 => {
                Self::last(Kind::Denied, format!("{said}: check the credentials, and whether a signed URL has expired"))
            }
            404 | 410 => Self::last(Kind::NotFound, format!("{said}: check the URL")),
            408 | 425 | 429 | 500..=599 => Self::Passing {
                error: Error::new(Kind::Unavailable, said),
                after: super::retry::retry_after(headers, jiff::Timestamp::now()),
            },
            _ => Self::last(Kind::InvalidInput, said),
        }
    }

    /// The error, for whoever does not try again.
    pub fn into_error(self, what: &str) -> Error {
        match self {
            Self::Final(error) | Self::Passing { error, .. } => error,
            Self::NoRanges => Error::new(
                Kind::Unavailable,
                format!("{what}: the server said that it serves ranges and then sent the whole file for one"),
            ),
        }
    }
}

/// What the user can do about a TLS error that will be the same next time.
fn tls_advice(error: &rustls::Error) -> Option<&'static str> {
    match error {
        rustls::Error::InvalidCertificate(_) => Some(
            "the server's certificate is not trusted: give the authority that signed it as caBundle, or check the host name",
        ),
        rustls::Error::NoCertificatesPresented | rustls::Error::UnsupportedNameType => {
            Some("the server cannot be authenticated")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind_of(status: u16) -> (Kind, bool) {
        match Fault::of_status("x", StatusCode::from_u16(status).unwrap(), &HeaderMap::new()) {
            Fault::Final(error) => (error.kind(), false),
            Fault::Passing { error, .. } => (error.kind(), true),
            Fault::NoRanges => unreachable!(),
        }
    }

    #[test]
    fn statuses_say_what_can_be_done() {
        for status in [401, 403, 407] {
            assert_eq!(kind_of(status), (Kind::Denied, false), "{status}");
        }
        for status in [404, 410] {
            assert_eq!(kind_of(status), (Kind::NotFound, false), "{status}");
        }
        for status in [408, 429, 500, 502, 503, 504] {
            assert_eq!(kind_of(status), (Kind::Unavailable, true), "{status}");
        }
        for status in [400, 405, 416, 418] {
            assert_eq!(kind_of(status), (Kind::InvalidInput, false), "{status}");
        }
    }

    #[test]
    fn causes_are_found_through_io_errors() {
        let tls = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let wrapped = std::io::Error::other(std::io::Error::other(tls));
        assert!(find::<rustls::Error>(&wrapped).is_some());
        assert!(find::<Refusal>(&wrapped).is_none());
    }
}
