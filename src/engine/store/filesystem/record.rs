//! What is written beside an object's data: `image.json` with its facts, and `manifest` with its chunk digests.
//!
//! Knows files; what stands in them is the business of `store::record`.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::OwnedFd,
};

use rustix::io::Errno;

use super::{
    super::record::{ENTRY, Facts, MAX_FACTS, damaged, entry, parse_entry},
    layout, tree,
};
use crate::model::{ChunkDigest, StoredImage};

/// Entries that are read at once.
const BATCH: usize = 1024;

/// Writes what is known of an object into its directory, and makes it durable.
pub(super) fn write(directory: &OwnedFd, image: &StoredImage) -> io::Result<()> {
    let mut manifest =
        io::BufWriter::with_capacity(BATCH * ENTRY, File::from(tree::create_file(directory, layout::MANIFEST)?));
    for chunk in &image.manifest.chunks {
        manifest.write_all(&entry(chunk))?;
    }
    manifest.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    let mut file = File::from(tree::create_file(directory, layout::RECORD)?);
    file.write_all(&Facts::of(image).to_bytes()?)?;
    file.sync_all()
}

/// Reads what is known of a published object.
pub(super) fn read(directory: &OwnedFd) -> io::Result<StoredImage> {
    let mut text = Vec::new();
    File::from(tree::open_file(directory, layout::RECORD)?).take(MAX_FACTS).read_to_end(&mut text)?;
    let facts = Facts::parse(&text, layout::RECORD)?;
    let chunks = read_digests(directory, &facts)?;
    facts.with_digests(chunks, layout::MANIFEST)
}

fn read_digests(directory: &OwnedFd, facts: &Facts) -> io::Result<Vec<ChunkDigest>> {
    let mut file = File::from(tree::open_file(directory, layout::MANIFEST)?);
    // Checked before memory is taken for it: the number comes from a file.
    if Some(file.metadata()?.len()) != facts.digests_length() {
        let found = format!("it does not hold the {} digests recorded", facts.chunks());
        return Err(damaged(layout::MANIFEST, &found));
    }
    let mut chunks = Vec::with_capacity(usize::try_from(facts.chunks()).map_err(io::Error::other)?);
    let mut buffer = vec![0_u8; BATCH * ENTRY];
    let mut left = chunks.capacity();
    while left > 0 {
        let batch = buffer.get_mut(..left.min(BATCH).saturating_mul(ENTRY)).unwrap_or_default();
        file.read_exact(batch)?;
        chunks.extend(batch.chunks_exact(ENTRY).filter_map(parse_entry));
        left = left.saturating_sub(BATCH);
    }
    Ok(chunks)
}

/// The operating system's number for `error`; damage has none and counts as a failed read.
pub(super) fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
