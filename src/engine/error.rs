//! The engine's one error: what the caller can do about it, where it happened, and what caused it.
//!
//! Knows the model only. The cluster side maps `Kind` to a condition reason and to "retry or not".

use std::{error::Error as StdError, fmt, io};

use crate::model::Violation;

/// What went wrong, by what can be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The image breaks a rule; trying again cannot help.
    Refused,
    /// What the user asked for is not possible as asked (bad URL, unknown format, two that exclude each other).
    InvalidInput,
    /// The address policy, or the other side, does not allow it.
    Denied,
    /// It does not exist.
    NotFound,
    /// It exists already, with other content.
    AlreadyExists,
    /// The other side is not there, slow, or broke off; trying again may help.
    Unavailable,
    /// The source changed while it was read; a fresh start may help.
    Changed,
    /// No room left.
    NoSpace,
    /// A local read or write failed.
    Io,
    /// This work was taken over by a later attempt.
    Conflict,
    /// Others use it, who are named; once they do not any more, trying again helps.
    InUse,
    /// Somebody asked to stop.
    Cancelled,
    /// The image's layout needs more of the spill file than the mode in use keeps; the pipeline starts again with all of it.
    NeedsSpill,
    /// A fault in Vitrine itself.
    Internal,
}

impl Kind {
    /// Whether the same work may succeed later without anybody changing anything.
    pub const fn is_retryable(self) -> bool {
        match self {
            Self::Unavailable | Self::Changed | Self::NoSpace | Self::Io | Self::InUse | Self::NeedsSpill => true,
            Self::Refused
            | Self::InvalidInput
            | Self::Denied
            | Self::NotFound
            | Self::AlreadyExists
            | Self::Conflict
            | Self::Cancelled
            | Self::Internal => false,
        }
    }
}

/// An engine error.
#[derive(Debug)]
pub struct Error {
    inner: Box<Inner>,
}

#[derive(Debug)]
struct Inner {
    kind: Kind,
    context: String,
    violation: Option<Violation>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// The engine's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error with a message that names what was found, where, and what to do.
    pub fn new(kind: Kind, context: impl Into<String>) -> Self {
        Self { inner: Box::new(Inner { kind, context: context.into(), violation: None, source: None }) }
    }

    /// The same with its cause.
    pub fn with_source(
        kind: Kind,
        context: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self { inner: Box::new(Inner { kind, context: context.into(), violation: None, source: Some(source.into()) }) }
    }

    /// A local I/O error; `context` says what was being done to which file. A full disk is told apart.
    pub fn io(context: impl Into<String>, source: io::Error) -> Self {
        let kind = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Kind::NoSpace,
            io::ErrorKind::NotFound => Kind::NotFound,
            io::ErrorKind::PermissionDenied => Kind::Denied,
            _ => Kind::Io,
        };
        Self::with_source(kind, context, source)
    }

    /// Puts a wider context before the message, as in `importing X: reading Y: …`.
    #[must_use]
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.inner.context = format!("{context}: {}", self.inner.context);
        self
    }

    /// What can be done about it.
    pub fn kind(&self) -> Kind {
        self.inner.kind
    }

    /// The rule that was broken, if this is a refusal.
    pub fn violation(&self) -> Option<&Violation> {
        self.inner.violation.as_ref()
    }

    /// Whether the same work may succeed later without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        self.inner.kind.is_retryable()
    }
}

impl Error {
    /// Whether what was read is not what was once written there, as opposed to a read that failed: it ends too early, cannot be
    /// understood, or a part of it is not there.
    pub fn is_damage(&self) -> bool {
        let cause = self.inner.source.as_deref().and_then(|cause| cause.downcast_ref::<io::Error>());
        let damage = [io::ErrorKind::InvalidData, io::ErrorKind::UnexpectedEof, io::ErrorKind::NotFound];
        self.inner.kind == Kind::Io && cause.is_some_and(|cause| damage.contains(&cause.kind()))
    }
}

impl From<Violation> for Error {
    fn from(violation: Violation) -> Self {
        let context = format!("image refused: {violation}");
        Self { inner: Box::new(Inner { kind: Kind::Refused, context, violation: Some(violation), source: None }) }
    }
}

impl fmt::Display for Error {
    /// The whole chain on one line: it ends up in a condition's message, where nobody can ask for the cause.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.inner.context)?;
        let mut cause = self.inner.source.as_deref().map(|e| e as &dyn StdError);
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl StdError for Error {}

/// Looks for a `T` among an error's causes. An I/O error hides what it wraps from `source`, so that is looked into, too.
pub(crate) fn find<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match wrapped {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}
