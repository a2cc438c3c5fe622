//! Where the bytes of a disk are in the log of what was written. Pure.
//!
//! What a sink writes is appended to one log, whatever its place on the disk; the log is cut into pieces of equal length, each an object.
//! So writes may come in any order, and only what was written takes room.

use std::collections::BTreeMap;

/// With more extents than this, small holes are filled: 24 MiB of a record.
const MANY: usize = 1 << 20;
/// Length of a hole that is filled then. A further extent stands for at least this much of the disk, so a disk of 1 TiB has twice as
/// many extents at most.
const MAX_FILL: u64 = 1 << 20;

/// A stretch of the disk that is a stretch of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// Where it is on the disk.
    pub(super) offset: u64,
    /// How long it is.
    pub(super) length: u64,
    /// Where it is in the log.
    pub(super) at: u64,
}

impl Extent {
    /// Its end on the disk.
    pub(super) fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }

    /// What of it lies before `end`.
    fn until(self, end: u64) -> Self {
        Self { length: end.saturating_sub(self.offset).min(self.length), ..self }
    }

    /// What of it lies at or after `start`.
    fn from(self, start: u64) -> Self {
        let skipped = start.saturating_sub(self.offset).min(self.length);
        Self {
            offset: self.offset.saturating_add(skipped),
            length: self.length.saturating_sub(skipped),
            at: self.at.saturating_add(skipped),
        }
    }

    /// What of it lies in `start..end`; nothing of it has no length.
    pub(super) fn within(self, start: u64, end: u64) -> Self {
        self.from(start).until(end)
    }
}

/// The extents while they are written; later ones win.
#[derive(Debug, Default)]
pub(super) struct Extents {
    /// Length and place in the log, by the place on the disk.
    map: BTreeMap<u64, (u64, u64)>,
}

impl Extents {
    /// Notes that this stretch of the disk is now there in the log.
    pub(super) fn insert(&mut self, extent: Extent) {
        if extent.length == 0 {
            return;
        }
        self.clear(extent.offset, extent.end());
        if let Some((start, (length, at))) = self.map.range_mut(..extent.offset).next_back() {
            let joins = start.saturating_add(*length) == extent.offset && at.saturating_add(*length) == extent.at;
            if joins {
                *length = length.saturating_add(extent.length);
                return;
            }
        }
        self.map.insert(extent.offset, (extent.length, extent.at));
    }

    /// Forgets what is known of this stretch of the disk.
    fn clear(&mut self, start: u64, end: u64) {
        let before = self.map.range(..start).next_back().map(extent_of).filter(|before| before.end() > start);
        if let Some(before) = before {
            self.put(before.until(start));
            self.put(before.from(end));
        }
        while let Some(inside) = self.map.range(start..end).next().map(extent_of) {
            self.map.remove(&inside.offset);
            self.put(inside.from(end));
        }
    }

    fn put(&mut self, extent: Extent) {
        if extent.length > 0 {
            self.map.insert(extent.offset, (extent.length, extent.at));
        }
    }

    /// Where the furthest ends.
    pub(super) fn end(&self) -> u64 {
        self.map.last_key_value().map(extent_of).map_or(0, |last| last.end())
    }

    /// How many zeros are to be written before a write at `offset`, at the end of all, so that there are not too many extents.
    pub(super) fn filling(&self, offset: u64) -> u64 {
        filling(self.map.len(), self.end(), offset)
    }

    /// All of them, by their place on the disk.
    pub(super) fn into_table(self) -> Table {
        Table(self.map.iter().map(extent_of).collect())
    }
}

fn extent_of((offset, (length, at)): (&u64, &(u64, u64))) -> Extent {
    Extent { offset: *offset, length: *length, at: *at }
}

fn filling(count: usize, end: u64, offset: u64) -> u64 {
    let hole = offset.saturating_sub(end);
    if count >= MANY && hole <= MAX_FILL { hole } else { 0 }
}

/// The extents of a published object, by their place on the disk; none overlaps another.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Table(Vec<Extent>);

