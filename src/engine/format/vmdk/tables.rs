//! The map by tables: the grain directory in memory, one grain table at a time, every claim on the file checked as it is read.
//!
//! Knows where tables are, also those of a stream, whose footer tells; must not read grains.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    MARKER_END, MARKER_FOOTER, MARKER_LENGTH, SECTOR, TABLE_ENTRIES, TABLE_LENGTH, TABLE_SECTORS, descriptor,
    grain::Grain,
    header::{Fields, Header},
    occupied::Occupied,
    read_exact,
};
use crate::{
    error::{Error, Kind, Result},
    format::{
        DiskMap, Mapping, Place,
        claims::Clash,
        detect::HEAD_LENGTH,
        fields::{le_u32, le_u64, printable},
    },
    io::ReadAt,
    model::{DiskFormat, Limits, Rule, Violation},
};

/// How much of the grain directory is read at once, in bytes: little enough for a window over a stream.
const PIECE: u64 = 1 << 20;
/// Footer marker, footer and end-of-stream marker, in sectors.
const TRAILER: u64 = 3;

/// A sparse extent as a disk.
#[derive(Debug)]
pub(in crate::format) struct TableMap {
    header: Header,
    /// The file's first bytes, which were read before: a stream does not keep them until their tables are wanted.
    head: Bytes,
    /// Sector of each grain table; 0 where there is none.
    directory: Vec<u32>,
    occupied: Occupied,
    table: Option<Table>,
    /// The furthest data that was resolved: where it ends, and the guest offset it belongs to.
    furthest: (u64, u64),
    /// The furthest grain table that a directory names: where it ends, and the directory and entry. Redundant ones are never read.
    furthest_table: (u64, &'static str, usize),
}

/// The grain table in memory.
#[derive(Debug)]
struct Table {
    /// Its number in the directory.
    index: usize,
    /// One for each grain of the disk that it covers; none at all if the table is empty.
    entries: Vec<Entry>,
}

/// What a grain table says of one grain.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    /// Where it begins; 0 if it is not there.
    sector: u32,
    /// How many bytes there are for it, if it is compressed; 0 where that is not known yet.
    room: u32,
}

/// The descriptor, read and judged.
///
/// # Errors
/// The first violation, or what `input` says.
pub(super) fn check_descriptor(input: &mut dyn ReadAt, header: &Header) -> Result<()> {
    Ok(descriptor::check(&read_descriptor(input, header)?, header)?)
}

fn read_descriptor(input: &mut dyn ReadAt, header: &Header) -> Result<Bytes> {
    let (offset, size) = (header.fields.descriptor_offset, header.fields.descriptor_size);
    read_exact(input, "descriptor", offset.saturating_mul(SECTOR), size.saturating_mul(SECTOR))
}

/// What a footer may not say otherwise than the header.
///
/// # Errors
/// The violation.
pub(super) fn check_footer(sector: &[u8], header: &Header) -> Result<Fields> {
    let Some(footer) = Fields::read(sector) else {
        let message = "no footer stands where the stream's end should have it: it was cut off, or something was added";
        return Err(Violation::new(Rule::Truncated, "footer", "no magic number", message).into());
    };
    match footer.difference(&header.fields) {
        None => Ok(footer),
        Some((field, value)) => {
            let message = "the header says otherwise, so readers may disagree about the disk";
            Err(Violation::new(Rule::InvalidField, format!("footer {field}"), value, message).into())
        }
    }
}

impl TableMap {
    /// Reads the descriptor and the grain directory, and the footer of a stream.
    ///
    /// # Errors
    /// The first violation, or what `input` says.
    pub(in crate::format) fn open(input: &mut dyn ReadAt, header: Header, limits: &Limits) -> Result<Self> {
        check_descriptor(input, &header)?;
        Self::with_descriptor(input, header, limits)
    }

    /// The same of an extent whose descriptor stands elsewhere: it has none of its own that could say otherwise.
    ///
    /// # Errors
    /// The first violation, or what `input` says.
    pub(super) fn open_extent(input: &mut dyn ReadAt, header: Header, limits: &Limits) -> Result<Self> {
        if header.has_descriptor() {
            let text = read_descriptor(input, &header)?;
            if text.first().is_some_and(|byte| *byte != 0) {
                let message = "an extent of a disk in several files has a descriptor of its own, so readers may disagree about the disk";
                let found = printable(text.get(..80).unwrap_or(&text));
                return Err(Violation::new(Rule::InvalidField, "descriptor", found, message).into());
            }
        }
        Self::with_descriptor(input, header, limits)
    }

