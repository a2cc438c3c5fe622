//! What is recorded of an object beside its data, as bytes: its facts as JSON, and its chunk digests.
//!
//! The digests are apart and binary, because a full disk of 1 TiB has 262,144 of them: 10 MiB here, 40 MiB as JSON. Each is
//! its chunk's number as 64-bit little-endian followed by the 32 bytes of the digest. The facts hold the content digest, so that a
//! damaged list is noticed when it is read. Pure: where the bytes are kept is each store's own business.

use std::io;

use serde::{Deserialize, Serialize};

use crate::model::{
    ChunkDigest, ContainerFormat, ContentManifest, Digest, DiskFormat, OutputFormat, Properties, StoredImage,
};

/// The version of the record. One with a higher version is refused.
const VERSION: u32 = 1;
/// Larger than the facts of any object, in bytes.
pub(super) const MAX_FACTS: u64 = 64 << 10;
/// Length of one digest with its chunk's number, in bytes.
pub(super) const ENTRY: usize = 40;
/// Length of the digest in it.
const DIGEST: usize = 32;

/// The facts.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Facts {
    version: u32,
    format: OutputFormat,
    length: u64,
    source_size: u64,
    source_digests: Vec<Digest>,
    source_format: DiskFormat,
    container_format: ContainerFormat,
    #[serde(default, skip_serializing_if = "Properties::is_empty")]
    properties: Properties,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    request: Option<String>,
    virtual_size: u64,
    content_digest: Digest,
    chunks: u64,
}

impl Facts {
    /// Those of an object.
    pub(super) fn of(image: &StoredImage) -> Self {
        let StoredImage {
            format,
            length,
            source_size,
            source_digests,
            source_format,
            container_format,
            properties,
            request,
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
            request: request.clone(),
            virtual_size: manifest.virtual_size,
            content_digest: manifest.root(),
            chunks: manifest.chunks.len() as u64,
        }
    }

    /// As they are written.
    pub(super) fn to_bytes(&self) -> io::Result<Vec<u8>> {
        Ok(serde_json::to_vec_pretty(self)?)
    }

    /// Reads what `to_bytes` wrote, which is kept in `place`.
    ///
    /// # Errors
    /// That it is damaged, or of a later version.
    pub(super) fn parse(text: &[u8], place: &str) -> io::Result<Self> {
        let facts: Self = serde_json::from_slice(text)?;
        if facts.version > VERSION {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("{place} has version {}, written by a newer Vitrine: use that one", facts.version),
            ));
        }
        Ok(facts)
    }

    /// Length of the list of digests, in bytes; `None` if there cannot be so many.
    pub(super) fn digests_length(&self) -> Option<u64> {
        self.chunks.checked_mul(ENTRY as u64)
    }

    /// How many digests the list has.
    pub(super) fn chunks(&self) -> u64 {
        self.chunks
    }

    /// The whole record, with the digests that are kept in `place`.
    ///
    /// # Errors
    /// That these are not the digests of these facts.
    pub(super) fn with_digests(self, chunks: Vec<ChunkDigest>, place: &str) -> io::Result<StoredImage> {
        let manifest = ContentManifest { virtual_size: self.virtual_size, chunks };
        if manifest.root() != self.content_digest {
            let found = format!("its content digest is {}, recorded is {}", manifest.root(), self.content_digest);
            return Err(damaged(place, &found));
        }
        Ok(StoredImage {
            format: self.format,
            length: self.length,
            source_size: self.source_size,
            source_digests: self.source_digests,
            source_format: self.source_format,
            container_format: self.container_format,
            properties: self.properties,
            request: self.request,
            manifest,
        })
    }
}

/// One digest as it is written.
pub(super) fn entry(chunk: &ChunkDigest) -> [u8; ENTRY] {
    let mut bytes = [0; ENTRY];
    let written = chunk.index.to_le_bytes().into_iter().chain(chunk.digest);
    bytes.iter_mut().zip(written).for_each(|(to, from)| *to = from);
    bytes
}

/// Reads what `entry` wrote.
pub(super) fn parse_entry(entry: &[u8]) -> Option<ChunkDigest> {
    let (index, digest) = entry.split_first_chunk::<8>()?;
    Some(ChunkDigest { index: u64::from_le_bytes(*index), digest: *digest.first_chunk::<DIGEST>()? })
}

/// The error for a record in `place` in which `found` was found.
pub(super) fn damaged(place: &str, found: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{place} is damaged: {found}"))
}
