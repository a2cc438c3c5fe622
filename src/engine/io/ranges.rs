//! A set of byte ranges: which parts were read, which were spilled.

use std::{collections::BTreeMap, ops::Range};

/// Disjoint, not touching ranges, by start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    by_start: BTreeMap<u64, u64>,
}

impl RangeSet {
    /// Adds `range`, joining what touches it.
    pub fn insert(&mut self, range: Range<u64>) {
        let Range { mut start, mut end } = range;
        if start >= end {
            return;
        }
        // Every stored range that begins at or before our end and ends at or after our start becomes part of the new one.
        while let Some((&other_start, &other_end)) = self.by_start.range(..=end).next_back() {
            if other_end < start {
                break;
            }
            self.by_start.remove(&other_start);
            start = start.min(other_start);
            end = end.max(other_end);
        }
        self.by_start.insert(start, end);
    }

    /// The parts of `range` that are not in the set, ascending.
    pub fn missing(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut missing = Vec::new();
        let mut at = range.start;
        let first = self.by_start.range(..=at).next_back().map_or(at, |(&start, _)| start);
        for (&start, &end) in self.by_start.range(first..range.end) {
            if start > at {
                missing.push(at..start.min(range.end));
            }
            at = at.max(end);
        }
        if at < range.end {
            missing.push(at..range.end);
        }
        missing
    }

    /// Whether all of `range` is in the set.
    pub fn contains(&self, range: &Range<u64>) -> bool {
        range.start >= range.end
            || self.by_start.range(..=range.start).next_back().is_some_and(|(_, &end)| end >= range.end)
    }

    /// How many ranges there are.
    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.by_start.len()
    }

    /// Forgets everything below `offset`.
    pub fn forget_below(&mut self, offset: u64) {
        while let Some((&start, &end)) = self.by_start.first_key_value() {
            if start >= offset {
                break;
            }
            self.by_start.remove(&start);
            if end > offset {
                self.by_start.insert(offset, end);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_a_set_of_bytes(ranges in prop::collection::vec((0_u64..60, 0_u64..20), 0..20), probe in 0_u64..60, width in 0_u64..30, cut in 0_u64..60) {
            let mut set = RangeSet::default();
            let mut bytes = [false; 128];
            for (start, length) in ranges {
                set.insert(start..start + length);
                (start..start + length).for_each(|i| bytes[usize::try_from(i).unwrap()] = true);
            }
            let wanted: Vec<u64> = (probe..probe + width).filter(|i| !bytes[usize::try_from(*i).unwrap()]).collect();
            let found: Vec<u64> = set.missing(probe..probe + width).into_iter().flatten().collect();
            prop_assert_eq!(&found, &wanted);
            prop_assert_eq!(set.contains(&(probe..probe + width)), wanted.is_empty());
            set.forget_below(cut);
            let kept: Vec<u64> = (0..128).filter(|i| *i >= cut && bytes[usize::try_from(*i).unwrap()]).collect();
            let missing = set.missing(0..128);
            prop_assert_eq!((0..128).filter(|i| !missing.iter().any(|m| m.contains(i))).collect::<Vec<_>>(), kept);
        }
    }
}
