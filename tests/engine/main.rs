//! The whole engine from source to store, judged by qemu-img.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    reason = "a test that cannot go on panics, and its names say what it holds"
)]

mod again;
mod containers;
mod copies;
mod failures;
mod footers;
mod hostile;
mod inspect;
mod layouts;
mod polyglots;
mod resumed;
mod support;
mod truth;
