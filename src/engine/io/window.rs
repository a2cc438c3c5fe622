//! Random access to a stream that is read once.
//!
//! A format asks for tables and clusters in guest order. In most files that is also file order, and then every byte goes from
//! the stream to its reader and is forgotten. What comes earlier than it is asked for waits: in memory up to a bound, then in
//! the spill file. Tables that stand behind their data are fetched by range where the source can, kept, and compared with
//! the same bytes when the stream brings them: the digest covers the stream, so nothing may be used that is not in it.

use std::{collections::VecDeque, ops::Range};

use bytes::{Bytes, BytesMut};

use super::{Feed, RangeSet, ReadAt, Spill, recall::Recall};
use crate::error::{Error, Kind, Result};

/// A table this far ahead of the stream is fetched by range instead of letting everything before it wait, in bytes.
/// One round trip costs about as much as this many bytes on an ordinary link.
const FAR: u64 = 4 << 20;

/// Bytes that stay in memory after they were read: compressed clusters share the sectors in which they meet, so that the end of
/// one is read again with the next. Holds the largest of them.
const RECENT: u64 = 4 << 20;

/// Fetches a part of the stream's bytes out of turn. `None` if that turns out not to be possible.
pub type Fetch = Box<dyn FnMut(u64, u64) -> Result<Option<Bytes>> + Send>;

/// Which bytes stay available after they have gone by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Those not read yet. Reading a byte twice may fail with `NeedsSpill`.
    Unread,
    /// All. For files in which two reads overlap far apart; costs a copy of the file on disk.
    All,
    /// All, as long as the spill file takes them; then those not read yet. For files that are hardly ever read twice.
    WhileRoom,
}

/// Bounds of a window.
#[derive(Clone, Copy, Debug)]
pub struct WindowLimits {
    /// Bytes of the stream held in memory.
    pub memory: u64,
    /// Bytes of tables fetched by range and held until they have been compared.
    pub tables: u64,
}

/// A stream with random access.
pub struct Window<F> {
    feed: F,
    length: Option<u64>,
    pieces: VecDeque<Bytes>,
    held: Range<u64>,
    read: RangeSet,
    keep: Keep,
    spill: Spill,
    recall: Option<Recall>,
    limits: WindowLimits,
    fetch: Option<Fetch>,
    fetched: Vec<(u64, Bytes)>,
    fetched_bytes: u64,
}

impl<F: Feed> Window<F> {
    /// A window over `feed`, of `length` bytes if that is known. `fetch` gets ranges out of turn, where the source can.
    pub fn new(
        feed: F,
        length: Option<u64>,
        keep: Keep,
        spill: Spill,
        limits: WindowLimits,
        fetch: Option<Fetch>,
    ) -> Self {
        Self {
            feed,
            length,
            pieces: VecDeque::new(),
            held: 0..0,
            read: RangeSet::default(),
            keep,
            spill,
            recall: None,
            limits,
            fetch,
            fetched: Vec::new(),
            fetched_bytes: 0,
        }
    }

    /// Gets whatever has gone by again from `fetch`, instead of keeping it. To be called before anything is read.
    pub fn recall(&mut self, fetch: Fetch) {
        self.recall = Some(Recall::new(fetch));
    }

    /// Keeps from now on what `keep` says.
    pub fn keep(&mut self, keep: Keep) {
        self.keep = keep;
    }

    /// Whether every byte that has come can be read again.
    pub fn has_all(&self) -> bool {
        self.keep != Keep::Unread
    }

