//! The header: its fields as they stand in the file, and what is left of them once they are judged.
//!
//! Knows one sector; must not read the descriptor or tables.

use super::{
    DEFLATE, FLAG_COMPRESSED, FLAG_MARKERS, FLAG_NEWLINES, FLAG_REDUNDANT, FLAG_ZEROED, GD_AT_END, MAGIC, SECTOR,
    TABLE_ENTRIES, descriptor,
};
use crate::{
    format::{
        fields::{le_u32, le_u64, printable},
        oversized,
    },
    model::{Limits, Rule, Violation},
};

/// Smallest and largest `grainSize`, in sectors. The specification wants at least 4 KiB; above 2 MiB nobody writes, and a
/// compressed grain is unpacked as a whole.
const GRAIN_SECTORS: std::ops::RangeInclusive<u64> = 8..=4096;
/// Largest `descriptorSize`, in sectors: 1 MiB. Real ones have less than 20 sectors.
const MAX_DESCRIPTOR: u64 = 2048;
/// The end-of-line characters as they must be: a transfer as text would have changed one of them.
pub(super) const NEWLINES: [u8; 4] = *b"\n \r\n";
const KNOWN_FLAGS: u32 = FLAG_NEWLINES | FLAG_REDUNDANT | FLAG_ZEROED | FLAG_COMPRESSED | FLAG_MARKERS;

/// The numbers as they stand in the file, in the header or in the footer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fields {
    pub(super) version: u32,
    pub(super) flags: u32,
    pub(super) capacity: u64,
    pub(super) grain_size: u64,
    pub(super) descriptor_offset: u64,
    pub(super) descriptor_size: u64,
    pub(super) entries_per_table: u32,
    pub(super) rgd_offset: u64,
    pub(super) gd_offset: u64,
    pub(super) overhead: u64,
    pub(super) unclean_shutdown: u8,
    pub(super) newlines: [u8; 4],
    pub(super) compress_algorithm: u16,
}

impl Fields {
    /// Reads them from a sector; `None` if it is too short or has no magic number.
    pub(super) fn read(sector: &[u8]) -> Option<Self> {
        if sector.len() < usize::try_from(SECTOR).ok()? || !sector.starts_with(&MAGIC) {
            return None;
        }
        Some(Self {
            version: le_u32(sector, 4)?,
            flags: le_u32(sector, 8)?,
            capacity: le_u64(sector, 12)?,
            grain_size: le_u64(sector, 20)?,
            descriptor_offset: le_u64(sector, 28)?,
            descriptor_size: le_u64(sector, 36)?,
            entries_per_table: le_u32(sector, 44)?,
            rgd_offset: le_u64(sector, 48)?,
            gd_offset: le_u64(sector, 56)?,
            overhead: le_u64(sector, 64)?,
            unclean_shutdown: *sector.get(72)?,
            newlines: *sector.get(73..)?.first_chunk()?,
            compress_algorithm: sector.get(77..)?.first_chunk().map(|b| u16::from_le_bytes(*b))?,
        })
    }

    /// The sector.
    pub(super) fn write(&self) -> Vec<u8> {
        let mut sector = Vec::with_capacity(512);
        sector.extend_from_slice(&MAGIC);
        sector.extend_from_slice(&self.version.to_le_bytes());
        sector.extend_from_slice(&self.flags.to_le_bytes());
        for number in [self.capacity, self.grain_size, self.descriptor_offset, self.descriptor_size] {
            sector.extend_from_slice(&number.to_le_bytes());
        }
        sector.extend_from_slice(&self.entries_per_table.to_le_bytes());
        for number in [self.rgd_offset, self.gd_offset, self.overhead] {
            sector.extend_from_slice(&number.to_le_bytes());
        }
        sector.push(self.unclean_shutdown);
        sector.extend_from_slice(&self.newlines);
        sector.extend_from_slice(&self.compress_algorithm.to_le_bytes());
        sector.resize(512, 0);
        sector
    }

