//! Where the blocks of a disk lie: a piece of the table in memory, every place in it checked and claimed as it is read.
//!
//! Knows the rules that all tables of blocks share; the format's own are in its `BlockTable`.

use std::ops::Range;

use crate::{
    error::{Error, Kind, Result},
    format::{
        Mapping, Place,
        claims::{Claims, Clash, Use},
    },
    io::ReadAt,
    model::{Rule, Violation},
};

/// The host offset of a block that is not stored and reads as zeros. No block can lie there: it is the header's.
pub(in crate::format) const ABSENT: u64 = 0;

/// A format's table of blocks.
pub(in crate::format) trait BlockTable: Send {
    /// Appends the host offset of each of `blocks` in bytes, or `ABSENT`, to `hosts`.
    ///
    /// # Errors
    /// A violation of the format's own rules for entries, or what `input` says.
    fn load(&mut self, input: &mut dyn ReadAt, blocks: Range<u64>, hosts: &mut Vec<u64>) -> Result<()>;

    /// The name of a block's entry by the format's specification.
    fn entry(&self, block: u64) -> String;
}

/// Sizes and places, all in bytes but the last.
#[derive(Clone, Copy, Debug)]
pub(in crate::format) struct Geometry {
    /// Of the guest's disk.
    pub virtual_size: u64,
    /// Of a block; at least 1.
    pub block_size: u64,
    /// Where the first block may lie.
    pub origin: u64,
    /// Blocks lie at multiples of this from `origin`, and are claimed in this unit; at least 1.
    pub unit: u64,
    /// How many blocks' entries are read at once.
    pub piece: u64,
}

impl Geometry {
    /// How many blocks the disk has.
    pub(in crate::format) fn blocks(&self) -> u64 {
        self.virtual_size.div_ceil(self.block_size.max(1))
    }

    /// Number of the unit at file offset `host`.
    pub(in crate::format) fn unit_of(&self, host: u64) -> u64 {
        host.saturating_sub(self.origin).checked_div(self.unit).unwrap_or(0)
    }
}

/// A disk of blocks.
#[derive(Debug)]
pub(in crate::format) struct BlockMap<T> {
    table: T,
    geometry: Geometry,
    claims: Claims,
    /// Number of the first block in `hosts`.
    first: u64,
    hosts: Vec<u64>,
    /// The furthest data that was resolved: where it ends, and the block it belongs to.
    furthest: (u64, u64),
}

impl<T: BlockTable> BlockMap<T> {
    /// A disk whose blocks `table` knows. `claims` are those of the file's other structures.
    pub(in crate::format) fn new(table: T, geometry: Geometry, claims: Claims) -> Self {
        Self { table, geometry, claims, first: 0, hosts: Vec::new(), furthest: (0, 0) }
    }

    /// In bytes.
    pub(in crate::format) fn virtual_size(&self) -> u64 {
        self.geometry.virtual_size
    }

    /// As `DiskMap::resolve`.
    pub(in crate::format) fn resolve(&mut self, input: &mut dyn ReadAt, guest: u64, most: u64) -> Result<Mapping> {
        let block = guest.checked_div(self.geometry.block_size).unwrap_or(0);
        let end = guest.saturating_add(most).min(self.geometry.virtual_size);
        let held = self.first..self.first.saturating_add(self.hosts.len() as u64);
        if guest < end && !held.contains(&block) {
            self.load(input, block)?;
        }
        self.look_up(guest, end)
            .ok_or_else(|| Error::new(Kind::Internal, format!("blocks: resolve of {most} bytes at byte {guest}")))
    }

    /// Reads the piece of the table that has the entry of `block`.
    fn load(&mut self, input: &mut dyn ReadAt, block: u64) -> Result<()> {
        let piece = self.geometry.piece.max(1);
        let first = block.checked_div(piece).unwrap_or(0).saturating_mul(piece);
        let last = first.saturating_add(piece).min(self.geometry.blocks());
        self.first = first;
        self.hosts.clear();
        let mut hosts = std::mem::take(&mut self.hosts);
        self.table.load(input, first..last, &mut hosts)?;
        for (block, host) in (first..last).zip(&hosts) {
            // Most entries of a sparse disk are this one.
            if *host != ABSENT {
                self.check(block, *host, input.length())?;
            }
        }
        self.hosts = hosts;
        Ok(())
    }

    /// Holds the place of one block against the rules and claims it.
    fn check(&mut self, block: u64, host: u64, length: Option<u64>) -> Result<()> {
        let Geometry { virtual_size, block_size, origin, unit, .. } = self.geometry;
        let refuse = |rule, message: String| {
            Err(Violation::new(rule, self.table.entry(block), format!("{host:#x}"), message).into())
        };
        let from_origin = host.checked_sub(origin);
        if from_origin.and_then(|bytes| bytes.checked_rem(unit)) != Some(0) {
            let message =
                format!("blocks begin at byte {origin:#x} and then every {unit:#x} bytes: the table is wrong");
            return refuse(Rule::TableOutOfRange, message);
        }
        let needed = block_size.min(virtual_size.saturating_sub(block.saturating_mul(block_size)));
        self.furthest = self.furthest.max((host.saturating_add(needed), block));
        length.map_or(Ok(()), |length| self.check_length(length))?;
        let first = self.geometry.unit_of(host);
        let last = self.geometry.unit_of(host.saturating_add(block_size.saturating_sub(1)));
        self.claims.claim_range(first, last, Use::Whole).or_else(|clash| match clash {
            Clash::Taken(_) => {
                refuse(Rule::TableOverlap, "another block or structure has the same bytes of the file".to_owned())
            }
            Clash::TooMany => refuse(
                Rule::SizeLimit,
                "its data lies too scattered to be checked in the memory allowed for tables: \
                 rewrite it with `qemu-img convert`"
                    .to_owned(),
            ),
        })
    }

