//! The serial half of writing: places for blocks, the block map and the header.
//!
//! ```text
//! header | block map | blocks, in the order in which they came, which is the guest's; in static disks all of them
//! ```
//! Where the size is not known from the start, the map's place is as large as that of a disk of 16 TiB, and what is not used is a
//! hole.

use bytes::{BufMut as _, Bytes, BytesMut};

use super::{BLOCK, FREE, SECTOR, SIGNATURE, TYPE_DYNAMIC, TYPE_STATIC, VERSION};
use crate::{
    error::{Error, Kind, Result},
    format::{EncodedChunk, Finish, Layout, Write},
};

/// The text that begins the file, padded to 64 bytes with zeros, as VirtualBox writes it.
const TEXT: &[u8] = b"<<< Oracle VM VirtualBox Disk Image >>>\n";
/// `cbHeader`, as VirtualBox writes it.
const HEADER_LENGTH: u32 = 0x190;
/// Where the block map begins, in bytes.
const MAP_OFFSET: u64 = 512;
/// Data begins at a multiple of this, in bytes, as in VirtualBox's own disks.
const ALIGNMENT: u64 = 1 << 20;
/// The largest disk whose size need not be known from the start, in bytes: the default of `Limits::max_virtual_size`.
const LARGEST_UNTOLD: u64 = 16 << 40;
/// Most entries of a block map: its place, with the header, has to end where 32 bits still reach, and 128 MiB are 32 TiB of disk,
/// twice what `Limits` allow by default.
const MAX_BLOCKS: u64 = 32 << 20;

/// Gives blocks their places.
#[derive(Debug)]
pub(super) struct VdiLayout {
    /// Whether every block is allocated.
    all: bool,
    /// Number in the file of each block so far; empty in static disks.
    table: Vec<u32>,
    /// Blocks placed.
    placed: u32,
    /// Entries for which there is room.
    reserved: u64,
    data_offset: u64,
}

impl VdiLayout {
    /// # Errors
    /// `InvalidInput` if the size is known and does not fit.
    pub(super) fn new(all: bool, virtual_size: Option<u64>) -> Result<Self> {
        let reserved = virtual_size.map_or(Ok(LARGEST_UNTOLD / BLOCK), blocks)?;
        let map_end = MAP_OFFSET.saturating_add(reserved.saturating_mul(4));
        Ok(Self { all, table: Vec::new(), placed: 0, reserved, data_offset: map_end.next_multiple_of(ALIGNMENT) })
    }

    /// Number in the file of block `number` of the disk.
    fn block(&mut self, number: u64) -> Result<u64> {
        if number >= self.reserved {
            return Err(self.too_large(number));
        }
        if self.all {
            return Ok(number);
        }
        let index = usize_of(number);
        if let Some(entry) = self.table.get(index).copied() {
            let last = index.saturating_add(1) == self.table.len();
            return if last { Ok(u64::from(entry)) } else { Err(disorder(number)) };
        }
        self.table.resize(index, FREE);
        let entry = self.placed;
        self.table.push(entry);
        self.placed = entry.saturating_add(1);
        Ok(u64::from(entry))
    }

    fn too_large(&self, number: u64) -> Error {
        let message = format!(
            "the disk has more than the {} blocks for which room was left before its size was known (block {number}): \
             write it raw, then convert that",
            self.reserved
        );
        Error::new(Kind::InvalidInput, message)
    }

    fn header(&self, size: u64, blocks: u64, allocated: u64) -> Bytes {
        let number = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        let mut header = BytesMut::with_capacity(usize_of(MAP_OFFSET));
        header.put_slice(TEXT);
        header.resize(0x40, 0);
        header.put_u32_le(SIGNATURE);
        header.put_u32_le(VERSION);
        header.put_u32_le(HEADER_LENGTH);
        header.put_u32_le(if self.all { TYPE_STATIC } else { TYPE_DYNAMIC });
        header.put_u32_le(0); // flags
        header.resize(0x154, 0); // comment
        header.put_u32_le(number(MAP_OFFSET));
        header.put_u32_le(number(self.data_offset));
        header.resize(0x168, 0); // geometry: left to the BIOS
        header.put_u32_le(number(SECTOR));
        header.put_u32_le(0);
        header.put_u64_le(size);
        header.put_u32_le(number(BLOCK));
        header.put_u32_le(0); // extra bytes of a block
        header.put_u32_le(number(blocks));
        header.put_u32_le(number(allocated));
        header.put_slice(&identity());
        header.put_slice(&identity());
        header.resize(usize_of(MAP_OFFSET), 0);
        header.freeze()
    }
}

