//! Every decoder of the engine as a fuzz target: a function of bytes that ends soon, and panics only where the engine is wrong.
//!
//! Free of libFuzzer, so that the corpus is replayed on stable (`main.rs`) by the very code that a campaign runs (`bin`).
//!
//! ```text
//! input ─► edited (a file, or changes to a good one; checksums mended) ─► disk (read in both orders, inspected, compared)
//!       └► container, docker (tar, OVF, OVA, bundles, images) │ packed (one decompressor) │ text (checksum files, HTTP heads)
//! ```
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a target panics where the engine is wrong; its own bytes it may trust"
)]

mod base;
mod container;
mod disk;
mod docker;
mod edited;
mod mend;
mod packed;
mod sparse;
mod text;

use std::path::PathBuf;

/// A decoder that is fuzzed.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, and that of its folder in the corpus.
    pub name: &'static str,
    /// Reads what `data` describes; whether it was taken rather than refused.
    ///
    /// # Panics
    /// If the engine does what it must not.
    pub run: fn(data: &[u8]) -> bool,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "qcow2", run: disk::qcow2 },
    Target { name: "vmdk", run: disk::vmdk },
    Target { name: "vhd", run: disk::vhd },
    Target { name: "vhdx", run: disk::vhdx },
    Target { name: "vdi", run: disk::vdi },
    Target { name: "ploop", run: disk::ploop },
    Target { name: "raw", run: disk::raw },
    Target { name: "tar", run: container::tar },
    Target { name: "ovf", run: container::ovf },
    Target { name: "ova", run: container::ova },
    Target { name: "bundle", run: container::bundle },
    Target { name: "docker", run: docker::docker },
    Target { name: "zip", run: packed::zip },
    Target { name: "lz4", run: packed::lz4 },
    Target { name: "gz", run: packed::gz },
    Target { name: "xz", run: packed::xz },
    Target { name: "zst", run: packed::zst },
    Target { name: "bz2", run: packed::bz2 },
    Target { name: "text", run: text::text },
];

/// The target called `name`.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().find(|target| target.name == name).copied()
}

/// The folders whose files are run through `target`: a small corpus, and what was found once.
pub fn folders(target: &Target) -> [PathBuf; 2] {
    ["corpus", "regressions"].map(|kind| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(kind).join(target.name))
}
