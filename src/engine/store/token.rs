//! Which of several sinks for one key it is, and how that is written where a name or an entry has to say it.

use std::fmt;

/// Which sink it is: the attempt, and a number of its own for the case that one attempt creates two sinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Token {
    /// The fencing number the caller gave.
    pub(super) attempt: u32,
    /// Random; tells sinks of one attempt apart.
    pub(super) nonce: u64,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a{}-{:016x}", self.attempt, self.nonce)
    }
}

impl Token {
    /// Reads what `Display` wrote.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (attempt, nonce) = text.strip_prefix('a')?.split_once('-')?;
        let token = Self { attempt: attempt.parse().ok()?, nonce: u64::from_str_radix(nonce, 16).ok()? };
        // Only the one spelling: what is spelt otherwise is somebody else's.
        (token.to_string() == text).then_some(token)
    }
}
