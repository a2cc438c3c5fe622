//! What tells one file from another well enough that an upload is not continued with the wrong one: its length, and a digest of how it
//! begins and ends.
//!
//! It is against mistakes and proves nothing: what is stored is digested by the agent, all of it.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::Path,
};

use vitrine_engine::error::{Error, Result};

/// How much of either end counts.
const END: u64 = 1 << 20;

/// The length of the file at `path`, and what tells it from others.
///
/// # Errors
/// If it cannot be read.
pub fn of(path: &Path) -> Result<(u64, String)> {
    let fault = |e| Error::io(format!("reading {}", path.display()), e);
    let mut file = File::open(path).map_err(fault)?;
    let length = file.seek(SeekFrom::End(0)).map_err(fault)?;
    let mut hash = blake3::Hasher::new();
    hash.update(&length.to_le_bytes());
    for start in [0, length.saturating_sub(END)] {
        file.seek(SeekFrom::Start(start)).map_err(fault)?;
        let mut piece = Vec::new();
        (&file).take(END).read_to_end(&mut piece).map_err(fault)?;
        hash.update(&piece);
    }
    Ok((length, hash.finalize().to_hex().chars().take(32).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_differ_at_an_end_or_in_length_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let of_bytes = |bytes: &[u8]| {
            let path = folder.path().join("f");
            std::fs::write(&path, bytes).unwrap();
            of(&path).unwrap()
        };
        let mut bytes = vec![1; 3 << 20];
        let before = of_bytes(&bytes);
        assert_eq!(before, of_bytes(&bytes));
        *bytes.last_mut().unwrap() = 2;
        assert_ne!(before.1, of_bytes(&bytes).1);
        bytes.push(2);
        assert_eq!(of_bytes(&bytes).0, (3 << 20) + 1);
        assert_ne!(of_bytes(b"").1, of_bytes(b"\0").1);
    }
}