impl Table {
    /// The table, if it is one: in order, without overlaps, within a disk of `length` bytes and a log of `stored` bytes.
    pub(super) fn new(extents: Vec<Extent>, length: u64, stored: u64) -> Option<Self> {
        let mut free = 0;
        for extent in &extents {
            let (end, at_end) = (extent.offset.checked_add(extent.length)?, extent.at.checked_add(extent.length)?);
            if extent.offset < free || extent.length == 0 || end > length || at_end > stored {
                return None;
            }
            free = end;
        }
        Some(Self(extents))
    }

    /// All of them.
    pub(super) fn extents(&self) -> &[Extent] {
        &self.0
    }

    /// Those of which something lies in `start..end`, each as far as it does.
    pub(super) fn within(&self, start: u64, end: u64) -> impl Iterator<Item = Extent> {
        let first = self.0.partition_point(|extent| extent.end() <= start);
        let rest = self.0.get(first..).unwrap_or_default().iter();
        rest.take_while(move |extent| extent.offset < end).map(move |extent| extent.within(start, end))
    }

    /// The first stretch with bytes at or after `offset`, as start and end.
    pub(super) fn next(&self, offset: u64) -> Option<(u64, u64)> {
        let mut rest = self.within(offset, u64::MAX);
        let first = rest.next()?;
        let end =
            rest.try_fold(first.end(), |end, extent| if extent.offset == end { Ok(extent.end()) } else { Err(end) });
        Some((first.offset, end.unwrap_or_else(|end| end)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a disk of which every byte knows where in the log it is.
        #[test]
        fn later_writes_win(writes in proptest::collection::vec((0_u64..200, 0_u64..60), 0..40)) {
            let (mut disk, mut extents, mut at) = (vec![None; 260], Extents::default(), 0_u64);
            for (offset, length) in writes {
                extents.insert(Extent { offset, length, at });
                for byte in 0..length {
                    disk[usize::try_from(offset + byte).unwrap()] = Some(at + byte);
                }
                at += length;
            }
            let end = extents.end();
            prop_assert_eq!(end, disk.iter().rposition(Option::is_some).map_or(0, |last| last as u64 + 1));
            let table = extents.into_table();
            prop_assert!(Table::new(table.extents().to_vec(), end, at).is_some());
            for start in 0..260 {
                let found: Vec<_> = table.within(start, start + 30).flat_map(|e| (0..e.length).map(move |i| (e.offset + i, e.at + i))).collect();
                let known = disk.iter().enumerate().skip(usize::try_from(start).unwrap()).take(30);
                let known: Vec<_> = known.filter_map(|(offset, at)| at.map(|at| (offset as u64, at))).collect();
                prop_assert_eq!(found, known);
                let next = disk.iter().skip(usize::try_from(start).unwrap()).position(Option::is_some).map(|first| start + first as u64);
                prop_assert_eq!(table.next(start).map(|(start, _)| start), next);
            }
        }
    }

    #[test]
    fn what_follows_in_both_is_one_extent() {
        let mut extents = Extents::default();
        for at in [0, 10, 20] {
            extents.insert(Extent { offset: 100 + at, length: 10, at });
        }
        extents.insert(Extent { offset: 130, length: 10, at: 50 });
        let table = extents.into_table();
        assert_eq!(table.extents().len(), 2);
        assert_eq!(table.next(0), Some((100, 140)));
    }

    #[test]
    fn small_holes_are_filled_only_where_there_are_many() {
        assert_eq!(filling(MANY - 1, 100, 200), 0);
        assert_eq!(filling(MANY, 100, 200), 100);
        assert_eq!(filling(MANY, 100, 101 + MAX_FILL), 0);
        assert_eq!(filling(MANY, 100, 50), 0);
    }

    #[test]
    fn tables_that_are_none_are_refused() {
        let extent = |offset, length, at| Extent { offset, length, at };
        for extents in [
            vec![extent(0, 0, 0)],
            vec![extent(0, 101, 0)],
            vec![extent(0, 10, 41)],
            vec![extent(10, 10, 0), extent(19, 1, 10)],
            vec![extent(10, 10, 0), extent(0, 1, 10)],
            vec![extent(u64::MAX, 2, 0)],
        ] {
            assert_eq!(Table::new(extents, 100, 50), None);
        }
    }
}
