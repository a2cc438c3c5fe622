//! streamOptimized, written: header, descriptor, grains with the table of each 512 behind them, directory, footer.
//!
//! With a virtual size known from the start all writes follow one another without a gap, so that they can go into a pipe.

use bytes::{Bytes, BytesMut};

use super::{
    DEFLATE, FLAG_COMPRESSED, FLAG_MARKERS, FLAG_NEWLINES, GD_AT_END, MARKER_DIRECTORY, MARKER_END, MARKER_FOOTER,
    MARKER_TABLE, SECTOR, TABLE_ENTRIES, TABLE_SECTORS, WRITTEN_DESCRIPTOR, WRITTEN_GRAIN, descriptor,
    encode::{capacity, check_order, sector_number},
    header::{Fields, NEWLINES},
};
use crate::{
    error::{Error, Kind, Result},
    format::{EncodedChunk, EncodedPiece, Finish, Layout, Write},
};

/// Where the first marker stands, in sectors: at a multiple of the grain, as with VMware.
const OVERHEAD: u64 = WRITTEN_GRAIN;

/// The serial half of writing a stream.
#[derive(Debug)]
pub(super) struct StreamLayout {
    /// Sectors of the disk, once known.
    capacity: Option<u64>,
    /// Whether what stands before the grains was written.
    begun: bool,
    /// Where the next marker goes, in sectors.
    at: u64,
    /// The table of the grains placed last.
    table: Option<(usize, Vec<u32>)>,
    directory: Vec<u32>,
    /// The guest bytes behind the last piece.
    placed: u64,
    /// What was placed since the last write: where it begins, in bytes.
    joined: (u64, BytesMut),
}

impl StreamLayout {
    /// A layout for a disk of `virtual_size` bytes, if that is known.
    ///
    /// # Errors
    /// `InvalidInput` if it is 0.
    pub(super) fn new(virtual_size: Option<u64>) -> Result<Self> {
        let capacity = virtual_size.map(capacity).transpose()?;
        Ok(Self {
            capacity,
            begun: false,
            at: OVERHEAD,
            table: None,
            directory: Vec::new(),
            placed: 0,
            joined: (OVERHEAD.saturating_mul(SECTOR), BytesMut::new()),
        })
    }

    /// Writes what stands before the grains, as soon as it is known.
    fn begin(&mut self) {
        if let Some(capacity) = self.capacity.filter(|_| !self.begun) {
            self.begun = true;
            self.joined = (0, BytesMut::from(front(capacity).as_slice()));
        }
    }

    fn append(&mut self, bytes: &[u8]) {
        self.joined.1.extend_from_slice(bytes);
        self.at = self.at.saturating_add(bytes.len() as u64 / SECTOR);
    }

    fn place_piece(&mut self, piece: &EncodedPiece) -> Result<()> {
        check_order(piece, self.placed, true)?;
        let grain = piece.guest / SECTOR / WRITTEN_GRAIN;
        let index = usize::try_from(grain / TABLE_ENTRIES).unwrap_or(usize::MAX);
        if self.table.as_ref().is_none_or(|(current, _)| *current != index) {
            self.close_table()?;
            self.table = Some((index, vec![0; usize::try_from(TABLE_ENTRIES).unwrap_or(0)]));
        }
        let sector = sector_number(self.at)?;
        let entry = usize::try_from(grain % TABLE_ENTRIES).unwrap_or(0);
        if let Some(slot) = self.table.as_mut().and_then(|(_, entries)| entries.get_mut(entry)) {
            *slot = sector;
        }
        self.append(&piece.bytes);
        self.placed = piece.guest.saturating_add(WRITTEN_GRAIN.saturating_mul(SECTOR));
        Ok(())
    }

    fn close_table(&mut self) -> Result<()> {
        let Some((index, entries)) = self.table.take() else { return Ok(()) };
        self.append(&marker(TABLE_SECTORS, MARKER_TABLE));
        let sector = sector_number(self.at)?;
        self.directory.resize(index, 0);
        self.directory.push(sector);
        let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        self.append(&bytes);
        Ok(())
    }

