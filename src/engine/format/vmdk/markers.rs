//! The map by markers: a stream read once, from its first grain to its end-of-stream marker.
//!
//! Grains must come in the guest's order; where they do not, `NeedsSpill` asks to be read by tables. The tables behind the grains
//! are read as they come and held against what was seen: who reads the file by them must see the same disk. Of each table only a
//! digest is kept, so memory stays small whatever order they come in.

use super::{
    FLAG_ZEROED, MARKER_DIRECTORY, MARKER_END, MARKER_FOOTER, MARKER_LENGTH, MARKER_TABLE, SECTOR, TABLE_ENTRIES,
    TABLE_LENGTH, TABLE_SECTORS,
    header::Header,
    read_exact,
    tables::{check_descriptor, check_footer, most_room, packed},
};
use crate::{
    error::{Error, Kind, Result},
    format::{
        DiskMap, Mapping, Place,
        fields::{le_u32, le_u64},
    },
    io::ReadAt,
    model::{DiskFormat, Limits, Rule, Violation},
};

/// Memory for what is remembered of one grain table, twice, in bytes.
const REMEMBERED: u64 = 64;

/// A digest that tells tables apart; nobody finds two of one digest with fewer than 2^64 tries.
type TableDigest = [u8; 16];

/// A stream as a disk.
#[derive(Debug)]
pub(in crate::format) struct MarkerMap {
    header: Header,
    /// Sector of the next marker.
    at: u64,
    /// The grain whose marker was read last, if the guest has not passed it.
    pending: Option<Pending>,
    /// Whether the last grain was seen: `at` is then what stands behind grains and grain tables.
    ended: bool,
    /// The table that the grains seen last belong to, as it should be in the file.
    building: Option<(u64, Vec<u32>)>,
    /// Number and digest of every table that has grains, ascending.
    expected: Vec<(u64, TableDigest)>,
    /// Sector and digest of every table in the file, ascending.
    found: Vec<(u64, TableDigest)>,
    most_remembered: usize,
}

/// A grain in the file.
#[derive(Clone, Copy, Debug)]
struct Pending {
    /// First guest byte.
    start: u64,
    sector: u32,
    /// Bytes with the marker.
    room: u32,
}

/// A marker in the file.
#[derive(Clone, Copy, Debug)]
struct Marker {
    value: u64,
    size: u32,
    /// `None` for a grain.
    kind: Option<u32>,
}

impl MarkerMap {
    /// Reads the descriptor.
    ///
    /// # Errors
    /// The first violation, or what `input` says.
    pub(in crate::format) fn open(input: &mut dyn ReadAt, header: Header, limits: &Limits) -> Result<Self> {
        check_descriptor(input, &header)?;
        let memory = limits.max_table_memory.saturating_sub(header.tables().saturating_mul(4));
        Ok(Self {
            at: header.fields.overhead,
            header,
            pending: None,
            ended: false,
            building: None,
            expected: Vec::new(),
            found: Vec::new(),
            most_remembered: usize::try_from(memory / REMEMBERED).unwrap_or(usize::MAX),
        })
    }

    fn walk(&mut self, input: &mut dyn ReadAt) -> Result<()> {
        let (mut guest, size) = (0_u64, self.header.virtual_size());
        while guest < size {
            guest = guest.saturating_add(self.resolve(input, guest, size.saturating_sub(guest))?.length);
        }
        self.finish(input)
    }

    fn read_marker(&self, input: &mut dyn ReadAt) -> Result<Marker> {
        let offset = self.at.saturating_mul(SECTOR);
        let head = read_exact(input, "marker", offset, MARKER_LENGTH)?;
        let (value, size) = (le_u64(&head, 0).unwrap_or(0), le_u32(&head, 8).unwrap_or(0));
        if size > 0 {
            return Ok(Marker { value, size, kind: None });
        }
        let kind = read_exact(input, "marker", offset.saturating_add(MARKER_LENGTH), 4)?;
        Ok(Marker { value, size, kind: le_u32(&kind, 0) })
    }

