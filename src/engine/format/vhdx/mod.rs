//! vhdx, version 1 (Microsoft, [MS-VHDX]; names of structures and fields are that document's).
//!
//! ```text
//! header (two, the newer counts) ─► log (what was not written yet, as patches) ─► region (two tables) ─► metadata ─► map (BAT)
//! encode (as raw) ─► layout (places, BAT) ─► front (identifier, headers, region tables, metadata)
//! ```
//! Fixed and dynamic disks are read by the same rules. A disk with a parent, and anything unknown that the file says is required, is refused.

mod encode;
mod front;
mod header;
mod layout;
mod log;
mod map;
mod metadata;
mod region;

pub(super) use encode::VhdxEncoder;
pub(super) use map::VhdxMap;

/// The unit of all places in the file, in bytes.
const MIB: u64 = 1 << 20;
/// Length of the part of the file that the headers and region tables have for themselves, in bytes.
const HEADER_SECTION: u64 = MIB;
/// Where the two headers lie, in bytes.
const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
/// Length of a header, all of which its checksum covers, in bytes.
const HEADER_LENGTH: usize = 4 << 10;
/// Where the two region tables lie, in bytes.
const REGION_TABLES: [u64; 2] = [192 << 10, 256 << 10];
/// Length of a region table, of which its checksum covers all, and of the metadata table, in bytes.
const TABLE_LENGTH: usize = 64 << 10;
/// Most entries of a region table or a metadata table.
const MAX_ENTRIES: u32 = 2047;
/// Length of an entry in a region table or a metadata table, in bytes.
const ENTRY_LENGTH: usize = 32;
/// Largest disk that the format has, in bytes.
const MAX_VIRTUAL_SIZE: u64 = 64 << 40;
/// Sectors that one sector bitmap block describes.
const BITMAP_SECTORS: u64 = 1 << 23;

const HEADER_SIGNATURE: [u8; 4] = *b"head";
const REGION_SIGNATURE: [u8; 4] = *b"regi";
const METADATA_SIGNATURE: [u8; 8] = *b"metadata";

/// "BAT Entry", `State`: stored as a whole.
const PAYLOAD_BLOCK_FULLY_PRESENT: u64 = 6;

/// An identifier as it stands in the file.
type Guid = [u8; 16];

const BAT_REGION: Guid = guid(0x2dc2_7766, 0xf623, 0x4200, 0x9d64_115e_9bfd_4a08);
const METADATA_REGION: Guid = guid(0x8b7c_a206, 0x4790, 0x4b9a, 0xb8fe_575f_050f_886e);
const FILE_PARAMETERS: Guid = guid(0xcaa1_6737, 0xfa36, 0x4d43, 0xb3b6_33f0_aa44_e76b);
const VIRTUAL_DISK_SIZE: Guid = guid(0x2fa5_4224, 0xcd1b, 0x4876, 0xb211_5dbe_d83b_f4b8);
const VIRTUAL_DISK_ID: Guid = guid(0xbeca_12ab, 0xb2e6, 0x4523, 0x93ef_c309_e000_c746);
const LOGICAL_SECTOR_SIZE: Guid = guid(0x8141_bf1d, 0xa96f, 0x4709, 0xba47_f233_a8fa_ab5f);
const PHYSICAL_SECTOR_SIZE: Guid = guid(0xcda3_48c7, 0x445d, 0x4471, 0x9cc9_e988_5251_c556);
const PARENT_LOCATOR: Guid = guid(0xa8d3_5f2d, 0xb30b, 0x454d, 0xabf7_d3d8_4834_ab0c);

/// An identifier by the groups in which it is printed: the first three are little-endian in the file, the rest is in order.
#[allow(clippy::cast_lossless, reason = "`From` is not for constants")]
const fn guid(first: u32, second: u16, third: u16, rest: u64) -> Guid {
    let number = first as u128 | (second as u128) << 32 | (third as u128) << 48 | (rest.swap_bytes() as u128) << 64;
    number.to_le_bytes()
}

/// An identifier as it is printed.
fn print_guid(guid: &[u8]) -> String {
    let number = |at: usize, length: usize, reverse: bool| {
        let mut bytes = guid.get(at..at.saturating_add(length)).unwrap_or_default().to_vec();
        if reverse {
            bytes.reverse();
        }
        hex::encode(bytes)
    };
    let (first, second, third) = (number(0, 4, true), number(4, 2, true), number(6, 2, true));
    format!("{first}-{second}-{third}-{}-{}", number(8, 2, false), number(10, 6, false))
}

/// CRC-32C of `bytes` with their bytes 4 to 7, where it stands, taken as zeros.
fn checksum(bytes: &[u8]) -> u32 {
    let before = crc32c::crc32c(bytes.get(..4).unwrap_or_default());
    let zeros = crc32c::crc32c_append(before, &[0; 4]);
    crc32c::crc32c_append(zeros, bytes.get(8..).unwrap_or_default())
}

/// Whether `bytes` begin with `signature` and hold to their checksum.
fn is_sound(bytes: &[u8], signature: [u8; 4]) -> bool {
    bytes.starts_with(&signature) && crate::format::fields::le_u32(bytes, 4) == Some(checksum(bytes))
}

/// Payload blocks whose entries stand in the BAT before that of a sector bitmap block ("Chunk Ratio").
fn chunk_ratio(block_size: u64, logical_sector: u64) -> u64 {
    BITMAP_SECTORS.saturating_mul(logical_sector).checked_div(block_size).unwrap_or(1).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_stand_in_the_file_as_the_specification_says() {
        assert_eq!(hex::encode(BAT_REGION), "6677c22d23f600429d64115e9bfd4a08");
        assert_eq!(print_guid(&BAT_REGION), "2dc27766-f623-4200-9d64-115e9bfd4a08");
        assert_eq!(print_guid(&PARENT_LOCATOR), "a8d35f2d-b30b-454d-abf7-d3d84834ab0c");
    }

    #[test]
    fn chunks_have_as_many_blocks_as_their_bitmap_has_bits_for() {
        assert_eq!(chunk_ratio(1 << 20, 512), 4096);
        assert_eq!(chunk_ratio(256 << 20, 512), 16);
        assert_eq!(chunk_ratio(32 << 20, 4096), 1024);
    }
}
