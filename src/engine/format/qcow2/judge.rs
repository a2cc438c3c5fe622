//! Every reason to refuse a qcow2 that its first cluster shows.
//!
//! Knows the rules of "Header", "Additional fields" and "Header extensions", QEMU's own limits and ours; must not read tables.

use super::{
    INCOMPATIBLE_COMPRESSION, INCOMPATIBLE_CORRUPT, INCOMPATIBLE_DATA_FILE, INCOMPATIBLE_DIRTY,
    INCOMPATIBLE_EXTENDED_L2, MAX_CLUSTER_BITS, MAX_L1_LENGTH, MAX_REFCOUNT_TABLE, MIN_CLUSTER_BITS, cluster_size,
    header::{Fields, Header, Region, V3_LENGTH},
};
use crate::{
    format::{
        fields::{be_u32, printable},
        oversized,
    },
    model::{Compression, Limits, Rule, Violation},
};

/// Most internal snapshots: QEMU's own limit.
const MAX_SNAPSHOTS: u32 = 65536;
/// Least length of a snapshot table entry, in bytes.
const SNAPSHOT_ENTRY: u64 = 40;
/// Smallest `cluster_bits` with extended L2 entries, so that a subcluster is a sector at least.
const MIN_EXTENDED_BITS: u32 = 14;
const EXTENSION_END: u32 = 0;
const EXTENSION_ENCRYPTION: u32 = 0x0537_be77;
const EXTENSION_DATA_FILE: u32 = 0x4441_5441;

/// Holds the fields against the rules and keeps what it finds.
pub(super) struct Judge<'a> {
    fields: &'a Fields,
    head: &'a [u8],
    length: Option<u64>,
    limits: &'a Limits,
    found: Vec<Violation>,
}

impl<'a> Judge<'a> {
    /// A judge of `fields`, which were read from `head`, of a file of `length` bytes, if that is known.
    pub(super) fn new(fields: &'a Fields, head: &'a [u8], length: Option<u64>, limits: &'a Limits) -> Self {
        Self { fields, head, length, limits, found: Vec::new() }
    }

    /// The header, as far as it makes sense, and every violation: it may be used only if there is none.
    pub(super) fn judge(mut self) -> (Option<Header>, Vec<Violation>) {
        let header = self.judge_all();
        (header, self.found)
    }

    fn judge_all(&mut self) -> Option<Header> {
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
            self.found.push(oversized("size", self.fields.size, self.limits.max_virtual_size));
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A header of version 3 that holds to every rule, for an empty disk of a gigabyte.
    fn good() -> Vec<u8> {
        let mut head = vec![0; 4 << 16];
        let mut set = |at: usize, bytes: &[u8]| head[at..at + bytes.len()].copy_from_slice(bytes);
        set(0, b"QFI\xfb\0\0\0\x03");
        set(20, &16_u32.to_be_bytes());
        set(24, &(1_u64 << 30).to_be_bytes());
        set(36, &2_u32.to_be_bytes());
        set(40, &(3_u64 << 16).to_be_bytes());
        set(48, &(1_u64 << 16).to_be_bytes());
        set(56, &1_u32.to_be_bytes());
        set(96, &4_u32.to_be_bytes());
        set(100, &104_u32.to_be_bytes());
        head
    }

    fn rules(head: &[u8]) -> Vec<Rule> {
        let parsed = Header::parse(head, Some(head.len() as u64), &Limits::default());
        parsed.err().unwrap_or_default().into_iter().map(|violation| violation.rule).collect()
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once() {
        let mut head = good();
        assert_eq!(rules(&head), []);
        head[8..20].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 200, 0, 0, 0, 4]);
        head[200..204].copy_from_slice(b"/etc");
        head[35] = 2;
        head[79] = 0b10_0011;
        head[24] = 0x7f;
        let found = rules(&head);
        for rule in [
            Rule::BackingFile,
            Rule::Encrypted,
            Rule::UnknownIncompatibleFeature,
            Rule::Dirty,
            Rule::Corrupt,
            Rule::VirtualSizeLimit,
            Rule::TableOutOfRange,
        ] {
            assert!(found.contains(&rule), "{rule} is not among {found:?}");
        }
        let violations = Header::parse(&head, None, &Limits::default()).unwrap_err();
        assert_eq!(violations[0].value, "/etc");
    }

    #[test]
    fn a_stream_is_judged_without_its_length() {
        let mut head = good();
        head[40..48].copy_from_slice(&(1_u64 << 40).to_be_bytes());
        assert_eq!(rules(&head), [Rule::TableOutOfRange]);
        assert!(Header::parse(&head, None, &Limits::default()).is_ok());
    }
}
