//! Recognises packed streams by their first bytes, strictly: a disk whose first sector begins by chance like one must not
//! be unpacked.

use super::Packing;
use crate::model::{Rule, Violation};

/// Bytes of a stream that `detect` wants to see; fewer are enough where the stream is shorter.
pub const HEAD: usize = 64;

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
    } else {
        None
    }
}

/// Refuses a packed stream inside a packed stream: there is no honest use for it, and each layer multiplies.
///
/// # Errors
/// The violation, naming both layers.
pub fn check_not_nested(outer: Packing, head: &[u8]) -> Result<(), Violation> {
    let Some(inner) = detect(head) else { return Ok(()) };
    let message = format!("inside the {outer} stream is another packed stream: unpack it once and publish that");
    Err(Violation::new(Rule::NestedCompression, "magic", format!("{inner} in {outer}"), message))
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