    /// The same bytes, for reading tables: may fetch what is far ahead out of turn.
    pub fn tables(&mut self) -> Tables<'_, F> {
        Tables(self)
    }

    /// Lets the rest of the stream pass, so that all of it is digested and compared.
    ///
    /// # Errors
    /// What the feed says; `Changed` if fetched tables differ from what came.
    pub fn finish(&mut self) -> Result<()> {
        self.pieces.clear();
        self.held.start = self.held.end;
        while let Some(piece) = self.feed.next()? {
            self.compare(self.held.end, &piece)?;
            self.held.end = self.held.end.saturating_add(piece.len() as u64);
        }
        self.length = Some(self.held.end);
        match self.fetched.first() {
            Some((offset, _)) => Err(changed(*offset)),
            None => Ok(()),
        }
    }

    /// Like `read_up_to`, in the pieces in which the bytes came, so that large stretches are not copied together.
    ///
    /// # Errors
    /// As `read_up_to`.
    pub fn read_pieces(&mut self, offset: u64, length: usize) -> Result<Vec<Bytes>> {
        let Some(range) = self.reach(offset, length)? else { return Ok(Vec::new()) };
        let mut pieces = Vec::new();
        self.pieces_of(&range, &mut |piece| pieces.push(piece))?;
        self.note_read(&range);
        Ok(pieces)
    }

    /// Bytes that had to wait on disk.
    pub fn spilled(&self) -> u64 {
        self.spill.written()
    }

    /// Pulls one more piece; false at the end. What stands at or after `pinned` is about to be read and stays in memory.
    fn advance(&mut self, pinned: u64) -> Result<bool> {
        let Some(piece) = self.feed.next()? else {
            self.length = Some(self.held.end);
            return Ok(false);
        };
        self.compare(self.held.end, &piece)?;
        self.held.end = self.held.end.saturating_add(piece.len() as u64);
        self.pieces.push_back(piece);
        while self.oldest_may_go() && self.oldest_ends_by(pinned) {
            self.evict()?;
        }
        Ok(true)
    }

    /// Whether the oldest piece is in the way: too much is held, or it was read and is not among the latest.
    fn oldest_may_go(&self) -> bool {
        let Some(oldest) = self.pieces.front() else { return false };
        let held = self.held.end.saturating_sub(self.held.start);
        let piece = self.held.start..self.held.start.saturating_add(oldest.len() as u64);
        held > self.limits.memory || (held > RECENT && self.keep == Keep::Unread && self.read.contains(&piece))
    }

    fn oldest_ends_by(&self, offset: u64) -> bool {
        self.pieces.front().is_some_and(|oldest| self.held.start.saturating_add(oldest.len() as u64) <= offset)
    }

    /// Drops the oldest piece from memory, keeping on disk what may still be asked for.
    fn evict(&mut self) -> Result<()> {
        let Some(piece) = self.pieces.pop_front() else { return Ok(()) };
        let start = self.held.start;
        let end = start.saturating_add(piece.len() as u64);
        if let Some(recall) = &mut self.recall {
            recall.pass(&piece);
            self.held.start = end;
            return Ok(());
        }
        if self.keep == Keep::WhileRoom && self.spill.keep(start, &piece).is_err() {
            // There is no room, or no place at all: it would hardly have been needed.
            self.keep = Keep::Unread;
            self.spill.clear();
        } else if self.keep == Keep::WhileRoom {
            self.read.forget_below(end);
            self.held.start = end;
            return Ok(());
        }
        let nothing = RangeSet::default();
        let done_with = match self.keep {
            Keep::All => &nothing,
            Keep::Unread | Keep::WhileRoom => &self.read,
        };
        // One stretch, whatever was read between: a list of small ones would be as large as an attacker likes.
        let missing = done_with.missing(start..end);
        if let (Some(first), Some(last)) = (missing.first(), missing.last()) {
            let range = first.start..last.end;
            self.spill.keep(range.start, slice(&piece, start, &range))?;
        }
        self.read.forget_below(end);
        self.held.start = end;
        Ok(())
    }

    /// Compares what the stream brings at `offset` with tables that were fetched earlier, and forgets those that are through.
    fn compare(&mut self, offset: u64, piece: &Bytes) -> Result<()> {
        if self.fetched.is_empty() {
            return Ok(());
        }
        let end = offset.saturating_add(piece.len() as u64);
        for (start, table) in &self.fetched {
            let both = offset.max(*start)..end.min(start.saturating_add(table.len() as u64));
            if both.start < both.end && slice(piece, offset, &both) != slice(table, *start, &both) {
                return Err(changed(both.start));
            }
        }
        self.fetched.retain(|(start, table)| start.saturating_add(table.len() as u64) > end);
        Ok(())
    }

    /// Lets the stream come as far as the read needs; gives what there is of it, if anything.
    fn reach(&mut self, offset: u64, length: usize) -> Result<Option<Range<u64>>> {
        let wanted = offset..offset.saturating_add(length as u64);
        // A known length ends the read; without one only the stream's end does.
        let end = self.length.map_or(wanted.end, |length| wanted.end.min(length));
        while self.held.end < end && self.advance(offset)? {}
        let range = wanted.start..end.min(self.held.end);
        Ok(Some(range).filter(|range| range.start < range.end))
    }

    fn note_read(&mut self, range: &Range<u64>) {
        if self.recall.is_none() {
            self.read.insert(range.start.max(self.held.start)..range.end);
        }
    }

    /// Copies `range` out of memory and spill file.
    fn collect(&mut self, range: &Range<u64>) -> Result<Bytes> {
        if let Some(bytes) = self.borrow(range) {
            return Ok(bytes);
        }
        let length = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
        let mut buffer = BytesMut::with_capacity(length);
        self.pieces_of(range, &mut |piece| buffer.extend_from_slice(&piece))?;
        Ok(buffer.freeze())
    }

    /// Gives `range` to `take`, piece by piece: first what waits in the spill file, then what is in memory.
    fn pieces_of(&mut self, range: &Range<u64>, take: &mut dyn FnMut(Bytes)) -> Result<()> {
        let on_disk = range.start..range.end.min(self.held.start);
        if on_disk.start < on_disk.end
            && let Some(recall) = &mut self.recall
        {
            recall.read(&on_disk, take)?;
        } else if on_disk.start < on_disk.end {
            if !self.spill.holds(&on_disk) {
                return Err(gone(&on_disk));
            }
            let length = usize::try_from(on_disk.end.saturating_sub(on_disk.start)).unwrap_or(usize::MAX);
            let mut buffer = BytesMut::zeroed(length);
            self.spill.read(on_disk.start, &mut buffer)?;
            take(buffer.freeze());
        }
        let mut start = self.held.start;
        for piece in &self.pieces {
            let end = start.saturating_add(piece.len() as u64);
            let part = slice(piece, start, range);
            if !part.is_empty() {
                take(share(piece, part));
            }
            if end >= range.end {
                break;
            }
            start = end;
        }
        Ok(())
    }

    /// `range`, if one piece holds all of it.
    fn borrow(&self, range: &Range<u64>) -> Option<Bytes> {
        let mut start = self.held.start;
        for piece in &self.pieces {
            let end = start.saturating_add(piece.len() as u64);
            if range.start >= start && range.end <= end {
                return Some(share(piece, slice(piece, start, range)));
            }
            start = end;
        }
        None
    }

    /// A table far ahead, by range request. `None` if it is not far, or the source cannot, or too many are held already.
    fn fetch_table(&mut self, range: &Range<u64>) -> Result<Option<Bytes>> {
        if range.start < self.held.end.saturating_add(FAR) || self.length.is_none_or(|length| range.end > length) {
            return Ok(None);
        }
        let length = range.end.saturating_sub(range.start);
        if self.fetched_bytes.saturating_add(length) > self.limits.tables {
            return Ok(None);
        }
        let Some(fetch) = &mut self.fetch else { return Ok(None) };
        let Some(bytes) = fetch(range.start, length)? else {
            // The stream brings it as well, only later.
            self.fetch = None;
            return Ok(None);
        };
        self.fetched_bytes = self.fetched_bytes.saturating_add(length);
        // Copied, because what came may be a part of a larger buffer, and this counts and holds many of them.
        self.fetched.push((range.start, Bytes::copy_from_slice(&bytes)));
        Ok(Some(bytes))
    }
}

