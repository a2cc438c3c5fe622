//! The serial half of writing: a place for every block, and the BAT that says where.
//!
//! ```text
//! headers  log (empty)  metadata  BAT (if the size is known)  blocks …  [BAT]
//! ```
//! One who reads the file as a stream meets every table before its data if the size is known from the start. The identifier at byte 0
//! is written last, so a file that was not finished is no vhdx.

use super::{MAX_VIRTUAL_SIZE, MIB, PAYLOAD_BLOCK_FULLY_PRESENT, chunk_ratio, front};
use crate::{
    error::{Error, Kind, Result},
    format::{
        EncodedChunk, Finish, Layout, Write,
        blocks::{BlockLayout, Entries},
    },
};

/// Blocks of disks whose size is known are as small as the format has them, so that little data takes little room; those of disks of more
/// than this many blocks are larger, because most readers hold the whole BAT in memory.
const MANY_BLOCKS: u64 = 1 << 20;
/// Blocks of a disk whose size is not known, in bytes: a BAT of 64 MiB for one of 16 TiB.
const BLOCK_OF_UNKNOWN: u64 = 2 << 20;

/// Where the parts of one vhdx go.
#[derive(Debug)]
pub(super) struct VhdxLayout {
    fixed: bool,
    block_size: u64,
    /// Offset and length of the BAT in bytes, if reserved before the data.
    bat: Option<(u64, u64)>,
    /// Where the blocks begin, in bytes.
    origin: u64,
    blocks: BlockLayout,
    entries: Entries,
}

impl VhdxLayout {
    /// The layout of a file whose disk has `virtual_size` bytes, if that is known.
    ///
    /// # Errors
    /// `InvalidInput` if it is too large for the format.
    pub(super) fn new(fixed: bool, virtual_size: Option<u64>) -> Result<Self> {
        let block_size = virtual_size.map_or(BLOCK_OF_UNKNOWN, block_size);
        let bat = match virtual_size {
            Some(size) => Some((front::END, bat_length(rounded(size)?, block_size))),
            None => None,
        };
        let origin = bat.map_or(front::END, |(offset, length)| offset.saturating_add(length));
        let blocks = BlockLayout::new(block_size, origin);
        let entries = Entries::new(bat.map(|(offset, _)| offset));
        Ok(Self { fixed, block_size, bat, origin, blocks, entries })
    }

    /// Everything of a fixed disk has its place from the start.
    fn place_fixed(&self, chunk: EncodedChunk, writes: &mut Vec<Write>) {
        let origin = self.origin;
        let write = |piece: crate::format::EncodedPiece| Write {
            offset: origin.saturating_add(piece.guest),
            bytes: piece.bytes,
        };
        writes.extend(chunk.pieces.into_iter().map(write));
    }

    /// Enters all blocks of a fixed disk; where they end.
    fn enter_all(&mut self, virtual_size: u64) -> u64 {
        let blocks = virtual_size.div_ceil(self.block_size.max(1));
        for block in 0..blocks {
            let host = self.origin.saturating_add(block.saturating_mul(self.block_size));
            enter(&mut self.entries, self.block_size, block, host);
        }
        self.origin.saturating_add(blocks.saturating_mul(self.block_size))
    }
}

impl Layout for VhdxLayout {
    fn place(&mut self, chunk: EncodedChunk) -> Result<Vec<Write>> {
        let mut writes = Vec::new();
        if self.fixed {
            self.place_fixed(chunk, &mut writes);
        } else {
            let (entries, block_size) = (&mut self.entries, self.block_size);
            self.blocks.place(chunk, &mut writes, |block, host| enter(entries, block_size, block, host))?;
        }
        self.entries.settle(&mut writes);
        Ok(writes)
    }

    /// The virtual size in the file is a multiple of 512 bytes, as the format has it.
    fn finish(mut self: Box<Self>, virtual_size: u64) -> Result<Finish> {
        self.blocks.check(virtual_size)?;
        let virtual_size = rounded(virtual_size)?;
        let needed = bat_length(virtual_size, self.block_size);
        let end = if self.fixed { self.enter_all(virtual_size) } else { self.blocks.end() };
        let (bat_offset, bat_length, length) = match self.bat {
            Some((offset, reserved)) if needed <= reserved => (offset, reserved, end),
            Some((_, reserved)) => {
                let message = format!("vhdx: {needed} bytes of BAT where {reserved} were announced");
                return Err(Error::new(Kind::Internal, message));
            }
            None => (end, needed, end.saturating_add(needed)),
        };
        let Self { fixed, block_size, .. } = *self;
        let mut writes = Vec::new();
        self.entries.finish(bat_offset, bat_length, &mut writes);
        writes.extend(front::writes(&front::Facts { fixed, block_size, virtual_size, bat_offset, bat_length }));
        Ok(Finish { writes, length })
    }
}

