//! The log: changes of tables that a crash kept from their place, as patches to be seen over the file.
//!
//! ```text
//! Ring (the log's bytes) ─► Entry (one, if it holds to every rule) ─► the active sequence ─► Patches
//! ```
//! Knows "Log"; the file itself is not changed. Nothing of a log is used unless its checksum holds.

use std::ops::Range;

use super::{Guid, checksum, header::LogPlace};
use crate::{
    error::Result,
    format::{
        blocks::read_exact,
        fields::{le_u32, le_u64},
    },
    io::ReadAt,
    model::{Rule, Violation},
};

/// The unit of the log and of its changes, in bytes.
const SECTOR: usize = 4 << 10;
/// Longest log that is replayed, in bytes. Writers make logs of 1 MiB; looking for the active sequence takes time that grows with the
/// square of the length.
const MAX_LENGTH: u64 = 2 << 20;
/// Length of an entry's header, in bytes.
const ENTRY_HEADER: usize = 64;
/// Length of a descriptor, in bytes.
const DESCRIPTOR: usize = 32;

const ADVICE: &str = "open and close the file in Hyper-V, or let `qemu-img check -r all` replay its log";

/// What the log changes, in the order in which it does.
#[derive(Debug, Default)]
pub(super) struct Patches {
    patches: Vec<Patch>,
    /// How long the file was at least when the log was written, in bytes.
    flushed_length: u64,
}

/// One change.
#[derive(Debug)]
struct Patch {
    /// Of the file, in bytes.
    range: Range<u64>,
    /// What is there now; `None`: zeros.
    bytes: Option<Vec<u8>>,
}

impl Patches {
    /// Reads the log, if it holds anything.
    ///
    /// # Errors
    /// `Dirty` if it does and cannot be replayed, or what `input` says.
    pub(super) fn read_log(input: &mut dyn ReadAt, place: &LogPlace) -> Result<Self> {
        let Some(guid) = place.guid else { return Ok(Self::default()) };
        if place.length == 0 || place.length > MAX_LENGTH {
            let message = format!("the log holds changes, and one of this length is not replayed: {ADVICE}");
            return Err(Violation::new(Rule::Dirty, "header.LogLength", place.length, message).into());
        }
        let ring = Ring { bytes: &read_exact(input, "log", place.offset, place.length)?, guid };
        let Some(entries) = ring.active_sequence() else {
            let message = format!("the log should hold changes, and no whole entry is in it: {ADVICE}");
            let value = super::print_guid(&guid);
            return Err(Violation::new(Rule::Dirty, "header.LogGuid", value, message).into());
        };
        let flushed_length = entries.iter().map(|entry| entry.flushed_length).max().unwrap_or(0);
        Ok(Self { patches: entries.into_iter().flat_map(|entry| entry.patches).collect(), flushed_length })
    }

    /// How long the file must be at least, in bytes.
    pub(super) fn flushed_length(&self) -> u64 {
        self.flushed_length
    }

    /// Exactly `length` bytes of a table, as they are with the changes.
    ///
    /// # Errors
    /// `Truncated`, or what `input` says.
    pub(super) fn read(&self, input: &mut dyn ReadAt, table: &str, offset: u64, length: u64) -> Result<Vec<u8>> {
        let mut bytes = read_exact(input, table, offset, length)?.to_vec();
        for patch in &self.patches {
            patch.apply(offset, &mut bytes);
        }
        Ok(bytes)
    }

    /// Holds every change against the places where the log may change something.
    ///
    /// # Errors
    /// `Dirty`.
    pub(super) fn check_inside(&self, places: &[Range<u64>]) -> Result<()> {
        let inside = |patch: &&Patch| {
            places.iter().any(|place| place.start <= patch.range.start && patch.range.end <= place.end)
        };
        let Some(patch) = self.patches.iter().find(|patch| !inside(patch)) else { return Ok(()) };
        let value = format!("{:#x}", patch.range.start);
        let message = format!("the log changes more than tables: {ADVICE}");
        Err(Violation::new(Rule::Dirty, "log.FileOffset", value, message).into())
    }
}

impl Patch {
    /// Changes `target`, which stands at `offset` of the file.
    fn apply(&self, offset: u64, target: &mut [u8]) {
        let end = offset.saturating_add(target.len() as u64);
        let both = self.range.start.max(offset)..self.range.end.min(end);
        if both.start >= both.end {
            return;
        }
        let within = |start: u64| {
            let at = |place: u64| usize::try_from(place.saturating_sub(start)).unwrap_or(usize::MAX);
            at(both.start)..at(both.end)
        };
        let Some(target) = target.get_mut(within(offset)) else { return };
        match self.bytes.as_ref().and_then(|bytes| bytes.get(within(self.range.start))) {
            Some(bytes) => target.copy_from_slice(bytes),
            None => target.fill(0),
        }
    }
}

/// The log's bytes, whose end is followed by their beginning.
struct Ring<'a> {
    bytes: &'a [u8],
    guid: Guid,
}

/// One entry.
#[derive(Debug)]
struct Entry {
    /// Where in the log it begins.
    start: usize,
    length: usize,
    /// Where in the log the sequence begins of which this entry is the newest.
    tail: usize,
    sequence_number: u64,
    flushed_length: u64,
    patches: Vec<Patch>,
}

