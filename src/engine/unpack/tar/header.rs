//! One header block of 512 bytes (POSIX.1-1988, "Extended tar Format"; the GNU tar manual, "Basic Tar Format").

use super::BLOCK;
use crate::model::{Rule, Violation};

/// The fields of a header that matter here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// `prefix` and `name`.
    pub name: Vec<u8>,
    pub size: u64,
    pub typeflag: u8,
    /// What a link names.
    pub link: Vec<u8>,
    pub mode: u32,
    pub owner: u64,
    pub group: u64,
    pub modified: u64,
    pub device: (u32, u32),
}

/// Offset and length of the fields.
const NAME: (usize, usize) = (0, 100);
const MODE: (usize, usize) = (100, 8);
const OWNER: (usize, usize) = (108, 8);
const GROUP: (usize, usize) = (116, 8);
const SIZE: (usize, usize) = (124, 12);
const MODIFIED: (usize, usize) = (136, 12);
const LINK: (usize, usize) = (157, 100);
const MAJOR: (usize, usize) = (329, 8);
const MINOR: (usize, usize) = (337, 8);
const CHECKSUM: (usize, usize) = (148, 8);
const TYPEFLAG: usize = 156;
const MAGIC: (usize, usize) = (257, 8);
const PREFIX: (usize, usize) = (345, 155);

/// Whether `block` has the magic of ustar, POSIX's or GNU's.
pub(super) fn has_magic(block: &[u8]) -> bool {
    matches!(field(block, MAGIC), b"ustar\x0000" | b"ustar  \0")
}

impl Header {
    /// Reads a block that stands at byte `at` of the archive.
    ///
    /// # Errors
    /// A violation if it is no header, or a field of it is not what it may be.
    pub fn parse(block: &[u8], at: u64) -> Result<Self, Violation> {
        if block.len() != BLOCK || !has_magic(block) {
            let found = String::from_utf8_lossy(field(block, MAGIC)).escape_debug().to_string();
            let message = format!(
                "at byte {at} of the archive should stand a header: the archive is damaged, or of another kind"
            );
            return Err(Violation::new(Rule::InvalidField, "magic", found, message));
        }
        check_sum(block, at)?;
        let mut name = until_nul(field(block, NAME)).to_vec();
        // GNU's headers have times where ustar has the prefix.
        let prefix = until_nul(field(block, PREFIX));
        if field(block, MAGIC) == b"ustar\x0000" && !prefix.is_empty() {
            name = [prefix, b"/", &name].concat();
        }
        let size = number(field(block, SIZE)).ok_or_else(|| {
            let found = String::from_utf8_lossy(field(block, SIZE)).escape_debug().to_string();
            let message = format!("the header at byte {at} of the archive does not tell its member's size");
            Violation::new(Rule::InvalidField, "size", found, message)
        })?;
        // Fields that a kind of member has no use for may hold anything.
        let number = |at| number(field(block, at)).unwrap_or(0);
        let narrow = |at| u32::try_from(number(at)).unwrap_or(u32::MAX);
        Ok(Self {
            name,
            size,
            typeflag: block.get(TYPEFLAG).copied().unwrap_or(0),
            link: until_nul(field(block, LINK)).to_vec(),
            mode: narrow(MODE),
            owner: number(OWNER),
            group: number(GROUP),
            modified: number(MODIFIED),
            device: (narrow(MAJOR), narrow(MINOR)),
        })
    }
}

fn field(block: &[u8], (at, length): (usize, usize)) -> &[u8] {
    block.get(at..at.saturating_add(length)).unwrap_or_default()
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|b| *b == 0).next().unwrap_or_default()
}

/// The sum of all bytes, with blanks where the checksum itself stands.
fn check_sum(block: &[u8], at: u64) -> Result<(), Violation> {
    let (start, length) = CHECKSUM;
    let own = start..start.saturating_add(length);
    let sum = block
        .iter()
        .enumerate()
        .fold(0_u64, |sum, (i, byte)| sum.saturating_add(u64::from(if own.contains(&i) { b' ' } else { *byte })));
    let told = number(field(block, CHECKSUM));
    if told == Some(sum) {
        return Ok(());
    }
    let found = told.map_or_else(|| "none".to_owned(), |told| format!("{told:o}"));
    let message = format!("the header at byte {at} of the archive sums up to {sum:o}: the archive is damaged");
    Err(Violation::new(Rule::InvalidField, "checksum", found, message))
}

/// A number: octal digits, ended by a blank or zero, or GNU's base 256. Negative and too large ones are none.
fn number(field: &[u8]) -> Option<u64> {
    if let [0x80, rest @ ..] = field {
        let (high, low) = rest.split_at_checked(rest.len().saturating_sub(8))?;
        let low = low.first_chunk::<8>().map(|bytes| u64::from_be_bytes(*bytes))?;
        return high.iter().all(|b| *b == 0).then_some(low);
    }
    let text = std::str::from_utf8(until_nul(field)).ok()?.trim_matches(' ');
    let digits = !text.is_empty() && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
    digits.then(|| u64::from_str_radix(text, 8).ok())?
}
