//! Who owns which part of a file, so that no two structures claim the same bytes.
//!
//! Knows numbers only, of clusters or whatever unit a format has. Where tables are read one by one, `Claims` keeps two bits per
//! host cluster, in pages that appear where clusters are claimed, so memory follows the data in the file and is bounded. Where
//! the one table of a format is in memory as a whole, `first_overlap` is all that is needed.

use std::collections::HashMap;

/// Host clusters in a page.
const PAGE: u64 = 4096;
const WORDS: usize = 64;

/// What a host cluster holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// A table or plain data: all of the cluster, once.
    Whole,
    /// Compressed clusters, which share host clusters with each other.
    Packed,
}

/// Why a claim failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Clash {
    /// This host cluster is taken.
    Taken(u64),
    /// The claims would need more memory than allowed.
    TooMany,
}

#[derive(Debug)]
struct Page {
    whole: [u64; WORDS],
    packed: [u64; WORDS],
}

/// All claims on one file.
#[derive(Debug)]
pub(super) struct Claims {
    pages: HashMap<u64, Box<Page>>,
    most_pages: usize,
}

impl Claims {
    /// No claims yet; up to `memory` bytes of them.
    pub(super) fn new(memory: u64) -> Self {
        let page = u64::try_from(size_of::<Page>().saturating_add(64)).unwrap_or(u64::MAX);
        let most_pages = usize::try_from(memory.checked_div(page).unwrap_or(0)).unwrap_or(usize::MAX);
        Self { pages: HashMap::new(), most_pages }
    }

    /// Claims host cluster `cluster` for `usage`.
    pub(super) fn claim(&mut self, cluster: u64, usage: Use) -> Result<(), Clash> {
        let key = cluster / PAGE;
        if !self.pages.contains_key(&key) && self.pages.len() >= self.most_pages {
            return Err(Clash::TooMany);
        }
        let page = self.pages.entry(key).or_insert_with(|| Box::new(Page { whole: [0; WORDS], packed: [0; WORDS] }));
        let bit = 1_u64.wrapping_shl(u32::try_from(cluster % 64).unwrap_or(0));
        let word = usize::try_from(cluster % PAGE / 64).unwrap_or(0);
        let (Some(whole), Some(packed)) = (page.whole.get_mut(word), page.packed.get_mut(word)) else {
            return Err(Clash::TooMany);
        };
        let taken = match usage {
            Use::Whole => (*whole | *packed) & bit,
            Use::Packed => *whole & bit,
        };
        if taken != 0 {
            return Err(Clash::Taken(cluster));
        }
        match usage {
            Use::Whole => *whole |= bit,
            Use::Packed => *packed |= bit,
        }
        Ok(())
    }

    /// Claims every host cluster from `first` to `last`, both included.
    pub(super) fn claim_range(&mut self, first: u64, last: u64, usage: Use) -> Result<(), Clash> {
        (first..=last).try_for_each(|cluster| self.claim(cluster, usage))
    }
}

/// The first of `starts` that lies inside the stretch before it, if each begins a stretch of `length`. Sorts them.
pub(super) fn first_overlap(starts: &mut [u32], length: u32) -> Option<u32> {
    starts.sort_unstable();
    let mut neighbours = starts.iter().zip(starts.iter().skip(1));
    neighbours.find(|(earlier, later)| later.saturating_sub(**earlier) < length).map(|(_, later)| *later)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_clusters_are_exclusive_and_packed_ones_share() {
        let mut claims = Claims::new(1 << 20);
        assert_eq!(claims.claim_range(0, 5000, Use::Whole), Ok(()));
        assert_eq!(claims.claim(4097, Use::Whole), Err(Clash::Taken(4097)));
        assert_eq!(claims.claim(4097, Use::Packed), Err(Clash::Taken(4097)));
        assert_eq!(claims.claim(5001, Use::Packed), Ok(()));
        assert_eq!(claims.claim(5001, Use::Packed), Ok(()));
        assert_eq!(claims.claim(5001, Use::Whole), Err(Clash::Taken(5001)));
        assert_eq!(claims.claim(5002, Use::Whole), Ok(()));
    }

    #[test]
    fn scattered_claims_do_not_outgrow_their_memory() {
        let mut claims = Claims::new(10 << 10);
        let clash = (0..1000).find_map(|n| claims.claim(n * PAGE, Use::Whole).err());
        assert_eq!(clash, Some(Clash::TooMany));
        assert!(claims.pages.len() <= 10);
    }

    #[test]
    fn stretches_of_one_length_may_touch_and_not_overlap() {
        assert_eq!(first_overlap(&mut [], 5), None);
        assert_eq!(first_overlap(&mut [10, 0, 5, 20], 5), None);
        assert_eq!(first_overlap(&mut [10, 0, 6, 20], 5), Some(10));
        assert_eq!(first_overlap(&mut [7, 7], 1), Some(7));
        assert_eq!(first_overlap(&mut [u32::MAX, u32::MAX - 1], 1), None);
    }
}
