//! `Range` and `Content-Range` (RFC 9110, section 14).

use std::ops::Range;

/// What a request asks for of a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it: no range, or one that need not be understood. Of several ranges at once the whole is sent, as section 14.2 allows.
    Whole,
    /// These bytes, at least one.
    Bytes(Range<u64>),
    /// Bytes that the whole does not have.
    None,
}

/// The part of `length` bytes that the header's `value` asks for.
pub fn part(value: &str, length: u64) -> Part {
    let Some((unit, set)) = value.split_once('=') else { return Part::Whole };
    if !unit.trim().eq_ignore_ascii_case("bytes") || set.contains(',') {
        return Part::Whole;
    }
    let Some((first, last)) = set.trim().split_once('-') else { return Part::Whole };
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().unwrap_or(u64::MAX));
    let found = match (first, last) {
        ("", "") => return Part::Whole,
        ("", last) => number(last).map(|suffix| length.saturating_sub(suffix)..length),
        (first, "") => number(first).map(|first| first..length),
        (first, last) => match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => Some(first..last.saturating_add(1).min(length)),
            _ => None,
        },
    };
    match found {
        None => Part::Whole,
        Some(range) if range.start < range.end => Part::Bytes(range),
        Some(_) => Part::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_what_the_rfc_says() {
        let table = [
            ("bytes=0-0", Part::Bytes(0..1)),
            ("bytes=0-", Part::Bytes(0..100)),
            ("bytes=99-", Part::Bytes(99..100)),
            ("bytes=10-19", Part::Bytes(10..20)),
            ("bytes=10-1000", Part::Bytes(10..100)),
            ("bytes=10-99999999999999999999999", Part::Bytes(10..100)),
            ("bytes=-1", Part::Bytes(99..100)),
            ("bytes=-1000", Part::Bytes(0..100)),
            ("BYTES = 5-6", Part::Bytes(5..7)),
            ("bytes=100-", Part::None),
            ("bytes=100-200", Part::None),
            ("bytes=99999999999999999999999-", Part::None),
            ("bytes=-0", Part::None),
            ("bytes=19-10", Part::Whole),
            ("bytes=0-1,5-6", Part::Whole),
            ("bytes=-", Part::Whole),
            ("bytes=a-b", Part::Whole),
            ("bytes=+1-2", Part::Whole),
            ("bytes=1", Part::Whole),
            ("items=0-1", Part::Whole),
            ("", Part::Whole),
        ];
        for (text, expected) in table {
            assert_eq!(part(text, 100), expected, "{text}");
        }
        assert_eq!(part("bytes=0-", 0), Part::None);
        assert_eq!(part("bytes=-5", 0), Part::None);
    }
}
