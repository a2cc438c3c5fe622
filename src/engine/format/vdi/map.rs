//! The map of a vdi: all of the block map in memory, in runs.
//!
//! Knows what an entry means; must not read data.

use super::{DISCARDED, FREE, header::Header};
use crate::{
    error::{Error, Kind, Result},
    format::{DiskMap, Mapping, Place, fields::le_u32},
    io::ReadAt,
    model::{DiskFormat, Limits, Rule, Violation},
};

/// How much of the block map is read at once, in bytes: little enough for a window over a stream.
const PIECE: u64 = 1 << 20;

/// A vdi as a disk.
#[derive(Debug)]
pub(in crate::format) struct VdiMap {
    header: Header,
    /// The block map, ascending and without gaps. Most disks are written in few pieces, so that it is far shorter this way.
    runs: Vec<Run>,
    /// The block furthest in the file: where what the guest sees of it ends, and its number on the disk.
    furthest: (u64, u64),
}

/// Blocks of the disk that follow each other in the file as well, or are not in it: up to where the next run begins.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// Number on the disk of the first.
    first: u32,
    /// Number in the file of the first, or `FREE`.
    entry: u32,
}

impl Run {
    /// The entry by which the run goes on with block `number` of the disk.
    fn entry_of(self, number: u32) -> Option<u32> {
        if self.entry == FREE { Some(FREE) } else { self.entry.checked_add(number.checked_sub(self.first)?) }
    }
}

impl VdiMap {
    /// Reads the block map. `head` is the beginning of the file.
    ///
    /// # Errors
    /// The first violation, or what `input` says.
    pub(in crate::format) fn open(input: &mut dyn ReadAt, head: &[u8], limits: &Limits) -> Result<Self> {
        let header = Header::parse(head, limits)?;
        let mut map = Self { header, runs: Vec::new(), furthest: (header.data_offset, 0) };
        map.read_table(input, limits)?;
        map.check_overlaps()?;
        input.length().map_or(Ok(()), |length| map.check_length(length))?;
        Ok(map)
    }

    fn read_table(&mut self, input: &mut dyn ReadAt, limits: &Limits) -> Result<()> {
        // Twice: they are sorted once to see whether two are in the same place.
        let run = (size_of::<Run>() as u64).saturating_mul(2);
        let most = usize_of(limits.max_table_memory.checked_div(run).unwrap_or(0));
        let (start, length) = (self.header.map_offset, self.header.entries().saturating_mul(4));
        let (mut done, mut number) = (0_u64, 0_u32);
        while done < length {
            let (offset, wanted) = (start.saturating_add(done), length.saturating_sub(done).min(PIECE));
            let piece = input.read_up_to(offset, usize_of(wanted))?;
            if piece.len() < usize_of(wanted) {
                let message = format!(
                    "{wanted} bytes of the block map should stand there, and the file ends after {}: the download was cut short",
                    piece.len()
                );
                return Err(Violation::new(Rule::Truncated, "block_map", format!("{offset:#x}"), message).into());
            }
            for entry in piece.chunks_exact(4) {
                self.push(number, le_u32(entry, 0).unwrap_or(FREE))?;
                number = number.saturating_add(1);
            }
            if self.runs.len() > most {
                let message = "its blocks lie too scattered to be checked in the memory allowed for tables: \
                               write the disk again with `qemu-img convert -O vdi`, or raise max-table-memory";
                return Err(Violation::new(Rule::SizeLimit, map_field(number), self.runs.len(), message).into());
            }
            done = done.saturating_add(PIECE);
        }
        Ok(())
    }

