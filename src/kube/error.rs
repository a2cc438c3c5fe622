//! The cluster side's error: what was being done, and what Kubernetes said.

use std::fmt::Display;

/// The cluster side's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong between Vitrine and the API server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A request failed.
    #[error("{doing}: {}", brief(source))]
    Request {
        /// What was being done.
        doing: String,
        /// What came back.
        source: Box<kube::Error>,
    },
    /// Connecting or configuring failed.
    #[error("{0}")]
    Setup(String),
    /// Another operator leads now, or the API server could not be asked in time whether it does.
    #[error("leadership lost: {0}")]
    LeadershipLost(String),
}

impl Error {
    /// Whether the object asked for does not exist.
    pub fn is_not_found(&self) -> bool {
        self.status().is_some_and(kube::core::Status::is_not_found)
    }

    /// Whether somebody else changed the object in the meantime.
    pub fn is_conflict(&self) -> bool {
        self.status().is_some_and(kube::core::Status::is_conflict)
    }

    /// Whether the object to be made exists.
    pub fn is_already_exists(&self) -> bool {
        self.status().is_some_and(kube::core::Status::is_already_exists)
    }

    /// Whether the API server will not have what was sent, and would not have it a moment later either.
    pub fn is_refusal(&self) -> bool {
        const PASSING: [u16; 5] = [401, 404, 408, 409, 429];
        self.status().is_some_and(|status| (400..500).contains(&status.code) && !PASSING.contains(&status.code))
    }

    fn status(&self) -> Option<&kube::core::Status> {
        match self {
            Self::Request { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => Some(status),
                _ => None,
            },
            Self::Setup(_) | Self::LeadershipLost(_) => None,
        }
    }
}

/// The API server's own words without the dump of the whole answer that `kube` appends.
fn brief(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// Says what was being done when a request failed.
pub trait Doing<T> {
    /// `doing` completes "Vitrine could not …".
    fn doing<D: Display>(self, doing: impl FnOnce() -> D) -> Result<T>;
}

impl<T> Doing<T> for std::result::Result<T, kube::Error> {
    fn doing<D: Display>(self, doing: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|source| Error::Request { doing: doing().to_string(), source: Box::new(source) })
    }
}
