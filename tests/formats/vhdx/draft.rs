//! A vhdx and its log in memory, to be changed field by field.

use vitrine_engine::model::DiskFormat;

use crate::{
    blocks::{image, output},
    written::bytes,
};

pub const MIB: usize = 1 << 20;

/// An image in memory that is changed field by field.
pub struct Draft(pub Vec<u8>);

/// Where the structures of what we write lie.
pub const HEADERS: [usize; 2] = [64 << 10, 128 << 10];
pub const REGION_TABLES: [usize; 2] = [192 << 10, 256 << 10];
pub const LOG: usize = MIB;
pub const METADATA: usize = 2 * MIB;
pub const ITEMS: usize = METADATA + (64 << 10);
pub const BAT: usize = 3 * MIB;

impl Draft {
    /// Eight blocks of 20 MiB are stored.
    pub fn new() -> Self {
        let parts = (0..8).map(|n| (n * (2 << 20) + 5000, bytes(u32::try_from(n).unwrap(), 5000, true))).collect();
        Self(image(output(DiskFormat::Vhdx, None), 20 << 20, &parts))
    }

    pub fn set(mut self, at: usize, value: &[u8]) -> Self {
        self.0[at..at + value.len()].copy_from_slice(value);
        self
    }

    pub fn u32(self, at: usize, value: u32) -> Self {
        self.set(at, &value.to_le_bytes())
    }

    pub fn u64(self, at: usize, value: u64) -> Self {
        self.set(at, &value.to_le_bytes())
    }

    /// Changes both headers.
    pub fn header(self, at: usize, value: &[u8]) -> Self {
        HEADERS.into_iter().fold(self, |draft, header| draft.set(header + at, value)).sealed()
    }

    /// Changes both region tables.
    pub fn regions(self, at: usize, value: &[u8]) -> Self {
        REGION_TABLES.into_iter().fold(self, |draft, table| draft.set(table + at, value)).sealed()
    }

    pub fn sealed(mut self) -> Self {
        seal(&mut self.0);
        self
    }

    /// Writes entries into the log and says in the headers that it holds something.
    pub fn logged(self, entries: &[(usize, Entry)]) -> Self {
        let draft = self.header(48, &GUID);
        entries.iter().fold(draft, |draft, (at, entry)| {
            let bytes = entry.bytes();
            let before = bytes.len().min(MIB - at);
            draft.set(LOG + at, &bytes[..before]).set(LOG, &bytes[before..])
        })
    }
}

/// Makes the checksums right.
pub fn seal(image: &mut [u8]) {
    let structures = HEADERS.map(|at| (at, 4096)).into_iter().chain(REGION_TABLES.map(|at| (at, 65536)));
    for (at, length) in structures {
        let Some(bytes) = image.get_mut(at..at + length) else { continue };
        bytes[4..8].fill(0);
        let sum = crc32c::crc32c(bytes);
        bytes[4..8].copy_from_slice(&sum.to_le_bytes());
    }
}

pub const GUID: [u8; 16] = *b"names this log!!";

/// An entry of the log.
#[derive(Clone)]
pub struct Entry {
    pub number: u64,
    pub tail: u32,
    pub flushed: u64,
    pub guid: [u8; 16],
    /// File offset, and the sector that goes there; `None`: so many zeros.
    pub changes: Vec<(u64, Result<Vec<u8>, u64>)>,
    /// Changes the bytes before their checksum is made.
    pub spoil: fn(&mut [u8]),
    pub seal: bool,
}

impl Entry {
    pub fn new(number: u64, tail: usize, changes: Vec<(u64, Result<Vec<u8>, u64>)>) -> Self {
        let tail = u32::try_from(tail).unwrap();
        Self { number, tail, flushed: 4 << 20, guid: GUID, changes, spoil: |_| {}, seal: true }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let (mut descriptors, mut data) = (vec![0_u8; 64], Vec::new());
        for (offset, change) in &self.changes {
            match change {
                Ok(sector) => {
                    descriptors.extend([b"desc", &sector[4092..], &sector[..8]].concat());
                    data.extend(b"data");
                    data.extend(u32::try_from(self.number >> 32).unwrap().to_le_bytes());
                    data.extend(&sector[8..4092]);
                    data.extend(u32::try_from(self.number & 0xffff_ffff).unwrap().to_le_bytes());
                }
                Err(zeros) => descriptors.extend([&b"zero\0\0\0\0"[..], &zeros.to_le_bytes()].concat()),
            }
            descriptors.extend([offset.to_le_bytes(), self.number.to_le_bytes()].concat());
        }
        descriptors.resize(descriptors.len().next_multiple_of(4096), 0);
        let mut bytes = [descriptors, data].concat();
        let length = u32::try_from(bytes.len()).unwrap();
        bytes[..4].copy_from_slice(b"loge");
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.tail.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.number.to_le_bytes());
        bytes[24..28].copy_from_slice(&u32::try_from(self.changes.len()).unwrap().to_le_bytes());
        bytes[32..48].copy_from_slice(&self.guid);
        bytes[48..56].copy_from_slice(&self.flushed.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.flushed.to_le_bytes());
        (self.spoil)(&mut bytes);
        if self.seal {
            let sum = crc32c::crc32c(&bytes);
            bytes[4..8].copy_from_slice(&sum.to_le_bytes());
        }
        bytes
    }
}

/// A sector of the BAT: of the first blocks those are stored that `hosts` (in MiB) names.
pub fn bat_sector(hosts: &[u64]) -> Vec<u8> {
    let mut sector: Vec<u8> =
        hosts.iter().flat_map(|mib| (if *mib == 0 { 0 } else { mib << 20 | 6 }).to_le_bytes()).collect();
    sector.resize(4096, 0);
    sector
}

/// An entry of the metadata table, by its number in what we write.
pub const fn metadata_entry(number: usize) -> usize {
    METADATA + 32 + 32 * number
}
