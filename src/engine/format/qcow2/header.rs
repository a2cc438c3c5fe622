//! The header: its fields as they stand in the file, and what is left of them once they are judged.
//!
//! Knows the first cluster only; must not read tables.

use super::{MAGIC, judge::Judge};
use crate::{
    format::fields::{be_u32, be_u64, printable},
    model::{Compression, Limits, Rule, Violation},
};

/// Length of a version 2 header, in bytes.
const V2_LENGTH: u32 = 72;
/// Least length of a version 3 header, in bytes.
pub(super) const V3_LENGTH: u32 = 104;

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
        let (header, found) = Judge::new(&fields, head, length, limits).judge();
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
        super::cluster_size(self.cluster_bits)
    }
}

/// The numbers as they stand in the file; those that a version does not have are as that version implies them.
#[derive(Clone, Debug)]
pub(super) struct Fields {
    pub(super) version: u32,
    pub(super) backing_file_offset: u64,
    pub(super) backing_file_size: u32,
    pub(super) cluster_bits: u32,
    pub(super) size: u64,
    pub(super) crypt_method: u32,
    pub(super) l1_size: u32,
    pub(super) l1_table_offset: u64,
    pub(super) refcount_table_offset: u64,
    pub(super) refcount_table_clusters: u32,
    pub(super) nb_snapshots: u32,
    pub(super) snapshots_offset: u64,
    pub(super) incompatible_features: u64,
    pub(super) refcount_order: u32,
    pub(super) header_length: u32,
    pub(super) compression_type: u8,
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
