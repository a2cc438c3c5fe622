//! Reading integers out of bytes that may be too short for them.
//!
//! Knows byte orders and alignment; must not know any format.

/// The two bytes at `at` as a big-endian number; `None` past the end.
pub(super) fn be_u16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_be_bytes(*b))
}

/// The four bytes at `at` as a big-endian number; `None` past the end.
pub(super) fn be_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_be_bytes(*b))
}

/// The eight bytes at `at` as a big-endian number; `None` past the end.
pub(super) fn be_u64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|b| u64::from_be_bytes(*b))
}

/// The two bytes at `at` as a little-endian number; `None` past the end.
pub(super) fn le_u16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_le_bytes(*b))
}

/// The four bytes at `at` as a little-endian number; `None` past the end.
pub(super) fn le_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b))
}

/// The eight bytes at `at` as a little-endian number; `None` past the end.
pub(super) fn le_u64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|b| u64::from_le_bytes(*b))
}

/// Bytes of a file as a person may read them in a message: at most 80 characters, nothing that moves a terminal's cursor.
pub(super) fn printable(bytes: &[u8]) -> String {
    const LONGEST: usize = 80;
    let text = String::from_utf8_lossy(bytes);
    let mut shown: String = text.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if text.chars().nth(LONGEST).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_past_the_end_are_none() {
        assert_eq!(be_u32(&[0, 0, 1, 2], 0), Some(258));
        assert_eq!(be_u32(&[0, 0, 1, 2], 1), None);
        assert_eq!(be_u32(&[], 7), None);
        assert_eq!(be_u64(&[0; 8], 0), Some(0));
        assert_eq!(be_u64(&[0; 8], usize::MAX), None);
        assert_eq!(le_u16(&[0, 2, 1], 1), Some(258));
        assert_eq!(le_u16(&[0, 2, 1], 2), None);
        assert_eq!(be_u16(&[0, 1, 2], 1), Some(258));
        assert_eq!(be_u16(&[0, 1, 2], 2), None);
        assert_eq!(le_u32(&[2, 1, 0, 0], 0), Some(258));
        assert_eq!(le_u64(&[2, 1, 0, 0, 0, 0, 0], 0), None);
        assert_eq!(le_u32(&[2, 1, 0, 0], 0), Some(258));
        assert_eq!(le_u32(&[2, 1, 0, 0], 1), None);
        assert_eq!(le_u64(&[1, 0, 0, 0, 0, 0, 0, 1], 0), Some((1 << 56) + 1));
    }

    #[test]
    fn names_are_shortened_and_escaped() {
        assert_eq!(printable(b"/etc/\x1b[31mpasswd"), "/etc/\\u{1b}[31mpasswd");
        assert_eq!(printable(&[b'x'; 1000]).chars().count(), 81);
    }
}
