//! What is computed over bytes to tell whether they are the right ones.
//!
//! Knows bytes and digests; the rule that compares them is `model::Verified`.

mod digests;

pub use digests::{DigestSet, DigestedFeed};
