//! The map of a qcow2: L1 in memory, one L2 table at a time, every claim on the file checked as it is read.
//!
//! Knows "Cluster mapping" and the order in which a stream brings the tables; must not read data clusters.

use std::sync::Arc;

use super::{
    COPIED, MAX_L1_LENGTH, OFFSET_MASK, SECTOR,
    codec::{Deflate, Zstd},
    entry::{Dialect, Entry, Flaw},
    header::Header,
};
use crate::{
    error::{Error, Kind, Result},
    format::{
        Codec, DiskMap, Mapping, Place,
        claims::{Claims, Clash, Use},
        fields::be_u64,
    },
    io::ReadAt,
    model::{Compression, DiskFormat, Limits, Rule, Violation},
};

/// Subclusters in a cluster with extended L2 entries.
const SUBCLUSTERS: u64 = 32;
/// How much of the L1 table is read at once, in bytes: little enough for a window over a stream.
const L1_PIECE: u64 = 1 << 20;

/// A qcow2 as a disk.
#[derive(Debug)]
pub(in crate::format) struct Qcow2Map {
    header: Header,
    dialect: Dialect,
    codec: Arc<dyn Codec>,
    /// Host offset of each L2 table in bytes; 0 where there is none.
    l1: Vec<u64>,
    claims: Claims,
    table: Option<Table>,
    /// The furthest data that was resolved: where it ends, and the guest cluster it belongs to.
    furthest: (u64, u64),
}

/// The L2 table in memory.
#[derive(Debug)]
struct Table {
    /// Its number in L1.
    index: usize,
    /// Decoded, one per guest cluster of the disk that it covers.
    entries: Vec<Entry>,
}

impl Qcow2Map {
    /// Reads the L1 table.
    ///
    /// # Errors
    /// The first violation, or what `input` says.
    pub(in crate::format) fn with_header(input: &mut dyn ReadAt, header: Header, limits: &Limits) -> Result<Self> {
        let l1_memory = header.l1_needed.saturating_mul(8).min(MAX_L1_LENGTH);
        let dialect =
            Dialect { version: header.version, cluster_bits: header.cluster_bits, extended: header.extended_l2 };
        let codec: Arc<dyn Codec> = match header.compression {
            Compression::Zstd => Arc::new(Zstd),
            Compression::Zlib | Compression::None => Arc::new(Deflate),
        };
        let claims = Claims::new(limits.max_table_memory.saturating_sub(l1_memory));
        let mut map = Self { header, dialect, codec, l1: Vec::new(), claims, table: None, furthest: (0, 0) };
        map.claim_regions()?;
        map.read_l1(input)?;
        Ok(map)
    }

    fn claim_regions(&mut self) -> Result<()> {
        for region in self.header.regions.clone() {
            let (first, last) = self.host_clusters(region.offset, region.length);
            self.claims
                .claim_range(first, last, Use::Whole)
                .map_err(|clash| clashed(clash, region.name, region.offset))?;
        }
        Ok(())
    }

    /// The host clusters that `length` bytes (at least 1) at `offset` touch, first and last.
    fn host_clusters(&self, offset: u64, length: u64) -> (u64, u64) {
        let last = offset.saturating_add(length.saturating_sub(1));
        (self.cluster_number(offset), self.cluster_number(last))
    }

    fn cluster_number(&self, offset: u64) -> u64 {
        offset.wrapping_shr(self.header.cluster_bits)
    }

    fn read_l1(&mut self, input: &mut dyn ReadAt) -> Result<()> {
        let (start, length) = (self.header.l1_offset, self.header.l1_needed.saturating_mul(8));
        self.l1.reserve_exact(usize::try_from(self.header.l1_needed).unwrap_or(0));
        let mut done = 0_u64;
        while done < length {
            let piece =
                read_exact(input, "l1_table", start.saturating_add(done), length.saturating_sub(done).min(L1_PIECE))?;
            for entry in piece.chunks_exact(8) {
                let offset = self.check_l1_entry(be_u64(entry, 0).unwrap_or(0), input.length())?;
                self.l1.push(offset);
            }
            done = done.saturating_add(L1_PIECE);
        }
        Ok(())
    }