    /// As `DiskMap::check_length`, for the blocks.
    pub(in crate::format) fn check_length(&self, length: u64) -> Result<()> {
        let (end, block) = self.furthest;
        if end <= length {
            return Ok(());
        }
        let message = format!(
            "its data ends at byte {end} and the file at {length}: the download was cut short, or the table is wrong"
        );
        Err(Violation::new(Rule::Truncated, self.table.entry(block), format!("{end:#x}"), message).into())
    }

    /// The mapping at `guest` inside the piece in memory, as long as it goes on in the same way.
    fn look_up(&self, guest: u64, end: u64) -> Option<Mapping> {
        let size = self.geometry.block_size;
        let within = guest.checked_rem(size)?;
        let number = guest.checked_div(size)?.checked_sub(self.first)?;
        let mut hosts = self.hosts.get(usize::try_from(number).ok()?..)?.iter();
        let first = *hosts.next().filter(|_| guest < end)?;
        let mut length = size.saturating_sub(within);
        for host in hosts {
            let goes_on = match first {
                ABSENT => *host == ABSENT,
                first => first.checked_add(within.saturating_add(length)) == Some(*host),
            };
            if !goes_on || guest.saturating_add(length) >= end {
                break;
            }
            length = length.saturating_add(size);
        }
        let place = if first == ABSENT { Place::Zero } else { Place::Raw { host: first.saturating_add(within) } };
        Some(Mapping { length: length.min(end.saturating_sub(guest)), place })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    /// Entries from memory; notes what was asked for.
    struct List(Vec<u64>, Vec<Range<u64>>);

    impl BlockTable for List {
        fn load(&mut self, _: &mut dyn ReadAt, blocks: Range<u64>, hosts: &mut Vec<u64>) -> Result<()> {
            let range = usize::try_from(blocks.start).unwrap()..usize::try_from(blocks.end).unwrap();
            hosts.extend(&self.0[range]);
            self.1.push(blocks);
            Ok(())
        }

        fn entry(&self, block: u64) -> String {
            format!("bat[{block}]")
        }
    }

    struct Nothing(Option<u64>);

    impl ReadAt for Nothing {
        fn length(&self) -> Option<u64> {
            self.0
        }

        fn read_up_to(&mut self, _: u64, _: usize) -> Result<Bytes> {
            unreachable!("the table is in memory")
        }
    }

    fn map(hosts: &[u64], virtual_size: u64) -> BlockMap<List> {
        let geometry = Geometry { virtual_size, block_size: 100, origin: 50, unit: 50, piece: 3 };
        BlockMap::new(List(hosts.to_vec(), Vec::new()), geometry, Claims::new(1 << 20))
    }

    #[test]
    fn neighbours_are_one_answer_and_pieces_are_read_once() {
        let mut map = map(&[50, 150, ABSENT, ABSENT, 400, 300, 550], 650);
        let (mut guest, mut found) = (0, Vec::new());
        while guest < 650 {
            let mapping = map.resolve(&mut Nothing(Some(600)), guest, 650 - guest).unwrap();
            guest += mapping.length;
            found.push((mapping.length, mapping.place));
        }
        let raw = |host| Place::Raw { host };
        let expected = [(200, raw(50)), (100, Place::Zero), (100, Place::Zero), (100, raw(400)), (100, raw(300))];
        assert_eq!(found, expected.into_iter().chain([(50, raw(550))]).collect::<Vec<_>>());
        assert_eq!(map.table.1, [0..3, 3..6, 6..7]);
    }

    #[test]
    fn answers_are_as_short_as_asked() {
        let mut map = map(&[50, 150, 250], 300);
        let mapping = map.resolve(&mut Nothing(None), 130, 7).unwrap();
        assert_eq!(mapping, Mapping { length: 7, place: Place::Raw { host: 180 } });
        assert!(map.resolve(&mut Nothing(None), 300, 7).is_err());
        assert!(map.resolve(&mut Nothing(None), 0, 0).is_err());
    }

    #[test]
    fn places_hold_to_the_rules() {
        let refused = |hosts: &[u64], length| {
            let error = map(hosts, 200).resolve(&mut Nothing(length), 0, 200).unwrap_err();
            let violation = error.violation().unwrap().clone();
            (violation.rule, violation.field, violation.value)
        };
        let wrong = |rule, block: u64, host: u64| (rule, format!("bat[{block}]"), format!("{host:#x}"));
        assert_eq!(refused(&[50, 49], None), wrong(Rule::TableOutOfRange, 1, 49));
        assert_eq!(refused(&[60, 0], None), wrong(Rule::TableOutOfRange, 0, 60));
        assert_eq!(refused(&[100, 150], None), wrong(Rule::TableOverlap, 1, 150));
        assert_eq!(refused(&[0, 100], Some(199)), wrong(Rule::Truncated, 1, 200));
        assert_eq!(refused(&[50 + ((1 << 62) - 50) / 50 * 50, 0], Some(199)).0, Rule::Truncated);
        let mut streamed = map(&[0, 100], 200);
        streamed.resolve(&mut Nothing(None), 0, 200).unwrap();
        assert!(streamed.check_length(200).is_ok() && streamed.check_length(199).is_err());
    }
}
