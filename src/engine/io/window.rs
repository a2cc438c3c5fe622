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
        let nothing = RangeSet::default();
        let done_with = match self.keep {
            Keep::All => &nothing,
            Keep::Unread => &self.read,
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
mod tests {
    use std::sync::Arc;

    use super::*;

    struct Pieces(VecDeque<Bytes>);

    impl Feed for Pieces {
        fn next(&mut self) -> Result<Option<Bytes>> {
            Ok(self.0.pop_front())
        }
    }

    fn bytes(length: usize) -> Vec<u8> {
        (0..length).map(|i| u8::try_from(i * 7 % 251).unwrap()).collect()
    }

    fn window(data: &[u8], piece: usize, memory: u64, keep: Keep, fetch: Option<Fetch>) -> Window<Pieces> {
        let pieces = data.chunks(piece).map(Bytes::copy_from_slice).collect();
        let spill = Spill::new(&std::env::temp_dir(), 1 << 30);
        let length = Some(data.len() as u64);
        Window::new(Pieces(pieces), length, keep, spill, WindowLimits { memory, tables: 1 << 20 }, fetch)
    }

    #[test]
    fn in_order_reads_spill_nothing() {
        let data = bytes(100_000);
        let mut window = window(&data, 1000, 4000, Keep::Unread, None);
        for (i, expected) in data.chunks(777).enumerate() {
            assert_eq!(&window.read_up_to(i as u64 * 777, 777).unwrap()[..], expected);
        }
        assert_eq!(window.spilled(), 0);
        window.finish().unwrap();
    }

    #[test]
    fn what_waits_too_long_waits_on_disk() {
        let data = bytes(100_000);
        let mut window = window(&data, 1000, 4000, Keep::Unread, None);
        for (i, expected) in data.chunks(5000).enumerate().collect::<Vec<_>>().into_iter().rev() {
            assert_eq!(&window.read_up_to(i as u64 * 5000, 5000).unwrap()[..], expected);
        }
        assert!(window.spilled() > 80_000);
    }

    #[test]
    fn reading_twice_needs_everything_kept() {
        let data = bytes(50_000);
        let mut once = window(&data, 1000, 4000, Keep::Unread, None);
        once.read_up_to(0, 40_000).unwrap();
        once.read_up_to(40_000, 10_000).unwrap();
        assert_eq!(once.spilled(), 0);
        assert_eq!(once.read_up_to(10, 10).unwrap_err().kind(), Kind::NeedsSpill);
        let mut all = window(&data, 1000, 4000, Keep::All, None);
        all.read_up_to(0, 40_000).unwrap();
        all.read_up_to(40_000, 10_000).unwrap();
        assert_eq!(&all.read_up_to(10, 10).unwrap()[..], &data[10..20]);
    }

    #[test]
    fn a_small_part_does_not_keep_its_piece() {
        struct Counted(Vec<u8>, #[expect(dead_code, reason = "counts who is alive")] Arc<()>);
        impl AsRef<[u8]> for Counted {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        let alive = Arc::new(());
        let pieces = (0..100).map(|_| Bytes::from_owner(Counted(bytes(1000), alive.clone()))).collect();
        let spill = Spill::new(&std::env::temp_dir(), 1 << 30);
        let limits = WindowLimits { memory: 4000, tables: 0 };
        let mut window = Window::new(Pieces(pieces), None, Keep::Unread, spill, limits, None);
        let small: Vec<_> = (0..50).map(|i| window.read_up_to(i * 1000, 499).unwrap()).collect();
        let parts: Vec<_> = (50..99).flat_map(|i| window.read_pieces(i * 1000, 499).unwrap()).collect();
        window.finish().unwrap();
        assert_eq!(Arc::strong_count(&alive), 1, "pieces are kept by {} parts", small.len() + parts.len());
    }

    #[test]
    fn the_spill_file_knows_a_stretch_for_each_piece_at_most() {
        let data = bytes(100_000);
        let mut window = window(&data, 1000, 4000, Keep::Unread, None);
        for at in (0..100_000).step_by(20) {
            window.read_up_to(at, 10).unwrap();
        }
        assert!(window.spill.stretches() <= 100, "{}", window.spill.stretches());
        assert_eq!(&window.read_up_to(50, 5).unwrap()[..], &data[50..55]);
    }

    #[test]
    fn the_end_is_short_not_an_error() {
        let data = bytes(1500);
        let mut window = window(&data, 1000, 4000, Keep::Unread, None);
        assert_eq!(window.read_up_to(1400, 500).unwrap().len(), 100);
        assert!(window.read_up_to(5000, 10).unwrap().is_empty());
    }

    #[test]
    fn a_spill_has_its_limit() {
        let data = bytes(100_000);
        let pieces = Pieces(data.chunks(1000).map(Bytes::copy_from_slice).collect());
        let limits = WindowLimits { memory: 4000, tables: 0 };
        let spill = Spill::new(&std::env::temp_dir(), 10_000);
        let mut window = Window::new(pieces, Some(100_000), Keep::Unread, spill, limits, None);
        let error = window.read_up_to(99_000, 10).unwrap_err();
        assert_eq!(error.kind(), Kind::Refused, "{error}");
    }

    fn fetcher(data: &[u8]) -> Fetch {
        let data = Bytes::copy_from_slice(data);
        Box::new(move |offset, length| {
            let start = usize::try_from(offset).unwrap();
            Ok(Some(data.slice(start..start + usize::try_from(length).unwrap())))
        })
    }

    #[test]
    fn a_table_that_cannot_be_fetched_comes_with_the_stream() {
        let data = bytes(6 << 20);
        let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counter = Arc::clone(&asked);
        let none: Fetch = Box::new(move |_, _| {
            counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Ok(None)
        });
        let mut window = window(&data, 100_000, 1 << 20, Keep::Unread, Some(none));
        for far in [5 << 20, (5 << 20) + 1000] {
            assert_eq!(&window.tables().read_up_to(far as u64, 1000).unwrap()[..], &data[far..far + 1000]);
        }
        assert_eq!(asked.load(std::sync::atomic::Ordering::Relaxed), 1, "once is enough to know");
        assert_eq!(&window.read_up_to(0, 1000).unwrap()[..], &data[..1000]);
        window.finish().unwrap();
    }

    #[test]
    fn what_is_only_asked_about_can_still_be_read_once() {
        let data = bytes(6 << 20);
        let mut window = window(&data, 1000, 1 << 20, Keep::Unread, None);
        window.length = None;
        assert_eq!(window.available(0, 3 << 20).unwrap(), 3 << 20);
        assert_eq!(&window.read_up_to(0, 3 << 20).unwrap()[..], &data[..3 << 20]);
        assert_eq!(window.available(3 << 20, 4 << 20).unwrap(), 3 << 20, "the end is nearer");
        assert_eq!(window.available(7 << 20, 10).unwrap(), 0);
        assert_eq!(&window.read_up_to(3 << 20, 3 << 20).unwrap()[..], &data[3 << 20..]);
        assert_eq!(window.spilled(), 0);
    }

    #[test]
    fn reading_ahead_never_goes_through_the_stream() {
        let data = bytes(6 << 20);
        let far = (6 << 20) - 512;
        let mut ranged = window(&data, 100_000, 1 << 20, Keep::Unread, Some(fetcher(&data)));
        assert_eq!(&ranged.tables().read_ahead(far, 512).unwrap().unwrap()[..], &data[data.len() - 512..]);
        let cannot: Fetch = Box::new(|_, _| Ok(None));
        let mut claimed = window(&data, 100_000, 1 << 20, Keep::Unread, Some(cannot));
        let mut plain = window(&data, 100_000, 1 << 20, Keep::Unread, None);
        for window in [&mut claimed, &mut plain] {
            assert_eq!(window.tables().read_ahead(far, 512).unwrap(), None);
        }
        for window in [ranged, claimed, plain] {
            assert_eq!((window.spilled(), window.held.end), (0, 0), "the stream must not move");
        }
    }

    #[test]
    fn far_tables_are_fetched_and_compared() {
        let data = bytes(6 << 20);
        let far = (5 << 20) as u64;
        let mut same = window(&data, 100_000, 1 << 20, Keep::Unread, Some(fetcher(&data)));
        assert_eq!(&same.tables().read_up_to(far, 1000).unwrap()[..], &data[5 << 20..(5 << 20) + 1000]);
        assert_eq!((same.spilled(), same.held.end), (0, 0), "the stream must not move for a far table");
        same.finish().unwrap();

        let mut other = data.clone();
        other[(5 << 20) + 999] ^= 1;
        let mut lied = window(&data, 100_000, 1 << 20, Keep::Unread, Some(fetcher(&other)));
        lied.tables().read_up_to(far, 1000).unwrap();
        assert_eq!(lied.finish().unwrap_err().kind(), Kind::Changed);
        let mut seen = window(&data, 100_000, 1 << 20, Keep::Unread, Some(fetcher(&other)));
        seen.tables().read_up_to(far, 1000).unwrap();
        assert_eq!(seen.read_up_to(0, data.len()).unwrap_err().kind(), Kind::Changed);
    }
}
