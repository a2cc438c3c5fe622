//! HTTP sources against a server that misbehaves on demand. Each protection has a test that fails without it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected is to fail there"
)]

mod ends;
mod policy;
mod resume;
mod several;
mod support;
mod trust;
