//! The header and its extensions: what may be read, and every reason why not.
//!
//! Knows the first cluster only; must not read tables.

use super::{
    INCOMPATIBLE_COMPRESSION, INCOMPATIBLE_CORRUPT, INCOMPATIBLE_DATA_FILE, INCOMPATIBLE_DIRTY,
    INCOMPATIBLE_EXTENDED_L2, MAGIC, MAX_CLUSTER_BITS, MAX_L1_LENGTH, MAX_REFCOUNT_TABLE, MIN_CLUSTER_BITS,
};
use crate::{
    format::fields::{be_u32, be_u64, printable},
    model::{Compression, Limits, Rule, Violation},
};

/// Length of a version 2 header, in bytes.
const V2_LENGTH: u32 = 72;
/// Least length of a version 3 header, in bytes.
const V3_LENGTH: u32 = 104;
/// Most internal snapshots: QEMU's own limit.
const MAX_SNAPSHOTS: u32 = 65536;
/// Least length of a snapshot table entry, in bytes.
const SNAPSHOT_ENTRY: u64 = 40;
/// Smallest `cluster_bits` with extended L2 entries, so that a subcluster is a sector at least.
const MIN_EXTENDED_BITS: u32 = 14;
const EXTENSION_END: u32 = 0;
const EXTENSION_ENCRYPTION: u32 = 0x0537_be77;
const EXTENSION_DATA_FILE: u32 = 0x4441_5441;

/// A stretch of the file, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::format) struct Region {
    pub(super) name: &'static str,
    pub(super) offset: u64,
    pub(super) length: u64,
}

impl Region {
    /// The violation, if the region does not end inside a file of `length` bytes.
    pub(super) fn reaches_past(self, length: u64) -> Option<Violation> {
        if self.offset.checked_add(self.length).is_some_and(|last| last <= length) {
            return None;
        }
        let message = format!(
            "the table's {} bytes there reach past the file's end at {length}: the download was cut short, or the header is wrong",
            self.length
        );
        Some(Violation::new(Rule::TableOutOfRange, self.name, format!("{:#x}", self.offset), message))
    }
}

/// A header that holds to every rule.
#[derive(Clone, Debug)]
pub(in crate::format) struct Header {
    pub(super) version: u32,
    pub(super) cluster_bits: u32,
    /// In bytes.
    pub(super) virtual_size: u64,
    /// Where the L1 table begins, in bytes.
    pub(super) l1_offset: u64,
    /// How many L1 entries the virtual size needs; the table may have more, which mean nothing.
    pub(super) l1_needed: u64,
    pub(super) extended_l2: bool,
    pub(super) compression: Compression,
    /// The tables that the header names: no data may lie in them.
    pub(super) regions: Vec<Region>,
    /// What of them must lie inside the file.
    pub(super) required: Vec<Region>,
}

impl Header {
    /// Reads the header from `head`, the first bytes of a file of `length` bytes, if that is known.
    ///
    /// # Errors
    /// Every violation found, at least one.
    pub(in crate::format) fn parse(head: &[u8], length: Option<u64>, limits: &Limits) -> Result<Self, Vec<Violation>> {
        let fields = Fields::read(head).map_err(|v| vec![v])?;
        let mut judge = Judge { fields: &fields, head, length, limits, found: Vec::new() };
        let header = judge.judge();
        let found = judge.found;
        match header {
            Some(header) if found.is_empty() => Ok(header),
            _ => Err(found),
        }
    }

    /// In bytes.
    pub(in crate::format) fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    /// In bytes.
    pub(super) fn cluster_size(&self) -> u64 {
        cluster_size(self.cluster_bits)
    }
}

/// Bytes in a cluster. `bits` is at most `MAX_CLUSTER_BITS` wherever this is called.
fn cluster_size(bits: u32) -> u64 {
    1_u64.checked_shl(bits).unwrap_or(u64::MAX)
}

/// The numbers as they stand in the file; those that a version does not have are as that version implies them.
#[derive(Clone, Debug)]
struct Fields {
    version: u32,
    backing_file_offset: u64,
    backing_file_size: u32,
    cluster_bits: u32,
    size: u64,
    crypt_method: u32,
    l1_size: u32,
    l1_table_offset: u64,
    refcount_table_offset: u64,
    refcount_table_clusters: u32,
    nb_snapshots: u32,
    snapshots_offset: u64,
    incompatible_features: u64,
    refcount_order: u32,
    header_length: u32,
    compression_type: u8,
}