    fn refuse<T>(&self, rule: Rule, marker: Marker, message: &str) -> Result<T> {
        let what = match marker.kind {
            None => format!("lba {:#x}, {} bytes", marker.value, marker.size),
            Some(kind) => format!("type {kind}, {} sectors", marker.value),
        };
        Err(Violation::new(rule, format!("marker(sector {:#x})", self.at), what, message).into())
    }

    /// Takes the next marker, which is that of a grain at or behind `guest`, of a table, or of what ends them.
    fn advance(&mut self, input: &mut dyn ReadAt, guest: u64) -> Result<()> {
        let marker = self.read_marker(input)?;
        match marker.kind {
            None => self.take_grain(marker, guest),
            Some(MARKER_TABLE) => self.take_table(input, marker),
            Some(MARKER_END | MARKER_DIRECTORY | MARKER_FOOTER) => {
                self.ended = true;
                self.close_table()
            }
            Some(_) => self.refuse(Rule::InvalidField, marker, "markers have types 0 to 3: the image is damaged"),
        }
    }

    fn take_grain(&mut self, marker: Marker, guest: u64) -> Result<()> {
        let lba = marker.value;
        if lba.checked_rem(self.header.fields.grain_size) != Some(0) || lba >= self.header.fields.capacity {
            let message = "no grain of this disk begins at that sector: the image is damaged";
            return self.refuse(Rule::InvalidField, marker, message);
        }
        let room = MARKER_LENGTH.saturating_add(u64::from(marker.size));
        if room > most_room(&self.header) {
            return self.refuse(Rule::CompressedCluster, marker, "far more bytes than the grain has unpacked");
        }
        let (start, sector) = (lba.saturating_mul(SECTOR), u32::try_from(self.at));
        if start < guest {
            let message = format!("vmdk: the grain at byte {start} stands behind that at byte {guest}");
            return Err(Error::new(Kind::NeedsSpill, message));
        }
        let Ok(sector) = sector else {
            return self.refuse(Rule::TableOutOfRange, marker, "no table can name it: sector numbers have 32 bits");
        };
        let number = lba.checked_div(self.header.fields.grain_size).unwrap_or(0);
        self.note(number, sector)?;
        self.pending = Some(Pending { start, sector, room: u32::try_from(room).unwrap_or(u32::MAX) });
        self.at = self.at.saturating_add(room.div_ceil(SECTOR));
        Ok(())
    }

    /// Remembers where grain `number` is.
    fn note(&mut self, number: u64, sector: u32) -> Result<()> {
        let (index, entry) = (number / TABLE_ENTRIES, usize::try_from(number % TABLE_ENTRIES).unwrap_or(0));
        if self.building.as_ref().is_none_or(|(building, _)| *building != index) {
            self.close_table()?;
            self.building = Some((index, vec![0; usize::try_from(TABLE_ENTRIES).unwrap_or(0)]));
        }
        if let Some(slot) = self.building.as_mut().and_then(|(_, entries)| entries.get_mut(entry)) {
            *slot = sector;
        }
        Ok(())
    }

    fn close_table(&mut self) -> Result<()> {
        let Some((index, entries)) = self.building.take() else { return Ok(()) };
        let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        self.expected.push((index, digest(&bytes)));
        self.check_memory()
    }

    fn take_table(&mut self, input: &mut dyn ReadAt, marker: Marker) -> Result<()> {
        if marker.value != TABLE_SECTORS {
            return self.refuse(Rule::InvalidField, marker, "a grain table has four sectors: the image is damaged");
        }
        if self.found.len() as u64 >= self.header.tables() {
            let message = "there are more grain tables than the disk has: the image is damaged";
            return self.refuse(Rule::InvalidField, marker, message);
        }
        let sector = self.at.saturating_add(1);
        let bytes = read_exact(input, "grain table", sector.saturating_mul(SECTOR), TABLE_LENGTH)?;
        self.found.push((sector, self.digest_of_table(&bytes)));
        self.at = sector.saturating_add(TABLE_SECTORS);
        self.check_memory()
    }

