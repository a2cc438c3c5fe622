//! Small disks to import, and how to look at what became of them.

use std::{
    fs::File,
    io::{BufReader, Read as _},
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};
use vitrine::api::ImageTask;

/// A raw disk of `length` bytes: three quarters data that does not compress, one quarter holes, and a boot signature.
pub fn raw(seed: u64, length: usize) -> Vec<u8> {
    let mut disk = vec![0_u8; length];
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    for (number, block) in disk.chunks_mut(64 << 10).enumerate() {
        if number % 4 == 3 {
            continue;
        }
        for word in block.chunks_mut(8) {
            // xorshift64: no cryptography is needed to be incompressible.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes()[..word.len()]);
        }
    }
    // No magic number of another format may come up by chance.
    disk[..8].fill(0);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk
}

/// `sha256:…` of `bytes`.
pub fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// `sha256:…` of a file.
pub fn sha256_of(path: &Path) -> String {
    let mut reader = BufReader::new(File::open(path).unwrap());
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match reader.read(&mut buffer).unwrap() {
            0 => return format!("sha256:{}", hex::encode(hash.finalize())),
            read => hash.update(&buffer[..read]),
        }
    }
}

/// The file that the task's only location names.
pub fn stored(task: &ImageTask) -> PathBuf {
    let result = task.status.as_ref().and_then(|status| status.result.as_ref());
    let result = result.unwrap_or_else(|| panic!("no result in {:?}", task.status));
    let [location] = result.locations.as_slice() else { panic!("one location: {result:?}") };
    PathBuf::from(location.url.strip_prefix("file://").unwrap())
}

/// What lies in a store's folder besides its own marker and fences: published objects and leftovers.
pub fn entries(store: &Path) -> Vec<String> {
    let Ok(folder) = std::fs::read_dir(store) else { return Vec::new() };
    let names = folder.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> =
        names.filter(|name| !matches!(name.as_str(), ".vitrine-store" | ".vitrine-owner" | ".fences")).collect();
    names.sort();
    names
}
