//! The serial half of writing: places for blocks, and the structures around them.
//!
//! ```text
//! dynamic: footer's copy | header | block allocation table | (bitmap | block) … | footer
//! fixed:   the disk | footer
//! ```
//! Where the size is not known from the start, the table's place is as large as the largest disk's, and what is not used is a hole.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{BufMut as _, Bytes, BytesMut};

use super::{
    BLOCK, FOOTER_COOKIE, FOOTER_LENGTH, HEADER_COOKIE, HEADER_LENGTH, MAX_GEOMETRY, MAX_SECTORS, SECTOR, TYPE_DYNAMIC,
    TYPE_FIXED, UNALLOCATED, VERSION, bitmap_length, checksum,
};
use crate::{
    error::{Error, Kind, Result},
    format::{EncodedChunk, EncodedPiece, Finish, Layout, Write},
};

/// Who wrote it: the name of Hyper-V. Every reader takes such a disk to be as large as `Current Size` says: Hyper-V and Azure always
/// do; qemu and what has learned from it know this name from the first version that knew any, and would take an unknown one, such as
/// one of our own, to go by geometry until qemu 9. The geometry is the largest there is, as in every disk of more than 127 GiB and as
/// `qemu-img -o force_size` writes it for Azure: who goes by geometry in spite of the name takes it to say nothing.
const CREATOR: [u8; 4] = *b"win ";
/// Windows 6.1, of the first Hyper-V that writes such disks.
const CREATOR_VERSION: u32 = 0x0006_0001;
/// Windows.
const CREATOR_OS: [u8; 4] = *b"Wi2k";
/// `Features`: the bit that must always be set.
const FEATURES: u32 = 2;
/// `Data Offset` where there is no further structure.
const NOTHING: u64 = u64::MAX;
/// 2000-01-01T00:00:00Z in seconds of Unix time, from which `Time Stamp` counts.
const EPOCH: u64 = 946_684_800;
/// Data of blocks begins at a multiple of this, in bytes, as pages and the blocks of file systems do. Only the sector is required.
const ALIGNMENT: u64 = 4096;

/// Size in bytes of the disk as it stands in the file: whole sectors.
///
/// # Errors
/// `InvalidInput` if it does not fit.
fn whole_sectors(virtual_size: u64) -> Result<u64> {
    let size = virtual_size.checked_next_multiple_of(SECTOR).unwrap_or(u64::MAX);
    if size / SECTOR <= MAX_SECTORS {
        return Ok(size);
    }
    let message = format!("a vhd holds a disk of up to 2040 GiB, and this one has {virtual_size} bytes: use vhdx");
    Err(Error::new(Kind::InvalidInput, message))
}

/// The footer of a disk.
fn footer(kind: u32, size: u64, data_offset: u64) -> Bytes {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (cylinders, heads, sectors) = MAX_GEOMETRY;
    let mut footer = BytesMut::with_capacity(usize_of(FOOTER_LENGTH));
    footer.put_slice(&FOOTER_COOKIE);
    footer.put_u32(FEATURES);
    footer.put_u32(VERSION);
    footer.put_u64(data_offset);
    footer.put_u32(u32::try_from(now.saturating_sub(EPOCH)).unwrap_or(u32::MAX));
    footer.put_slice(&CREATOR);
    footer.put_u32(CREATOR_VERSION);
    footer.put_slice(&CREATOR_OS);
    footer.put_u64(size); // original size
    footer.put_u64(size); // current size
    footer.put_u16(cylinders);
    footer.put_u8(heads);
    footer.put_u8(sectors);
    footer.put_u32(kind);
    let at = footer.len();
    footer.put_u32(0);
    footer.put_slice(&unique_id());
    footer.resize(usize_of(FOOTER_LENGTH), 0);
    seal(footer, at)
}

/// A random UUID (RFC 9562, version 4): two disks of one identity cannot be attached to one machine.
fn unique_id() -> [u8; 16] {
    let id = rand::random::<u128>() & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    id.to_be_bytes()
}

fn header(table_offset: u64, entries: u64) -> Bytes {
    let mut header = BytesMut::with_capacity(usize_of(HEADER_LENGTH));
    header.put_slice(&HEADER_COOKIE);
    header.put_u64(NOTHING);
    header.put_u64(table_offset);
    header.put_u32(VERSION);
    header.put_u32(u32::try_from(entries).unwrap_or(u32::MAX));
    header.put_u32(u32::try_from(BLOCK).unwrap_or(u32::MAX));
    let at = header.len();
    header.resize(usize_of(HEADER_LENGTH), 0);
    seal(header, at)
}

