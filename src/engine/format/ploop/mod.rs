//! ploop, the expandable image of Parallels and Virtuozzo (QEMU, docs/interop/parallels.txt; names of fields are that document's).
//!
//! ```text
//! header ─► map (BAT) ─► extension (behind the data)        encode (as raw) ─► layout (places, BAT, header)
//! ```
//! Both kinds are read: `WithoutFreeSpace`, whose BAT counts sectors, and `WithouFreSpacExt`, whose BAT counts clusters. Only the
//! latter is written. A file that was not closed, and extensions that are not known and said to be necessary, are refused.

mod encode;
mod extension;
mod header;
mod layout;
mod map;

pub(super) use encode::PloopEncoder;
pub(super) use map::PloopMap;

use crate::format::fields::le_u32;

/// `magic` of the first kind.
const MAGIC_SECTORS: [u8; 16] = *b"WithoutFreeSpace";
/// `magic` of the second kind.
const MAGIC_CLUSTERS: [u8; 16] = *b"WithouFreSpacExt";
/// Length of the header in bytes; the BAT follows.
const HEADER_LENGTH: u64 = 64;
/// The unit of sizes and places in the header, in bytes.
const SECTOR: u64 = 512;
/// `in_use`: the file was opened to be written and not closed.
const IN_USE: u32 = 0x746f_6e59;
/// `in_use`: the file was closed.
const CLOSED: u32 = 0x312e_3276;

/// Length of a cluster in bytes, by the header in `head`; `None` if there is none.
pub fn ploop_block(head: &[u8]) -> Option<u64> {
    let sectors = le_u32(head, 28).filter(|_| head.starts_with(&MAGIC_CLUSTERS) || head.starts_with(&MAGIC_SECTORS));
    sectors.map(|sectors| u64::from(sectors).saturating_mul(SECTOR))
}