    /// Grains that are said to be zeros were not seen, as if they were not there.
    fn digest_of_table(&self, bytes: &[u8]) -> TableDigest {
        if self.header.fields.flags & FLAG_ZEROED == 0 {
            return digest(bytes);
        }
        let plain =
            |raw: &[u8]| le_u32(raw, 0).filter(|entry| !self.header.is_absent(*entry)).unwrap_or(0).to_le_bytes();
        digest(&bytes.chunks_exact(4).flat_map(plain).collect::<Vec<u8>>())
    }

    fn check_memory(&self) -> Result<()> {
        if self.expected.len().max(self.found.len()) <= self.most_remembered {
            return Ok(());
        }
        Err(Error::new(Kind::NeedsSpill, "vmdk: too many grain tables to hold against the grains in memory"))
    }

    /// Reads the grain directory behind its marker; its sector.
    fn read_directory(&mut self, input: &mut dyn ReadAt) -> Result<u64> {
        let marker = self.read_marker(input)?;
        let length = self.header.tables().saturating_mul(4);
        if marker.kind != Some(MARKER_DIRECTORY) || marker.value != length.div_ceil(SECTOR) {
            let message = "the grain directory belongs there, with an entry for each grain table: the image is damaged";
            return self.refuse(Rule::InvalidField, marker, message);
        }
        let sector = self.at.saturating_add(1);
        let bytes = read_exact(input, "grain directory", sector.saturating_mul(SECTOR), length)?;
        self.check_directory(&bytes)?;
        self.at = sector.saturating_add(marker.value);
        Ok(sector)
    }

    /// Every table with grains must be named in its place, each table once, and say where its grains were.
    fn check_directory(&self, bytes: &[u8]) -> Result<()> {
        let empty = digest(&vec![0; usize::try_from(TABLE_LENGTH).unwrap_or(0)]);
        let mut used = vec![false; self.found.len()];
        let mut expected = self.expected.iter().peekable();
        for (index, entry) in bytes.chunks_exact(4).enumerate() {
            let sector = u64::from(le_u32(entry, 0).unwrap_or(0));
            let wanted = expected.next_if(|(at, _)| *at == index as u64).map_or(empty, |(_, digest)| *digest);
            let refuse = |rule, message: &str| {
                let field = format!("gdOffset[{index}]");
                Err(Violation::new(rule, field, format!("{sector:#x}"), message).into())
            };
            if sector == 0 && wanted == empty {
                continue;
            }
            let number = self.found.binary_search_by_key(&sector, |(at, _)| *at).ok();
            let Some((number, (_, found))) = number.and_then(|number| Some((number, self.found.get(number)?))) else {
                let message = "no grain table stands there: the image is damaged, or lies about its disk";
                return refuse(Rule::TableOutOfRange, message);
            };
            if used.get_mut(number).is_none_or(|used| std::mem::replace(used, true)) {
                return refuse(Rule::TableOverlap, "two entries name one grain table: no writer does that");
            }
            if *found != wanted {
                let message = "the grain table says otherwise than the markers of the grains: the image is damaged, or lies about its disk";
                return refuse(Rule::InvalidField, message);
            }
        }
        Ok(())
    }

