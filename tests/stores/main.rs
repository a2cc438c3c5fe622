//! Every store under the one conformance suite, and what only some of them promise.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test that meets the unexpected is to fail there, and its numbers are small"
)]

mod conformance;
mod decorators;
mod filesystem;
mod leftovers;
mod overtaken;
mod owners;
mod rbd;
mod s3;
mod thick;

use std::sync::Arc;

use vitrine_engine::store::{
    filesystem::{FilesystemOptions, FilesystemStore},
    memory::MemoryStore,
};

use conformance::Subject;

conformance::suite!(memory, {
    let store = Arc::new(MemoryStore::new("memory"));
    Subject { again: Arc::clone(&store) as _, store, granularity: 64 << 10, keep: Box::new(()) }
});

conformance::suite!(filesystem_store, {
    let folder = tempfile::tempdir().unwrap();
    let open = || Arc::new(FilesystemStore::open("files", folder.path(), &FilesystemOptions::default()).unwrap());
    let (store, again) = (open(), open());
    // 16 KiB: a block of data and what ext4 may add for its extents.
    Subject { store, again, granularity: 16 << 10, keep: Box::new(folder) }
});
