//! The map of a ploop: the BAT, piece by piece.
//!
//! Knows "BAT" and what the data area may hold; must not read data clusters.

use std::ops::Range;

use super::{HEADER_LENGTH, extension, header::Header};
use crate::{
    error::Result,
    format::{
        DiskMap, Mapping,
        blocks::{ABSENT, BlockMap, BlockTable, Geometry, read_exact},
        claims::{Claims, Use},
        fields::le_u32,
    },
    io::ReadAt,
    model::{DiskFormat, Limits, Rule, Violation},
};

/// Clusters whose entries are read at once: 512 KiB of the BAT.
const PIECE: u64 = 1 << 17;

/// A ploop as a disk.
#[derive(Debug)]
pub(in crate::format) struct PloopMap {
    header: Header,
    blocks: BlockMap<Bat>,
    /// Largest accepted format extension, in bytes.
    most_extension: u64,
}

impl PloopMap {
    /// Reads the header from `head`, the first bytes of a file of `length` bytes, if that is known.
    ///
    /// # Errors
    /// The first violation.
    pub(in crate::format) fn open(head: &[u8], length: Option<u64>, limits: &Limits) -> Result<Self> {
        let header = Header::parse(head, limits)?;
        let geometry = Geometry {
            virtual_size: header.virtual_size,
            block_size: header.cluster_size,
            origin: header.data_offset,
            unit: header.cluster_size,
            piece: PIECE,
        };
        let mut claims = Claims::new(limits.max_table_memory);
        if let Some(offset) = header.extension {
            // The first claim cannot clash.
            let _ = claims.claim(geometry.unit_of(offset), Use::Whole);
        }
        let bat = Bat { unit: header.entry_unit, empty: header.empty };
        let blocks = BlockMap::new(bat, geometry, claims);
        let map = Self { header, blocks, most_extension: limits.max_table_memory };
        length.map_or(Ok(()), |length| map.check_length(length))?;
        Ok(map)
    }
}

impl DiskMap for PloopMap {
    fn format(&self) -> DiskFormat {
        DiskFormat::Ploop
    }

    fn virtual_size(&self) -> Option<u64> {
        Some(self.header.virtual_size)
    }

    fn may_read_twice(&self) -> bool {
        false
    }

    fn resolve(&mut self, input: &mut dyn ReadAt, guest: u64, most: u64) -> Result<Mapping> {
        self.blocks.resolve(input, guest, most)
    }

    fn check_length(&self, length: u64) -> Result<()> {
        let extension = self.header.extension.map(|offset| offset.saturating_add(self.header.cluster_size));
        let parts = [("nb_bat_entries", self.header.bat_end), ("ext_off", extension.unwrap_or(0))];
        if let Some((name, end)) = parts.into_iter().find(|(_, end)| *end > length) {
            let message = format!(
                "what the header names ends at byte {end} and the file at {length}: \
                 the download was cut short, or the header is wrong"
            );
            return Err(Violation::new(Rule::TableOutOfRange, name, format!("{end:#x}"), message).into());
        }
        self.blocks.check_length(length)
    }

    fn finish(&mut self, input: &mut dyn ReadAt) -> Result<()> {
        let Some(offset) = self.header.extension else { return Ok(()) };
        let length = self.header.cluster_size;
        if length > self.most_extension {
            let message = format!("a format extension of up to {} bytes is read", self.most_extension);
            return Err(Violation::new(Rule::SizeLimit, "format_extension", length, message).into());
        }
        extension::check(&read_exact(input, "format_extension", offset, length)?)?;
        Ok(())
    }
}

/// The table of clusters.
#[derive(Debug)]
struct Bat {
    /// What one is in an entry, in bytes.
    unit: u64,
    /// Whether the header says that all entries are zeros.
    empty: bool,
}

impl BlockTable for Bat {
    fn load(&mut self, input: &mut dyn ReadAt, blocks: Range<u64>, hosts: &mut Vec<u64>) -> Result<()> {
        let start = HEADER_LENGTH.saturating_add(blocks.start.saturating_mul(4));
        let length = blocks.end.saturating_sub(blocks.start).saturating_mul(4);
        let bytes = read_exact(input, "bat", start, length)?;
        for (block, entry) in blocks.zip(bytes.chunks_exact(4)) {
            let entry = le_u32(entry, 0).unwrap_or(0);
            if self.empty && entry != 0 {
                let message = "the header's flags say that the image is empty, and a cluster is stored: \
                               one program would see another disk here than the next";
                return Err(Violation::new(Rule::InvalidField, self.entry(block), entry, message).into());
            }
            hosts.push(if entry == 0 { ABSENT } else { u64::from(entry).saturating_mul(self.unit) });
        }
        Ok(())
    }

    fn entry(&self, block: u64) -> String {
        format!("bat[{block}]")
    }
}
