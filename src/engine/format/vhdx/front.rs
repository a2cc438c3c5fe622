//! The structures at the beginning of a file that we write: identifier, headers, region tables, metadata.
//!
//! Knows what they contain; the places that are not fixed are given to it.

use bytes::Bytes;

use super::{
    BAT_REGION, FILE_PARAMETERS, Guid, HEADER_LENGTH, HEADER_SIGNATURE, HEADERS, LOGICAL_SECTOR_SIZE, METADATA_REGION,
    METADATA_SIGNATURE, MIB, PHYSICAL_SECTOR_SIZE, REGION_SIGNATURE, REGION_TABLES, TABLE_LENGTH, VIRTUAL_DISK_ID,
    VIRTUAL_DISK_SIZE, checksum,
};
use crate::format::Write;

/// Where the log lies and how long it is, in bytes. It is empty: nothing is written there.
const LOG: (u64, u64) = (MIB, MIB);
/// Where the metadata lies and how long its region is, in bytes.
const METADATA: (u64, u64) = (2 * MIB, MIB);
/// Where what has no fixed place may begin, in bytes.
pub(super) const END: u64 = 3 * MIB;
/// The sector that the guest sees, in bytes: what every guest boots from.
pub(super) const LOGICAL_SECTOR: u32 = 512;
/// The sector that the guest had better write, in bytes.
const PHYSICAL_SECTOR: u32 = 4096;

/// `IsVirtualDisk` and `IsRequired`: of the disk rather than of this file, and to be understood.
const OF_DISK: u32 = 6;
/// `IsRequired`: of this file, and to be understood.
const OF_FILE: u32 = 4;

/// What the structures say, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    pub(super) fixed: bool,
    pub(super) block_size: u64,
    pub(super) virtual_size: u64,
    pub(super) bat_offset: u64,
    pub(super) bat_length: u64,
}

/// All writes, the identifier last: without it the file is no vhdx.
pub(super) fn writes(facts: &Facts) -> Vec<Write> {
    let region_table = region_table(facts);
    let mut writes = metadata(facts);
    writes.extend(REGION_TABLES.map(|offset| Write { offset, bytes: region_table.clone() }));
    let (file, data) = (rand::random(), rand::random());
    writes.extend(
        [0, 1].into_iter().zip(HEADERS).map(|(number, offset)| Write { offset, bytes: header(number, file, data) }),
    );
    writes.push(Write { offset: 0, bytes: identifier() });
    writes
}

fn identifier() -> Bytes {
    let creator = "Vitrine".encode_utf16().flat_map(u16::to_le_bytes);
    b"vhdxfile".iter().copied().chain(creator).collect()
}

/// The header with this sequence number; of the two the second counts.
fn header(sequence_number: u64, file_write: Guid, data_write: Guid) -> Bytes {
    let mut header = Vec::with_capacity(HEADER_LENGTH);
    header.extend_from_slice(&HEADER_SIGNATURE);
    header.extend_from_slice(&[0; 4]);
    header.extend_from_slice(&sequence_number.to_le_bytes());
    header.extend_from_slice(&file_write);
    header.extend_from_slice(&data_write);
    header.extend_from_slice(&[0; 16]); // LogGuid: the log is empty
    header.extend_from_slice(&0_u16.to_le_bytes()); // LogVersion
    header.extend_from_slice(&1_u16.to_le_bytes()); // Version
    header.extend_from_slice(&narrow(LOG.1));
    header.extend_from_slice(&LOG.0.to_le_bytes());
    sealed(header, HEADER_LENGTH)
}

fn region_table(facts: &Facts) -> Bytes {
    let mut table = Vec::with_capacity(TABLE_LENGTH);
    table.extend_from_slice(&REGION_SIGNATURE);
    table.extend_from_slice(&[0; 4]);
    table.extend_from_slice(&2_u32.to_le_bytes());
    table.extend_from_slice(&[0; 4]);
    for (guid, (offset, length)) in [(BAT_REGION, (facts.bat_offset, facts.bat_length)), (METADATA_REGION, METADATA)] {
        table.extend_from_slice(&guid);
        table.extend_from_slice(&offset.to_le_bytes());
        table.extend_from_slice(&narrow(length));
        table.extend_from_slice(&1_u32.to_le_bytes()); // Required
    }
    sealed(table, TABLE_LENGTH)
}

/// The metadata table and, behind it, its items.
fn metadata(facts: &Facts) -> Vec<Write> {
    let parameters = u64::from(facts.fixed) << 32 | facts.block_size;
    let items: [(Guid, u32, Vec<u8>); 5] = [
        (FILE_PARAMETERS, OF_FILE, parameters.to_le_bytes().to_vec()),
        (VIRTUAL_DISK_SIZE, OF_DISK, facts.virtual_size.to_le_bytes().to_vec()),
        (VIRTUAL_DISK_ID, OF_DISK, rand::random::<Guid>().to_vec()),
        (LOGICAL_SECTOR_SIZE, OF_DISK, LOGICAL_SECTOR.to_le_bytes().to_vec()),
        (PHYSICAL_SECTOR_SIZE, OF_DISK, PHYSICAL_SECTOR.to_le_bytes().to_vec()),
    ];
    let mut table = METADATA_SIGNATURE.to_vec();
    table.extend_from_slice(&[0; 2]);
    table.extend_from_slice(&u16::try_from(items.len()).unwrap_or(0).to_le_bytes());
    table.resize(32, 0);
    let mut values = Vec::new();
    for (guid, flags, value) in items {
        table.extend_from_slice(&guid);
        table.extend_from_slice(&narrow((TABLE_LENGTH as u64).saturating_add(values.len() as u64)));
        table.extend_from_slice(&narrow(value.len() as u64));
        table.extend_from_slice(&flags.to_le_bytes());
        table.extend_from_slice(&[0; 4]);
        values.extend_from_slice(&value);
    }
    table.resize(TABLE_LENGTH, 0);
    table.extend_from_slice(&values);
    vec![Write { offset: METADATA.0, bytes: table.into() }]
}

/// `bytes`, filled with zeros to `length`, with their checksum.
fn sealed(mut bytes: Vec<u8>, length: usize) -> Bytes {
    bytes.resize(length, 0);
    let sum = checksum(&bytes);
    if let Some(slot) = bytes.get_mut(4..8) {
        slot.copy_from_slice(&sum.to_le_bytes());
    }
    bytes.into()
}

/// Lengths here are far below 4 GiB.
fn narrow(length: u64) -> [u8; 4] {
    u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes()
}
