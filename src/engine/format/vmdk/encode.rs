//! The parallel half of writing: a chunk cut into grains, zeros left out, and packed for a stream.
//!
//! Knows grains and compression; must not know where anything lies in the file.

use bytes::Bytes;

use super::{SECTOR, WRITTEN_GRAIN, grain::pack, sparse::SparseLayout, stream::StreamLayout};
use crate::{
    error::{Error, Kind, Result},
    format::{EncodedChunk, EncodedPiece, Encoder, Layout},
    io::is_zero,
    model::{Chunk, Compression, OutputFormat, Subformat},
};

/// Length of a grain in bytes.
const GRAIN: usize = 64 << 10;
const _: () = assert!(GRAIN as u64 == WRITTEN_GRAIN * SECTOR, "one grain");

/// Writes vmdk.
#[derive(Debug)]
pub(in crate::format) struct VmdkEncoder {
    output: OutputFormat,
    packed: bool,
}

impl VmdkEncoder {
    /// An encoder for this subformat; streamOptimized if there is none.
    ///
    /// # Errors
    /// `InvalidInput` if vmdk has no such form.
    pub(in crate::format) fn new(output: OutputFormat) -> Result<Self> {
        let refuse = |message: String| Err(Error::new(Kind::InvalidInput, message));
        let packed = match (output.subformat, output.compression) {
            (None | Some(Subformat::StreamOptimized), Compression::None | Compression::Zlib) => true,
            (Some(Subformat::MonolithicSparse), Compression::None) => false,
            (None | Some(Subformat::StreamOptimized | Subformat::MonolithicSparse), compression) => {
                return refuse(format!(
                    "vmdk does not compress this form with {compression}: streamOptimized has zlib, monolithicSparse none"
                ));
            }
            (Some(Subformat::Dynamic | Subformat::Fixed | Subformat::Static), _) => {
                return refuse("vmdk is written as streamOptimized or monolithicSparse".to_owned());
            }
        };
        if output.cluster_size as usize != GRAIN {
            return refuse(format!("vmdk is written in grains of {GRAIN} bytes, not of {}", output.cluster_size));
        }
        Ok(Self { output, packed })
    }

    fn encode_packed(chunk: &Chunk, starts: &[usize]) -> Result<Vec<EncodedPiece>> {
        let (mut bytes, mut ends) = (Vec::new(), Vec::with_capacity(starts.len()));
        for start in starts {
            let grain = chunk.data.get(*start..start.saturating_add(GRAIN).min(chunk.data.len())).unwrap_or_default();
            let lba = chunk.offset().saturating_add(*start as u64) / SECTOR;
            if grain.len() == GRAIN {
                pack(lba, grain, &mut bytes)?;
            } else {
                // The disk ends inside its last grain; what is unpacked must be a whole one.
                let mut whole = grain.to_vec();
                whole.resize(GRAIN, 0);
                pack(lba, &whole, &mut bytes)?;
            }
            ends.push(bytes.len());
        }
        let bytes = Bytes::from(bytes);
        let mut from = 0;
        let piece = |(start, end): (&usize, usize)| {
            let range = std::mem::replace(&mut from, end)..end;
            let guest = chunk.offset().saturating_add(*start as u64);
            EncodedPiece { guest, bytes: bytes.slice(range), packed: true }
        };
        Ok(starts.iter().zip(ends).map(piece).collect())
    }

    /// Neighbours are one piece.
    fn encode_plain(chunk: &Chunk, starts: &[usize]) -> Vec<EncodedPiece> {
        let mut pieces: Vec<(usize, usize)> = Vec::new();
        for start in starts {
            let end = start.saturating_add(GRAIN).min(chunk.data.len());
            match pieces.last_mut() {
                Some(last) if last.1 == *start => last.1 = end,
                _ => pieces.push((*start, end)),
            }
        }
        let piece = |(start, end): (usize, usize)| {
            let guest = chunk.offset().saturating_add(start as u64);
            EncodedPiece { guest, bytes: chunk.data.slice(start..end), packed: false }
        };
        pieces.into_iter().map(piece).collect()
    }
}

/// Where in the chunk grains begin that hold something else than zeros.
fn grains(chunk: &Chunk) -> Vec<usize> {
    let mut starts = Vec::new();
    let mut next = 0_usize;
    for run in &chunk.runs {
        // From the grain in which the run begins, unless the run before it ended there.
        let mut start = (run.start as usize & !GRAIN.saturating_sub(1)).max(next);
        while start < run.end as usize {
            let end = start.saturating_add(GRAIN);
            if chunk.data.get(start..end.min(chunk.data.len())).is_some_and(|grain| !is_zero(grain)) {
                starts.push(start);
            }
            start = end;
        }
        next = start;
    }
    starts
}

impl Encoder for VmdkEncoder {
    fn encode(&self, chunk: &Chunk) -> Result<EncodedChunk> {
        let starts = grains(chunk);
        let pieces =
            if self.packed { Self::encode_packed(chunk, &starts)? } else { Self::encode_plain(chunk, &starts) };
        Ok(EncodedChunk { index: chunk.index, pieces })
    }

    fn layout(&self, virtual_size: Option<u64>) -> Result<Box<dyn Layout>> {
        Ok(if self.packed {
            Box::new(StreamLayout::new(virtual_size)?)
        } else {
            Box::new(SparseLayout::new(virtual_size)?)
        })
    }

    fn output(&self) -> OutputFormat {
        self.output
    }

    /// The header of a stream has the disk's size.
    fn is_forward(&self, virtual_size: Option<u64>) -> bool {
        self.packed && virtual_size.is_some()
    }
}

/// Sectors of a disk of `virtual_size` bytes, the last perhaps filled up with zeros.
///
/// # Errors
/// `InvalidInput` if there are none: readers take such a file for a mere descriptor.
pub(super) fn capacity(virtual_size: u64) -> Result<u64> {
    match virtual_size.div_ceil(SECTOR) {
        0 => Err(Error::new(Kind::InvalidInput, "vmdk has no disks of 0 bytes: write this one as raw or qcow2")),
        sectors => Ok(sectors),
    }
}

/// A sector number as tables have it.
///
/// # Errors
/// `InvalidInput` if the file is too long for them.
pub(super) fn sector_number(sector: u64) -> Result<u32> {
    u32::try_from(sector).map_err(|_| {
        let message = "a vmdk in one file holds up to 2 TiB, and this disk has more data: write it as raw or qcow2";
        Error::new(Kind::InvalidInput, message)
    })
}

/// Refuses pieces that come in another order than the guest's.
///
/// # Errors
/// `Internal`.
pub(super) fn check_order(piece: &EncodedPiece, placed: u64, packed: bool) -> Result<()> {
    if piece.guest >= placed && piece.guest.is_multiple_of(GRAIN as u64) && piece.packed == packed {
        return Ok(());
    }
    Err(Error::new(Kind::Internal, format!("vmdk: a piece at {:#x} comes after {placed:#x}", piece.guest)))
}