    fn with_descriptor(input: &mut dyn ReadAt, header: Header, limits: &Limits) -> Result<Self> {
        let memory = limits.max_table_memory.saturating_sub(header.tables().saturating_mul(4));
        let occupied = Occupied::new(header.fields.grain_size, memory);
        let head = input.read_up_to(0, HEAD_LENGTH)?;
        let mut map = Self {
            header,
            head,
            directory: Vec::new(),
            occupied,
            table: None,
            furthest: (0, 0),
            furthest_table: (0, "", 0),
        };
        map.claim("header", 0, 1)?;
        if map.header.has_descriptor() {
            map.claim("descriptorOffset", map.header.fields.descriptor_offset, map.header.fields.descriptor_size)?;
        }
        let fields = &map.header.fields;
        let redundant = (fields.flags & super::FLAG_REDUNDANT != 0).then_some(fields.rgd_offset);
        let primary = if map.header.has_tables_at_end() { map.read_footer(input)? } else { fields.gd_offset };
        // The one in front first: over a stream that is the order in which they come.
        if let Some(offset) = redundant.filter(|offset| *offset < primary) {
            map.read_directory(input, "rgdOffset", offset)?;
        }
        let directory = map.read_directory(input, "gdOffset", primary)?;
        if let Some(offset) = redundant.filter(|offset| *offset >= primary) {
            map.read_directory(input, "rgdOffset", offset)?;
        }
        map.directory = directory;
        Ok(map)
    }

    fn claim(&mut self, field: &str, sector: u64, sectors: u64) -> Result<()> {
        let range = sector..sector.saturating_add(sectors);
        self.occupied.claim(range).map_err(|clash| clashed(clash, field, sector))
    }

    /// Where the footer says that the grain directory is.
    fn read_footer(&mut self, input: &mut dyn ReadAt) -> Result<u64> {
        if input.length().is_none() {
            // Only the end tells where it is.
            input.read_up_to(i64::MAX.unsigned_abs(), 1)?;
        }
        let Some(length) = input.length() else {
            let message = "vmdk: a stream with its tables at the end was to be read by them before its end was seen";
            return Err(Error::new(Kind::NeedsSpill, message));
        };
        let start = (length / SECTOR).saturating_sub(TRAILER);
        let cut = |value: String| {
            let message = "a stream ends with a footer and an end-of-stream marker: it was cut off, or something was added; fetch it again";
            Error::from(Violation::new(Rule::Truncated, "end-of-stream marker", value, message))
        };
        if !length.is_multiple_of(SECTOR) || start < self.header.fields.overhead {
            return Err(cut(format!("{length} bytes")));
        }
        let bytes = read_exact(input, "footer", start.saturating_mul(SECTOR), TRAILER.saturating_mul(SECTOR))?;
        let mut sectors = bytes.chunks(512);
        let mut next = || sectors.next().unwrap_or_default();
        let (marker, footer, end) = (next(), next(), next());
        for (sector, value, kind) in [(marker, 1, MARKER_FOOTER), (end, 0, MARKER_END)] {
            let found = (le_u64(sector, 0), le_u32(sector, 8), le_u32(sector, 12));
            if found != (Some(value), Some(0), Some(kind)) {
                return Err(cut(format!("{found:?}")));
            }
        }
        let footer = check_footer(footer, &self.header)?;
        self.claim("footer", start, TRAILER)?;
        Ok(footer.gd_offset)
    }

    /// Reads a grain directory and claims it and its tables.
    fn read_directory(&mut self, input: &mut dyn ReadAt, field: &'static str, sector: u64) -> Result<Vec<u32>> {
        let length = self.header.tables().saturating_mul(4);
        let start = sector.saturating_mul(SECTOR);
        let end = start.saturating_add(length);
        if u32::try_from(sector).is_err() || input.length().is_some_and(|length| end > length) {
            let message =
                format!("its {length} bytes there reach past the file's end: it was cut off, or the header is wrong");
            return Err(Violation::new(Rule::TableOutOfRange, field, format!("{sector:#x}"), message).into());
        }
        self.claim(field, sector, length.div_ceil(SECTOR))?;
        let mut directory = Vec::with_capacity(usize::try_from(self.header.tables()).unwrap_or(0));
        let mut at = start;
        while at < end {
            let piece = read_exact(input, field, at, end.saturating_sub(at).min(PIECE))?;
            for entry in piece.chunks_exact(4) {
                let entry = le_u32(entry, 0).unwrap_or(0);
                self.check_table(field, directory.len(), entry, input.length())?;
                directory.push(entry);
            }
            at = at.saturating_add(PIECE);
        }
        Ok(directory)
    }

