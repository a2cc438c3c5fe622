//! What one L2 entry says.
//!
//! Knows "L2 table entry", "Compressed Clusters Descriptor" and "Extended L2 Entries"; must not know where the entry came
//! from or what else the file holds.

use super::{COMPRESSED, COPIED, OFFSET_MASK, SECTOR};
use crate::model::Rule;

/// Bit 0 of a standard cluster descriptor: reads as zeros.
const READS_AS_ZERO: u64 = 1;
/// Bits 1 to 8 and 56 to 61 of a standard cluster descriptor.
const RESERVED: u64 = 0x3f00_0000_0000_01fe;

/// How the entries of one file are to be read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dialect {
    pub(super) version: u32,
    pub(super) cluster_bits: u32,
    pub(super) extended: bool,
}

/// What an entry says of its guest cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Nothing is stored. `kept` is a host cluster that is reserved for it and must not be read.
    Zero { kept: Option<u64> },
    /// Stored as it is at byte `host`.
    Plain { host: u64 },
    /// Stored at byte `host`, but only those of the 32 subclusters whose bit is set in `allocated`.
    Parts { host: u64, allocated: u32 },
    /// Compressed, in `length` bytes from byte `host`, of which the last sector's may be another's or missing.
    Packed { host: u64, length: u32 },
}

/// What is wrong with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flaw {
    pub(super) rule: Rule,
    pub(super) message: &'static str,
}

const fn flaw(message: &'static str) -> Flaw {
    Flaw { rule: Rule::InvalidField, message }
}

impl Dialect {
    /// Reads one entry; `bitmap` is its second half with extended L2 entries, else 0.
    pub(super) fn decode(self, entry: u64, bitmap: u64) -> Result<Entry, Flaw> {
        if entry & COMPRESSED != 0 {
            return self.decode_packed(entry, bitmap);
        }
        let host = entry & OFFSET_MASK;
        let reads_as_zero = entry & READS_AS_ZERO != 0;
        if entry & RESERVED != 0 {
            return Err(flaw("reserved bits are set"));
        }
        if reads_as_zero && (self.version < 3 || self.extended) {
            return Err(flaw("the zero bit is set where the format has none"));
        }
        if host == 0 && entry & COPIED != 0 {
            return Err(flaw("an unallocated cluster is said to be allocated once"));
        }
        if host.trailing_zeros() < self.cluster_bits {
            return Err(Flaw {
                rule: Rule::TableOutOfRange,
                message: "the host offset is no multiple of the cluster size",
            });
        }
        let kept = (host != 0).then_some(host);
        match kept {
            Some(host) if self.extended => decode_parts(host, bitmap),
            None if self.extended => decode_unallocated(bitmap),
            Some(host) if !reads_as_zero => Ok(Entry::Plain { host }),
            _ => Ok(Entry::Zero { kept }),
        }
    }

    fn decode_packed(self, entry: u64, bitmap: u64) -> Result<Entry, Flaw> {
        if entry & COPIED != 0 || bitmap != 0 {
            return Err(flaw("reserved bits of a compressed cluster are set"));
        }
        // x = 62 - (cluster_bits - 8) lies between 49 and 61.
        let x = 70_u32.saturating_sub(self.cluster_bits);
        let below = 1_u64.wrapping_shl(x);
        let host = entry & below.wrapping_sub(1);
        if host > OFFSET_MASK | (SECTOR - 1) {
            return Err(flaw("a compressed cluster's offset has more than 56 bits"));
        }
        let further_sectors = (entry & (COMPRESSED - 1)).wrapping_shr(x);
        // At most 2^13 sectors after the first: 4 MiB.
        let length = further_sectors.saturating_add(1).saturating_mul(SECTOR).saturating_sub(host % SECTOR);
        Ok(Entry::Packed { host, length: u32::try_from(length).unwrap_or(u32::MAX) })
    }
}

