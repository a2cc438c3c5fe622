//! The program itself, without a cluster: what it prints, what it leaves behind, how it exits.
//!
//! qemu-img, real Debian disks and a booting machine are the judges. `tests/images` makes what is needed; nothing is skipped.

#![allow(missing_docs, reason = "tests")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests may panic")]

mod boot;
mod checksum;
mod clone;
mod container;
mod convert;
mod help;
mod import;
mod inspect;
mod memory;
mod once;
mod pipe;
mod pool;
mod program;