    fn check_table(&mut self, field: &'static str, index: usize, entry: u32, length: Option<u64>) -> Result<()> {
        if entry == 0 {
            return Ok(());
        }
        let sector = u64::from(entry);
        let end = sector.saturating_add(TABLE_SECTORS).saturating_mul(SECTOR);
        self.furthest_table = self.furthest_table.max((end, field, index));
        if let Some(length) = length {
            self.check_tables_end(length)?;
        }
        self.claim(&format!("{field}[{index}]"), sector, TABLE_SECTORS)
    }

    fn check_tables_end(&self, length: u64) -> Result<()> {
        let (end, field, index) = self.furthest_table;
        if end <= length {
            return Ok(());
        }
        let sector = (end / SECTOR).saturating_sub(TABLE_SECTORS);
        let message = "a grain table lies past the file's end: it was cut off, or the directory is wrong";
        Err(Violation::new(Rule::TableOutOfRange, format!("{field}[{index}]"), format!("{sector:#x}"), message).into())
    }

    /// Reads and checks grain table `index`, of which only the entries inside the disk count.
    fn load(&mut self, input: &mut dyn ReadAt, index: usize, sector: u32) -> Result<()> {
        let mut entries = self.table.take().map(|table| table.entries).unwrap_or_default();
        entries.clear();
        let bytes = self.read_table(input, u64::from(sector).saturating_mul(SECTOR))?;
        // Most tables of a sparse disk are this one.
        if bytes.iter().any(|byte| *byte != 0) {
            let first = TABLE_ENTRIES.saturating_mul(index as u64);
            let count = usize::try_from(self.header.grains().saturating_sub(first)).unwrap_or(usize::MAX);
            let entry = |raw: &[u8]| Entry { sector: le_u32(raw, 0).unwrap_or(0), room: 0 };
            entries.extend(bytes.chunks_exact(4).take(count).map(entry));
            self.check_entries(&mut entries, first, input.length())?;
        }
        self.table = Some(Table { index, entries });
        Ok(())
    }

    fn read_table(&self, input: &mut dyn ReadAt, offset: u64) -> Result<Bytes> {
        let range = usize::try_from(offset).ok().zip(usize::try_from(offset.saturating_add(TABLE_LENGTH)).ok());
        match range.filter(|(_, end)| *end <= self.head.len()) {
            Some((start, end)) => Ok(self.head.slice(start..end)),
            None => read_exact(input, "grain table", offset, TABLE_LENGTH),
        }
    }

    /// Checks and claims what a table says of the grains from number `first` on.
    fn check_entries(&mut self, entries: &mut [Entry], first: u64, length: Option<u64>) -> Result<()> {
        let mut starts: Vec<u32> = Vec::new();
        if self.header.is_packed() {
            starts.extend(entries.iter().map(|entry| entry.sector));
            starts.sort_unstable();
        }
        let mut guest = first.saturating_mul(self.header.grain_length());
        for entry in entries {
            if self.header.is_absent(entry.sector) {
                entry.sector = 0;
            } else if self.header.is_packed() {
                self.check_reach(entry.sector, guest, 1, length)?;
                let next = starts.get(starts.partition_point(|start| *start <= entry.sector)).copied();
                self.bound(entry, guest, next)?;
            } else {
                let needed = self.header.grain_length().min(self.header.virtual_size().saturating_sub(guest));
                self.check_reach(entry.sector, guest, needed, length)?;
                let sector = u64::from(entry.sector);
                self.occupied.claim_grain(sector).map_err(|clash| clashed(clash, &entry_field(guest), sector))?;
            }
            guest = guest.saturating_add(self.header.grain_length());
        }
        Ok(())
    }

    fn check_reach(&mut self, sector: u32, guest: u64, needed: u64, length: Option<u64>) -> Result<()> {
        if u64::from(sector) < self.header.fields.overhead {
            let message = format!("grains begin behind `overHead`, at sector {}", self.header.fields.overhead);
            return Err(
                Violation::new(Rule::TableOutOfRange, entry_field(guest), format!("{sector:#x}"), message).into()
            );
        }
        let end = u64::from(sector).saturating_mul(SECTOR).saturating_add(needed);
        self.furthest = self.furthest.max((end, guest));
        length.map_or(Ok(()), |length| self.check_length(length))
    }

