//! The map of a vhdx: the BAT, piece by piece, and every region it must not touch.
//!
//! Knows "BAT" and in which order the structures are read; must not read data blocks.

use std::ops::Range;

use super::{
    HEADER_SECTION, MIB, PAYLOAD_BLOCK_FULLY_PRESENT, REGION_TABLES, TABLE_LENGTH, chunk_ratio,
    header::LogPlace,
    log::Patches,
    metadata::Metadata,
    region::{Region, Regions},
};
use crate::{
    error::Result,
    format::{
        DiskMap, Mapping,
        blocks::{ABSENT, BlockMap, BlockTable, Geometry},
        claims::{Claims, Use},
        fields::le_u64,
    },
    io::ReadAt,
    model::{DiskFormat, Limits, Rule, Violation},
};

/// Blocks whose entries are read at once: with the sector bitmaps' between them at most 544 KiB of the BAT.
const PIECE: u64 = 1 << 16;
/// "BAT Entry", `FileOffsetMB`.
const OFFSET_MASK: u64 = !(MIB - 1);
/// "BAT Entry", `State`.
const STATE_MASK: u64 = 7;

/// A vhdx as a disk.
#[derive(Debug)]
pub(in crate::format) struct VhdxMap {
    blocks: BlockMap<Bat>,
    /// What must lie inside the file.
    required: Vec<Region>,
}

impl VhdxMap {
    /// Reads headers, log, region tables and metadata.
    ///
    /// # Errors
    /// The first violation, or what `input` says.
    pub(in crate::format) fn open(input: &mut dyn ReadAt, limits: &Limits) -> Result<Self> {
        let log = LogPlace::read(input)?;
        let patches = Patches::read_log(input, &log)?;
        let regions = Regions::read(input, &patches)?;
        check_patches(&patches, &regions)?;
        let required = required(&log, &patches, &regions);
        let claims = claim(&required, limits)?;
        if let Some(length) = input.length() {
            check_required(&required, length)?;
        }
        let metadata = Metadata::read(input, &regions.metadata, &patches, limits)?;
        let bat = Bat::new(regions.bat, patches, metadata)?;
        let geometry = Geometry {
            virtual_size: metadata.virtual_size,
            block_size: metadata.block_size,
            origin: 0,
            unit: MIB,
            piece: PIECE,
        };
        Ok(Self { blocks: BlockMap::new(bat, geometry, claims), required })
    }
}

impl DiskMap for VhdxMap {
    fn format(&self) -> DiskFormat {
        DiskFormat::Vhdx
    }

    fn virtual_size(&self) -> Option<u64> {
        Some(self.blocks.virtual_size())
    }

    fn may_read_twice(&self) -> bool {
        false
    }

    fn resolve(&mut self, input: &mut dyn ReadAt, guest: u64, most: u64) -> Result<Mapping> {
        self.blocks.resolve(input, guest, most)
    }

    fn check_length(&self, length: u64) -> Result<()> {
        check_required(&self.required, length)?;
        self.blocks.check_length(length)
    }
}

/// The table of blocks.
#[derive(Debug)]
struct Bat {
    region: Region,
    patches: Patches,
    chunk_ratio: u64,
}

impl Bat {
    fn new(region: Region, patches: Patches, metadata: Metadata) -> Result<Self> {
        let bat = Self { region, patches, chunk_ratio: chunk_ratio(metadata.block_size, metadata.logical_sector) };
        let blocks = metadata.virtual_size.div_ceil(metadata.block_size.max(1));
        let entries = blocks.checked_sub(1).map_or(0, |last| bat.index(last).saturating_add(1));
        let needed = entries.saturating_mul(8);
        if needed > bat.region.length {
            let message = format!("a disk of {} bytes needs {needed} bytes of BAT", metadata.virtual_size);
            return Err(Violation::new(Rule::TableOutOfRange, bat.region.name, bat.region.length, message).into());
        }
        Ok(bat)
    }

    /// Number of a block's entry: behind those of the sector bitmaps before it.
    fn index(&self, block: u64) -> u64 {
        block.saturating_add(block.checked_div(self.chunk_ratio).unwrap_or(0))
    }

