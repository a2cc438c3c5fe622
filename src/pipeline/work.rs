//! What is computed for each chunk, on any core: unpack, find zeros, hash, encode.

use std::sync::Arc;

use bytes::Bytes;

use super::cut::{Packed, Segment, Unit};
use crate::{
    error::{Error, Kind, Result},
    format::{EncodedChunk, Encoder},
    io::{Pool, is_zero, nonzero_runs},
    model::{Chunk, ChunkDigest},
};

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
    buffers: Arc<Pool>,
    encoders: Vec<Arc<dyn Encoder>>,
}

impl Worker {
    /// A worker that encodes with each of `encoders`.
    pub fn new(buffers: Arc<Pool>, encoders: Vec<Arc<dyn Encoder>>) -> Self {
        Self { buffers, encoders }
    }

    /// The finished chunk; `None` if it is all zero.
    ///
    /// # Errors
    /// A violation if a compressed cluster does not unpack.
    pub fn finish(&self, unit: Unit) -> Result<Option<Finished>> {
        let index = unit.index;
        // Stops at the first byte that is something else, so this costs nothing where there is data.
        if unit.segments.iter().all(|segment| segment.packed.is_none() && is_zero(&segment.bytes)) {
            return Ok(None);
        }
        let data = self.assemble(unit)?;
        let runs = nonzero_runs(&data);
        if runs.is_empty() {
            return Ok(None);
        }
        let digest = *blake3::hash(&data).as_bytes();
        let chunk = Chunk { index, data, runs, digest };
        let data = chunk.runs.iter().map(|run| u64::from(run.end.saturating_sub(run.start))).sum();
        let encoded = self.encoders.iter().map(|encoder| encoder.encode(&chunk)).collect::<Result<_>>()?;
        Ok(Some(Finished { digest: ChunkDigest { index, digest }, data, encoded }))
    }

    /// All bytes of the chunk.
    fn assemble(&self, mut unit: Unit) -> Result<Bytes> {
        // The usual case of an uncompressed disk: one run of file bytes is the chunk, and nothing needs to be copied.
        if let [Segment { at: 0, length, packed: None, .. }] = unit.segments.as_slice()
            && *length == unit.length
            && let Some(segment) = unit.segments.pop()
        {
            return Ok(segment.bytes);
        }
        let mut buffer = self.buffers.take(unit.length);
        let mut rest = buffer.bytes_mut();
        let mut at = 0_usize;
        for segment in unit.segments {
            let gap = segment.at.checked_sub(at).ok_or_else(overlap)?;
            let (zeros, after) = rest.split_at_mut_checked(gap).ok_or_else(overlap)?;
            zeros.fill(0);
            let (target, after) = after.split_at_mut_checked(segment.length).ok_or_else(overlap)?;
            fill(&segment, target)?;
            rest = after;
            at = segment.at.saturating_add(segment.length);
        }
        rest.fill(0);
        Ok(buffer.freeze())
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
