//! monolithicSparse, written: header, descriptor, both directories with their tables, grains.
//!
//! The tables stand in front, where VMware has them, with room for all of the disk. What stays empty is a hole in the file.

use bytes::Bytes;

use super::{
    FLAG_NEWLINES, FLAG_REDUNDANT, SECTOR, TABLE_ENTRIES, TABLE_SECTORS, WRITTEN_DESCRIPTOR, WRITTEN_GRAIN, descriptor,
    encode::{capacity, check_order, sector_number},
    header::{Fields, NEWLINES},
};
use crate::{
    error::{Error, Kind, Result},
    format::{EncodedChunk, EncodedPiece, Finish, Layout, Write},
};

/// The disk for which there is room in front where its size is not known: 4 TiB, twice as much as such a file can hold of data. The
/// tables are 512 MiB then, nearly all of it a hole.
const RESERVED: u64 = 4 << 40;
/// Length of a grain in bytes.
const GRAIN: u64 = WRITTEN_GRAIN * SECTOR;

/// The serial half of writing a sparse extent.
#[derive(Debug)]
pub(super) struct SparseLayout {
    /// Number of grain tables for which there is room.
    tables: u64,
    /// Sector of the redundant grain directory; its tables, the other directory and its tables follow.
    redundant: u64,
    /// Where the next grain goes, in sectors.
    at: u64,
    /// The table of the grains placed last.
    table: Option<(u64, Vec<u32>)>,
    /// The guest bytes behind the last piece.
    placed: u64,
    writes: Vec<Write>,
}

impl SparseLayout {
    /// A layout for a disk of `virtual_size` bytes, if that is known.
    ///
    /// # Errors
    /// `InvalidInput` if it is 0, or so large that its tables leave no room.
    pub(super) fn new(virtual_size: Option<u64>) -> Result<Self> {
        let tables = tables(capacity(virtual_size.unwrap_or(RESERVED))?);
        let redundant = WRITTEN_DESCRIPTOR.0.saturating_add(WRITTEN_DESCRIPTOR.1);
        let mut layout = Self { tables, redundant, at: 0, table: None, placed: 0, writes: Vec::new() };
        layout.at = layout.overhead();
        sector_number(layout.at)?;
        Ok(layout)
    }

    fn directory_sectors(&self) -> u64 {
        self.tables.saturating_mul(4).div_ceil(SECTOR)
    }

    /// Sector of the grain directory.
    fn directory(&self) -> u64 {
        self.redundant
            .saturating_add(self.directory_sectors())
            .saturating_add(self.tables.saturating_mul(TABLE_SECTORS))
    }

    /// Where grains begin.
    fn overhead(&self) -> u64 {
        let behind = self.directory().saturating_add(self.directory().saturating_sub(self.redundant));
        behind.checked_next_multiple_of(WRITTEN_GRAIN).unwrap_or(u64::MAX)
    }

    /// Sector of table `index` of the directory at sector `directory`.
    fn table_sector(&self, directory: u64, index: u64) -> u64 {
        let first = directory.saturating_add(self.directory_sectors());
        first.saturating_add(index.saturating_mul(TABLE_SECTORS))
    }

    fn write(&mut self, sector: u64, bytes: Bytes) {
        self.writes.push(Write { offset: sector.saturating_mul(SECTOR), bytes });
    }

    fn place_piece(&mut self, piece: EncodedPiece) -> Result<()> {
        check_order(&piece, self.placed, false)?;
        let grains = (piece.bytes.len() as u64).div_ceil(GRAIN);
        let first = piece.guest / GRAIN;
        let end = first.saturating_add(grains);
        if end.div_ceil(TABLE_ENTRIES) > self.tables {
            let message = "a vmdk that is written before its size is known has room for 4 TiB: unpack the source first, or \
                           write it as streamOptimized or qcow2";
            return Err(Error::new(Kind::InvalidInput, message));
        }
        let start = self.at;
        for grain in first..end {
            let sector = sector_number(self.at)?;
            self.map(grain, sector);
            self.at = self.at.saturating_add(WRITTEN_GRAIN);
        }
        self.write(start, piece.bytes);
        self.placed = end.saturating_mul(GRAIN);
        Ok(())
    }

    fn map(&mut self, grain: u64, sector: u32) {
        let index = grain / TABLE_ENTRIES;
        if self.table.as_ref().is_none_or(|(current, _)| *current != index) {
            self.close_table();
            self.table = Some((index, vec![0; usize::try_from(TABLE_ENTRIES).unwrap_or(0)]));
        }
        let entry = usize::try_from(grain % TABLE_ENTRIES).unwrap_or(0);
        if let Some(slot) = self.table.as_mut().and_then(|(_, entries)| entries.get_mut(entry)) {
            *slot = sector;
        }
    }

    fn close_table(&mut self) {
        let Some((index, entries)) = self.table.take() else { return };
        let bytes: Bytes = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        for directory in [self.redundant, self.directory()] {
            self.write(self.table_sector(directory, index), bytes.clone());
        }
    }

    fn write_directories(&mut self, capacity: u64) -> Result<()> {
        for directory in [self.redundant, self.directory()] {
            let entries: Result<Vec<u32>> =
                (0..tables(capacity)).map(|index| sector_number(self.table_sector(directory, index))).collect();
            let bytes: Bytes = entries?.iter().flat_map(|entry| entry.to_le_bytes()).collect();
            self.write(directory, bytes);
        }
        Ok(())
    }

    fn front(&self, capacity: u64) -> Bytes {
        let fields = Fields {
            version: 1,
            flags: FLAG_NEWLINES | FLAG_REDUNDANT,
            capacity,
            grain_size: WRITTEN_GRAIN,
            descriptor_offset: WRITTEN_DESCRIPTOR.0,
            descriptor_size: WRITTEN_DESCRIPTOR.1,
            entries_per_table: u32::try_from(TABLE_ENTRIES).unwrap_or(0),
            rgd_offset: self.redundant,
            gd_offset: self.directory(),
            overhead: self.overhead(),
            unclean_shutdown: 0,
            newlines: NEWLINES,
            compress_algorithm: 0,
        };
        let mut bytes = fields.write();
        bytes.extend_from_slice(descriptor::write("monolithicSparse", capacity).as_bytes());
        bytes.into()
    }
}

impl Layout for SparseLayout {
    fn place(&mut self, chunk: EncodedChunk) -> Result<Vec<Write>> {
        for piece in chunk.pieces {
            self.place_piece(piece)?;
        }
        Ok(std::mem::take(&mut self.writes))
    }

    /// The virtual size in the file is a multiple of 512 bytes.
    fn finish(mut self: Box<Self>, virtual_size: u64) -> Result<Finish> {
        let sectors = capacity(virtual_size)?;
        if tables(sectors) > self.tables || self.placed.saturating_sub(GRAIN) >= virtual_size {
            let message = format!("vmdk: a disk of {virtual_size:#x} bytes in {} tables", self.tables);
            return Err(Error::new(Kind::InvalidInput, message));
        }
        self.close_table();
        self.write_directories(sectors)?;
        let front = self.front(sectors);
        self.write(0, front);
        let length = self.at.saturating_mul(SECTOR);
        Ok(Finish { writes: std::mem::take(&mut self.writes), length })
    }
}

/// How many grain tables a disk of `capacity` sectors has.
fn tables(capacity: u64) -> u64 {
    capacity.div_ceil(WRITTEN_GRAIN).div_ceil(TABLE_ENTRIES)
}
