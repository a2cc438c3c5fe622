//! Which bytes of an image were written, where none may be left out. Pure.
//!
//! Bytes are counted in units: of one only the number is kept whether all of it was written, a bit. What is missing in a unit is
//! written when the writer goes on to another one, so the memory it takes does not depend on how scattered the data is: 3 MiB for
//! 100 TiB. Who comes back to a unit later writes over zeros.

use std::ops::Range;

/// Length of a unit in bytes.
pub(super) const UNIT: u64 = super::sink::MAX_PIECE;

/// What was written.
#[derive(Debug, Default)]
pub(super) struct Coverage {
    whole: Vec<u64>,
    /// The unit at hand, and up to where all of it was written.
    open: Option<(u64, u64)>,
    /// The unit from which on some may be missing.
    next: u64,
}

impl Coverage {
    /// Takes note of a write of `bytes`, which lie in one unit. What is to be written as zeros beside it.
    pub(super) fn wrote(&mut self, bytes: &Range<u64>) -> Vec<Range<u64>> {
        let unit = bytes.start / UNIT;
        if bytes.is_empty() || self.is_whole(unit) {
            return Vec::new();
        }
        let (mut gaps, start) = match self.open {
            Some((open, filled)) if open == unit => (Vec::new(), filled),
            _ => (self.close().into_iter().collect(), unit.saturating_mul(UNIT)),
        };
        if start < bytes.start {
            gaps.push(start..bytes.start);
        }
        self.open = Some((unit, start.max(bytes.end)));
        gaps
    }

    /// The next stretch that is missing of an image of `length` bytes, of a unit at most; `None` once there is none.
    pub(super) fn missing(&mut self, length: u64) -> Option<Range<u64>> {
        while let Some(gap) = self.close() {
            if gap.start < length {
                return Some(gap.start..gap.end.min(length));
            }
        }
        while self.is_whole(self.next) {
            self.next = self.next.saturating_add(1);
        }
        let start = self.next.saturating_mul(UNIT);
        if start >= length {
            return None;
        }
        self.note_whole(self.next);
        Some(start..start.saturating_add(UNIT).min(length))
    }

    /// Ends the unit at hand: the rest of it.
    fn close(&mut self) -> Option<Range<u64>> {
        let (unit, filled) = self.open.take()?;
        self.note_whole(unit);
        let rest = filled..unit.saturating_add(1).saturating_mul(UNIT);
        (!rest.is_empty()).then_some(rest)
    }

    fn is_whole(&self, unit: u64) -> bool {
        let word = usize::try_from(unit / 64).ok().and_then(|index| self.whole.get(index));
        word.is_some_and(|word| word >> (unit % 64) & 1 == 1)
    }

    fn note_whole(&mut self, unit: u64) {
        let index = usize::try_from(unit / 64).unwrap_or(usize::MAX);
        if index >= self.whole.len() {
            self.whole.resize(index.saturating_add(1), 0);
        }
        if let Some(word) = self.whole.get_mut(index) {
            *word |= 1 << (unit % 64);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Carries the writes out, in parts of a unit, and then what is missing; gives the image, 1 for data, 0 for zeros, and 9 where nothing
    /// was written.
    fn image(writes: &[(u64, u64)], length: u64, scale: u64) -> Vec<u8> {
        let (mut coverage, cells) = (Coverage::default(), usize::try_from(UNIT / scale * 40).unwrap());
        let mut image = vec![9_u8; cells];
        let put = |image: &mut Vec<u8>, bytes: &Range<u64>, value: u8| {
            let cell = |at: u64| usize::try_from(at / scale).unwrap();
            image[cell(bytes.start)..cell(bytes.end)].fill(value);
        };
        for (start, end) in writes {
            let mut at = start * scale;
            while at < end * scale {
                let piece = at..(end * scale).min((at / UNIT + 1) * UNIT);
                for gap in coverage.wrote(&piece) {
                    put(&mut image, &gap, 0);
                }
                put(&mut image, &piece, 1);
                at = piece.end;
            }
        }
        while let Some(gap) = coverage.missing(length * scale) {
            assert!(gap.end - gap.start <= UNIT && !gap.is_empty());
            put(&mut image, &gap, 0);
        }
        image
    }

    proptest! {
        #[test]
        fn every_byte_is_written_and_data_stays(
            writes in prop::collection::vec((0_u64..60, 1_u64..9), 0..12), extra in 0_u64..20)
        {
            const SCALE: u64 = UNIT / 4;
            let writes: Vec<_> = writes.into_iter().map(|(start, length)| (start, start + length)).collect();
            let length = writes.iter().map(|(_, end)| *end).max().unwrap_or(0) + extra;
            let image = image(&writes, length, SCALE);
            for (at, found) in image.iter().enumerate().take(usize::try_from(length).unwrap()) {
                let data = writes.iter().any(|(start, end)| (*start..*end).contains(&(at as u64)));
                prop_assert_eq!(*found, u8::from(data), "{}", at);
            }
        }
    }
}
