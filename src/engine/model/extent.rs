//! The guest's disk cut into fixed chunks, and the list of their digests.
//!
//! The content digest is a function of what the guest sees and of nothing else: an unallocated range, a range of
//! explicit zeros and a range of stored zero bytes give the same digest, so it does not change with the format.

use std::ops::Range;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Length of a chunk in bytes: the default object size of an RBD image, so that a chunk is one object there.
pub const CHUNK_SIZE: u64 = 4 << 20;

/// One non-empty chunk of the guest's disk.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// Number of the chunk: it begins at guest byte `index * CHUNK_SIZE`.
    pub index: u64,
    /// All bytes of the chunk, zeros included: `CHUNK_SIZE` of them, fewer only in the disk's last chunk.
    pub data: Bytes,
    /// The parts of `data` that hold something else than zeros, ascending, not touching, never empty.
    pub runs: Vec<Range<u32>>,
    /// BLAKE3 of `data`.
    pub digest: [u8; 32],
}

impl Chunk {
    /// Guest offset of the first byte.
    pub fn offset(&self) -> u64 {
        self.index.saturating_mul(CHUNK_SIZE)
    }
}

/// The digest of one chunk that holds something else than zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkDigest {
    /// Number of the chunk.
    pub index: u64,
    /// BLAKE3 of its bytes.
    pub digest: [u8; 32],
}

/// What the guest sees, as a list of chunk digests. Chunks that are all zero are not listed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentManifest {
    /// Size of the guest's disk in bytes.
    pub virtual_size: u64,
    /// Digests of the chunks that are not all zero, by ascending index.
    pub chunks: Vec<ChunkDigest>,
}

impl ContentManifest {
    /// Separates this use of BLAKE3 from every other one (BLAKE3 paper, section 2.3, key derivation context).
    const CONTEXT: &str = "vitrine.dev 2026-11 content digest v1";

    /// The content digest: BLAKE3 over virtual size, chunk size and every listed chunk's number and digest,
    /// all integers as 64-bit little-endian.
    pub fn root(&self) -> super::Digest {
        let mut hasher = blake3::Hasher::new_derive_key(Self::CONTEXT);
        hasher.update(&self.virtual_size.to_le_bytes());
        hasher.update(&CHUNK_SIZE.to_le_bytes());
        for chunk in &self.chunks {
            hasher.update(&chunk.index.to_le_bytes());
            hasher.update(&chunk.digest);
        }
        super::Digest::from_blake3(hasher.finalize().as_bytes())
    }
}
