//! The parallel half of writing: a chunk cut into clusters, zeros left out, the rest packed.
//!
//! Knows cluster size and compression; must not know where anything lies in the file.

use std::ops::Range;

use bytes::Bytes;

use super::{MAX_CLUSTER_BITS, MIN_CLUSTER_BITS, layout::Qcow2Layout, pack::pack};
use crate::{
    error::{Error, Kind, Result},
    format::{EncodedChunk, EncodedPiece, Encoder, Layout},
    io::is_zero,
    model::{Chunk, Compression, OutputFormat},
};

/// Writes qcow2 version 3.
#[derive(Debug)]
pub(in crate::format) struct Qcow2Encoder {
    output: OutputFormat,
    cluster_bits: u32,
}

/// A piece before its packed bytes, if it has any, are final.
enum Draft {
    /// Of the chunk's data.
    Plain(Range<usize>),
    /// Guest offset in the chunk, and where in the packed bytes.
    Packed(usize, Range<usize>),
}

impl Qcow2Encoder {
    /// An encoder for this cluster size and compression.
    ///
    /// # Errors
    /// `InvalidInput` if qcow2 has no such clusters.
    pub(in crate::format) fn new(output: OutputFormat) -> Result<Self> {
        let cluster_bits = output.cluster_size.trailing_zeros();
        if !output.cluster_size.is_power_of_two() || !(MIN_CLUSTER_BITS..=MAX_CLUSTER_BITS).contains(&cluster_bits) {
            let found = output.cluster_size;
            let message = format!("qcow2 has no clusters of {found} bytes: use a power of two from 512 to 2097152");
            return Err(Error::new(Kind::InvalidInput, message));
        }
        Ok(Self { output, cluster_bits })
    }

    /// Appends one cluster, `range` of the chunk's data, to the drafts.
    fn encode_cluster(&self, data: &Bytes, range: Range<usize>, packed: &mut Vec<u8>, drafts: &mut Vec<Draft>) {
        let Some(cluster) = data.get(range.clone()) else { return };
        if is_zero(cluster) {
            return;
        }
        let from = packed.len();
        let length = if cluster.len() == self.cluster_size() {
            pack(cluster, self.output.compression, packed)
        } else {
            // The disk ends inside its last cluster; what is unpacked must be a whole one.
            let mut whole = cluster.to_vec();
            whole.resize(self.cluster_size(), 0);
            pack(&whole, self.output.compression, packed)
        };
        match (length, drafts.last_mut()) {
            (Some(length), _) => drafts.push(Draft::Packed(range.start, from..from.saturating_add(length))),
            (None, Some(Draft::Plain(last))) if last.end == range.start => last.end = range.end,
            (None, _) => drafts.push(Draft::Plain(range)),
        }
    }

    fn cluster_size(&self) -> usize {
        self.output.cluster_size as usize
    }
}

impl Encoder for Qcow2Encoder {
    fn encode(&self, chunk: &Chunk) -> Result<EncodedChunk> {
        let size = self.cluster_size();
        let (mut packed, mut drafts) = (Vec::new(), Vec::new());
        let mut next = 0_usize;
        for run in &chunk.runs {
            // From the cluster in which the run begins, unless the run before it ended there.
            let mut start = (run.start as usize & !size.saturating_sub(1)).max(next);
            while start < run.end as usize {
                let end = start.saturating_add(size);
                self.encode_cluster(&chunk.data, start..end.min(chunk.data.len()), &mut packed, &mut drafts);
                start = end;
            }
            next = start;
        }
        let packed = Bytes::from(packed);
        let piece = |draft| {
            let (start, bytes, packed) = match draft {
                Draft::Plain(range) => (range.start, chunk.data.slice(range), false),
                Draft::Packed(start, range) => (start, packed.slice(range), true),
            };
            EncodedPiece { guest: chunk.offset().saturating_add(start as u64), bytes, packed }
        };
        Ok(EncodedChunk { index: chunk.index, pieces: drafts.into_iter().map(piece).collect() })
    }

    fn layout(&self, virtual_size: Option<u64>) -> Result<Box<dyn Layout>> {
        let compression = match self.output.compression {
            Compression::None | Compression::Zlib => Compression::Zlib,
            Compression::Zstd => Compression::Zstd,
        };
        Ok(Box::new(Qcow2Layout::new(self.cluster_bits, compression, virtual_size)?))
    }

    fn output(&self) -> OutputFormat {
        self.output
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{io::nonzero_runs, model::DiskFormat};

    fn encode(data: Vec<u8>, cluster_size: u32, compression: Compression) -> Vec<(u64, usize, bool)> {
        let output = OutputFormat { disk_format: DiskFormat::Qcow2, subformat: None, compression, cluster_size };
        let runs = nonzero_runs(&data);
        let chunk = Chunk { index: 1, data: data.into(), runs, digest: [0; 32] };
        let encoded = Qcow2Encoder::new(output).unwrap().encode(&chunk).unwrap();
        encoded.pieces.iter().map(|p| (p.guest - chunk.offset(), p.bytes.len(), p.packed)).collect()
    }

    #[test]
    fn zeros_are_left_out_and_neighbours_are_one_piece() {
        let mut data = vec![0_u8; 400_000];
        for byte in [0, 70_000, 135_000, 300_000, 399_999] {
            data[byte] = 1;
        }
        assert_eq!(
            encode(data.clone(), 65536, Compression::None),
            [(0, 3 * 65536, false), (4 * 65536, 65536, false), (6 * 65536, 400_000 - 6 * 65536, false)]
        );
        assert_eq!(encode(data.clone(), 512, Compression::None).len(), 5);
        assert_eq!(encode(data.clone(), 1 << 21, Compression::None), [(0, 400_000, false)]);
        let packed = encode(data, 65536, Compression::Zlib);
        assert_eq!(packed.iter().map(|p| p.0 / 65536).collect::<Vec<_>>(), [0, 1, 2, 4, 6]);
        assert!(packed.iter().all(|(_, length, packed)| *packed && *length < 200));
    }
}