impl Fields {
    fn read(head: &[u8]) -> Result<Self, Violation> {
        let cut = || {
            let message = "the file ends inside its header: the download was cut short, or this is no image";
            Violation::new(Rule::Truncated, "header", format!("{} bytes", head.len()), message)
        };
        if !head.starts_with(&MAGIC) {
            return Err(Violation::new(
                Rule::InvalidField,
                "magic",
                printable(head.get(..4).unwrap_or(head)),
                "no qcow2",
            ));
        }
        let version = be_u32(head, 4).ok_or_else(cut)?;
        match version {
            2 => Self::read_common(head, 2).ok_or_else(cut),
            3 => Self::read_common(head, 3).and_then(|fields| fields.read_v3(head)).ok_or_else(cut),
            _ => {
                let message = "qcow2 has versions 2 and 3: convert the image with `qemu-img convert -O qcow2`";
                Err(Violation::new(Rule::Version, "version", version, message))
            }
        }
    }

    fn read_common(head: &[u8], version: u32) -> Option<Self> {
        Some(Self {
            version,
            backing_file_offset: be_u64(head, 8)?,
            backing_file_size: be_u32(head, 16)?,
            cluster_bits: be_u32(head, 20)?,
            size: be_u64(head, 24)?,
            crypt_method: be_u32(head, 32)?,
            l1_size: be_u32(head, 36)?,
            l1_table_offset: be_u64(head, 40)?,
            refcount_table_offset: be_u64(head, 48)?,
            refcount_table_clusters: be_u32(head, 56)?,
            nb_snapshots: be_u32(head, 60)?,
            snapshots_offset: be_u64(head, 64)?,
            incompatible_features: 0,
            refcount_order: 4,
            header_length: V2_LENGTH,
            compression_type: 0,
        })
    }

    fn read_v3(self, head: &[u8]) -> Option<Self> {
        let header_length = be_u32(head, 100)?;
        // A field that lies past `header_length` is absent, which is the same as 0 ("Additional fields").
        let compression_type = if header_length > V3_LENGTH { *head.get(104)? } else { 0 };
        Some(Self {
            incompatible_features: be_u64(head, 72)?,
            refcount_order: be_u32(head, 96)?,
            header_length,
            compression_type,
            ..self
        })
    }
}

/// Holds the fields against the rules and keeps what it finds.
struct Judge<'a> {
    fields: &'a Fields,
    head: &'a [u8],
    length: Option<u64>,
    limits: &'a Limits,
    found: Vec<Violation>,
}

