//! Makes the checksums of a changed file right, so that what is behind them is reached. What holds without them is left alone.

use crate::sparse::Sparse;

/// Where vhdx has its headers, and its region tables, in bytes.
pub const VHDX_HEADERS: [u64; 2] = [64 << 10, 128 << 10];
const VHDX_REGION_TABLES: [u64; 2] = [192 << 10, 256 << 10];
/// Where the good images have their log, and how long it is, in bytes.
pub const VHDX_LOG: u64 = 1 << 20;
const VHDX_LOG_LENGTH: u64 = 1 << 20;

/// No checksums.
pub fn nothing(_: &mut Sparse) {}

/// Headers, region tables, and the entries of the log.
pub fn vhdx(file: &mut Sparse) {
    for (at, length) in
        VHDX_HEADERS.map(|at| (at, 4 << 10)).into_iter().chain(VHDX_REGION_TABLES.map(|at| (at, 64 << 10)))
    {
        seal(file, at, length);
    }
    for at in (VHDX_LOG..VHDX_LOG + VHDX_LOG_LENGTH).step_by(4096) {
        let head = file.read(at, 12);
        if let (true, Some(length)) = (head.starts_with(b"loge"), le_u32(&head, 8)) {
            // One that goes on at the log's beginning is not mended.
            let left = VHDX_LOG + VHDX_LOG_LENGTH - at;
            seal(file, at, usize::try_from(u64::from(length).min(left)).unwrap());
        }
    }
}

/// The CRC-32C of a structure of vhdx, which stands in its bytes 4 to 7.
fn seal(file: &mut Sparse, at: u64, length: usize) {
    let mut bytes = file.read(at, length);
    if bytes.len() < 8 {
        return;
    }
    bytes[4..8].fill(0);
    file.write(at + 4, &crc32c::crc32c(&bytes).to_le_bytes());
}

/// The footer, its copy, and the header of a dynamic disk.
pub fn vhd(file: &mut Sparse) {
    let mut copy = file.read(0, 512);
    let end = file.length().saturating_sub(512);
    if copy.len() == 512 && copy.starts_with(b"conectix") {
        add_up(&mut copy, 64);
        file.write(0, &copy);
        file.write(end, &copy);
        let header = u64::from_be_bytes(copy[16..24].try_into().unwrap());
        if header < file.length() {
            let mut bytes = file.read(header, 1024);
            if bytes.len() == 1024 {
                add_up(&mut bytes, 36);
                file.write(header, &bytes);
            }
        }
    } else {
        let mut footer = file.read(end, 512);
        if footer.len() == 512 && footer.starts_with(b"conectix") {
            add_up(&mut footer, 64);
            file.write(end, &footer);
        }
    }
}

/// The checksum of vhd: the complement of the sum of all other bytes.
fn add_up(bytes: &mut [u8], at: usize) {
    bytes[at..at + 4].fill(0);
    let sum = bytes.iter().fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    bytes[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
}

/// The header of every member of a tar archive that stands where one may.
pub fn tar(bytes: &mut [u8]) {
    for block in bytes.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

/// The headers of stream and first block, the index and the footer of an xz file.
pub fn xz(bytes: &mut [u8]) {
    let length = bytes.len();
    if length < 32 || !bytes.starts_with(b"\xfd7zXZ\0") {
        return;
    }
    let put = |bytes: &mut [u8], from: usize, to: usize| {
        let sum = crc32(&bytes[from..to]);
        bytes[to..to + 4].copy_from_slice(&sum.to_le_bytes());
    };
    put(bytes, 6, 8);
    let block = (usize::from(bytes[12]) + 1) * 4;
    if bytes[12] != 0 && 12 + block <= length {
        put(bytes, 12, 12 + block - 4);
    }
    if bytes.ends_with(b"YZ") {
        let sum = crc32(&bytes[length - 8..length - 2]);
        bytes[length - 12..length - 8].copy_from_slice(&sum.to_le_bytes());
        let index = (le_u32(bytes, length - 8).unwrap() as usize + 1).saturating_mul(4);
        if let Some(start) = (length - 12).checked_sub(index).filter(|start| *start >= 12) {
            put(bytes, start, length - 16);
        }
    }
}

/// The header of an lz4 frame, by whose flags its length is known.
pub fn lz4(bytes: &mut [u8]) {
    if bytes.len() < 7 || !bytes.starts_with(b"\x04\x22\x4d\x18") {
        return;
    }
    let end = if bytes[4] & 8 == 0 { 6 } else { 14 };
    if bytes.len() > end {
        bytes[end] = xxh32(&bytes[4..end]).to_le_bytes()[1];
    }
}

/// XXH32 of less than 16 bytes, with the seed 0.
fn xxh32(bytes: &[u8]) -> u32 {
    const PRIMES: [u32; 5] = [0x9e37_79b1, 0x85eb_ca77, 0xc2b2_ae3d, 0x27d4_eb2f, 0x1656_67b1];
    let mut hash = PRIMES[4].wrapping_add(u32::try_from(bytes.len()).unwrap());
    let mut words = bytes.chunks_exact(4);
    for word in words.by_ref() {
        let word = u32::from_le_bytes(word.try_into().unwrap());
        hash = hash.wrapping_add(word.wrapping_mul(PRIMES[2])).rotate_left(17).wrapping_mul(PRIMES[3]);
    }
    for byte in words.remainder() {
        hash = hash.wrapping_add(u32::from(*byte).wrapping_mul(PRIMES[4])).rotate_left(11).wrapping_mul(PRIMES[0]);
    }
    hash = (hash ^ hash >> 15).wrapping_mul(PRIMES[1]);
    hash = (hash ^ hash >> 13).wrapping_mul(PRIMES[2]);
    hash ^ hash >> 16
}

/// CRC-32 as in zip and xz.
pub fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    })
}

fn le_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}
