//! The header: its fields, and what is left of them once they are judged.
//!
//! Knows the first sector only; must not read the block map.

use super::{SECTOR, SIGNATURE, TYPE_DIFFERENCING, TYPE_DYNAMIC, TYPE_STATIC, TYPE_UNDO, VERSION};
use crate::{
    format::{
        fields::{le_u32, le_u64, printable},
        oversized,
    },
    model::{Limits, Rule, Violation},
};

/// Length of the part that is read, in bytes: to the end of the parent's identity.
const READ: usize = 0x1c8;
/// Least value of `cbHeader`, which counts from itself: all fields up to the parent's identity, as qemu writes it.
const MIN_HEADER: u32 = 0x180;
/// Least block, in bytes. Smaller ones than 1 MiB are made by hand only.
const MIN_BLOCK: u64 = 4 << 10;
/// Largest block, in bytes.
const MAX_BLOCK: u64 = 256 << 20;

/// A header that holds to every rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Of the disk, in bytes: a multiple of 512.
    pub(super) size: u64,
    /// Where the block map begins, in bytes.
    pub(super) map_offset: u64,
    /// Where block 0 of the file begins, in bytes.
    pub(super) data_offset: u64,
    /// Length of a block in bytes.
    pub(super) block: u64,
    /// Entries of the block map.
    pub(super) blocks: u32,
}

impl Header {
    /// Reads the header from `head`, the beginning of the file.
    ///
    /// # Errors
    /// The first violation.
    pub(super) fn parse(head: &[u8], limits: &Limits) -> Result<Self, Violation> {
        let Some(bytes) = head.get(..READ) else {
            let message = "the file ends inside its header: the download was cut short";
            return Err(Violation::new(Rule::Truncated, "header", format!("{} bytes", head.len()), message));
        };
        let number = |at| le_u32(bytes, at).unwrap_or(0);
        check_kind(bytes, number)?;
        let header = Self {
            // VBoxManage makes disks of odd sizes from raw ones; qemu rounds them up as well.
            size: le_u64(bytes, 0x170).unwrap_or(0).checked_next_multiple_of(SECTOR).unwrap_or(u64::MAX),
            map_offset: u64::from(number(0x154)),
            data_offset: u64::from(number(0x158)),
            block: u64::from(number(0x178)),
            blocks: number(0x180),
        };
        header.check_sizes(number(0x17c), limits)?;
        header.check_places(number(0x48))?;
        Ok(header)
    }

    fn check_sizes(&self, extra: u32, limits: &Limits) -> Result<(), Violation> {
        if !self.block.is_power_of_two() || !(MIN_BLOCK..=MAX_BLOCK).contains(&self.block) {
            let message =
                "blocks are a power of two from 4 KiB to 256 MiB, and 1 MiB in every disk that VirtualBox makes";
            return Err(Violation::new(Rule::ClusterSize, "cbBlock", self.block, message));
        }
        if extra != 0 {
            let message = "blocks with further data in front of them are not read, here or by qemu: \
                           write the disk again with `VBoxManage clonemedium`";
            return Err(Violation::new(Rule::UnsupportedFormat, "cbBlockExtra", extra, message));
        }
        let most = limits.max_virtual_size;
        if self.size > most {
            return Err(oversized("cbDisk", self.size, most));
        }
        if u64::from(self.blocks).saturating_mul(self.block) < self.size {
            let message =
                format!("a disk of {} bytes has {} blocks: the block map is too small", self.size, self.entries());
            return Err(Violation::new(Rule::InvalidField, "cBlocks", self.blocks, message));
        }
        Ok(())
    }

    /// Header, block map and data have to follow each other: they do in every file that was ever written.
    fn check_places(&self, header_length: u32) -> Result<(), Violation> {
        let header_end = u64::from(header_length).saturating_add(0x48);
        if header_length < MIN_HEADER || header_end > self.map_offset {
            let message = "the header has at least 0x180 bytes and ends before the block map";
            return Err(Violation::new(Rule::HeaderLength, "cbHeader", format!("{header_length:#x}"), message));
        }
        for (field, offset) in [("offBlocks", self.map_offset), ("offData", self.data_offset)] {
            if !offset.is_multiple_of(SECTOR) {
                let message = "it is no multiple of a sector";
                return Err(Violation::new(Rule::TableOutOfRange, field, format!("{offset:#x}"), message));
            }
        }
        if self.map_offset.saturating_add(u64::from(self.blocks).saturating_mul(4)) > self.data_offset {
            let message =
                format!("the data begins inside the block map of {} entries at {:#x}", self.blocks, self.map_offset);
            return Err(Violation::new(Rule::TableOverlap, "offData", format!("{:#x}", self.data_offset), message));
        }
        Ok(())
    }

    /// Entries of the block map that the disk needs.
    pub(super) fn entries(&self) -> u64 {
        self.size.div_ceil(self.block.max(1))
    }
}

/// Whether it is a file of the kind that is read, by itself.
fn check_kind(bytes: &[u8], number: impl Fn(usize) -> u32) -> Result<(), Violation> {
    let hex = |value: u32| format!("{value:#x}");
    if number(0x40) != SIGNATURE {
        return Err(Violation::new(Rule::InvalidField, "u32Signature", hex(number(0x40)), "this is no vdi"));
    }
    if number(0x44) != VERSION {
        let message = "only version 1.1 is read: write the disk again with `VBoxManage clonemedium`";
        return Err(Violation::new(Rule::Version, "u32Version", hex(number(0x44)), message));
    }
    match number(0x4c) {
        TYPE_DYNAMIC | TYPE_STATIC => {}
        kind @ (TYPE_UNDO | TYPE_DIFFERENCING) => {
            let message = "it holds only what differs from another disk: merge the two with `VBoxManage clonemedium`, \
                           then import the result";
            return Err(Violation::new(Rule::BackingFile, "u32Type", kind, message));
        }
        other => {
            let message = "a disk is dynamic (1) or static (2), else it needs another one";
            return Err(Violation::new(Rule::InvalidField, "u32Type", other, message));
        }
    }
    for (field, at) in [("uuidLinkage", 0x1a8_usize), ("uuidParentModify", 0x1b8)] {
        let id = bytes.get(at..at.saturating_add(16)).unwrap_or_default();
        if id.iter().any(|byte| *byte != 0) {
            let message = "it names another disk as its parent: merge the two with `VBoxManage clonemedium`, \
                           then import the result";
            return Err(Violation::new(Rule::BackingFile, field, hex::encode(id), message));
        }
    }
    if number(0x168) != 512 {
        let message = format!(
            "sectors have 512 bytes: {} is another kind of disk",
            printable(bytes.get(..64).unwrap_or_default())
        );
        return Err(Violation::new(Rule::InvalidField, "cbSector", number(0x168), message));
    }
    Ok(())
}
