//! The map of a dynamic disk: all of the block allocation table in memory, and the sector bitmap of one block.
//!
//! Knows "Block Allocation Table and Data Blocks"; must not read data.

use bytes::Bytes;

use super::{
    FOOTER_COOKIE, FOOTER_LENGTH, HEADER_LENGTH, SECTOR, UNALLOCATED, bitmap_length,
    footer::{Footer, Kind as DiskKind, Tail, difference},
    header::{Header, parent_name},
};
use crate::{
    error::{Error, Kind, Result},
    format::{DiskMap, Mapping, Place, claims::first_overlap, fields::be_u32, oversized},
    io::ReadAt,
    model::{DiskFormat, Limits, Rule, Violation},
};

/// How much is read at once of the table and of what stands behind the data, in bytes: little enough for a window over a stream.
const PIECE: u64 = 1 << 20;

/// A dynamic disk.
#[derive(Debug)]
pub(in crate::format) struct VhdMap {
    /// The copy of the footer with which the file begins.
    copy: Bytes,
    footer: Footer,
    header: Header,
    /// First sector of each block of the disk in the file, or `UNALLOCATED`.
    table: Vec<u32>,
    bitmap: Option<Bitmap>,
    /// The block furthest in the file: where it ends, and its number.
    furthest: (u64, u64),
}

/// The sector bitmap in memory.
#[derive(Debug)]
struct Bitmap {
    /// Number of its block.
    block: u64,
    bits: Bytes,
    /// Whether every sector is there, which is the case in most blocks.
    full: bool,
}

impl VhdMap {
    /// Reads header and table. `head` is the beginning of the file.
    ///
    /// # Errors
    /// The first violation, or what `input` says.
    pub(in crate::format) fn open(input: &mut dyn ReadAt, head: &[u8], limits: &Limits) -> Result<Self> {
        let copy = head.get(..usize_of(FOOTER_LENGTH)).unwrap_or(head);
        let footer = Footer::parse(copy)?;
        if footer.kind == DiskKind::Fixed {
            let message = "a fixed disk has its footer at the end only, and this file begins with one: it is of a dynamic disk, \
                           or the guest's first sector is one";
            return Err(Violation::new(Rule::InvalidField, "disk_type", 2, message).into());
        }
        check_size(footer.size, limits)?;
        let header = read_header(input, &footer)?;
        let furthest = (header.table_offset, 0);
        let copy = Bytes::copy_from_slice(copy);
        let mut map = Self { copy, footer, header, table: Vec::new(), bitmap: None, furthest };
        map.read_table(input, limits)?;
        map.check_blocks()?;
        input.length().map_or(Ok(()), |length| map.check_length(length))?;
        Ok(map)
    }

    fn read_table(&mut self, input: &mut dyn ReadAt, limits: &Limits) -> Result<()> {
        let entries = self.header.entries(self.footer.size);
        // Twice: it is sorted once to see whether blocks overlap.
        if entries.saturating_mul(8) > limits.max_table_memory {
            let message = format!("{entries} blocks are more than the memory for tables holds: raise max-table-memory");
            return Err(Violation::new(Rule::SizeLimit, "max_table_entries", entries, message).into());
        }
        self.table.reserve_exact(usize_of(entries));
        let (start, length) = (self.header.table_offset, entries.saturating_mul(4));
        let mut done = 0_u64;
        while done < length {
            let piece = read_exact(input, "bat", start.saturating_add(done), length.saturating_sub(done).min(PIECE))?;
            self.table.extend(piece.chunks_exact(4).map(|entry| be_u32(entry, 0).unwrap_or(UNALLOCATED)));
            done = done.saturating_add(PIECE);
        }
        Ok(())
    }