    /// The first field, other than `gdOffset`, that a footer has otherwise: its name, and its value here.
    pub(super) fn difference(&self, header: &Self) -> Option<(&'static str, String)> {
        let newlines = |fields: &Self| u64::from(u32::from_le_bytes(fields.newlines));
        let pairs = [
            ("version", u64::from(self.version), u64::from(header.version)),
            ("flags", u64::from(self.flags), u64::from(header.flags)),
            ("capacity", self.capacity, header.capacity),
            ("grainSize", self.grain_size, header.grain_size),
            ("descriptorOffset", self.descriptor_offset, header.descriptor_offset),
            ("descriptorSize", self.descriptor_size, header.descriptor_size),
            ("numGTEsPerGT", u64::from(self.entries_per_table), u64::from(header.entries_per_table)),
            ("rgdOffset", self.rgd_offset, header.rgd_offset),
            ("overHead", self.overhead, header.overhead),
            ("uncleanShutdown", u64::from(self.unclean_shutdown), u64::from(header.unclean_shutdown)),
            ("singleEndLineChar", newlines(self), newlines(header)),
            ("compressAlgorithm", u64::from(self.compress_algorithm), u64::from(header.compress_algorithm)),
        ];
        pairs.into_iter().find(|(_, here, there)| here != there).map(|(name, here, _)| (name, here.to_string()))
    }
}

/// A header that holds to every rule.
#[derive(Clone, Debug)]
pub(in crate::format) struct Header {
    pub(super) fields: Fields,
}

impl Header {
    /// Reads the header from `head`, the first bytes of a file of `length` bytes, if that is known.
    ///
    /// # Errors
    /// Every violation found, at least one.
    pub(in crate::format) fn parse(head: &[u8], length: Option<u64>, limits: &Limits) -> Result<Self, Vec<Violation>> {
        if head.starts_with(descriptor::FIRST_LINE) {
            return Err(vec![descriptor::refuse_alone(head)]);
        }
        Self::judge(head, length, limits, Fields::check_descriptor)
    }

    /// The same of one extent of several, whose descriptor stands elsewhere and whose grains are not compressed.
    ///
    /// # Errors
    /// Every violation found, at least one.
    pub(super) fn parse_extent(head: &[u8], length: Option<u64>, limits: &Limits) -> Result<Self, Vec<Violation>> {
        Self::judge(head, length, limits, Fields::check_extent)
    }

    fn judge(
        head: &[u8],
        length: Option<u64>,
        limits: &Limits,
        check_kind: fn(&Fields) -> Result<(), Violation>,
    ) -> Result<Self, Vec<Violation>> {
        let Some(fields) = Fields::read(head) else {
            let message = "the file ends inside its header: the download was cut short, or this is no image";
            let found = format!("{} bytes, {}", head.len(), printable(head.get(..4).unwrap_or(head)));
            return Err(vec![Violation::new(Rule::Truncated, "header", found, message)]);
        };
        // What went through these says nothing of the rest.
        fields.check_version().map_err(|violation| vec![violation])?;
        let found: Vec<Violation> = [
            fields.check_flags(),
            fields.check_state(),
            fields.check_size(limits),
            fields.check_grains(),
            check_kind(&fields),
            fields.check_overhead(length),
            fields.check_directories(limits),
        ]
        .into_iter()
        .filter_map(Result::err)
        .collect();
        if found.is_empty() { Ok(Self { fields }) } else { Err(found) }
    }

    /// In bytes.
    pub(in crate::format) fn virtual_size(&self) -> u64 {
        self.fields.capacity.saturating_mul(SECTOR)
    }

    /// Whether this is a stream whose tables are found through its footer.
    pub(in crate::format) fn has_tables_at_end(&self) -> bool {
        self.fields.gd_offset == GD_AT_END
    }

    /// Whether there is room for a descriptor.
    pub(super) fn has_descriptor(&self) -> bool {
        self.fields.descriptor_offset != 0
    }

    /// Whether grains are compressed and have markers.
    pub(super) fn is_packed(&self) -> bool {
        self.fields.flags & FLAG_COMPRESSED != 0
    }

