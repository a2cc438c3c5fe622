//! What only the filesystem store promises.

mod crash;
mod full;
mod identity;
pub mod private;
mod safety;
mod sinks;
mod sweeping;

use std::path::Path;

use vitrine_engine::store::filesystem::{FilesystemOptions, FilesystemStore};

/// A store in `folder` as it is first opened.
pub fn open(folder: &Path) -> FilesystemStore {
    FilesystemStore::open("files", folder, &FilesystemOptions::default()).unwrap()
}

/// The names in a folder, sorted.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// What a store's folder holds beside what belongs to the store itself.
pub fn objects(folder: &Path) -> Vec<String> {
    names(folder)
        .into_iter()
        .filter(|name| name != ".vitrine-store" && name != ".fences" && name != "lost+found")
        .collect()
}
