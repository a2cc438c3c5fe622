//! A table of blocks while it is written: in ascending order, in pieces that are forgotten once they are written.

use std::mem;

use crate::format::Write;

/// Bytes of the table in a piece. Small, so that a sparse disk's table is sparse as well.
const PIECE: u64 = 64 << 10;

/// The table so far. Entries that were not set are zeros and are not written.
#[derive(Debug)]
pub(in crate::format) struct Entries {
    /// Where the table lies in the file, if that is known before its end.
    offset: Option<u64>,
    /// Where in the table the open piece begins, and the piece.
    open: Option<(u64, Vec<u8>)>,
    /// Full pieces; offsets count from the table's beginning.
    full: Vec<Write>,
}

impl Entries {
    /// An empty table at file offset `offset`, if that is known.
    pub(in crate::format) fn new(offset: Option<u64>) -> Self {
        Self { offset, open: None, full: Vec::new() }
    }

    /// Sets the bytes at `at` of the table, which must not straddle a piece: entries are powers of two.
    pub(in crate::format) fn set(&mut self, at: u64, entry: &[u8]) {
        let start = at.saturating_sub(at % PIECE);
        if self.open.as_ref().is_none_or(|(open, _)| *open != start) {
            self.close();
        }
        let (_, piece) = self.open.get_or_insert_with(|| (start, vec![0; usize::try_from(PIECE).unwrap_or(0)]));
        let within = usize::try_from(at % PIECE).unwrap_or(usize::MAX);
        if let Some(slot) = piece.get_mut(within..within.saturating_add(entry.len())) {
            slot.copy_from_slice(entry);
        }
    }

    fn close(&mut self) {
        if let Some((offset, piece)) = self.open.take() {
            self.full.push(Write { offset, bytes: piece.into() });
        }
    }

    /// The full pieces, if it is known where they go.
    pub(in crate::format) fn settle(&mut self, writes: &mut Vec<Write>) {
        if let Some(offset) = self.offset {
            writes.extend(mem::take(&mut self.full).into_iter().map(|write| moved(write, offset)));
        }
    }

    /// All that is left, for a table that lies at `offset` and ends after `length` bytes.
    pub(in crate::format) fn finish(mut self, offset: u64, length: u64, writes: &mut Vec<Write>) {
        self.close();
        for mut write in self.full {
            let room = usize::try_from(length.saturating_sub(write.offset)).unwrap_or(usize::MAX);
            write.bytes.truncate(room);
            writes.push(moved(write, offset));
        }
    }
}

fn moved(write: Write, by: u64) -> Write {
    Write { offset: write.offset.saturating_add(by), ..write }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_pieces_go_and_only_those_that_were_set() {
        let (mut entries, mut writes) = (Entries::new(Some(1000)), Vec::new());
        entries.set(8, &[1; 8]);
        entries.set(PIECE - 4, &[2; 4]);
        entries.settle(&mut writes);
        assert!(writes.is_empty());
        entries.set(9 * PIECE, &[3; 8]);
        entries.settle(&mut writes);
        let seen = |writes: &[Write]| writes.iter().map(|w| (w.offset, w.bytes.len())).collect::<Vec<_>>();
        assert_eq!(seen(&writes), [(1000, 65536)]);
        assert_eq!(writes[0].bytes[8..16], [1; 8]);
        assert_eq!(writes[0].bytes[65532..], [2; 4]);
        entries.finish(1000, 9 * PIECE + 16, &mut writes);
        assert_eq!(seen(&writes)[1..], [(1000 + 9 * PIECE, 16)]);
    }

    #[test]
    fn a_table_behind_its_data_waits() {
        let (mut entries, mut writes) = (Entries::new(None), Vec::new());
        entries.set(0, &[1; 4]);
        entries.set(PIECE, &[1; 4]);
        entries.settle(&mut writes);
        assert!(writes.is_empty());
        entries.finish(500, 2 * PIECE, &mut writes);
        assert_eq!(writes.iter().map(|w| w.offset).collect::<Vec<_>>(), [500, 500 + PIECE]);
    }
}
