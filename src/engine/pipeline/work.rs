//! What is computed for each chunk, on any core: unpack, find zeros, hash, encode.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;

use super::cut::{Packed, Segment, Unit};
use crate::{
    error::{Error, Kind, Result},
    format::{EncodedChunk, Encoder},
    io::{NonzeroRuns, Pool, PoolBuffer, is_zero},
    model::{Chunk, ChunkDigest},
};

/// Bytes that are hashed and searched for zeros at once: they fit the processor's cache together with what they were made of, and
/// are enough for BLAKE3 to work on all lanes. A multiple of 4096.
const LOOKED_AT: usize = 128 << 10;

/// A chunk that is ready to be written.
#[derive(Debug)]
pub struct Finished {
    /// Its digest.
    pub digest: ChunkDigest,
    /// How many of its bytes lie in blocks that are not zero.
    pub data: u64,
    /// Its form in every output, in the order of the encoders.
    pub encoded: Vec<EncodedChunk>,
}

/// Makes finished chunks of units.
pub struct Worker {
    pool: Arc<Pool>,
    encoders: Vec<Arc<dyn Encoder>>,
}

impl Worker {
    /// A worker that encodes with each of `encoders`.
    pub fn new(pool: Arc<Pool>, encoders: Vec<Arc<dyn Encoder>>) -> Self {
        Self { pool, encoders }
    }

    /// A buffer for a chunk. Waits until there is one.
    pub fn buffer(&self) -> PoolBuffer {
        self.pool.take(0)
    }

    /// The finished chunk, whose bytes are put together in `buffer`; `None` if it is all zero.
    ///
    /// # Errors
    /// A violation if a compressed cluster does not unpack.
    pub fn finish(&self, unit: Unit, buffer: PoolBuffer) -> Result<Option<Finished>> {
        let index = unit.index;
        // Stops at the first byte that is something else, so this costs nothing where there is data.
        if unit.segments.iter().all(|segment| segment.packed.is_none() && is_zero(&segment.bytes)) {
            return Ok(None);
        }
        let Assembled { data, runs, digest } = assemble(unit, buffer)?;
        if runs.is_empty() {
            return Ok(None);
        }
        let chunk = Chunk { index, data, runs, digest };
        let data = chunk.runs.iter().map(|run| u64::from(run.end.saturating_sub(run.start))).sum();
        let encoded = self.encoders.iter().map(|encoder| encoder.encode(&chunk)).collect::<Result<_>>()?;
        Ok(Some(Finished { digest: ChunkDigest { index, digest }, data, encoded }))
    }
}

/// All bytes of the chunk, and what is known of them.
fn assemble(unit: Unit, mut buffer: PoolBuffer) -> Result<Assembled> {
    buffer.resize(unit.length);
    let mut filling = Filling::new(buffer);
    for segment in unit.segments {
        filling.leave_zero_until(segment.at)?;
        filling.add(segment.length, |target| fill(&segment, target))?;
    }
    filling.leave_zero_until(unit.length)?;
    Ok(filling.finish())
}

/// A chunk with what is told of it.
struct Assembled {
    data: Bytes,
    runs: Vec<Range<u32>>,
    digest: [u8; 32],
}

/// A chunk that is being put together from its beginning. What is there is hashed while the processor still has it in its cache: a
/// whole chunk is larger than that.
struct Filling {
    buffer: PoolBuffer,
    filled: usize,
    seen: usize,
    runs: NonzeroRuns,
    hasher: blake3::Hasher,
}

impl Filling {
    fn new(buffer: PoolBuffer) -> Self {
        Self { buffer, filled: 0, seen: 0, runs: NonzeroRuns::default(), hasher: blake3::Hasher::new() }
    }

    fn leave_zero_until(&mut self, end: usize) -> Result<()> {
        let gap = end.checked_sub(self.filled).ok_or_else(overlap)?;
        self.add(gap, |target| {
            target.fill(0);
            Ok(())
        })
    }

    /// Has `write` fill the next `length` bytes.
    fn add(&mut self, length: usize, write: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<()> {
        let end = self.filled.checked_add(length).ok_or_else(overlap)?;
        write(self.buffer.bytes_mut().get_mut(self.filled..end).ok_or_else(overlap)?)?;
        self.filled = end;
        while self.filled.saturating_sub(self.seen) >= LOOKED_AT {
            self.look(LOOKED_AT);
        }
        Ok(())
    }

    fn look(&mut self, length: usize) {
        let end = self.seen.saturating_add(length);
        let bytes = self.buffer.as_ref().get(self.seen..end).unwrap_or_default();
        self.runs.add(bytes);
        self.hasher.update(bytes);
        self.seen = end;
    }

    fn finish(mut self) -> Assembled {
        self.look(self.filled.saturating_sub(self.seen));
        let digest = *self.hasher.finalize().as_bytes();
        Assembled { data: self.buffer.freeze(), runs: self.runs.finish(), digest }
    }
}

fn fill(segment: &Segment, target: &mut [u8]) -> Result<()> {
    match &segment.packed {
        None => target.copy_from_slice(segment.bytes.get(..target.len()).ok_or_else(overlap)?),
        Some(Packed { codec, unpacked_length, skip: 0 }) if *unpacked_length == target.len() => {
            codec.unpack(&segment.bytes, target)?;
        }
        Some(Packed { codec, unpacked_length, skip }) => {
            let mut cluster = vec![0; *unpacked_length];
            codec.unpack(&segment.bytes, &mut cluster)?;
            let part = cluster.get(*skip..).and_then(|tail| tail.get(..target.len())).ok_or_else(overlap)?;
            target.copy_from_slice(part);
        }
    }
    Ok(())
}

/// Only a fault in a format's `resolve` leads here: its answers overlap or leave the chunk.
fn overlap() -> Error {
    Error::new(Kind::Internal, "a format gave extents that do not fit together")
}
