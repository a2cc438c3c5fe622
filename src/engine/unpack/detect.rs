//! Recognises packed streams by their first bytes, strictly: a disk whose first sector begins by chance like one must not
//! be unpacked.

use super::{Packing, lz4, zip};

/// Bytes of a stream that `detect` wants to see; fewer are enough where the stream is shorter.
pub const HEAD: usize = 512;

/// The packing that `head` begins with, if any. Besides the magic number, everything that the format fixes about the bytes
/// after it must hold.
pub fn detect(head: &[u8]) -> Option<Packing> {
    if is_gzip(head) {
        Some(Packing::Gzip)
    } else if is_xz(head) {
        Some(Packing::Xz)
    } else if is_zstd(head) {
        Some(Packing::Zstd)
    } else if is_bzip2(head) {
        Some(Packing::Bzip2)
    } else if is_lz4(head) {
        Some(Packing::Lz4)
    } else if is_zip(head) {
        Some(Packing::Zip)
    } else {
        None
    }
}

/// RFC 1952, section 2.3: magic, method 8, and no reserved flag. Where nothing stands between the header and the data,
/// the data's first block is not of the reserved type either (RFC 1951, section 3.2.3).
fn is_gzip(head: &[u8]) -> bool {
    match head {
        [0x1f, 0x8b, 8, 0, _, _, _, _, _, _, first, ..] => first & 0b110 != 0b110,
        [0x1f, 0x8b, 8, flags, _, _, _, _, _, _, ..] => flags & 0xe0 == 0,
        _ => false,
    }
}

/// The .xz file format, section 2.1.1: magic, flags, and their CRC32.
fn is_xz(head: &[u8]) -> bool {
    match head {
        [0xfd, b'7', b'z', b'X', b'Z', 0, 0, check @ 0..=15, a, b, c, d, ..] => {
            let mut crc = flate2::Crc::new();
            crc.update(&[0, *check]);
            crc.sum() == u32::from_le_bytes([*a, *b, *c, *d])
        }
        _ => false,
    }
}

/// RFC 8878, section 3.1: a frame, or a skippable frame that a frame follows (as pzstd writes).
fn is_zstd(head: &[u8]) -> bool {
    match head {
        // Bit 3 of the descriptor is reserved and zero.
        [0x28, 0xb5, 0x2f, 0xfd, descriptor, ..] => descriptor & 0b1000 == 0,
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, a, b, c, d, rest @ ..] => {
            let skip = usize::try_from(u32::from_le_bytes([*a, *b, *c, *d])).unwrap_or(usize::MAX);
            rest.get(skip..).is_some_and(|next| next.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]))
        }
        _ => false,
    }
}

/// Magic, block size, and the mark of a first block or of the end.
fn is_bzip2(head: &[u8]) -> bool {
    match head {
        [b'B', b'Z', b'h', b'1'..=b'9', mark @ ..] => {
            mark.starts_with(&[0x31, 0x41, 0x59, 0x26, 0x53, 0x59])
                || mark.starts_with(&[0x17, 0x72, 0x45, 0x38, 0x50, 0x90])
        }
        _ => false,
    }
}

/// A frame with the version there is, or a legacy frame and the length of its first block, of at most 8 MiB and a little.
fn is_lz4(head: &[u8]) -> bool {
    let rest = head.get(4..).unwrap_or_default();
    if head.starts_with(&lz4::LEGACY) {
        let length = rest.first_chunk().map(|length| u32::from_le_bytes(*length));
        return length.is_some_and(|length| (1..=9 << 20).contains(&length));
    }
    head.starts_with(&lz4::MAGIC) && matches!(rest, [flags, size, ..] if flags >> 6 == 1 && size & 0x8f == 0)
}

/// A local header with a version that there is and a name, at the beginning or after the mark of an archive in parts.
fn is_zip(head: &[u8]) -> bool {
    let header = head.strip_prefix(&zip::SPANNED).unwrap_or(head);
    match (header.get(4..6), header.get(26..28)) {
        (Some([version, _]), Some(name)) => header.starts_with(&zip::LOCAL) && *version < 100 && name != [0, 0],
        _ => false,
    }
}