    /// The grain directory; its sector.
    fn write_directory(&mut self, capacity: u64) -> Result<u64> {
        let tables = capacity.div_ceil(WRITTEN_GRAIN).div_ceil(TABLE_ENTRIES);
        self.directory.resize(usize::try_from(tables).unwrap_or(usize::MAX), 0);
        let mut bytes: Vec<u8> = self.directory.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        self.append(&marker(bytes.len() as u64 / SECTOR, MARKER_DIRECTORY));
        let sector = u64::from(sector_number(self.at)?);
        self.append(&bytes);
        Ok(sector)
    }

    fn flush(&mut self) -> Option<Write> {
        let end = self.at.saturating_mul(SECTOR);
        let (offset, bytes) = std::mem::replace(&mut self.joined, (end, BytesMut::new()));
        (!bytes.is_empty()).then(|| Write { offset, bytes: bytes.freeze() })
    }
}

impl Layout for StreamLayout {
    fn place(&mut self, chunk: EncodedChunk) -> Result<Vec<Write>> {
        self.begin();
        self.joined.1.reserve(chunk.pieces.iter().map(|piece| piece.bytes.len()).sum());
        for piece in &chunk.pieces {
            self.place_piece(piece)?;
        }
        Ok(self.flush().into_iter().collect())
    }

    /// The virtual size in the file is a multiple of 512 bytes.
    fn finish(mut self: Box<Self>, virtual_size: u64) -> Result<Finish> {
        let sectors = capacity(virtual_size)?;
        let grain = WRITTEN_GRAIN.saturating_mul(SECTOR);
        if self.capacity.is_some_and(|told| told != sectors) || self.placed.saturating_sub(grain) >= virtual_size {
            let message = format!("vmdk: data up to {:#x} on a disk of {virtual_size:#x} bytes", self.placed);
            return Err(Error::new(Kind::Internal, message));
        }
        self.begin();
        self.close_table()?;
        let directory = self.write_directory(sectors)?;
        self.append(&marker(1, MARKER_FOOTER));
        self.append(&header(sectors, directory).write());
        self.append(&marker(0, MARKER_END));
        let mut writes: Vec<Write> = self.flush().into_iter().collect();
        if !self.begun {
            writes.push(Write { offset: 0, bytes: Bytes::from(front(sectors)) });
        }
        Ok(Finish { writes, length: self.at.saturating_mul(SECTOR) })
    }
}

/// A marker of something else than a grain.
fn marker(sectors: u64, kind: u32) -> Vec<u8> {
    let mut bytes = [sectors.to_le_bytes().as_slice(), &[0; 4], &kind.to_le_bytes()].concat();
    bytes.resize(512, 0);
    bytes
}

fn header(capacity: u64, gd_offset: u64) -> Fields {
    Fields {
        version: 3,
        flags: FLAG_NEWLINES | FLAG_COMPRESSED | FLAG_MARKERS,
        capacity,
        grain_size: WRITTEN_GRAIN,
        descriptor_offset: WRITTEN_DESCRIPTOR.0,
        descriptor_size: WRITTEN_DESCRIPTOR.1,
        entries_per_table: u32::try_from(TABLE_ENTRIES).unwrap_or(0),
        rgd_offset: 0,
        gd_offset,
        overhead: OVERHEAD,
        unclean_shutdown: 0,
        newlines: NEWLINES,
        compress_algorithm: DEFLATE,
    }
}

/// Everything before the first marker.
fn front(capacity: u64) -> Vec<u8> {
    let mut bytes = header(capacity, GD_AT_END).write();
    bytes.extend_from_slice(descriptor::write("streamOptimized", capacity).as_bytes());
    bytes.resize(usize::try_from(OVERHEAD.saturating_mul(SECTOR)).unwrap_or(0), 0);
    bytes
}