    /// Host offset of the L2 table that an L1 entry names.
    fn check_l1_entry(&mut self, entry: u64, length: Option<u64>) -> Result<u64> {
        let offset = entry & OFFSET_MASK;
        let refuse = |rule, message: &str| {
            let field = format!("l1_table[{}]", self.l1.len());
            Err(Violation::new(rule, field, format!("{entry:#x}"), message).into())
        };
        if entry & !(OFFSET_MASK | COPIED) != 0 {
            return refuse(Rule::InvalidField, "reserved bits are set");
        }
        if offset == 0 {
            return Ok(0);
        }
        if !offset.is_multiple_of(self.header.cluster_size()) {
            return refuse(Rule::TableOutOfRange, "an L2 table does not begin at a multiple of the cluster size");
        }
        if length.is_some_and(|end| offset >= end) {
            return refuse(
                Rule::TableOutOfRange,
                "an L2 table lies past the file's end: the download was cut short, or the table is wrong",
            );
        }
        let number = self.cluster_number(offset);
        self.claims.claim(number, Use::Whole).map_err(|clash| clashed(clash, "l1_table", offset))?;
        Ok(offset)
    }

    /// Guest bytes that one L2 table covers.
    fn span(&self) -> u64 {
        self.entries_per_table().saturating_mul(self.header.cluster_size())
    }

    fn entry_length(&self) -> u64 {
        if self.header.extended_l2 { 16 } else { 8 }
    }

    fn entries_per_table(&self) -> u64 {
        self.header.cluster_size().checked_div(self.entry_length()).unwrap_or(1)
    }

    /// Reads and checks L2 table `index`, of which only the entries inside the disk count.
    fn load(&mut self, input: &mut dyn ReadAt, index: usize, offset: u64) -> Result<()> {
        let first_guest = self.span().saturating_mul(index as u64);
        let clusters = self.header.virtual_size.saturating_sub(first_guest).div_ceil(self.header.cluster_size().max(1));
        let count = clusters.min(self.entries_per_table());
        let bytes = read_exact(input, "l2_table", offset, count.saturating_mul(self.entry_length()))?;
        let mut entries = match self.table.take() {
            Some(table) => table.entries,
            None => Vec::with_capacity(usize::try_from(count).unwrap_or(0)),
        };
        entries.clear();
        let mut guest = first_guest;
        for raw in bytes.chunks_exact(if self.header.extended_l2 { 16 } else { 8 }) {
            let (descriptor, bitmap) = (be_u64(raw, 0).unwrap_or(0), be_u64(raw, 8).unwrap_or(0));
            // Most entries of a sparse disk are this one.
            let unallocated = descriptor == 0 && bitmap == 0;
            let entry = if unallocated {
                Entry::Zero { kept: None }
            } else {
                self.check_entry(guest, descriptor, bitmap, input.length())?
            };
            entries.push(entry);
            guest = guest.saturating_add(self.header.cluster_size());
        }
        check_packed_order(&entries)?;
        self.table = Some(Table { index, entries });
        Ok(())
    }

    fn check_entry(&mut self, guest: u64, descriptor: u64, bitmap: u64, length: Option<u64>) -> Result<Entry> {
        let entry = self.dialect.decode(descriptor, bitmap).map_err(|flaw| flawed(flaw, guest, descriptor))?;
        let cluster = self.header.cluster_size();
        // From where, how many bytes must be in the file, and what it takes.
        let (host, needed, usage) = match entry {
            Entry::Zero { kept: None } => return Ok(entry),
            Entry::Zero { kept: Some(host) } => (host, 0, Use::Whole),
            Entry::Plain { host } => (host, cluster, Use::Whole),
            Entry::Parts { host, allocated } => {
                let parts = u64::from(u32::BITS.saturating_sub(allocated.leading_zeros()));
                (host, parts.saturating_mul(cluster / SUBCLUSTERS), Use::Whole)
            }
            // Where its stream really ends is seen when it is unpacked.
            Entry::Packed { host, .. } => (host, 1, Use::Packed),
        };
        let needed = needed.min(self.header.virtual_size.saturating_sub(guest));
        if needed > 0 {
            self.furthest = self.furthest.max((host.saturating_add(needed), guest));
            length.map_or(Ok(()), |length| self.check_length(length))?;
        }
        let occupied = if let Entry::Packed { length, .. } = entry { u64::from(length) } else { 1 };
        let (first, last) = self.host_clusters(host, occupied);
        self.claims.claim_range(first, last, usage).map_err(|clash| clashed(clash, &l2_field(guest), host))?;
        Ok(entry)
    }

