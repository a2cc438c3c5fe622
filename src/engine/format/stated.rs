//! What a header says of the disk's size, whatever else is wrong with it.
//!
//! For people who read why a file is refused; nothing may be decided by it. Knows where each format has the number.

use super::{
    detect::Reader,
    fields::{be_u64, le_u64},
};

const SECTOR: u64 = 512;

/// Size of the guest's disk in bytes as `head`, the first bytes of a file, states it. `None` where it ends before that, and for
/// formats that state it elsewhere: at the end, or in a table.
pub(super) fn stated_size(reader: Reader, head: &[u8]) -> Option<u64> {
    let sectors = |count: u64| count.saturating_mul(SECTOR);
    match reader {
        Reader::Qcow2 => be_u64(head, 24),
        Reader::Vhd => be_u64(head, 48),
        Reader::Vdi => le_u64(head, 0x170),
        Reader::Ploop => le_u64(head, 36).map(sectors),
        // A descriptor alone begins with a text.
        Reader::Vmdk if head.starts_with(b"KDMV") => le_u64(head, 12).map(sectors),
        Reader::Vmdk | Reader::Vhdx | Reader::Flat(..) => None,
    }
}