impl Ring<'_> {
    /// The entries to be replayed: the newest row of entries of which the last names one as the first ("Log Sequence").
    fn active_sequence(&self) -> Option<Vec<Entry>> {
        let newest = |entries: &[Entry]| entries.last().map_or(0, |entry| entry.sequence_number);
        let mut active: Vec<Entry> = Vec::new();
        let mut at = 0;
        while at < self.bytes.len() {
            let mut entries = self.row(at);
            let tail = entries.last().map(|head| head.tail);
            let first = entries.iter().position(|entry| Some(entry.start) == tail);
            let (next, wrapped) = match (first, entries.last()) {
                (Some(_), Some(head)) => {
                    let next = head.start.saturating_add(head.length);
                    (next, head.start < at || next >= self.bytes.len())
                }
                _ => (at.saturating_add(SECTOR), false),
            };
            if let Some(first) = first
                && newest(&entries) > newest(&active)
            {
                active = entries.split_off(first);
            }
            if wrapped {
                break;
            }
            at = next;
        }
        Some(active).filter(|entries| !entries.is_empty())
    }

    /// The row of entries that begins at `start`: each follows the one before it in the log and in number.
    fn row(&self, start: usize) -> Vec<Entry> {
        let (mut entries, mut at, mut taken): (Vec<Entry>, _, _) = (Vec::new(), start, 0_usize);
        while let Some(entry) = self.entry(at) {
            let follows =
                entries.last().is_none_or(|last| last.sequence_number.checked_add(1) == Some(entry.sequence_number));
            taken = taken.saturating_add(entry.length);
            if !follows || taken > self.bytes.len() {
                break;
            }
            at = at.saturating_add(entry.length).checked_rem(self.bytes.len()).unwrap_or(0);
            entries.push(entry);
        }
        entries
    }

    /// `length` bytes at `start`, which may go on at the log's beginning.
    fn slice(&self, start: usize, length: usize) -> Option<Vec<u8>> {
        let end = start.checked_add(length)?;
        let first = self.bytes.get(start..end.min(self.bytes.len()))?;
        let rest = self.bytes.get(..end.saturating_sub(self.bytes.len()))?;
        Some([first, rest].concat())
    }

    /// The entry at `start`, if there is one and it holds to every rule.
    fn entry(&self, start: usize) -> Option<Entry> {
        let head = self.bytes.get(start..start.checked_add(ENTRY_HEADER)?)?;
        let number = |at| le_u32(head, at).and_then(|n| usize::try_from(n).ok());
        let (length, tail, count) = (number(8)?, number(12)?, number(24)?);
        let sequence_number = le_u64(head, 16)?;
        let fits = |n: usize| n.is_multiple_of(SECTOR) && n <= self.bytes.len();
        let plausible = head.starts_with(b"loge") && head.get(32..48)? == self.guid && sequence_number > 0;
        if !plausible || length == 0 || !fits(length) || !fits(tail) {
            return None;
        }
        let descriptors_end = count.checked_mul(DESCRIPTOR)?.checked_add(ENTRY_HEADER)?;
        let bytes = self.slice(start, length)?;
        if le_u32(&bytes, 4)? != checksum(&bytes) {
            return None;
        }
        let mut data = bytes.get(descriptors_end.checked_next_multiple_of(SECTOR)?..)?.chunks_exact(SECTOR);
        let descriptors = bytes.get(ENTRY_HEADER..descriptors_end)?.chunks_exact(DESCRIPTOR);
        let patches = descriptors.map(|d| patch(d, sequence_number, &mut data)).collect::<Option<Vec<_>>>()?;
        Some(Entry { start, length, tail, sequence_number, flushed_length: le_u64(head, 48)?, patches })
    }
}

/// What a descriptor says, with its sector of `data` if it has one.
fn patch<'a>(descriptor: &[u8], number: u64, data: &mut impl Iterator<Item = &'a [u8]>) -> Option<Patch> {
    let offset = le_u64(descriptor, 16)?;
    if !offset.is_multiple_of(SECTOR as u64) || le_u64(descriptor, 24)? != number {
        return None;
    }
    match descriptor.first_chunk()? {
        b"zero" => {
            let length = le_u64(descriptor, 8).filter(|length| length.is_multiple_of(SECTOR as u64))?;
            Some(Patch { range: offset..offset.checked_add(length)?, bytes: None })
        }
        b"desc" => {
            let sector = data.next()?;
            let halves = (u64::from(le_u32(sector, 4)?), u64::from(le_u32(sector, SECTOR.checked_sub(4)?)?));
            if !sector.starts_with(b"data") || halves.0.wrapping_shl(32) | halves.1 != number {
                return None;
            }
            // The first 8 bytes and the last 4 stand in the descriptor; theirs in the sector are its signature and number.
            let middle = sector.get(8..SECTOR.checked_sub(4)?)?;
            let bytes = [descriptor.get(8..16)?, middle, descriptor.get(4..8)?].concat();
            Some(Patch { range: offset..offset.checked_add(SECTOR as u64)?, bytes: Some(bytes) })
        }
        _ => None,
    }
}