/// Splits a subcluster bitmap into (allocated, reads as zero).
fn halves(bitmap: u64) -> (u32, u32) {
    let low = u32::try_from(bitmap & u64::from(u32::MAX)).unwrap_or(0);
    let high = u32::try_from(bitmap.wrapping_shr(32)).unwrap_or(0);
    (low, high)
}

fn decode_parts(host: u64, bitmap: u64) -> Result<Entry, Flaw> {
    match halves(bitmap) {
        (allocated, zero) if allocated & zero != 0 => Err(flaw("subclusters are both allocated and zero")),
        (0, _) => Ok(Entry::Zero { kept: Some(host) }),
        (u32::MAX, _) => Ok(Entry::Plain { host }),
        (allocated, _) => Ok(Entry::Parts { host, allocated }),
    }
}

fn decode_unallocated(bitmap: u64) -> Result<Entry, Flaw> {
    match halves(bitmap) {
        (0, _) => Ok(Entry::Zero { kept: None }),
        _ => Err(flaw("subclusters are allocated in a cluster that is not")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V3: Dialect = Dialect { version: 3, cluster_bits: 16, extended: false };
    const V2: Dialect = Dialect { version: 2, ..V3 };
    const EXTENDED: Dialect = Dialect { extended: true, ..V3 };

    #[test]
    fn standard_clusters() {
        assert_eq!(V3.decode(0, 0), Ok(Entry::Zero { kept: None }));
        assert_eq!(V3.decode(1, 0), Ok(Entry::Zero { kept: None }));
        assert_eq!(V3.decode(0x50001, 0), Ok(Entry::Zero { kept: Some(0x50000) }));
        assert_eq!(V3.decode(COPIED | 0x50000, 0), Ok(Entry::Plain { host: 0x50000 }));
        assert_eq!(V2.decode(0x50001, 0).unwrap_err().rule, Rule::InvalidField);
        assert_eq!(V3.decode(0x50200, 0).unwrap_err().rule, Rule::TableOutOfRange);
        assert!(V3.decode(COPIED, 0).is_err());
        for bit in (1..=8).chain(56..=61) {
            assert!(V3.decode(0x50000 | 1 << bit, 0).is_err(), "{bit}");
        }
    }

    #[test]
    fn compressed_clusters_of_every_cluster_size() {
        for cluster_bits in 9..=21 {
            let dialect = Dialect { cluster_bits, ..V3 };
            let x = 62 - (cluster_bits - 8);
            let host = 0x12_3456;
            let entry = COMPRESSED | 1 << x | host;
            let length = 1024 - 0x56;
            assert_eq!(dialect.decode(entry, 0), Ok(Entry::Packed { host, length }), "{cluster_bits}");
            assert!(dialect.decode(entry | COPIED, 0).is_err());
        }
        let small = Dialect { cluster_bits: 9, ..V3 };
        assert!(small.decode(COMPRESSED | 1 << 56, 0).is_err());
        assert_eq!(small.decode(COMPRESSED | ((1 << 56) - 1), 0), Ok(Entry::Packed { host: (1 << 56) - 1, length: 1 }));
    }

    #[test]
    fn subclusters() {
        let host = 0x50000;
        assert_eq!(EXTENDED.decode(host, 0), Ok(Entry::Zero { kept: Some(host) }));
        assert_eq!(EXTENDED.decode(host, 0xffff_ffff), Ok(Entry::Plain { host }));
        assert_eq!(EXTENDED.decode(host, 5 | 2 << 32), Ok(Entry::Parts { host, allocated: 5 }));
        assert_eq!(EXTENDED.decode(0, 0xff << 32), Ok(Entry::Zero { kept: None }));
        assert!(EXTENDED.decode(host, 1 | 1 << 32).is_err());
        assert!(EXTENDED.decode(0, 1).is_err());
        assert!(EXTENDED.decode(host | 1, 0).is_err());
        assert!(EXTENDED.decode(COMPRESSED | 5, 1).is_err());
    }
}