/// Blocks of a disk of `virtual_size` bytes.
///
/// # Errors
/// `InvalidInput` if they are too many.
fn blocks(virtual_size: u64) -> Result<u64> {
    let blocks = virtual_size.div_ceil(BLOCK);
    if blocks <= MAX_BLOCKS {
        return Ok(blocks);
    }
    let message = format!("a vdi with blocks of 1 MiB cannot hold a disk of {virtual_size} bytes: use qcow2");
    Err(Error::new(Kind::InvalidInput, message))
}

/// A random UUID (RFC 9562, version 4) as VirtualBox stores it: the first three parts are little-endian.
fn identity() -> [u8; 16] {
    let id = rand::random::<u128>() & !(0xf << 60) & !(0x3 << 70) | (0x4 << 60) | (0x2 << 70);
    id.to_le_bytes()
}

fn disorder(number: u64) -> Error {
    Error::new(Kind::Internal, format!("vdi: block {number} came out of order, or is not on the disk"))
}

impl Layout for VdiLayout {
    fn place(&mut self, chunk: EncodedChunk) -> Result<Vec<Write>> {
        let mut writes = Vec::with_capacity(chunk.pieces.len());
        for piece in chunk.pieces {
            let block = self.block(piece.guest / BLOCK)?;
            let start = self.data_offset.saturating_add(block.saturating_mul(BLOCK));
            writes.push(Write { offset: start.saturating_add(piece.guest % BLOCK), bytes: piece.bytes });
        }
        Ok(writes)
    }

    fn finish(mut self: Box<Self>, virtual_size: u64) -> Result<Finish> {
        let size = virtual_size.checked_next_multiple_of(SECTOR).unwrap_or(u64::MAX);
        let count = blocks(size)?;
        if self.table.len() as u64 > count {
            return Err(disorder(self.table.len() as u64));
        }
        if count > self.reserved {
            return Err(self.too_large(count));
        }
        let allocated = if self.all { count } else { u64::from(self.placed) };
        if self.all {
            self.table = (0_u32..).take(usize_of(count)).collect();
        }
        self.table.resize(usize_of(count), FREE);
        let mut table = BytesMut::with_capacity(usize_of(count.saturating_mul(4)));
        self.table.iter().for_each(|entry| table.put_u32_le(*entry));
        let writes = vec![
            Write { offset: MAP_OFFSET, bytes: table.freeze() },
            Write { offset: 0, bytes: self.header(size, count, allocated) },
        ];
        Ok(Finish { writes, length: self.data_offset.saturating_add(allocated.saturating_mul(BLOCK)) })
    }
}

/// Lengths here are those of the block map, at most 128 MiB.
fn usize_of(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::EncodedPiece;

    fn place(layout: &mut VdiLayout, guests: &[u64]) -> Result<Vec<u64>> {
        let piece = |guest: &u64| EncodedPiece { guest: *guest, bytes: vec![1; 512].into(), packed: false };
        let chunk = EncodedChunk { index: 0, pieces: guests.iter().map(piece).collect() };
        Ok(layout.place(chunk)?.iter().map(|write| write.offset).collect())
    }

    #[test]
    fn blocks_follow_each_other_and_the_header_comes_last() {
        let mut layout = VdiLayout::new(false, Some(100 << 20)).unwrap();
        let guests = [4096, 8192, 5 << 20, (5 << 20) + 512];
        assert_eq!(
            place(&mut layout, &guests).unwrap(),
            guests.map(|g| if g < 5 << 20 { BLOCK + g } else { g - (3 << 20) })
        );
        assert_eq!(place(&mut layout, &[0]).unwrap_err().kind(), Kind::Internal);
        let finish = Box::new(layout).finish(100 << 20).unwrap();
        assert_eq!(finish.length, 3 << 20);
        assert_eq!(finish.writes.iter().map(|w| (w.offset, w.bytes.len())).collect::<Vec<_>>(), [(512, 400), (0, 512)]);
    }

    #[test]
    fn static_disks_have_every_block() {
        let mut layout = VdiLayout::new(true, Some(100 << 20)).unwrap();
        assert_eq!(place(&mut layout, &[7 << 20]).unwrap(), [8 << 20]);
        assert_eq!(Box::new(layout).finish((100 << 20) - 100).unwrap().length, 101 << 20);
    }

    #[test]
    fn what_does_not_fit_is_said() {
        for all in [false, true] {
            assert_eq!(VdiLayout::new(all, Some((32 << 40) + 1)).unwrap_err().kind(), Kind::InvalidInput);
            let mut untold = VdiLayout::new(all, None).unwrap();
            assert_eq!(place(&mut untold, &[16 << 40]).unwrap_err().kind(), Kind::InvalidInput);
            assert_eq!(Box::new(untold).finish((16 << 40) + 1).unwrap_err().kind(), Kind::InvalidInput);
        }
    }

    #[test]
    fn identities_are_random_uuids() {
        let (one, other) = (identity(), identity());
        assert_ne!(one, other);
        assert_eq!((one[7] >> 4, one[8] >> 6), (4, 2));
    }
}