/// Enters a block that lies at `host`.
fn enter(entries: &mut Entries, block_size: u64, block: u64, host: u64) {
    let bitmaps = block.checked_div(ratio(block_size)).unwrap_or(0);
    entries.set(block.saturating_add(bitmaps).saturating_mul(8), &(host | PAYLOAD_BLOCK_FULLY_PRESENT).to_le_bytes());
}

fn ratio(block_size: u64) -> u64 {
    chunk_ratio(block_size, u64::from(front::LOGICAL_SECTOR))
}

/// The block size for a disk of `size` bytes: at most 64 MiB for the largest.
fn block_size(size: u64) -> u64 {
    size.div_ceil(MANY_BLOCKS).max(MIB).next_power_of_two()
}

/// Length of the BAT region for a disk of `size` bytes.
fn bat_length(size: u64, block_size: u64) -> u64 {
    let ratio = ratio(block_size);
    let blocks = size.div_ceil(block_size.max(1));
    // qemu takes an empty disk to need as many entries as if it counted down from 2^32, and does not open a smaller BAT.
    let bitmaps = blocks.checked_sub(1).unwrap_or(u64::from(u32::MAX)).checked_div(ratio).unwrap_or(0);
    blocks.saturating_add(bitmaps).saturating_mul(8).max(1).checked_next_multiple_of(MIB).unwrap_or(u64::MAX)
}

/// The size that the file tells.
fn rounded(size: u64) -> Result<u64> {
    match size.checked_next_multiple_of(u64::from(front::LOGICAL_SECTOR)) {
        Some(rounded) if rounded <= MAX_VIRTUAL_SIZE => Ok(rounded),
        _ => {
            let message = format!("a disk of {size} bytes is larger than the 64 TiB that a vhdx holds");
            Err(Error::new(Kind::InvalidInput, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::EncodedPiece;

    #[test]
    fn blocks_are_small_until_the_table_would_be_large() {
        assert_eq!(block_size(0), MIB);
        assert_eq!(block_size(1 << 40), MIB);
        assert_eq!(block_size((1 << 40) + 1), 2 * MIB);
        assert_eq!(block_size(64 << 40), 64 * MIB);
        for size in [512, 1 << 30, 1 << 40, 5 << 40, 64 << 40] {
            assert!(bat_length(size, block_size(size)) <= 9 * MIB, "{size}");
        }
    }

    fn place(layout: &mut VhdxLayout, guest: u64) -> Vec<u64> {
        let pieces = vec![EncodedPiece { guest, bytes: vec![1; 512].into(), packed: false }];
        layout.place(EncodedChunk { index: 0, pieces }).unwrap().iter().map(|w| w.offset / MIB).collect()
    }

    #[test]
    fn the_table_stands_before_the_data_if_the_size_is_known_and_the_identifier_comes_last() {
        for (size, data, table, length) in [(Some(1 << 30), 4, 3, 6), (None, 3, 7, 8)] {
            let mut layout = Box::new(VhdxLayout::new(false, size).unwrap());
            assert_eq!(place(&mut layout, 512 << 20), [data]);
            place(&mut layout, 900 << 20);
            let finish = layout.finish(1 << 30).unwrap();
            assert_eq!(finish.writes.first().map(|w| w.offset / MIB), Some(table));
            assert_eq!(finish.writes.last().map(|w| w.offset), Some(0));
            assert_eq!(finish.length, length * MIB);
        }
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let most = 64 << 40;
        assert!(VhdxLayout::new(true, Some(most)).is_ok());
        assert_eq!(VhdxLayout::new(false, Some(most + 1)).unwrap_err().kind(), Kind::InvalidInput);
        let mut layout = Box::new(VhdxLayout::new(false, Some(1 << 30)).unwrap());
        place(&mut layout, 512 << 20);
        assert_eq!(layout.finish(1 << 20).unwrap_err().kind(), Kind::Internal);
        let layout = Box::new(VhdxLayout::new(false, Some(1 << 30)).unwrap());
        assert_eq!(layout.finish(1 << 40).unwrap_err().kind(), Kind::Internal);
    }
}
