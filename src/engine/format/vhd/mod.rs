//! VHD, fixed and dynamic ("Virtual Hard Disk Image Format Specification", version 1.0, Microsoft 2006; section names below are
//! that document's).
//!
//! ```text
//! footer (512 bytes, in both kinds; which size counts) ─► raw, for fixed disks: the footer is behind the data only
//!                     └► header (of dynamic disks) ─► map (all of the block allocation table, one block's bitmap)
//! encode (blocks of one chunk) ─► layout (places, table, header, footer)
//! ```
//! In a dynamic disk the footer stands at both ends and both have to be the same. A disk that needs a parent is refused.

mod encode;
mod footer;
mod header;
mod layout;
mod map;

pub(super) use encode::VhdEncoder;
pub(super) use footer::{CYLINDER, Footer, Tail};
pub(super) use map::VhdMap;

/// Length of a footer, in bytes.
pub(super) const FOOTER_LENGTH: u64 = 512;
/// Length of the header of dynamic disks, in bytes.
const HEADER_LENGTH: u64 = 1024;
/// The unit of the block allocation table, in bytes.
const SECTOR: u64 = 512;
/// Cookie of a footer.
const FOOTER_COOKIE: [u8; 8] = *b"conectix";
/// Cookie of a header.
const HEADER_COOKIE: [u8; 8] = *b"cxsparse";
/// Version of both structures, and of no other that was ever written.
const VERSION: u32 = 0x0001_0000;
/// Entry of the block allocation table: there is no such block, and it reads as zeros.
const UNALLOCATED: u32 = u32::MAX;
/// `Disk Type` of a fixed disk.
const TYPE_FIXED: u32 = 2;
/// `Disk Type` of a dynamic disk.
const TYPE_DYNAMIC: u32 = 3;
/// `Disk Type` of a differencing disk.
const TYPE_DIFFERENCING: u32 = 4;
/// The largest geometry: a disk that has it goes by its `Current Size`.
const MAX_GEOMETRY: (u16, u8, u8) = (65_535, 16, 255);
/// Most sectors of a disk: 2040 GiB, QEMU's and Hyper-V's own limit. The sectors of the table have 32 bits, and blocks need some
/// beside those of the disk.
const MAX_SECTORS: u64 = 0xff00_0000;
/// The usual block, in bytes.
const BLOCK: u64 = 2 << 20;

/// "Checksum": one's complement of the sum of all bytes, of which the checksum's own four, at `at`, count as zeros.
fn checksum(bytes: &[u8], at: usize) -> u32 {
    let own = at..at.saturating_add(4);
    let counted = bytes.iter().enumerate().filter(|(index, _)| !own.contains(index));
    !counted.fold(0_u32, |sum, (_, byte)| sum.wrapping_add(u32::from(*byte)))
}

/// Length of a block's sector bitmap, in bytes: a bit for each sector, in whole sectors.
fn bitmap_length(block: u64) -> u64 {
    (block / SECTOR / 8).next_multiple_of(SECTOR)
}
