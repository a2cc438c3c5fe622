//! Disk formats against the program that defines them, and against files made to hurt.
//!
//! Needs qemu-img and qemu-io: `tests/images/install.sh` fetches them. A test that cannot find them fails and says so.

#![allow(missing_docs, reason = "tests")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests may panic")]

mod blocks;
mod blockwise;
mod disk;
mod hostile;
mod imago;
mod matrix;
mod mutated;
mod ploop;
mod qcow2;
mod qemu;
#[path = "../engine/support.rs"]
#[allow(dead_code, reason = "each test program uses its own part")]
mod support;
mod vdi;
mod vhd;
mod vhdx;
mod vmdk;
mod written;