impl<F: Feed> ReadAt for Window<F> {
    fn length(&self) -> Option<u64> {
        self.length
    }

    fn read_up_to(&mut self, offset: u64, length: usize) -> Result<Bytes> {
        let Some(range) = self.reach(offset, length)? else { return Ok(Bytes::new()) };
        let bytes = self.collect(&range)?;
        self.note_read(&range);
        Ok(bytes)
    }

    fn can_skip(&self) -> bool {
        false
    }

    fn peek(&mut self, offset: u64, length: usize) -> Result<Bytes> {
        let Some(range) = self.reach(offset, length)? else { return Ok(Bytes::new()) };
        self.collect(&range)
    }

    fn available(&mut self, offset: u64, length: usize) -> Result<usize> {
        let range = self.reach(offset, length)?.unwrap_or(0..0);
        Ok(usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX))
    }
}

/// A window as tables are read from it.
pub struct Tables<'a, F>(&'a mut Window<F>);

impl<F: Feed> ReadAt for Tables<'_, F> {
    fn length(&self) -> Option<u64> {
        self.0.length()
    }

    fn read_up_to(&mut self, offset: u64, length: usize) -> Result<Bytes> {
        let range = offset..offset.saturating_add(length as u64);
        match self.0.fetch_table(&range)? {
            Some(bytes) => Ok(bytes),
            None => self.0.read_up_to(offset, length),
        }
    }

    fn can_skip(&self) -> bool {
        self.0.fetch.is_some() && self.0.length.is_some()
    }

    fn peek(&mut self, offset: u64, length: usize) -> Result<Bytes> {
        let range = offset..offset.saturating_add(length as u64);
        match self.0.fetch_table(&range)? {
            Some(bytes) => Ok(bytes),
            None => self.0.peek(offset, length),
        }
    }

    fn available(&mut self, offset: u64, length: usize) -> Result<usize> {
        self.0.available(offset, length)
    }

    fn read_ahead(&mut self, offset: u64, length: usize) -> Result<Option<Bytes>> {
        self.0.fetch_table(&(offset..offset.saturating_add(length as u64)))
    }
}

/// The part of `bytes`, which stand at `start`, that lies in `range`.
fn slice<'a>(bytes: &'a [u8], start: u64, range: &Range<u64>) -> &'a [u8] {
    let clamp = |offset: u64| usize::try_from(offset.saturating_sub(start)).unwrap_or(usize::MAX).min(bytes.len());
    bytes.get(clamp(range.start)..clamp(range.end)).unwrap_or_default()
}

/// `part` of `piece`, as a piece of its own. It holds on to all of `piece` only if it is at least half of it: a file can be made so that
/// a few bytes are wanted of every piece, and memory is bounded by what is wanted.
fn share(piece: &Bytes, part: &[u8]) -> Bytes {
    if part.len().saturating_mul(2) < piece.len() { Bytes::copy_from_slice(part) } else { piece.slice_ref(part) }
}

fn changed(offset: u64) -> Error {
    Error::new(
        Kind::Changed,
        format!(
            "the source gave other bytes at {offset} the second time they were read: it was replaced meanwhile; the import starts over"
        ),
    )
}

fn gone(range: &Range<u64>) -> Error {
    Error::new(Kind::NeedsSpill, format!("bytes {}..{} are needed twice and were not kept", range.start, range.end))
}

#[cfg(test)]
mod tests;