    /// Zeros from `guest` on, up to the next L2 table or `end`.
    fn hole(&self, index: usize, guest: u64, end: u64) -> Mapping {
        // Not past `end`: a disk asked for piece by piece would be scanned to its end for every piece.
        let last = usize::try_from(end.div_ceil(self.span().max(1))).unwrap_or(usize::MAX).min(self.l1.len());
        let tables = self.l1.get(index..last).unwrap_or_default();
        let absent = tables.iter().position(|offset| *offset != 0).unwrap_or(tables.len());
        let until = self.span().saturating_mul((index as u64).saturating_add(absent as u64));
        Mapping { length: until.min(end).saturating_sub(guest), place: Place::Zero }
    }

    /// The mapping at `guest` inside the table in memory, as long as it goes on in the same way.
    fn look_up(&self, table: &Table, guest: u64, end: u64) -> Option<Mapping> {
        let cluster = self.header.cluster_size();
        let in_table = guest.checked_rem(self.span())?;
        let mut within = in_table.checked_rem(cluster)?;
        let number = usize::try_from(self.cluster_number(in_table)).ok()?;
        let mut mapping: Option<Mapping> = None;
        for entry in table.entries.get(number..)? {
            let so_far = mapping.as_ref().map_or(0, |m| m.length);
            if guest.saturating_add(so_far) >= end {
                break;
            }
            if let Entry::Packed { host, length } = *entry {
                let whole = Place::Packed {
                    host,
                    host_length: length,
                    codec: Arc::clone(&self.codec),
                    unpacked_length: u32::try_from(cluster).ok()?,
                    skip: u32::try_from(within).ok()?,
                };
                return mapping.or(Some(Mapping { length: cluster.saturating_sub(within), place: whole }));
            }
            while within < cluster {
                let (place, length) = stretch(*entry, within, cluster);
                match &mut mapping {
                    None => mapping = Some(Mapping { length, place }),
                    Some(found) if continues(found, &place) => found.length = found.length.saturating_add(length),
                    Some(_) => return mapping,
                }
                within = within.saturating_add(length);
            }
            within = 0;
        }
        mapping
    }
}

impl DiskMap for Qcow2Map {
    fn format(&self) -> DiskFormat {
        DiskFormat::Qcow2
    }

    fn virtual_size(&self) -> Option<u64> {
        Some(self.header.virtual_size)
    }

    fn may_read_twice(&self) -> bool {
        // Compressed clusters meet in the middle of a sector, and both read it.
        true
    }

    fn resolve(&mut self, input: &mut dyn ReadAt, guest: u64, most: u64) -> Result<Mapping> {
        let end = guest.saturating_add(most).min(self.header.virtual_size);
        let index = usize::try_from(guest.checked_div(self.span()).unwrap_or(0)).unwrap_or(usize::MAX);
        let Some(offset) = self.l1.get(index).copied().filter(|_| guest < end) else {
            return Err(Error::new(Kind::Internal, format!("qcow2: resolve of {most} bytes at byte {guest}")));
        };
        if offset == 0 {
            return Ok(self.hole(index, guest, end));
        }
        if self.table.as_ref().is_none_or(|table| table.index != index) {
            self.load(input, index, offset)?;
        }
        let found = self.table.as_ref().and_then(|table| self.look_up(table, guest, end));
        let mut mapping =
            found.ok_or_else(|| Error::new(Kind::Internal, format!("qcow2: no entry for byte {guest}")))?;
        mapping.length = mapping.length.min(end.saturating_sub(guest));
        Ok(mapping)
    }

    fn check_length(&self, length: u64) -> Result<()> {
        if let Some(violation) = self.header.required.iter().find_map(|region| region.reaches_past(length)) {
            return Err(violation.into());
        }
        let (end, guest) = self.furthest;
        if end <= length {
            return Ok(());
        }
        let message = format!(
            "its data ends at byte {end} and the file at {length}: the download was cut short, or the table is wrong"
        );
        Err(Violation::new(Rule::Truncated, l2_field(guest), format!("{end:#x}"), message).into())
    }
}