    /// Where an entry says that its block lies.
    fn decode(&self, block: u64, entry: u64) -> Result<u64, Violation> {
        let refuse = |rule, message: &str| Err(Violation::new(rule, self.entry(block), format!("{entry:#x}"), message));
        if entry & !(OFFSET_MASK | STATE_MASK) != 0 {
            return refuse(Rule::InvalidField, "reserved bits are set");
        }
        match entry & STATE_MASK {
            // NOT_PRESENT, UNDEFINED, ZERO, UNMAPPED; 5 was UNMAPPED in drafts of the format. An offset beside them means nothing.
            0..=3 | 5 => Ok(ABSENT),
            PAYLOAD_BLOCK_FULLY_PRESENT if entry & OFFSET_MASK == 0 => {
                refuse(Rule::TableOverlap, "a block lies in the header")
            }
            PAYLOAD_BLOCK_FULLY_PRESENT => Ok(entry & OFFSET_MASK),
            7 => refuse(Rule::BackingFile, "only a part of the block is here, the rest is in a parent disk"),
            _ => refuse(Rule::InvalidField, "no such state of a block is known"),
        }
    }
}

impl BlockTable for Bat {
    fn load(&mut self, input: &mut dyn ReadAt, blocks: Range<u64>, hosts: &mut Vec<u64>) -> Result<()> {
        let Some(last) = blocks.end.checked_sub(1) else { return Ok(()) };
        let (first, count) = (self.index(blocks.start), self.index(last).saturating_add(1));
        let start = self.region.offset.saturating_add(first.saturating_mul(8));
        let length = count.saturating_sub(first).saturating_mul(8);
        let bytes = self.patches.read(input, "bat", start, length)?;
        let (mut block, mut index) = (blocks.start, first);
        for entry in bytes.chunks_exact(8) {
            let entry = le_u64(entry, 0).unwrap_or(0);
            // The entry behind a chunk's blocks is that of its sector bitmap.
            if self.index(block) == index {
                hosts.push(self.decode(block, entry)?);
                block = block.saturating_add(1);
            } else if entry & STATE_MASK != 0 {
                let message = "a sector bitmap is present, which only disks with a parent have";
                let (field, value) = (format!("bat[{index}]"), format!("{entry:#x}"));
                return Err(Violation::new(Rule::BackingFile, field, value, message).into());
            }
            index = index.saturating_add(1);
        }
        Ok(())
    }

    fn entry(&self, block: u64) -> String {
        format!("bat[{}]", self.index(block))
    }
}

/// All that the header and the region tables name, and what the log says of the file's length.
fn required(log: &LogPlace, patches: &Patches, regions: &Regions) -> Vec<Region> {
    let region = |name: &str, offset, length| Region { name: name.to_owned(), offset, length };
    let mut required = vec![region("header", 0, HEADER_SECTION)];
    if log.length > 0 {
        required.push(region("header.LogOffset", log.offset, log.length));
    }
    required.extend([regions.bat.clone(), regions.metadata.clone()]);
    required.extend(regions.others.iter().cloned());
    // A stretch without length claims nothing, but must lie inside the file.
    required.push(region("log.FlushedFileOffset", patches.flushed_length(), 0));
    required
}

fn check_required(required: &[Region], length: u64) -> Result<()> {
    let Some(region) = required.iter().find(|region| region.end() > length) else { return Ok(()) };
    let message = format!(
        "the file ends at {length} and what lies there at {}: the download was cut short, or the header is wrong",
        region.end()
    );
    Err(Violation::new(Rule::TableOutOfRange, region.name.clone(), format!("{:#x}", region.offset), message).into())
}

/// Claims what the regions take.
fn claim(required: &[Region], limits: &Limits) -> Result<Claims> {
    let mut claims = Claims::new(limits.max_table_memory);
    for region in required.iter().filter(|region| region.length > 0) {
        let last = region.end().saturating_sub(1) / MIB;
        claims.claim_range(region.offset / MIB, last, Use::Whole).map_err(|_| {
            let value = format!("{:#x}", region.offset);
            let message = "another structure has the same bytes of the file";
            Violation::new(Rule::TableOverlap, region.name.clone(), value, message)
        })?;
    }
    Ok(claims)
}

/// The log may change tables only: what it says of other bytes would not be seen here.
fn check_patches(patches: &Patches, regions: &Regions) -> Result<()> {
    let [first, second] = REGION_TABLES;
    let tables = [
        first..second.saturating_add(TABLE_LENGTH as u64),
        regions.bat.offset..regions.bat.end(),
        regions.metadata.offset..regions.metadata.end(),
    ];
    patches.check_inside(&tables)
}