    /// A compressed grain ends where the next one begins, if that is near enough; else its marker has to be asked.
    fn bound(&mut self, entry: &mut Entry, guest: u64, next: Option<u32>) -> Result<()> {
        let gap = next.map(|next| u64::from(next.saturating_sub(entry.sector)));
        let Some(gap) = gap.filter(|gap| gap.saturating_mul(SECTOR) <= most_room(&self.header)) else { return Ok(()) };
        entry.room = u32::try_from(gap.saturating_mul(SECTOR)).unwrap_or(u32::MAX);
        self.claim(&entry_field(guest), u64::from(entry.sector), gap)
    }

    /// Room of the compressed grain at `guest`, by its marker.
    fn read_marker(&mut self, input: &mut dyn ReadAt, sector: u32, guest: u64) -> Result<u32> {
        let offset = u64::from(sector).saturating_mul(SECTOR);
        let marker = read_exact(input, "grain marker", offset, MARKER_LENGTH)?;
        let (lba, size) = (le_u64(&marker, 0).unwrap_or(0), le_u32(&marker, 8).unwrap_or(0));
        let room = MARKER_LENGTH.saturating_add(u64::from(size));
        let refuse = |rule, message: &str| {
            let value = format!("lba {lba:#x}, {size} bytes");
            Err(Violation::new(rule, format!("grain marker(guest {guest:#x})"), value, message).into())
        };
        if lba.checked_mul(SECTOR) != Some(guest) || size == 0 {
            return refuse(Rule::InvalidField, "the table names a grain there, and its marker is of another one");
        }
        if room > most_room(&self.header) {
            return refuse(Rule::CompressedCluster, "far more bytes than the grain has unpacked");
        }
        self.furthest = self.furthest.max((offset.saturating_add(room), guest));
        self.claim(&entry_field(guest), u64::from(sector), room.div_ceil(SECTOR))?;
        input.length().map_or(Ok(()), |length| self.check_length(length))?;
        Ok(u32::try_from(room).unwrap_or(u32::MAX))
    }

    /// Zeros from `guest` on, up to the next grain table or `end`.
    fn hole(&self, index: usize, guest: u64, end: u64) -> Mapping {
        // Not past `end`: a disk asked for piece by piece would be scanned to its end for every piece.
        let last = usize::try_from(end.div_ceil(self.header.span().max(1))).unwrap_or(usize::MAX);
        let tables = self.directory.get(index..last.min(self.directory.len())).unwrap_or_default();
        let absent = tables.iter().position(|sector| *sector != 0).unwrap_or(tables.len());
        let until = self.header.span().saturating_mul((index as u64).saturating_add(absent as u64));
        Mapping { length: until.min(end).saturating_sub(guest), place: Place::Zero }
    }

    /// The mapping at `guest` inside the table in memory, as long as it goes on in the same way.
    fn look_up(&mut self, input: &mut dyn ReadAt, guest: u64, end: u64) -> Result<Option<Mapping>> {
        let Some(table) = &self.table else { return Ok(None) };
        let (grain, span) = (self.header.grain_length(), self.header.span());
        let base = span.saturating_mul(table.index as u64);
        if table.entries.is_empty() {
            let length = base.saturating_add(span).min(end).saturating_sub(guest);
            return Ok(Some(Mapping { length, place: Place::Zero }));
        }
        let number = guest.saturating_sub(base).checked_div(grain).unwrap_or(0);
        let within = guest.checked_rem(grain).unwrap_or(0);
        let number = usize::try_from(number).unwrap_or(usize::MAX);
        let entries = table.entries.get(number..).unwrap_or_default();
        let Some(first) = entries.first().copied() else { return Ok(None) };
        let start = guest.saturating_sub(within);
        if first.sector != 0 && self.header.is_packed() {
            let room = if first.room > 0 { first.room } else { self.read_marker(input, first.sector, start)? };
            if let Some(entry) = self.table.as_mut().and_then(|table| table.entries.get_mut(number)) {
                entry.room = room;
            }
            let place = packed(&self.header, first.sector, room, start, within);
            return Ok(Some(Mapping { length: grain.saturating_sub(within), place }));
        }
        let step = if first.sector == 0 { 0 } else { u32::try_from(self.header.fields.grain_size).unwrap_or(0) };
        let mut expected = first.sector;
        let alike = |entry: &&Entry| {
            let same = entry.sector == expected;
            expected = expected.saturating_add(step);
            same
        };
        // No further than asked for, as in `hole`.
        let wanted = usize::try_from(end.saturating_sub(start).div_ceil(grain)).unwrap_or(usize::MAX);
        let count = entries.iter().take(wanted).take_while(alike).count() as u64;
        let length = count.saturating_mul(grain).saturating_sub(within);
        let host = u64::from(first.sector).saturating_mul(SECTOR).saturating_add(within);
        let place = if first.sector == 0 { Place::Zero } else { Place::Raw { host } };
        Ok(Some(Mapping { length, place }))
    }
}