    /// No block may lie in another or in the structures before the data.
    fn check_blocks(&mut self) -> Result<()> {
        let length = self.stored_length();
        let (header, table) = (self.header.offset, self.header.table_offset);
        let table_length = u64::from(self.header.max_table_entries).saturating_mul(4);
        let taken = [(0, FOOTER_LENGTH), (header, HEADER_LENGTH), (table, table_length)];
        for (number, entry) in (0_u64..).zip(&self.table) {
            if *entry == UNALLOCATED {
                continue;
            }
            let start = u64::from(*entry).saturating_mul(SECTOR);
            let end = start.saturating_add(length);
            let inside = |(from, length): &(u64, u64)| start < from.saturating_add(*length) && *from < end;
            if taken.iter().any(inside) {
                let message = "the block lies in the footer's copy, the header or the table";
                return Err(
                    Violation::new(Rule::TableOverlap, bat_field(number), format!("{entry:#x}"), message).into()
                );
            }
            self.furthest = self.furthest.max((end, number));
        }
        let mut starts: Vec<u32> = self.table.iter().copied().filter(|entry| *entry != UNALLOCATED).collect();
        match first_overlap(&mut starts, u32::try_from(length / SECTOR).unwrap_or(u32::MAX)) {
            None => Ok(()),
            Some(twice) => {
                let number = self.table.iter().position(|entry| *entry == twice).unwrap_or(0);
                let message = "another block has the same bytes of the file: the table is damaged";
                let field = bat_field(number as u64);
                Err(Violation::new(Rule::TableOverlap, field, format!("{twice:#x}"), message).into())
            }
        }
    }

    /// Length of a block with its bitmap, in bytes.
    fn stored_length(&self) -> u64 {
        self.header.block.saturating_add(bitmap_length(self.header.block))
    }

    /// Zeros from `guest` in block `number` on, up to the next block that is there or `end`.
    fn hole(&self, number: u64, guest: u64, end: u64) -> Mapping {
        let last = usize_of(end.div_ceil(self.header.block.max(1))).min(self.table.len());
        let entries = self.table.get(usize_of(number)..last).unwrap_or_default();
        let absent = entries.iter().position(|entry| *entry != UNALLOCATED).unwrap_or(entries.len());
        let until = number.saturating_add(absent as u64).saturating_mul(self.header.block);
        Mapping { length: until.min(end).saturating_sub(guest), place: Place::Zero }
    }

    /// Reads the bitmap of block `number`, which begins at byte `host`.
    fn load(&mut self, input: &mut dyn ReadAt, number: u64, host: u64) -> Result<()> {
        if self.bitmap.as_ref().is_none_or(|bitmap| bitmap.block != number) {
            let bits = read_exact(input, &bat_field(number), host, bitmap_length(self.header.block))?;
            let bits = bits.slice(..usize_of(self.header.block / SECTOR / 8).min(bits.len()));
            let full = bits.iter().all(|byte| *byte == u8::MAX);
            self.bitmap = Some(Bitmap { block: number, bits, full });
        }
        Ok(())
    }
}

impl Bitmap {
    /// Whether sector `sector` is there, and how many from it on are the same. In dynamic disks, those that are not were never
    /// written, and read as zeros. qemu does not look; what it and Hyper-V write says that all are there, and Xen and VirtualBox,
    /// which write sector by sector, keep zeros where nothing is. So no two readers see different disks, unless a file was made
    /// for it.
    fn run(&self, sector: u64, sectors: u64) -> (bool, u64) {
        if self.full {
            return (true, sectors.saturating_sub(sector));
        }
        // "Bit 7 of byte 0 is the first sector."
        let bit = |sector: u64| {
            let byte = self.bits.get(usize_of(sector / 8)).copied().unwrap_or(0);
            byte & 0x80_u8.wrapping_shr(u32::try_from(sector % 8).unwrap_or(0)) != 0
        };
        let there = bit(sector);
        let end = (sector..sectors).find(|next| bit(*next) != there).unwrap_or(sectors);
        (there, end.saturating_sub(sector))
    }
}

impl DiskMap for VhdMap {
    fn format(&self) -> DiskFormat {
        DiskFormat::Vhd
    }

    fn virtual_size(&self) -> Option<u64> {
        Some(self.footer.size)
    }

    fn may_read_twice(&self) -> bool {
        false
    }

    /// Nothing in a bitmap can be wrong.
    fn is_checked(&self) -> bool {
        true
    }

    fn resolve(&mut self, input: &mut dyn ReadAt, guest: u64, most: u64) -> Result<Mapping> {
        let end = guest.saturating_add(most).min(self.footer.size);
        let number = guest.checked_div(self.header.block).unwrap_or(0);
        let Some(entry) = self.table.get(usize_of(number)).copied().filter(|_| guest < end) else {
            return Err(Error::new(Kind::Internal, format!("vhd: resolve of {most} bytes at byte {guest}")));
        };
        if entry == UNALLOCATED {
            return Ok(self.hole(number, guest, end));
        }
        let host = u64::from(entry).saturating_mul(SECTOR);
        self.load(input, number, host)?;
        let within = guest.checked_rem(self.header.block).unwrap_or(0);
        let found = self.bitmap.as_ref().map(|bitmap| bitmap.run(within / SECTOR, self.header.block / SECTOR));
        let (there, sectors) = found.unwrap_or((true, 1));
        let length = sectors.saturating_mul(SECTOR).saturating_sub(within % SECTOR).min(end.saturating_sub(guest));
        let data = host.saturating_add(bitmap_length(self.header.block)).saturating_add(within);
        Ok(Mapping { length, place: if there { Place::Raw { host: data } } else { Place::Zero } })
    }

