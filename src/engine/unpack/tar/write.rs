//! Writes headers: ustar, and pax for what has no room in it.

use super::BLOCK;

/// Sizes and numbers up to here have room in a header.
const MOST_OCTAL: u64 = 0o777_7777_7777;
const MOST_SHORT_OCTAL: u64 = 0o777_7777;
/// Permissions of what is written without any.
const MODE: u32 = 0o644;

/// What a header says; see `Entry`.
#[derive(Clone, Copy, Debug)]
pub struct Heading<'a> {
    /// The name. That of a folder ends with a slash.
    pub path: &'a [u8],
    /// Kind, by POSIX.
    pub typeflag: u8,
    /// Length in bytes.
    pub size: u64,
    /// What a link leads to.
    pub link: &'a [u8],
    /// Permissions.
    pub mode: u32,
    /// Number of its user.
    pub owner: u64,
    /// Number of its group.
    pub group: u64,
    /// Seconds since 1970.
    pub modified: u64,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Extended attributes.
    pub attributes: &'a [(Vec<u8>, Vec<u8>)],
}

impl<'a> Heading<'a> {
    /// That of a file of which nothing else is known.
    pub const fn file(path: &'a [u8], size: u64) -> Self {
        let (owner, group, modified, device) = (0, 0, 0, (0, 0));
        Self { path, typeflag: b'0', size, link: b"", mode: MODE, owner, group, modified, device, attributes: &[] }
    }

    /// The header, with an extended one before it if something has no room.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut records = Vec::new();
        let mut long = |keyword: &str, value: &[u8], fits: bool| {
            if !fits {
                records.extend(record(keyword.as_bytes(), value));
            }
        };
        let number = |value: u64| value.to_string().into_bytes();
        long("path", self.path, self.path.len() <= 100);
        long("linkpath", self.link, self.link.len() <= 100);
        long("size", &number(self.size), self.size <= MOST_OCTAL);
        long("uid", &number(self.owner), self.owner <= MOST_SHORT_OCTAL);
        long("gid", &number(self.group), self.group <= MOST_SHORT_OCTAL);
        long("mtime", &number(self.modified), self.modified <= MOST_OCTAL);
        for (keyword, value) in self.attributes {
            records.extend(record(keyword, value));
        }
        let mut bytes = Vec::new();
        if !records.is_empty() {
            let heading = Self { typeflag: b'x', ..Heading::file(b"././@PaxHeader", records.len() as u64) };
            bytes.extend_from_slice(&heading.block());
            records.resize(records.len().next_multiple_of(BLOCK), 0);
            bytes.extend_from_slice(&records);
        }
        bytes.extend_from_slice(&self.block());
        bytes
    }

    fn block(&self) -> [u8; BLOCK] {
        let mut block = [0_u8; BLOCK];
        let mut field = |at: usize, room: usize, bytes: &[u8]| {
            let bytes = bytes.get(..bytes.len().min(room)).unwrap_or_default();
            if let Some(place) = block.get_mut(at..at.saturating_add(bytes.len())) {
                place.copy_from_slice(bytes);
            }
        };
        field(0, 100, self.path);
        field(100, 7, &octal(u64::from(self.mode), 7));
        field(108, 7, &octal(self.owner, 7));
        field(116, 7, &octal(self.group, 7));
        field(124, 11, &octal(self.size, 11));
        field(136, 11, &octal(self.modified, 11));
        field(148, 8, b"        ");
        field(156, 1, &[self.typeflag]);
        field(157, 100, self.link);
        field(257, 8, b"ustar\x0000");
        field(329, 7, &octal(u64::from(self.device.0), 7));
        field(337, 7, &octal(u64::from(self.device.1), 7));
        let sum = block.iter().fold(0_u64, |sum, byte| sum.saturating_add(u64::from(*byte)));
        if let Some(place) = block.get_mut(148..156) {
            place.copy_from_slice(&[octal(sum, 6).as_slice(), b"\0 "].concat());
        }
        block
    }
}

/// Octal digits; zeros where there is no room, and an extended header says it.
fn octal(value: u64, digits: usize) -> Vec<u8> {
    let text = format!("{value:0digits$o}");
    if text.len() > digits { vec![b'0'; digits] } else { text.into_bytes() }
}

/// `length keyword=value`, where the length counts its own digits.
fn record(keyword: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = keyword.len().saturating_add(value.len()).saturating_add(3);
    let with = |length: usize| rest.saturating_add(length.to_string().len());
    let length = with(with(rest));
    [length.to_string().as_bytes(), b" ", keyword, b"=", value, b"\n"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_itself() {
        for length in 0..1200 {
            let record = record(b"path", &vec![b'a'; length]);
            let told: usize = std::str::from_utf8(&record).unwrap().split(' ').next().unwrap().parse().unwrap();
            assert_eq!(told, record.len());
        }
    }
}
