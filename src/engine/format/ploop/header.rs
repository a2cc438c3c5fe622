//! The header: sizes, and where the data begins.
//!
//! Knows the first 64 bytes only; must not read the BAT.

use super::{CLOSED, HEADER_LENGTH, IN_USE, MAGIC_CLUSTERS, SECTOR};
use crate::{
    format::{
        fields::{le_u32, le_u64},
        oversized,
    },
    model::{Limits, Rule, Violation},
};

/// Largest cluster, in bytes. Known writers use 1 MiB at most; this is the largest block that any format here has.
const MAX_CLUSTER: u64 = 256 << 20;

/// A header that holds to every rule. All sizes and places are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) cluster_size: u64,
    pub(super) virtual_size: u64,
    /// What one is in a BAT entry.
    pub(super) entry_unit: u64,
    /// Where the BAT ends.
    pub(super) bat_end: u64,
    /// Where the data area begins.
    pub(super) data_offset: u64,
    /// Whether the header says that nothing is stored.
    pub(super) empty: bool,
    /// Where the format extension lies.
    pub(super) extension: Option<u64>,
}

impl Header {
    /// Reads the header from `head`, the first bytes of a file.
    ///
    /// # Errors
    /// The first violation.
    pub(super) fn parse(head: &[u8], limits: &Limits) -> Result<Self, Violation> {
        let Some(bytes) = usize::try_from(HEADER_LENGTH).ok().and_then(|length| head.get(..length)) else {
            let message = "the file ends inside its header: the download was cut short, or this is no image";
            return Err(Violation::new(Rule::Truncated, "header", format!("{} bytes", head.len()), message));
        };
        let in_clusters = bytes.starts_with(&MAGIC_CLUSTERS);
        let number = |at| le_u32(bytes, at).unwrap_or(0);
        check_version(number(16))?;
        let cluster_size = cluster_size(number(28))?;
        check_closed(number(44))?;
        let virtual_size = virtual_size(le_u64(bytes, 36).unwrap_or(0), in_clusters, limits)?;
        let bat_end = HEADER_LENGTH.saturating_add(u64::from(number(32)).saturating_mul(4));
        if u64::from(number(32)) < virtual_size.div_ceil(cluster_size.max(1)) {
            let message = format!("a disk of {virtual_size} bytes needs more entries of {cluster_size} bytes");
            return Err(Violation::new(Rule::TableOutOfRange, "nb_bat_entries", number(32), message));
        }
        let header = Self {
            cluster_size,
            virtual_size,
            entry_unit: if in_clusters { cluster_size } else { SECTOR },
            bat_end,
            data_offset: data_offset(number(48), bat_end, in_clusters, cluster_size)?,
            empty: number(52) & 1 == 1,
            extension: None,
        };
        let extension = le_u64(bytes, 56).unwrap_or(0);
        if extension == 0 { Ok(header) } else { header.with_extension(extension) }
    }

    fn with_extension(self, sector: u64) -> Result<Self, Violation> {
        let offset = sector.checked_mul(SECTOR).filter(|offset| {
            offset.checked_sub(self.data_offset).and_then(|ahead| ahead.checked_rem(self.cluster_size)) == Some(0)
        });
        let Some(offset) = offset else {
            let message = "the format extension does not lie on a cluster of the data area";
            return Err(Violation::new(Rule::TableOutOfRange, "ext_off", format!("{sector:#x}"), message));
        };
        Ok(Self { extension: Some(offset), ..self })
    }
}

fn check_version(version: u32) -> Result<(), Violation> {
    if version == 2 {
        return Ok(());
    }
    let message = "ploop has version 2 only: convert the image with `qemu-img convert -O parallels`";
    Err(Violation::new(Rule::Version, "version", version, message))
}

fn cluster_size(sectors: u32) -> Result<u64, Violation> {
    let size = u64::from(sectors).saturating_mul(SECTOR);
    if (SECTOR..=MAX_CLUSTER).contains(&size) {
        return Ok(size);
    }
    let message = format!("clusters have 1 to {} sectors", MAX_CLUSTER / SECTOR);
    Err(Violation::new(Rule::ClusterSize, "tracks", sectors, message))
}

fn check_closed(in_use: u32) -> Result<(), Violation> {
    let value = format!("{in_use:#x}");
    match in_use {
        0 | CLOSED => Ok(()),
        IN_USE => {
            let message = "the file was not closed by the program that wrote to it, so its table may be wrong: \
                           stop that program, or let `qemu-img check -r all` repair the file";
            Err(Violation::new(Rule::Dirty, "in_use", value, message))
        }
        _ => {
            Err(Violation::new(Rule::InvalidField, "in_use", value, "neither open nor closed: no such value is known"))
        }
    }
}

fn virtual_size(sectors: u64, in_clusters: bool, limits: &Limits) -> Result<u64, Violation> {
    if !in_clusters && u32::try_from(sectors).is_err() {
        let message = "files of this kind have 32 bits for the size, and the 32 after them must be zeros";
        return Err(Violation::new(Rule::InvalidField, "nb_sectors", format!("{sectors:#x}"), message));
    }
    let most = limits.max_virtual_size;
    match sectors.checked_mul(SECTOR) {
        Some(size) if size <= most => Ok(size),
        _ => Err(oversized("nb_sectors", sectors, most)),
    }
}

fn data_offset(sectors: u32, bat_end: u64, in_clusters: bool, cluster_size: u64) -> Result<u64, Violation> {
    let offset = u64::from(sectors).saturating_mul(SECTOR);
    let value = format!("{sectors:#x}");
    if !in_clusters && sectors == 0 {
        return Ok(bat_end.checked_next_multiple_of(SECTOR).unwrap_or(u64::MAX));
    }
    if in_clusters && (sectors == 0 || !offset.is_multiple_of(cluster_size)) {
        let message = "the data area does not begin at a multiple of the cluster size";
        return Err(Violation::new(Rule::TableOutOfRange, "data_off", value, message));
    }
    if offset < bat_end {
        let message = format!("the data area begins before the BAT ends, at byte {bat_end}");
        return Err(Violation::new(Rule::TableOverlap, "data_off", value, message));
    }
    Ok(offset)
}