    /// Adds the entry of block `number` of the disk, which follows those before it.
    fn push(&mut self, number: u32, entry: u32) -> Result<(), Violation> {
        let entry = if entry == DISCARDED { FREE } else { entry };
        if entry != FREE {
            if entry >= self.header.blocks {
                let message = format!("the file has at most {} blocks", self.header.blocks);
                let field = map_field(number);
                return Err(Violation::new(Rule::TableOutOfRange, field, format!("{entry:#x}"), message));
            }
            let guest = u64::from(number).saturating_mul(self.header.block);
            let seen = self.header.size.saturating_sub(guest).min(self.header.block);
            self.furthest = self.furthest.max((self.host(entry).saturating_add(seen), u64::from(number)));
        }
        if self.runs.last().and_then(|run| run.entry_of(number)) != Some(entry) {
            self.runs.push(Run { first: number, entry });
        }
        Ok(())
    }

    /// No two blocks of the disk may be the same block of the file.
    fn check_overlaps(&self) -> Result<(), Violation> {
        let last = u32::try_from(self.header.entries()).unwrap_or(u32::MAX);
        let ends = self.runs.iter().skip(1).map(|run| run.first).chain([last]);
        let stored = self.runs.iter().zip(ends).filter(|(run, _)| run.entry != FREE);
        let mut places: Vec<(u32, u32)> = stored.map(|(run, end)| (run.entry, end.saturating_sub(run.first))).collect();
        places.sort_unstable();
        let mut neighbours = places.iter().zip(places.iter().skip(1));
        let clash = neighbours.find(|((entry, length), (next, _))| entry.saturating_add(*length) > *next);
        let Some((_, (twice, _))) = clash else { return Ok(()) };
        let number = self.runs.iter().rev().find(|run| run.entry == *twice).map_or(0, |run| run.first);
        let message = "another block of the disk is the same block of the file: look at it with `qemu-img check`";
        Err(Violation::new(Rule::TableOverlap, map_field(number), format!("{twice:#x}"), message))
    }

    /// Where block `entry` of the file begins, in bytes.
    fn host(&self, entry: u32) -> u64 {
        self.header.data_offset.saturating_add(u64::from(entry).saturating_mul(self.header.block))
    }
}

impl DiskMap for VdiMap {
    fn format(&self) -> DiskFormat {
        DiskFormat::Vdi
    }

    fn virtual_size(&self) -> Option<u64> {
        Some(self.header.size)
    }

    fn may_read_twice(&self) -> bool {
        false
    }

    fn is_checked(&self) -> bool {
        true
    }

    fn resolve(&mut self, _input: &mut dyn ReadAt, guest: u64, most: u64) -> Result<Mapping> {
        let end = guest.saturating_add(most).min(self.header.size);
        let block = self.header.block.max(1);
        let number = u32::try_from(guest.checked_div(block).unwrap_or(0)).unwrap_or(u32::MAX);
        let after = self.runs.partition_point(|run| run.first <= number);
        let run = after.checked_sub(1).and_then(|index| self.runs.get(index));
        let Some(entry) = run.filter(|_| guest < end).and_then(|run| run.entry_of(number)) else {
            return Err(Error::new(Kind::Internal, format!("vdi: resolve of {most} bytes at byte {guest}")));
        };
        let until = self.runs.get(after).map_or(end, |next| u64::from(next.first).saturating_mul(block)).min(end);
        let within = guest.checked_rem(block).unwrap_or(0);
        let place = match entry {
            FREE => Place::Zero,
            stored => Place::Raw { host: self.host(stored).saturating_add(within) },
        };
        Ok(Mapping { length: until.saturating_sub(guest), place })
    }

    fn check_length(&self, length: u64) -> Result<()> {
        let (end, number) = self.furthest;
        if end <= length {
            return Ok(());
        }
        let message = format!(
            "its data ends at byte {end} and the file at {length}: the download was cut short, or the block map is wrong"
        );
        let field = format!("block_map[{number}]");
        Err(Violation::new(Rule::Truncated, field, format!("{end:#x}"), message).into())
    }
}

fn map_field(number: u32) -> String {
    format!("block_map[{number}]")
}

/// What is counted here is bounded by the block map in memory, or by what is read at once.
fn usize_of(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}