    /// Length of a grain in bytes.
    pub(super) fn grain_length(&self) -> u64 {
        self.fields.grain_size.saturating_mul(SECTOR)
    }

    /// Guest bytes that one grain table covers.
    pub(super) fn span(&self) -> u64 {
        self.grain_length().saturating_mul(TABLE_ENTRIES)
    }

    /// Number of grains of the disk, the last perhaps in part.
    pub(super) fn grains(&self) -> u64 {
        self.fields.grains()
    }

    /// Number of grain tables.
    pub(super) fn tables(&self) -> u64 {
        self.fields.tables()
    }

    /// Whether the entry means that nothing is stored.
    pub(super) fn is_absent(&self, entry: u32) -> bool {
        entry == 0 || (entry == super::ZEROED && self.fields.flags & FLAG_ZEROED != 0)
    }
}

impl Fields {
    fn grains(&self) -> u64 {
        self.capacity.div_ceil(self.grain_size.max(1))
    }

    fn tables(&self) -> u64 {
        self.grains().div_ceil(TABLE_ENTRIES)
    }

    fn check_version(&self) -> Result<(), Violation> {
        if self.flags & FLAG_NEWLINES != 0 && self.newlines != NEWLINES {
            let message = "the end-of-line characters were changed: the file went through a transfer as text, which damaged it; \
                           fetch it again in binary mode";
            return Err(Violation::new(
                Rule::Corrupt,
                "singleEndLineChar",
                format!("{:02x?} instead of {NEWLINES:02x?}", self.newlines),
                message,
            ));
        }
        if !(1..=3).contains(&self.version) {
            let message = "sparse extents have versions 1 to 3: convert the image with `qemu-img convert -O qcow2`";
            return Err(Violation::new(Rule::Version, "version", self.version, message));
        }
        Ok(())
    }

    fn check_flags(&self) -> Result<(), Violation> {
        let unknown = self.flags & !KNOWN_FLAGS;
        if unknown != 0 {
            let message = "flags that version 5.0 of the specification does not know: convert the image with `qemu-img convert -O qcow2`";
            return Err(Violation::new(
                Rule::UnknownIncompatibleFeature,
                "flags",
                format!("{:#x} (unknown: {unknown:#x})", self.flags),
                message,
            ));
        }
        if self.compress_algorithm > DEFLATE {
            let message = "grains can be stored as they are (0) or deflated (1): the header is damaged";
            return Err(Violation::new(Rule::InvalidField, "compressAlgorithm", self.compress_algorithm, message));
        }
        let (compressed, markers) = (self.flags & FLAG_COMPRESSED != 0, self.flags & FLAG_MARKERS != 0);
        if compressed != markers || compressed != (self.compress_algorithm == DEFLATE) {
            let message = format!(
                "compressed grains, markers and a compression algorithm ({}) are there together or not at all",
                self.compress_algorithm
            );
            return Err(Violation::new(Rule::InvalidField, "flags", format!("{:#x}", self.flags), message));
        }
        Ok(())
    }

    fn check_state(&self) -> Result<(), Violation> {
        if self.unclean_shutdown == 0 {
            return Ok(());
        }
        let message = "the disk was not closed properly, so its tables may be wrong: power the machine off cleanly, or repair \
                       it with `vmware-vdiskmanager -R`";
        Err(Violation::new(Rule::Dirty, "uncleanShutdown", self.unclean_shutdown, message))
    }

    fn check_size(&self, limits: &Limits) -> Result<(), Violation> {
        if self.capacity == 0 {
            let message = "readers take such a file for a mere descriptor and open what it names: an image must hold its disk itself";
            return Err(Violation::new(Rule::ExternalDataFile, "capacity", 0, message));
        }
        let size = self.capacity.checked_mul(SECTOR);
        if size.is_none_or(|size| size > limits.max_virtual_size) {
            return Err(oversized("capacity", self.capacity, limits.max_virtual_size));
        }
        Ok(())
    }

