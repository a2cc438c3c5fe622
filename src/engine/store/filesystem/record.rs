//! What is written beside an object's data: `image.json` with its facts, and `manifest` with its chunk digests.
//!
//! The digests are apart and binary, because a full disk of 1 TiB has 262,144 of them: 10 MiB here, 40 MiB as JSON. Each is
//! its chunk's number as 64-bit little-endian followed by the 32 bytes of the digest. `image.json` holds the content digest,
//! so that a damaged list is noticed when it is read.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::OwnedFd,
};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{layout, tree};
use crate::model::{
    ChunkDigest, ContainerFormat, ContentManifest, Digest, DiskFormat, OutputFormat, Properties, StoredImage,
};

/// The version of the record. One with a higher version is refused.
const VERSION: u32 = 1;
/// Larger than any record of ours, in bytes.
const MAX_RECORD: u64 = 64 << 10;
/// Length of one entry of the manifest, in bytes.
const ENTRY: usize = 40;
/// Length of the digest in it.
const DIGEST: usize = 32;
/// Entries that are read at once.
const BATCH: usize = 1024;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    version: u32,
    format: OutputFormat,
    length: u64,
    source_size: u64,
    source_digests: Vec<Digest>,
    source_format: DiskFormat,
    container_format: ContainerFormat,
    #[serde(default, skip_serializing_if = "Properties::is_empty")]
    properties: Properties,
    virtual_size: u64,
    content_digest: Digest,
    chunks: u64,
}

/// Writes what is known of an object into its directory, and makes it durable.
pub(super) fn write(directory: &OwnedFd, image: &StoredImage) -> io::Result<()> {
    let mut manifest =
        io::BufWriter::with_capacity(BATCH * ENTRY, File::from(tree::create_file(directory, layout::MANIFEST)?));
    for chunk in &image.manifest.chunks {
        manifest.write_all(&chunk.index.to_le_bytes())?;
        manifest.write_all(&chunk.digest)?;
    }
    manifest.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    let mut file = File::from(tree::create_file(directory, layout::RECORD)?);
    file.write_all(&serde_json::to_vec_pretty(&Record::of(image))?)?;
    file.sync_all()
}

/// Reads what is known of a published object.
pub(super) fn read(directory: &OwnedFd) -> io::Result<StoredImage> {
    let mut text = Vec::new();
    File::from(tree::open_file(directory, layout::RECORD)?).take(MAX_RECORD).read_to_end(&mut text)?;
    let record: Record = serde_json::from_slice(&text)?;
    if record.version > VERSION {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("{} has version {}, written by a newer Vitrine: use that one", layout::RECORD, record.version),
        ));
    }
    let manifest = read_manifest(directory, &record)?;
    if manifest.root() != record.content_digest {
        return Err(damaged(&format!(
            "its content digest is {}, recorded is {}",
            manifest.root(),
            record.content_digest
        )));
    }
    Ok(StoredImage {
        format: record.format,
        length: record.length,
        source_size: record.source_size,
        source_digests: record.source_digests,
        source_format: record.source_format,
        container_format: record.container_format,
        properties: record.properties,
        manifest,
    })
}

impl Record {
    fn of(image: &StoredImage) -> Self {
        let StoredImage {
            format,
            length,
            source_size,
            source_digests,
            source_format,
            container_format,
            properties,
            manifest,
        } = image;
        Self {
            version: VERSION,
            format: *format,
            length: *length,
            source_size: *source_size,
            source_digests: source_digests.clone(),
            source_format: *source_format,
            container_format: *container_format,
            properties: properties.clone(),
            virtual_size: manifest.virtual_size,
            content_digest: manifest.root(),
            chunks: manifest.chunks.len() as u64,
        }
    }
}

fn read_manifest(directory: &OwnedFd, record: &Record) -> io::Result<ContentManifest> {
    let mut file = File::from(tree::open_file(directory, layout::MANIFEST)?);
    // Checked before memory is taken for it: the number comes from a file.
    if Some(file.metadata()?.len()) != record.chunks.checked_mul(ENTRY as u64) {
        return Err(damaged(&format!("it does not hold the {} digests recorded", record.chunks)));
    }
    let mut chunks = Vec::with_capacity(usize::try_from(record.chunks).map_err(io::Error::other)?);
    let mut buffer = vec![0_u8; BATCH * ENTRY];
    let mut left = chunks.capacity();
    while left > 0 {
        let batch = buffer.get_mut(..left.min(BATCH).saturating_mul(ENTRY)).unwrap_or_default();
        file.read_exact(batch)?;
        chunks.extend(batch.chunks_exact(ENTRY).filter_map(parse_entry));
        left = left.saturating_sub(BATCH);
    }
    Ok(ContentManifest { virtual_size: record.virtual_size, chunks })
}

fn parse_entry(entry: &[u8]) -> Option<ChunkDigest> {
    let (index, digest) = entry.split_first_chunk::<8>()?;
    Some(ChunkDigest { index: u64::from_le_bytes(*index), digest: *digest.first_chunk::<DIGEST>()? })
}

fn damaged(found: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{} is damaged: {found}", layout::MANIFEST))
}

/// The operating system's number for `error`; damage has none and counts as a failed read.
pub(super) fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