/// Sets the checksum at `at`.
fn seal(mut bytes: BytesMut, at: usize) -> Bytes {
    let sum = checksum(&bytes, at);
    if let Some(slot) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
        *slot = sum.to_be_bytes();
    }
    bytes.freeze()
}

/// The disk as it is, and the footer.
#[derive(Debug)]
pub(super) struct FixedLayout;

impl FixedLayout {
    /// # Errors
    /// `InvalidInput` if the size is known and does not fit.
    pub(super) fn new(virtual_size: Option<u64>) -> Result<Self> {
        virtual_size.map_or(Ok(0), Self::size)?;
        Ok(Self)
    }

    fn size(virtual_size: u64) -> Result<u64> {
        if virtual_size == 0 {
            let message =
                "a fixed vhd of an empty disk would be a footer and nothing else, which no program reads: use dynamic";
            return Err(Error::new(Kind::InvalidInput, message));
        }
        whole_sectors(virtual_size)
    }
}

impl Layout for FixedLayout {
    fn place(&mut self, chunk: EncodedChunk) -> Result<Vec<Write>> {
        Ok(chunk.pieces.into_iter().map(|piece| Write { offset: piece.guest, bytes: piece.bytes }).collect())
    }

    fn finish(self: Box<Self>, virtual_size: u64) -> Result<Finish> {
        let size = Self::size(virtual_size)?;
        let footer = Write { offset: size, bytes: footer(TYPE_FIXED, size, NOTHING) };
        Ok(Finish { writes: vec![footer], length: size.saturating_add(FOOTER_LENGTH) })
    }
}

/// Blocks in the order in which they came, which is the guest's.
#[derive(Debug)]
pub(super) struct DynamicLayout {
    /// First sector in the file of each block so far.
    table: Vec<u32>,
    /// Entries for which there is room.
    reserved: u64,
    /// Where what was placed ends, in bytes.
    end: u64,
}

/// The table stands behind the copy of the footer and the header.
const TABLE_OFFSET: u64 = FOOTER_LENGTH + HEADER_LENGTH;

impl DynamicLayout {
    /// # Errors
    /// `InvalidInput` if the size is known and does not fit.
    pub(super) fn new(virtual_size: Option<u64>) -> Result<Self> {
        let size = virtual_size.map_or(Ok(MAX_SECTORS.saturating_mul(SECTOR)), whole_sectors)?;
        let reserved = size.div_ceil(BLOCK);
        Ok(Self { table: Vec::new(), reserved, end: TABLE_OFFSET.saturating_add(table_length(reserved)) })
    }

    /// Sector of the block that holds `guest`, and the write of its bitmap if it is new.
    fn block_at(&mut self, guest: u64) -> Result<(u32, Option<Write>)> {
        let number = usize_of(guest / BLOCK);
        if let Some(sector) = self.table.get(number).copied() {
            let last = number.saturating_add(1) == self.table.len();
            return if last { Ok((sector, None)) } else { Err(disorder(guest)) };
        }
        if number as u64 >= self.reserved {
            return Err(disorder(guest));
        }
        let bitmap = bitmap_length(BLOCK);
        let data = self.end.saturating_add(bitmap).checked_next_multiple_of(ALIGNMENT).unwrap_or(u64::MAX);
        let start = data.saturating_sub(bitmap);
        // The largest disk with a page beside every block ends well below the 2 TiB that 32 bits of sectors reach.
        let sector = u32::try_from(start / SECTOR).unwrap_or(UNALLOCATED);
        self.table.resize(number, UNALLOCATED);
        self.table.push(sector);
        self.end = data.saturating_add(BLOCK);
        // "Every sector is there": what is not written is a hole, and reads as the zeros it stands for.
        let bytes = vec![u8::MAX; usize_of(bitmap)].into();
        Ok((sector, Some(Write { offset: start, bytes })))
    }

    fn place_piece(&mut self, piece: EncodedPiece, writes: &mut Vec<Write>) -> Result<()> {
        let (sector, bitmap) = self.block_at(piece.guest)?;
        writes.extend(bitmap);
        let data = u64::from(sector).saturating_mul(SECTOR).saturating_add(bitmap_length(BLOCK));
        writes.push(Write { offset: data.saturating_add(piece.guest % BLOCK), bytes: piece.bytes });
        Ok(())
    }
}

/// Length in bytes of a table of so many entries, in whole sectors.
fn table_length(entries: u64) -> u64 {
    entries.saturating_mul(4).next_multiple_of(SECTOR)
}