/// The stretch of one kind that begins `within` bytes into a cluster that is not compressed: its place and length.
fn stretch(entry: Entry, within: u64, cluster: u64) -> (Place, u64) {
    let rest = cluster.saturating_sub(within);
    match entry {
        Entry::Plain { host } | Entry::Packed { host, .. } => (Place::Raw { host: host.saturating_add(within) }, rest),
        Entry::Zero { .. } => (Place::Zero, rest),
        Entry::Parts { host, allocated } => {
            let part = cluster / SUBCLUSTERS;
            let number = u32::try_from(within.checked_div(part).unwrap_or(0)).unwrap_or(0);
            let ahead = allocated.wrapping_shr(number);
            let (place, count) = if ahead & 1 == 1 {
                (Place::Raw { host: host.saturating_add(within) }, ahead.trailing_ones())
            } else {
                (Place::Zero, ahead.trailing_zeros())
            };
            let last = u64::from(number.saturating_add(count)).min(SUBCLUSTERS);
            (place, last.saturating_mul(part).saturating_sub(within))
        }
    }
}

/// Whether `next` lies where `mapping` ends.
fn continues(mapping: &Mapping, next: &Place) -> bool {
    match (&mapping.place, next) {
        (Place::Zero, Place::Zero) => true,
        (Place::Raw { host }, Place::Raw { host: next }) => host.saturating_add(mapping.length) == *next,
        _ => false,
    }
}

/// Compressed clusters share sectors at their ends, but no stream begins where another does or before it ends. One sector
/// of grace, because writers exist that count one sector too many.
fn check_packed_order(entries: &[Entry]) -> Result<()> {
    let packed = |entry: &Entry| match *entry {
        Entry::Packed { host, length } => Some((host, host.saturating_add(u64::from(length)))),
        Entry::Zero { .. } | Entry::Plain { .. } | Entry::Parts { .. } => None,
    };
    let mut streams: Vec<(u64, u64)> = entries.iter().filter_map(packed).collect();
    streams.sort_unstable();
    for (earlier, later) in streams.iter().zip(streams.iter().skip(1)) {
        if earlier.0 == later.0 || later.0.saturating_add(SECTOR.saturating_mul(2)) < earlier.1 {
            let message = "two guest clusters are unpacked from the same bytes: no writer does that";
            return Err(Violation::new(Rule::TableOverlap, "l2_table", format!("{:#x}", later.0), message).into());
        }
    }
    Ok(())
}

/// Exactly `length` bytes of a table, or `Truncated`.
fn read_exact(input: &mut dyn ReadAt, table: &str, offset: u64, length: u64) -> Result<bytes::Bytes> {
    let wanted = usize::try_from(length).unwrap_or(usize::MAX);
    let bytes = input.read_up_to(offset, wanted)?;
    if bytes.len() < wanted {
        let message = format!(
            "the table needs {length} bytes there, and the file ends after {}: the download was cut short",
            bytes.len()
        );
        return Err(Violation::new(Rule::Truncated, table, format!("{offset:#x}"), message).into());
    }
    Ok(bytes)
}

fn l2_field(guest: u64) -> String {
    format!("l2_entry(guest {guest:#x})")
}

fn flawed(flaw: Flaw, guest: u64, descriptor: u64) -> Error {
    Violation::new(flaw.rule, l2_field(guest), format!("{descriptor:#x}"), flaw.message).into()
}

fn clashed(clash: Clash, field: &str, offset: u64) -> Error {
    match clash {
        Clash::Taken(_) => {
            let message = "another structure has the same bytes of the file: look at it with `qemu-img check`";
            Violation::new(Rule::TableOverlap, field, format!("{offset:#x}"), message).into()
        }
        Clash::TooMany => {
            let message = "its data lies too scattered to be checked in the memory allowed for tables: \
                           rewrite it with `qemu-img convert -O qcow2` and 64 KiB clusters";
            Violation::new(Rule::SizeLimit, field, format!("{offset:#x}"), message).into()
        }
    }
}