    fn check_grains(&self) -> Result<(), Violation> {
        if !self.grain_size.is_power_of_two() || !GRAIN_SECTORS.contains(&self.grain_size) {
            let message = "in sectors; a grain has a power of two from 4 KiB (8) to 2 MiB (4096)";
            return Err(Violation::new(Rule::ClusterSize, "grainSize", self.grain_size, message));
        }
        if u64::from(self.entries_per_table) != TABLE_ENTRIES {
            let message = "a grain table has 512 entries: the header is damaged";
            return Err(Violation::new(Rule::InvalidField, "numGTEsPerGT", self.entries_per_table, message));
        }
        Ok(())
    }

    fn check_descriptor(&self) -> Result<(), Violation> {
        if self.descriptor_offset == 0 {
            let message = "the file has no descriptor, so it is one of the extents of a disk in several files: \
                           join them with `vmware-vdiskmanager -r … -t 0` or convert the descriptor's disk with qemu-img";
            return Err(Violation::new(Rule::ExternalDataFile, "descriptorOffset", 0, message));
        }
        if self.descriptor_size == 0 || self.descriptor_size > MAX_DESCRIPTOR {
            let message = "in sectors; a descriptor has at least one and at most 1 MiB";
            return Err(Violation::new(Rule::InvalidField, "descriptorSize", self.descriptor_size, message));
        }
        let end = self.descriptor_offset.saturating_add(self.descriptor_size);
        if end > self.overhead {
            let message =
                format!("the descriptor does not end before `overHead` ({}), where grains begin", self.overhead);
            return Err(Violation::new(Rule::TableOutOfRange, "descriptorOffset", self.descriptor_offset, message));
        }
        Ok(())
    }

    fn check_extent(&self) -> Result<(), Violation> {
        if self.flags & FLAG_COMPRESSED != 0 {
            let message = "the extents of a disk in several files are not compressed: the header is of another file";
            return Err(Violation::new(Rule::InvalidField, "flags", format!("{:#x}", self.flags), message));
        }
        // QEMU leaves room for one, of zeros.
        if self.descriptor_offset == 0 { Ok(()) } else { self.check_descriptor() }
    }

    fn check_overhead(&self, length: Option<u64>) -> Result<(), Violation> {
        if u32::try_from(self.overhead).is_err() {
            let message = "no grain can begin there: sector numbers have 32 bits";
            return Err(Violation::new(Rule::TableOutOfRange, "overHead", self.overhead, message));
        }
        match length {
            Some(length) if self.overhead.saturating_mul(SECTOR) > length => {
                let message = format!(
                    "header, descriptor and tables take that many sectors, and the file ends at byte {length}: it was cut off; fetch it again"
                );
                Err(Violation::new(Rule::Truncated, "overHead", self.overhead, message))
            }
            _ => Ok(()),
        }
    }

    fn check_directories(&self, limits: &Limits) -> Result<(), Violation> {
        let bytes = self.tables().saturating_mul(4);
        if bytes > limits.max_table_memory {
            let message = format!(
                "the grain directory of this disk has {bytes} bytes, and {} are allowed for tables: convert the image to larger grains",
                limits.max_table_memory
            );
            return Err(Violation::new(Rule::SizeLimit, "grainSize", self.grain_size, message));
        }
        let redundant = self.flags & FLAG_REDUNDANT != 0;
        if self.gd_offset == GD_AT_END {
            return if self.flags & FLAG_MARKERS == 0 {
                let message = "only a stream with markers has its grain directory at the end";
                Err(Violation::new(Rule::InvalidField, "gdOffset", format!("{:#x}", self.gd_offset), message))
            } else if redundant {
                let message = "a stream with its tables at the end has no second ones in front";
                Err(Violation::new(Rule::InvalidField, "flags", format!("{:#x}", self.flags), message))
            } else {
                Ok(())
            };
        }
        let named = [("gdOffset", self.gd_offset, true), ("rgdOffset", self.rgd_offset, redundant)];
        for (name, offset, used) in named {
            if used && (offset == 0 || u32::try_from(offset).is_err()) {
                let message = "no grain directory can begin at that sector";
                return Err(Violation::new(Rule::TableOutOfRange, name, format!("{offset:#x}"), message));
            }
        }
        Ok(())
    }
}