impl DiskMap for TableMap {
    fn format(&self) -> DiskFormat {
        DiskFormat::Vmdk
    }

    fn virtual_size(&self) -> Option<u64> {
        Some(self.header.virtual_size())
    }

    fn may_read_twice(&self) -> bool {
        // The first bytes, where grains may begin, are read before anything else. A marker is read once more with its grain, right away.
        self.header.fields.overhead.saturating_mul(SECTOR) < HEAD_LENGTH as u64
    }

    fn resolve(&mut self, input: &mut dyn ReadAt, guest: u64, most: u64) -> Result<Mapping> {
        let end = guest.saturating_add(most).min(self.header.virtual_size());
        let index = usize::try_from(guest.checked_div(self.header.span()).unwrap_or(0)).unwrap_or(usize::MAX);
        let Some(sector) = self.directory.get(index).copied().filter(|_| guest < end) else {
            return Err(Error::new(Kind::Internal, format!("vmdk: resolve of {most} bytes at byte {guest}")));
        };
        if sector == 0 {
            return Ok(self.hole(index, guest, end));
        }
        if self.table.as_ref().is_none_or(|table| table.index != index) {
            self.load(input, index, sector)?;
        }
        let found = self.look_up(input, guest, end)?;
        let mut mapping =
            found.ok_or_else(|| Error::new(Kind::Internal, format!("vmdk: no entry for byte {guest}")))?;
        mapping.length = mapping.length.min(end.saturating_sub(guest));
        Ok(mapping)
    }

    fn check_length(&self, length: u64) -> Result<()> {
        self.check_tables_end(length)?;
        let overhead = self.header.fields.overhead.saturating_mul(SECTOR);
        let (end, what) = match self.furthest {
            (end, _) if end <= overhead => (overhead, "overHead".to_owned()),
            (end, guest) => (end, entry_field(guest)),
        };
        if end <= length {
            return Ok(());
        }
        let message = format!(
            "its bytes end at {end} and the file at {length}: the download was cut short, or the table is wrong"
        );
        Err(Violation::new(Rule::Truncated, what, end, message).into())
    }
}

/// Where a compressed grain lies whose first guest byte is `start`.
pub(super) fn packed(header: &Header, sector: u32, room: u32, start: u64, within: u64) -> Place {
    let narrow = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    let length = header.grain_length();
    let least = narrow(length.min(header.virtual_size().saturating_sub(start)));
    Place::Packed {
        host: u64::from(sector).saturating_mul(SECTOR),
        // Whole sectors: what is left out of a stream may still be asked for, and has to be kept.
        host_length: room.checked_next_multiple_of(narrow(SECTOR)).unwrap_or(room),
        codec: Arc::new(Grain { lba: start / SECTOR, room, least }),
        unpacked_length: narrow(length),
        skip: narrow(within),
    }
}

/// The most bytes a compressed grain and its marker may take. Deflate makes noise hardly longer; QEMU allows twice as much.
pub(super) fn most_room(header: &Header) -> u64 {
    header.grain_length().saturating_mul(2).saturating_add(SECTOR)
}

fn entry_field(guest: u64) -> String {
    format!("grain table entry(guest {guest:#x})")
}

fn clashed(clash: Clash, field: &str, sector: u64) -> Error {
    match clash {
        Clash::Taken(_) => {
            let message = "another structure has the same sectors of the file: look at it with `qemu-img check`";
            Violation::new(Rule::TableOverlap, field, format!("{sector:#x}"), message).into()
        }
        Clash::TooMany => {
            let message = "its data lies too scattered to be checked in the memory allowed for tables: \
                           rewrite it with `qemu-img convert -O vmdk`";
            Violation::new(Rule::SizeLimit, field, format!("{sector:#x}"), message).into()
        }
    }
}
