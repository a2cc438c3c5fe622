//! The index behind the blocks, and the footer: what they must say of the blocks that came.

use super::STREAM_HEADER;
use crate::unpack::codec::Fault;

/// Blocks of one stream: their index takes some 8 MiB. In blocks of 24 MiB, as `xz -6` makes them, a stream of 24 TiB.
const MAX_BLOCKS: u64 = 1 << 20;

/// What the index has of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// Length with header and check, without padding.
    pub unpadded: u64,
    /// Length of what comes out.
    pub size: u64,
}

impl Record {
    /// Length with padding.
    pub fn padded(&self) -> u64 {
        self.unpadded.div_ceil(4).saturating_mul(4)
    }
}

/// The records of the blocks that came.
#[derive(Default)]
pub(super) struct Index {
    /// As the index must have them: numbers of 7 bits a byte.
    records: Vec<u8>,
    count: u64,
    /// Length of the whole index, once it was checked.
    length: u64,
}

impl Index {
    pub fn add(&mut self, record: Record) -> Result<(), Fault> {
        self.count = self.count.saturating_add(1);
        put_vli(&mut self.records, record.unpadded);
        put_vli(&mut self.records, record.size);
        if self.count > MAX_BLOCKS { Err("it has more blocks than are read".into()) } else { Ok(()) }
    }

    /// The index as it must be, without its checksum.
    fn expected(&self) -> Vec<u8> {
        let mut bytes = vec![0];
        put_vli(&mut bytes, self.count);
        bytes.extend_from_slice(&self.records);
        bytes.resize(bytes.len().div_ceil(4).saturating_mul(4), 0);
        bytes
    }

    /// Length that the index must have.
    pub fn length(&self) -> usize {
        let mut count = Vec::new();
        put_vli(&mut count, self.count);
        let length = count.len().saturating_add(self.records.len()).saturating_add(1);
        length.div_ceil(4).saturating_mul(4).saturating_add(4)
    }

    /// Holds the index that came against the blocks that came.
    pub fn check(&mut self, found: &[u8]) -> Result<(), Fault> {
        let mut expected = self.expected();
        let sum = crc32(&expected);
        expected.extend_from_slice(&sum.to_le_bytes());
        self.length = expected.len() as u64;
        if found == expected { Ok(()) } else { Err("its index says something else than its blocks".into()) }
    }

    /// Holds the footer against the header and the index.
    pub fn check_footer(&self, footer: &[u8], header: &[u8; STREAM_HEADER]) -> Result<(), Fault> {
        let backward = u32::try_from((self.length / 4).saturating_sub(1)).unwrap_or(u32::MAX).to_le_bytes();
        let flags = header.get(6..8).unwrap_or_default();
        let described = [&backward[..], flags].concat();
        let expected = [&crc32(&described).to_le_bytes()[..], &described, b"YZ"].concat();
        if footer == expected { Ok(()) } else { Err("its footer says something else than its header and index".into()) }
    }
}

/// Length of the check behind each block, by the stream's flags (section 2.1.1.2).
pub(super) fn check_length(header: &[u8; STREAM_HEADER]) -> Result<u64, Fault> {
    Ok(match header.get(7) {
        Some(0) => 0,
        Some(1..=3) => 4,
        Some(4..=6) => 8,
        Some(7..=9) => 16,
        Some(10..=12) => 32,
        Some(13..=15) => 64,
        _ => return Err("its header has unknown flags".into()),
    })
}

/// A number of 7 bits a byte, the lowest first, and what follows it.
pub(super) fn vli(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0_u64;
    for (n, byte) in bytes.iter().enumerate().take(9) {
        value |= u64::from(byte & 0x7f).checked_shl(u32::try_from(n).ok()?.checked_mul(7)?)?;
        if byte & 0x80 == 0 {
            // The last byte is zero only in a number of one byte.
            return (n == 0 || *byte != 0).then(|| bytes.get(n.saturating_add(1)..).map(|rest| (value, rest)))?;
        }
    }
    None
}

fn put_vli(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    bytes.push((value & 0x7f) as u8);
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}
