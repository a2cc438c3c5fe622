//! The one error of the harness: a sentence for the person who reads a failed test. Nothing here decides on an error's kind.

use std::fmt;

/// What went wrong, where, and what to do about it.
pub struct Error(String);

/// A result whose error is a sentence.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error that says `message`.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// As for people, because a test's `expect` prints this one: a log with `\n` in it is hard to read.
impl fmt::Debug for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// Puts what was being done in front of what went wrong.
pub(crate) trait Context<T> {
    /// `doing` is evaluated only on failure; it reads well before a colon: "write /x/y".
    fn context<S: Into<String>>(self, doing: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: fmt::Display> Context<T> for std::result::Result<T, E> {
    fn context<S: Into<String>>(self, doing: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|error| Error(format!("{}: {error}", doing().into())))
    }
}
