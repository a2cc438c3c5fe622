//! The serial half of writing: a place for every cluster, and the BAT that says where.
//!
//! ```text
//! header  BAT  clusters …
//! ```
//! The BAT can lie nowhere else. If the size is not known from the start, room for that of the largest disk is left, as a hole. The header
//! is written last, so a file that was not finished is no ploop.

use bytes::Bytes;

use super::{CLOSED, HEADER_LENGTH, MAGIC_CLUSTERS, SECTOR};
use crate::{
    error::{Error, Kind, Result},
    format::{
        EncodedChunk, Finish, Layout, Write,
        blocks::{BlockLayout, Entries},
    },
    model::Limits,
};

/// In bytes: what Parallels and qemu use.
const CLUSTER: u64 = 1 << 20;
/// Largest `nb_bat_entries` that qemu opens.
const MAX_ENTRIES: u64 = (i32::MAX / 4) as u64;
/// `heads` and sectors of a track, as qemu makes the geometry that nobody reads.
const HEADS: u32 = 16;
const TRACK: u64 = 32;

/// Where the parts of one ploop go.
#[derive(Debug)]
pub(super) struct PloopLayout {
    /// Entries that the room before the data holds.
    reserved: u64,
    data_offset: u64,
    blocks: BlockLayout,
    entries: Entries,
}

impl PloopLayout {
    /// The layout of a file whose disk has `virtual_size` bytes, if that is known.
    ///
    /// # Errors
    /// `InvalidInput` if it is too large for the format.
    pub(super) fn new(virtual_size: Option<u64>) -> Result<Self> {
        let size = virtual_size.unwrap_or_else(|| Limits::default().max_virtual_size);
        let reserved = entries(size)?;
        let bat_end = HEADER_LENGTH.saturating_add(reserved.saturating_mul(4));
        let data_offset = bat_end.checked_next_multiple_of(CLUSTER).unwrap_or(u64::MAX);
        let blocks = BlockLayout::new(CLUSTER, data_offset);
        Ok(Self { reserved, data_offset, blocks, entries: Entries::new(Some(HEADER_LENGTH)) })
    }

    fn header(&self, virtual_size: u64, entries: u64) -> Bytes {
        let sectors = virtual_size.div_ceil(SECTOR);
        let narrow = |number: u64| u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes();
        let mut header = MAGIC_CLUSTERS.to_vec();
        header.extend_from_slice(&2_u32.to_le_bytes());
        header.extend_from_slice(&HEADS.to_le_bytes());
        header.extend_from_slice(&narrow(sectors.div_ceil(TRACK.saturating_mul(u64::from(HEADS)))));
        header.extend_from_slice(&narrow(CLUSTER / SECTOR));
        header.extend_from_slice(&narrow(entries));
        header.extend_from_slice(&sectors.to_le_bytes());
        header.extend_from_slice(&CLOSED.to_le_bytes());
        header.extend_from_slice(&narrow(self.data_offset / SECTOR));
        header.extend_from_slice(&[0; 12]); // no flags, no format extension
        header.into()
    }
}

impl Layout for PloopLayout {
    fn place(&mut self, chunk: EncodedChunk) -> Result<Vec<Write>> {
        let mut writes = Vec::new();
        let entries = &mut self.entries;
        self.blocks.place(chunk, &mut writes, |block, host| {
            let cluster = u32::try_from(host / CLUSTER).unwrap_or(u32::MAX);
            entries.set(block.saturating_mul(4), &cluster.to_le_bytes());
        })?;
        self.entries.settle(&mut writes);
        Ok(writes)
    }

    /// The virtual size in the file is a multiple of 512 bytes, as the format has it.
    fn finish(self: Box<Self>, virtual_size: u64) -> Result<Finish> {
        self.blocks.check(virtual_size)?;
        let needed = entries(virtual_size)?;
        if needed > self.reserved {
            let message = format!(
                "a disk of {virtual_size} bytes came, and room was left for one of {}: \
                 unpack the source first, so that its size is known from the start",
                self.reserved.saturating_mul(CLUSTER)
            );
            return Err(Error::new(Kind::InvalidInput, message));
        }
        let header = self.header(virtual_size, needed);
        let (length, mut writes) = (self.blocks.end(), Vec::new());
        self.entries.finish(HEADER_LENGTH, self.reserved.saturating_mul(4), &mut writes);
        writes.push(Write { offset: 0, bytes: header });
        Ok(Finish { writes, length })
    }
}

/// BAT entries for a disk of `size` bytes.
fn entries(size: u64) -> Result<u64> {
    let entries = size.div_ceil(CLUSTER);
    if entries <= MAX_ENTRIES {
        return Ok(entries);
    }
    let message = format!("a ploop holds disks of up to {} bytes, not {size}", MAX_ENTRIES.saturating_mul(CLUSTER));
    Err(Error::new(Kind::InvalidInput, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::EncodedPiece;

    #[test]
    fn the_header_comes_last_and_unknown_sizes_find_room() {
        for (size, data) in [(Some(1 << 30), 1), (None, 65)] {
            let mut layout = Box::new(PloopLayout::new(size).unwrap());
            let pieces = vec![EncodedPiece { guest: 512 << 20, bytes: vec![1; 512].into(), packed: false }];
            let writes = layout.place(EncodedChunk { index: 128, pieces }).unwrap();
            assert_eq!(writes.iter().map(|w| w.offset / CLUSTER).collect::<Vec<_>>(), [data]);
            let finish = layout.finish(1 << 30).unwrap();
            assert_eq!(finish.writes.iter().map(|w| w.offset).collect::<Vec<_>>(), [64, 0]);
            assert_eq!(finish.length, (data + 1) * CLUSTER);
        }
    }

    #[test]
    fn what_does_not_fit_is_said() {
        assert_eq!(PloopLayout::new(Some(1 << 60)).unwrap_err().kind(), Kind::InvalidInput);
        let layout = || Box::new(PloopLayout::new(None).unwrap());
        assert_eq!(layout().finish(32 << 40).unwrap_err().kind(), Kind::InvalidInput);
        assert!(layout().finish(16 << 40).is_ok());
    }
}
