//! The header of dynamic disks: where the block allocation table is, and how large the blocks are.
//!
//! Knows its 1024 bytes ("Dynamic Disk Header Format"); must not read the table.

use super::{
    FOOTER_LENGTH, HEADER_COOKIE, HEADER_LENGTH, SECTOR, checksum,
    footer::{Footer, check_number, check_version},
};
use crate::{
    format::fields::{be_u16, be_u32, be_u64, printable},
    model::{Rule, Violation},
};

/// Where the checksum stands.
const CHECKSUM: usize = 36;
/// Least block, in bytes: Hyper-V's own limit.
const MIN_BLOCK: u64 = 512 << 10;
/// Largest block, in bytes: a bitmap of 64 KiB. Nobody writes other blocks than of 512 KiB or 2 MiB.
const MAX_BLOCK: u64 = 256 << 20;

/// A header that holds to every rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Where it stands, in bytes.
    pub(super) offset: u64,
    /// Where the table begins, in bytes.
    pub(super) table_offset: u64,
    /// Entries that the table has.
    pub(super) max_table_entries: u32,
    /// Length of a block in bytes.
    pub(super) block: u64,
}

impl Header {
    /// Reads the header that `footer` names from `bytes`, all 1024 of them.
    ///
    /// # Errors
    /// The first violation.
    pub(super) fn parse(bytes: &[u8], footer: &Footer) -> Result<Self, Violation> {
        if !bytes.starts_with(&HEADER_COOKIE) {
            let found = printable(bytes.get(..8).unwrap_or(bytes));
            let message =
                format!("the header at byte {} begins with `cxsparse`: the file is damaged", footer.data_offset);
            return Err(Violation::new(Rule::InvalidField, "cookie", found, message));
        }
        let cut = || {
            let message = "the file ends inside its header: the download was cut short";
            Violation::new(Rule::Truncated, "dynamic_disk_header", format!("{:#x}", footer.data_offset), message)
        };
        let number = |at| be_u32(bytes, at).ok_or_else(cut);
        check_number("checksum", number(CHECKSUM)?, checksum(bytes, CHECKSUM))?;
        check_version("header_version", number(24)?)?;
        let header = Self {
            offset: footer.data_offset,
            table_offset: be_u64(bytes, 16).ok_or_else(cut)?,
            max_table_entries: number(28)?,
            block: u64::from(number(32)?),
        };
        header.check(footer.size)?;
        Ok(header)
    }

    fn check(&self, size: u64) -> Result<(), Violation> {
        if !self.block.is_power_of_two() || !(MIN_BLOCK..=MAX_BLOCK).contains(&self.block) {
            let message =
                "blocks are a power of two from 512 KiB to 256 MiB: convert it with `qemu-img convert -O vpc`";
            return Err(Violation::new(Rule::ClusterSize, "block_size", self.block, message));
        }
        if u64::from(self.max_table_entries) < self.entries(size) {
            let message = format!("a disk of {size} bytes has {} blocks: the table is too small", self.entries(size));
            return Err(Violation::new(Rule::InvalidField, "max_table_entries", self.max_table_entries, message));
        }
        let table_end = self.table_offset.saturating_add(u64::from(self.max_table_entries).saturating_mul(4));
        let outside =
            |from: u64, to: u64| from >= FOOTER_LENGTH && from.is_multiple_of(SECTOR) && to <= i64::MAX.unsigned_abs();
        if !outside(self.table_offset, table_end) {
            let message = "the table begins at a sector behind the copy of the footer: this one is elsewhere";
            return Err(Violation::new(
                Rule::TableOutOfRange,
                "table_offset",
                format!("{:#x}", self.table_offset),
                message,
            ));
        }
        if self.table_offset < self.offset.saturating_add(HEADER_LENGTH) && self.offset < table_end {
            let message = "the table lies in the header";
            return Err(Violation::new(
                Rule::TableOverlap,
                "table_offset",
                format!("{:#x}", self.table_offset),
                message,
            ));
        }
        Ok(())
    }

    /// Entries that a disk of `size` bytes needs.
    pub(super) fn entries(&self, size: u64) -> u64 {
        size.div_ceil(self.block.max(1))
    }
}

/// The parent that the header of a differencing disk names, as a person may read it.
pub(super) fn parent_name(bytes: &[u8]) -> String {
    const PARENT_NAME: usize = 64;
    const LONGEST: usize = 512;
    let units = (0..LONGEST).step_by(2).map_while(|at| be_u16(bytes, PARENT_NAME.saturating_add(at)));
    let name: String =
        char::decode_utf16(units.take_while(|unit| *unit != 0)).map(|c| c.unwrap_or('\u{fffd}')).collect();
    printable(name.as_bytes())
}