    fn check_length(&self, length: u64) -> Result<()> {
        let (end, number) = self.furthest;
        if end <= length {
            return Ok(());
        }
        let message = format!(
            "the block ends at byte {end} and the file at {length}: the download was cut short, or the table is wrong"
        );
        Err(Violation::new(Rule::Truncated, bat_field(number), format!("{end:#x}"), message).into())
    }

    /// The footer has to be the last of the file, and what its copy is.
    fn finish(&mut self, input: &mut dyn ReadAt) -> Result<()> {
        let length = match input.length() {
            Some(length) => length,
            None => find_end(input, self.furthest.0)?,
        };
        self.check_length(length)?;
        let tail = input.read_up_to(length.saturating_sub(FOOTER_LENGTH), usize_of(FOOTER_LENGTH))?;
        if length < self.furthest.0.saturating_add(FOOTER_LENGTH) || !tail.starts_with(&FOOTER_COOKIE) {
            if Tail::of(&tail) == Tail::Footer {
                Footer::parse(&tail)?;
            }
            let message = "a vhd ends with its footer, and this file does not: the download was cut short, or something was added";
            return Err(Violation::new(Rule::Truncated, "footer", format!("{length:#x}"), message).into());
        }
        match difference(&self.copy, &tail) {
            None => Ok(()),
            Some((field, found)) => {
                let message = "the footer at the file's end and its copy at the beginning differ: the file was not closed, or is two files";
                Err(Violation::new(Rule::InvalidField, field, found, message).into())
            }
        }
    }
}

/// # Errors
/// `VirtualSizeLimit`.
fn check_size(size: u64, limits: &Limits) -> Result<(), Violation> {
    let most = limits.max_virtual_size;
    if size <= most {
        return Ok(());
    }
    Err(oversized("current_size", size, most))
}

/// The header, and the refusal of a disk that has a parent, with its name.
fn read_header(input: &mut dyn ReadAt, footer: &Footer) -> Result<Header> {
    let offset = footer.data_offset;
    let last = i64::MAX.unsigned_abs().saturating_sub(HEADER_LENGTH);
    if !(FOOTER_LENGTH..=last).contains(&offset) || !offset.is_multiple_of(SECTOR) {
        let message = "the header begins at a sector behind the copy of the footer: this one is elsewhere";
        return Err(Violation::new(Rule::TableOutOfRange, "data_offset", format!("{offset:#x}"), message).into());
    }
    let bytes = read_exact(input, "dynamic_disk_header", offset, HEADER_LENGTH);
    if footer.kind == DiskKind::Differencing {
        let name = bytes.map(|bytes| parent_name(&bytes)).unwrap_or_default();
        let message = "it holds only what differs from another disk: merge the two, then import the result";
        return Err(Violation::new(Rule::BackingFile, "parent_unicode_name", name, message).into());
    }
    Ok(Header::parse(&bytes?, footer)?)
}

/// Length of an input that does not tell it, from a place `at` that it has.
fn find_end(input: &mut dyn ReadAt, mut at: u64) -> Result<u64> {
    loop {
        let got = input.read_up_to(at, usize_of(PIECE))?.len() as u64;
        at = at.saturating_add(got);
        if got < PIECE {
            return Ok(at);
        }
    }
}

/// Exactly `length` bytes of a structure, or `Truncated`.
fn read_exact(input: &mut dyn ReadAt, field: &str, offset: u64, length: u64) -> Result<Bytes> {
    let bytes = input.read_up_to(offset, usize_of(length))?;
    if bytes.len() < usize_of(length) {
        let message = format!(
            "{length} bytes should stand there, and the file ends after {}: the download was cut short",
            bytes.len()
        );
        return Err(Violation::new(Rule::Truncated, field, format!("{offset:#x}"), message).into());
    }
    Ok(bytes)
}

fn bat_field(number: u64) -> String {
    format!("bat[{number}]")
}

/// What is counted here is bounded by the table in memory, or by what is read at once.
fn usize_of(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}
