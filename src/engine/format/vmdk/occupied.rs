//! Who owns which sectors of the file, so that no two structures claim the same ones.
//!
//! Grains that are stored as they are and begin at a multiple of their length, which is how all writers place them, cost two bits
//! each. Everything else is kept as stretches, which grow together where one follows the other.

use std::ops::Range;

use crate::{
    format::claims::{Claims, Clash, Use},
    io::RangeSet,
};

/// Memory of one stretch in a tree, in bytes, generously.
const STRETCH: u64 = 64;

/// All claims on one file.
#[derive(Debug)]
pub(super) struct Occupied {
    /// Length of a grain in sectors.
    grain: u64,
    units: Claims,
    stretches: RangeSet,
    most_stretches: usize,
}

impl Occupied {
    /// No claims yet, for grains of so many sectors; up to `memory` bytes of them.
    pub(super) fn new(grain: u64, memory: u64) -> Self {
        let half = memory / 2;
        let most_stretches = usize::try_from(half / STRETCH).unwrap_or(usize::MAX);
        Self { grain: grain.max(1), units: Claims::new(half), stretches: RangeSet::default(), most_stretches }
    }

    /// Claims a grain that is stored as it is.
    pub(super) fn claim_grain(&mut self, sector: u64) -> Result<(), Clash> {
        match sector.checked_rem(self.grain) {
            Some(0) => self.units.claim(self.unit(sector), Use::Whole),
            _ => self.claim(sector..sector.saturating_add(self.grain)),
        }
    }

    /// Claims any other stretch of sectors.
    pub(super) fn claim(&mut self, sectors: Range<u64>) -> Result<(), Clash> {
        let Some(last) = sectors.end.checked_sub(1).filter(|last| *last >= sectors.start) else { return Ok(()) };
        if self.stretches.missing(sectors.clone()) != [sectors.clone()] {
            return Err(Clash::Taken(sectors.start));
        }
        // Several stretches may lie in one unit, but no whole grain beside them.
        self.units.claim_range(self.unit(sectors.start), self.unit(last), Use::Packed)?;
        self.stretches.insert(sectors);
        if self.stretches.count() > self.most_stretches { Err(Clash::TooMany) } else { Ok(()) }
    }

    fn unit(&self, sector: u64) -> u64 {
        sector.checked_div(self.grain).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_lies_in_the_same_sectors() {
        let mut occupied = Occupied::new(128, 1 << 20);
        assert_eq!(occupied.claim(0..21), Ok(()));
        assert_eq!(occupied.claim(21..26), Ok(()));
        assert_eq!(occupied.claim(25..30), Err(Clash::Taken(25)));
        assert_eq!(occupied.claim_grain(128), Ok(()));
        assert_eq!(occupied.claim_grain(128), Err(Clash::Taken(1)));
        assert_eq!(occupied.claim_grain(0), Err(Clash::Taken(0)));
        assert_eq!(occupied.claim(130..131), Err(Clash::Taken(1)));
        assert_eq!(occupied.claim_grain(300), Ok(()));
        assert_eq!(occupied.claim_grain(427), Err(Clash::Taken(427)));
        assert_eq!(occupied.claim_grain(428), Ok(()));
        assert_eq!(occupied.claim_grain(256), Err(Clash::Taken(2)));
    }

    #[test]
    fn scattered_stretches_do_not_outgrow_their_memory() {
        let mut occupied = Occupied::new(128, 128 << 10);
        let clash = (0..10_000).find_map(|n| occupied.claim(n * 2..n * 2 + 1).err());
        assert_eq!(clash, Some(Clash::TooMany));
        assert!(occupied.stretches.count() <= 1025);
        let mut in_order = Occupied::new(128, 128 << 10);
        (0..100_000).for_each(|n| in_order.claim(n * 3..n * 3 + 3).unwrap());
    }
}