    /// Footer and end-of-stream marker, and nothing behind them.
    fn check_end(&mut self, input: &mut dyn ReadAt, directory: u64) -> Result<()> {
        let marker = self.read_marker(input)?;
        if marker.kind != Some(MARKER_FOOTER) || marker.value != 1 {
            return self.refuse(Rule::InvalidField, marker, "the footer belongs there: the image is damaged");
        }
        let sector = read_exact(input, "footer", self.at.saturating_add(1).saturating_mul(SECTOR), SECTOR)?;
        let footer = check_footer(&sector, &self.header)?;
        if footer.gd_offset != directory {
            let message = format!("the grain directory is at sector {directory:#x}");
            let value = format!("{:#x}", footer.gd_offset);
            return Err(Violation::new(Rule::InvalidField, "footer gdOffset", value, message).into());
        }
        self.at = self.at.saturating_add(2);
        let marker = self.read_marker(input)?;
        if marker.kind != Some(MARKER_END) || marker.value != 0 {
            let message = "the end-of-stream marker belongs there, and no second footer: the image is damaged";
            return self.refuse(Rule::InvalidField, marker, message);
        }
        let end = self.at.saturating_add(1).saturating_mul(SECTOR);
        // All of the marker's sector, and nothing more.
        read_exact(input, "end-of-stream marker", end.saturating_sub(1), 1)?;
        if input.read_up_to(end, 1)?.is_empty() {
            return Ok(());
        }
        let message = "something stands behind the end-of-stream marker: readers that look for the footer at the file's end do not find it";
        Err(Violation::new(Rule::Truncated, "end-of-stream marker", format!("byte {end}"), message).into())
    }
}

impl DiskMap for MarkerMap {
    fn format(&self) -> DiskFormat {
        DiskFormat::Vmdk
    }

    fn virtual_size(&self) -> Option<u64> {
        Some(self.header.virtual_size())
    }

    fn may_read_twice(&self) -> bool {
        // A marker is read once more with its grain, before anything else is read.
        false
    }

    fn may_need_tables(&self) -> bool {
        true
    }

    fn resolve(&mut self, input: &mut dyn ReadAt, guest: u64, most: u64) -> Result<Mapping> {
        let end = guest.saturating_add(most).min(self.header.virtual_size());
        if guest >= end {
            return Err(Error::new(Kind::Internal, format!("vmdk: resolve of {most} bytes at byte {guest}")));
        }
        let grain = self.header.grain_length();
        loop {
            match self.pending {
                Some(Pending { start, .. }) if guest < start => {
                    return Ok(Mapping { length: start.min(end).saturating_sub(guest), place: Place::Zero });
                }
                Some(Pending { start, sector, room }) if guest < start.saturating_add(grain) => {
                    let within = guest.saturating_sub(start);
                    let length = start.saturating_add(grain).min(end).saturating_sub(guest);
                    return Ok(Mapping { length, place: packed(&self.header, sector, room, start, within) });
                }
                Some(_) => self.pending = None,
                None if self.ended => {
                    return Ok(Mapping { length: end.saturating_sub(guest), place: Place::Zero });
                }
                None => self.advance(input, guest)?,
            }
        }
    }

    /// Reading up to the end-of-stream marker has shown it all.
    fn check_length(&self, length: u64) -> Result<()> {
        let overhead = self.header.fields.overhead;
        if overhead.saturating_mul(SECTOR) <= length {
            return Ok(());
        }
        let message = format!("the file ends at byte {length}, before its first grain: it was cut off; fetch it again");
        Err(Violation::new(Rule::Truncated, "overHead", overhead, message).into())
    }

    fn finish(&mut self, input: &mut dyn ReadAt) -> Result<()> {
        while !self.ended {
            self.advance(input, self.header.virtual_size())?;
        }
        let directory = self.read_directory(input)?;
        self.check_end(input, directory)
    }
}

/// Holds what the tables of a stream say against the markers of its grains, for who reads it by its tables.
///
/// # Errors
/// The first violation, or what `input` says. Grains out of order cannot be told from others: there the tables alone count.
pub(in crate::format) fn check_markers(input: &mut dyn ReadAt, header: &Header, limits: &Limits) -> Result<()> {
    let mut map = MarkerMap::open(input, header.clone(), limits)?;
    match map.walk(input) {
        Err(error) if error.kind() == Kind::NeedsSpill => Ok(()),
        walked => walked,
    }
}

fn digest(bytes: &[u8]) -> TableDigest {
    let hash = blake3::hash(bytes);
    hash.as_bytes().first_chunk().copied().unwrap_or_default()
}