fn disorder(guest: u64) -> Error {
    Error::new(Kind::Internal, format!("vhd: data at byte {guest} came out of order, or is not on the disk"))
}

impl Layout for DynamicLayout {
    fn place(&mut self, chunk: EncodedChunk) -> Result<Vec<Write>> {
        let mut writes = Vec::with_capacity(chunk.pieces.len().saturating_add(2));
        for piece in chunk.pieces {
            self.place_piece(piece, &mut writes)?;
        }
        Ok(writes)
    }

    fn finish(mut self: Box<Self>, virtual_size: u64) -> Result<Finish> {
        let size = whole_sectors(virtual_size)?;
        let entries = size.div_ceil(BLOCK);
        if self.table.len() as u64 > entries || entries > self.reserved {
            return Err(disorder(virtual_size));
        }
        self.table.resize(usize_of(entries), UNALLOCATED);
        let mut table = BytesMut::with_capacity(usize_of(table_length(entries)));
        self.table.iter().for_each(|sector| table.put_u32(*sector));
        table.resize(usize_of(table_length(entries)), u8::MAX);
        let footer = footer(TYPE_DYNAMIC, size, FOOTER_LENGTH);
        let writes = vec![
            Write { offset: self.end, bytes: footer.clone() },
            Write { offset: TABLE_OFFSET, bytes: table.freeze() },
            Write { offset: FOOTER_LENGTH, bytes: header(TABLE_OFFSET, entries) },
            Write { offset: 0, bytes: footer },
        ];
        Ok(Finish { writes, length: self.end.saturating_add(FOOTER_LENGTH) })
    }
}

/// Lengths here are those of the table, at most 4 MiB.
fn usize_of(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(guest: u64, length: usize) -> EncodedPiece {
        EncodedPiece { guest, bytes: vec![1; length].into(), packed: false }
    }

    fn place(layout: &mut DynamicLayout, pieces: Vec<EncodedPiece>) -> Result<Vec<(u64, usize)>> {
        let writes = layout.place(EncodedChunk { index: 0, pieces })?;
        Ok(writes.iter().map(|w| (w.offset, w.bytes.len())).collect())
    }

    #[test]
    fn blocks_follow_each_other_on_pages_and_the_copy_comes_last() {
        let mut layout = DynamicLayout::new(Some(100 << 20)).unwrap();
        let first = place(&mut layout, vec![piece(4096, 100), piece(8192, 10), piece(6 << 20, 1)]).unwrap();
        let second = 4096 + BLOCK + 4096;
        assert_eq!(first, [(3584, 512), (8192, 100), (12288, 10), (second - 512, 512), (second, 1)]);
        assert_eq!(place(&mut layout, vec![piece((6 << 20) + 4096, 1)]).unwrap(), [(second + 4096, 1)]);
        let back = place(&mut layout, vec![piece(0, 1)]).unwrap_err();
        assert_eq!(back.kind(), Kind::Internal);
        let finish = Box::new(layout).finish(100 << 20).unwrap();
        assert_eq!(finish.length, second + BLOCK + 512);
        assert_eq!(finish.writes.iter().map(|w| w.offset).collect::<Vec<_>>(), [second + BLOCK, 1536, 512, 0]);
    }

    #[test]
    fn what_does_not_fit_is_said_and_vhdx_named() {
        let most = MAX_SECTORS * SECTOR;
        for size in [most + 1, u64::MAX] {
            for error in [DynamicLayout::new(Some(size)).unwrap_err(), FixedLayout::new(Some(size)).unwrap_err()] {
                assert_eq!(error.kind(), Kind::InvalidInput);
                assert!(error.to_string().contains("vhdx"), "{error}");
            }
            let unknown = Box::new(DynamicLayout::new(None).unwrap());
            assert_eq!(unknown.finish(size).unwrap_err().kind(), Kind::InvalidInput);
        }
        assert_eq!(Box::new(DynamicLayout::new(None).unwrap()).finish(most).unwrap().writes.len(), 4);
        assert_eq!(FixedLayout::new(Some(0)).unwrap_err().kind(), Kind::InvalidInput);
        let end = MAX_SECTORS * (SECTOR + 1) + (16 << 20);
        assert!(end / SECTOR < u64::from(UNALLOCATED), "the last block of the largest disk must have a sector number");
    }

    #[test]
    fn identities_are_random_uuids() {
        let (one, other) = (unique_id(), unique_id());
        assert_ne!(one, other);
        assert_eq!((one[6] >> 4, one[8] >> 6), (4, 2));
    }
}