impl Judge<'_> {
    fn judge(&mut self) -> Option<Header> {
        self.check_other_files();
        self.check_encryption();
        self.check_features();
        let compression = self.check_compression();
        self.check_virtual_size();
        self.check_numbers();
        if !self.check_cluster_bits() {
            return None;
        }
        self.check_header_length();
        self.check_extensions();
        let l1_needed = self.check_l1();
        let (regions, required) = self.check_regions(l1_needed);
        Some(Header {
            version: self.fields.version,
            cluster_bits: self.fields.cluster_bits,
            virtual_size: self.fields.size,
            l1_offset: self.fields.l1_table_offset,
            l1_needed,
            extended_l2: self.has(INCOMPATIBLE_EXTENDED_L2),
            compression,
            regions,
            required,
        })
    }

    fn has(&self, bit: u64) -> bool {
        self.fields.incompatible_features & bit != 0
    }

    fn refuse(&mut self, rule: Rule, field: &str, value: impl std::fmt::Display, message: impl Into<String>) {
        self.found.push(Violation::new(rule, field, value, message));
    }

    fn check_other_files(&mut self) {
        let offset = self.fields.backing_file_offset;
        if offset != 0 {
            let name = self.backing_name().map_or_else(|| format!("at byte {offset}"), printable);
            let message = "part of the disk lies in another file, which is never opened: \
                           flatten the image with `qemu-img convert -O qcow2`";
            self.refuse(Rule::BackingFile, "backing_file_offset", name, message);
        }
        if self.has(INCOMPATIBLE_DATA_FILE) {
            let message = "the data lies in another file, which is never opened: \
                           bring it in with `qemu-img convert -O qcow2`";
            self.refuse(Rule::ExternalDataFile, "incompatible_features", "bit 2", message);
        }
    }

    fn backing_name(&self) -> Option<&[u8]> {
        let start = usize::try_from(self.fields.backing_file_offset).ok()?;
        let length = usize::try_from(self.fields.backing_file_size).ok()?;
        self.head.get(start..start.checked_add(length)?)
    }

    fn check_encryption(&mut self) {
        let method = match self.fields.crypt_method {
            0 => return,
            1 => "1 (AES)".to_owned(),
            2 => "2 (LUKS)".to_owned(),
            other => other.to_string(),
        };
        let message = "encrypted content cannot be checked: decrypt it with `qemu-img convert`, \
                       and let the storage encrypt it again";
        self.refuse(Rule::Encrypted, "crypt_method", method, message);
    }

    fn check_features(&mut self) {
        const FIELD: &str = "incompatible_features";
        const KNOWN: u64 = INCOMPATIBLE_DIRTY
            | INCOMPATIBLE_CORRUPT
            | INCOMPATIBLE_DATA_FILE
            | INCOMPATIBLE_COMPRESSION
            | INCOMPATIBLE_EXTENDED_L2;
        if self.has(INCOMPATIBLE_DIRTY) {
            let message = "the image was not closed: let its writer finish, or repair it with `qemu-img check -r all`";
            self.refuse(Rule::Dirty, FIELD, "bit 0", message);
        }
        if self.has(INCOMPATIBLE_CORRUPT) {
            let message = "the image marks itself as corrupt: repair it with `qemu-img check -r all`, \
                           then look whether its content is still good";
            self.refuse(Rule::Corrupt, FIELD, "bit 1", message);
        }
        let unknown = self.fields.incompatible_features & !KNOWN;
        if unknown != 0 {
            let message = "a feature that this version does not know changes the meaning of the file: \
                           write it without, with `qemu-img convert -O qcow2`";
            self.refuse(Rule::UnknownIncompatibleFeature, FIELD, format!("{unknown:#x}"), message);
        }
    }

    fn check_compression(&mut self) -> Compression {
        let stated = self.has(INCOMPATIBLE_COMPRESSION);
        match (self.fields.compression_type, stated) {
            (1, true) => return Compression::Zstd,
            (0, false) => {}
            (0, true) => {
                let message = "the header says that the compression is not zlib, and does not say which it is";
                self.refuse(Rule::InvalidField, "compression_type", 0, message);
            }
            (kind, true) => {
                let message =
                    "clusters are compressed with zlib (0) or zstd (1): convert with `qemu-img convert -O qcow2`";
                self.refuse(Rule::UnknownIncompatibleFeature, "compression_type", kind, message);
            }
            (kind, false) => {
                let message = "a compression other than zlib without its incompatible feature bit 3";
                self.refuse(Rule::InvalidField, "compression_type", kind, message);
            }
        }
        Compression::Zlib
    }

    fn check_virtual_size(&mut self) {
        if self.fields.size > self.limits.max_virtual_size {
            let message = format!(
                "disks of up to {} bytes are accepted: raise the limit if this one is wanted",
                self.limits.max_virtual_size
            );
            self.refuse(Rule::VirtualSizeLimit, "size", self.fields.size, message);
        }
    }

    fn check_numbers(&mut self) {
        if self.fields.refcount_order > 6 {
            self.refuse(
                Rule::InvalidField,
                "refcount_order",
                self.fields.refcount_order,
                "refcounts have up to 2^6 bits",
            );
        }
        if self.fields.nb_snapshots > MAX_SNAPSHOTS {
            let message = format!("an image has up to {MAX_SNAPSHOTS} snapshots");
            self.refuse(Rule::TableOutOfRange, "nb_snapshots", self.fields.nb_snapshots, message);
        }
    }

    fn check_cluster_bits(&mut self) -> bool {
        let bits = self.fields.cluster_bits;
        let least = if self.has(INCOMPATIBLE_EXTENDED_L2) { MIN_EXTENDED_BITS } else { MIN_CLUSTER_BITS };
        let fits = (least..=MAX_CLUSTER_BITS).contains(&bits);
        if !fits {
            let message = format!("here it is {least} to {MAX_CLUSTER_BITS} (clusters of up to 2 MiB)");
            self.refuse(Rule::ClusterSize, "cluster_bits", bits, message);
        }
        fits
    }

    fn check_header_length(&mut self) {
        let length = self.fields.header_length;
        if self.fields.version == 2 {
            return;
        }
        let longest = cluster_size(self.fields.cluster_bits);
        if length < V3_LENGTH || u64::from(length) > longest || !length.is_multiple_of(8) {
            let message = format!("it is {V3_LENGTH} to {longest} bytes, the length of a cluster, and a multiple of 8");
            self.refuse(Rule::HeaderLength, "header_length", length, message);
        }
    }

    /// "Header extensions": type, length, data, padding to a multiple of 8, and so on to the end mark, inside the first
    /// cluster. Unknown ones are passed over.
    fn check_extensions(&mut self) {
        let end = usize::try_from(cluster_size(self.fields.cluster_bits)).unwrap_or(usize::MAX);
        let area = self.head.get(..end).unwrap_or(self.head);
        let mut at = usize::try_from(self.fields.header_length).unwrap_or(usize::MAX);
        // Every step passes at least 8 bytes of at most 64 KiB, so this ends.
        while let (Some(kind), Some(length)) = (be_u32(area, at), be_u32(area, at.saturating_add(4))) {
            if kind == EXTENSION_END {
                return;
            }
            let start = at.saturating_add(8);
            let next = start.saturating_add(usize::try_from(length).unwrap_or(usize::MAX));
            let Some(data) = area.get(start..next) else {
                let message = format!("extension {kind:#x} at byte {at} does not end inside the first cluster");
                return self.refuse(Rule::InvalidField, "header_extension_length", length, message);
            };
            self.check_extension(kind, data);
            at = next.checked_next_multiple_of(8).unwrap_or(usize::MAX);
        }
    }

    fn check_extension(&mut self, kind: u32, data: &[u8]) {
        match kind {
            EXTENSION_DATA_FILE => {
                let message = "the header names another file for the data, which is never opened: \
                               bring it in with `qemu-img convert -O qcow2`";
                self.refuse(Rule::ExternalDataFile, "external_data_file_name", printable(data), message);
            }
            EXTENSION_ENCRYPTION if self.fields.crypt_method == 0 => {
                let message = "there is an encryption header, and the header says that nothing is encrypted";
                self.refuse(Rule::Encrypted, "full_disk_encryption_header", "present", message);
            }
            _ => {}
        }
    }

    /// Number of L1 entries that the virtual size needs.
    fn check_l1(&mut self) -> u64 {
        let cluster = cluster_size(self.fields.cluster_bits);
        let entry = if self.has(INCOMPATIBLE_EXTENDED_L2) { 16 } else { 8 };
        let span = cluster.checked_div(entry).unwrap_or(1).saturating_mul(cluster);
        let needed = self.fields.size.div_ceil(span.max(1));
        let have = u64::from(self.fields.l1_size);
        if have < needed {
            let message =
                format!("a disk of {} bytes needs {needed} entries: the header contradicts itself", self.fields.size);
            self.refuse(Rule::TableOutOfRange, "l1_size", have, message);
        }
        let most = MAX_L1_LENGTH.min(self.limits.max_table_memory) / 8;
        if needed > most {
            let message = format!("tables of {most} entries are accepted: use larger clusters for a disk of this size");
            self.refuse(Rule::VirtualSizeLimit, "l1_size", needed, message);
        } else if have > MAX_L1_LENGTH / 8 {
            let message = format!("an L1 table has up to {MAX_L1_LENGTH} bytes");
            self.refuse(Rule::TableOutOfRange, "l1_size", have, message);
        }
        needed
    }

    /// The regions that the header names, as they exclude data and as they must lie inside the file.
    fn check_regions(&mut self, l1_needed: u64) -> (Vec<Region>, Vec<Region>) {
        let fields = self.fields;
        let cluster = cluster_size(fields.cluster_bits);
        let refcounts = u64::from(fields.refcount_table_clusters).saturating_mul(cluster);
        if refcounts == 0 || refcounts > MAX_REFCOUNT_TABLE {
            let message = format!("a refcount table has 1 cluster to {MAX_REFCOUNT_TABLE} bytes");
            self.refuse(Rule::InvalidField, "refcount_table_clusters", fields.refcount_table_clusters, message);
        }
        let l1_length = u64::from(fields.l1_size).saturating_mul(8);
        let snapshots = u64::from(fields.nb_snapshots).saturating_mul(SNAPSHOT_ENTRY);
        let region = |name, offset, length| Region { name, offset, length };
        let mut required = vec![
            region("l1_table_offset", fields.l1_table_offset, l1_length),
            // Refcounts are not read: their table must begin inside the file and may be cut at its end.
            region("refcount_table_offset", fields.refcount_table_offset, refcounts.min(8)),
            region("snapshots_offset", fields.snapshots_offset, snapshots),
        ];
        required.retain(|r| r.length > 0);
        for region in &required {
            self.check_region(*region, cluster);
        }
        let mut exclusive = vec![
            region("header", 0, cluster),
            // Entries past those needed are never read, so nothing can be wrong with where they lie.
            region("l1_table_offset", fields.l1_table_offset, l1_needed.saturating_mul(8)),
            region("refcount_table_offset", fields.refcount_table_offset, refcounts),
            region("snapshots_offset", fields.snapshots_offset, snapshots),
        ];
        exclusive.retain(|r| r.length > 0);
        (exclusive, required)
    }

    fn check_region(&mut self, region: Region, cluster: u64) {
        if !region.offset.is_multiple_of(cluster) || region.offset > super::OFFSET_MASK {
            let message = format!("tables begin at a multiple of the cluster size, {cluster} bytes, below 2^56");
            self.refuse(Rule::TableOutOfRange, region.name, format!("{:#x}", region.offset), message);
        } else if let Some(violation) = self.length.and_then(|length| region.reaches_past(length)) {
            self.found.push(violation);
        }
    }
}
