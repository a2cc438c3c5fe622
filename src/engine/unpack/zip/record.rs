//! The headers of a zip archive and what they must have in common.

use super::refuse;
use crate::{model::Rule, unpack::codec::Fault};

/// Signatures.
pub(in crate::unpack) const LOCAL: [u8; 4] = *b"PK\x03\x04";
pub(in crate::unpack) const SPANNED: [u8; 4] = *b"PK\x07\x08";
pub(super) const CENTRAL: [u8; 4] = *b"PK\x01\x02";
pub(super) const END_64: [u8; 4] = *b"PK\x06\x06";
pub(super) const LOCATOR_64: [u8; 4] = *b"PK\x06\x07";
pub(super) const END: [u8; 4] = *b"PK\x05\x06";

/// General purpose bits: encrypted, data descriptor, patch, strong encryption, masked headers.
const ENCRYPTED: u16 = 1 | 1 << 6 | 1 << 13;
const DESCRIBED: u16 = 1 << 3;
const PATCH: u16 = 1 << 5;

/// Methods: stored, deflated, and the one that stands for AES.
const STORED: u16 = 0;
const DEFLATED: u16 = 8;
const AES: u16 = 99;

/// An entry, by its local header and as it turned out to be.
pub(super) struct Entry {
    name: Vec<u8>,
    method: u16,
    /// Where its header stands.
    pub offset: u64,
    /// Whether lengths and checksum stand behind the data.
    pub described: bool,
    pub folder: bool,
    pub packed: u64,
    size: u64,
    crc: u32,
    pub seen_packed: u64,
    pub seen_size: u64,
    pub seen_crc: u32,
}

impl Entry {
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// Its length by its header.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Takes what was seen for what was said.
    pub fn settle(&mut self) {
        (self.packed, self.size, self.crc) = (self.seen_packed, self.seen_size, self.seen_crc);
    }

    /// Holds what was seen against what was said.
    pub fn check(&self) -> Result<(), Fault> {
        if (self.packed, self.size) != (self.seen_packed, self.seen_size) {
            return Err("a file in it has another length than its header says".into());
        }
        if self.crc != self.seen_crc {
            return Err("the checksum of a file in it is wrong".into());
        }
        Ok(())
    }
}

/// A local header.
pub(super) struct Local {
    pub entry: Entry,
    pub deflated: bool,
}

impl Local {
    pub fn parse(header: &[u8], offset: u64) -> Result<Self, Fault> {
        let flags = le_u16(header, 6)?;
        let method = le_u16(header, 8)?;
        if flags & ENCRYPTED != 0 || method == AES {
            let message = "encrypted content cannot be checked: publish the disk without a password";
            return Err(refuse(Rule::Encrypted, "general purpose bit flag", format!("{flags:#06x}"), message));
        }
        if flags & PATCH != 0 || !matches!(method, STORED | DEFLATED) {
            let message = "files are read that are stored or deflated: make the archive with `zip`";
            return Err(refuse(Rule::UnsupportedFormat, "compression method", method, message));
        }
        let (name, extra) = name_and_extra(header, 30, 26)?;
        let mut wide = Wide::of(extra);
        let size = wide.or(le_u32(header, 22)?)?;
        let packed = wide.or(le_u32(header, 18)?)?;
        let described = flags & DESCRIBED != 0;
        let folder = name.ends_with(b"/");
        if described && method == STORED && !folder {
            let message = "the length of a stored file stands behind it, so where it ends cannot be told: make the archive from a file";
            return Err(refuse(Rule::UnsupportedFormat, "general purpose bit flag", format!("{flags:#06x}"), message));
        }
        if method == STORED && packed != size {
            return Err("a stored file in it has two lengths".into());
        }
        let entry = Entry {
            name: name.to_vec(),
            method,
            offset,
            described,
            folder,
            packed,
            size,
            crc: le_u32(header, 14)?,
            seen_packed: 0,
            seen_size: 0,
            seen_crc: 0,
        };
        Ok(Self { entry, deflated: method == DEFLATED })
    }
}

/// Length of the data descriptor at the beginning of `held`. It may have a signature or not, and numbers of 4 or 8 bytes; a header
/// follows.
pub(super) fn descriptor_length(held: &[u8], entry: &Entry) -> Result<usize, Fault> {
    let crc = entry.seen_crc.to_le_bytes();
    let wide = [entry.seen_packed.to_le_bytes(), entry.seen_size.to_le_bytes()].concat();
    let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes();
    let narrow = [narrow(entry.seen_packed), narrow(entry.seen_size)].concat();
    let forms = [&wide, &narrow].into_iter().flat_map(|sizes| {
        let plain = [&crc[..], sizes].concat();
        [[&SPANNED[..], &plain].concat(), plain]
    });
    let fits =
        |form: &Vec<u8>| held.starts_with(form) && held.get(form.len()..).is_some_and(|next| next.starts_with(b"PK"));
    let form = forms.into_iter().find(fits);
    form.map(|form| form.len()).ok_or_else(|| "the checksum or length behind a file in it is wrong".into())
}

/// The central directory, as far as it has come.
#[derive(Default)]
pub(super) struct Central {
    start: Option<u64>,
    entries: usize,
    /// Where the zip64 record stands, and entries, length and offset of the directory by it.
    wide: Option<(u64, [u64; 3])>,
    /// Where the directory's entries end.
    end: u64,
}

impl Central {
    pub fn begun(&self) -> bool {
        self.start.is_some()
    }

    /// Takes a record that stands at byte `at`. True if it is the last.
    pub fn take(&mut self, record: &[u8], at: u64, entries: &[Entry]) -> Result<bool, Fault> {
        let start = *self.start.get_or_insert(at);
        if record.starts_with(&CENTRAL) {
            let entry = entries.get(self.entries).ok_or_else(|| differs("a file that is not there"))?;
            same(record, entry)?;
            self.entries = self.entries.saturating_add(1);
            self.end = at.saturating_add(record.len() as u64);
            return Ok(false);
        }
        if record.starts_with(&END_64) {
            self.wide = Some((at, [le_u64(record, 32)?, le_u64(record, 40)?, le_u64(record, 48)?]));
            return if le_u32(record, 16)? == 0 && le_u32(record, 20)? == 0 { Ok(false) } else { Err(split()) };
        }
        if record.starts_with(&LOCATOR_64) {
            let right = self.wide.is_some_and(|(place, _)| le_u64(record, 8).is_ok_and(|told| told == place));
            return if right { Ok(false) } else { Err(differs("another place of its zip64 record")) };
        }
        if le_u16(record, 4)? != 0 || le_u16(record, 6)? != 0 {
            return Err(split());
        }
        let found = [entries.len() as u64, self.end.max(start).saturating_sub(start), start];
        let told = [u64::from(le_u16(record, 10)?), u64::from(le_u32(record, 12)?), u64::from(le_u32(record, 16)?)];
        let widest = [u64::from(u16::MAX), u64::from(u32::MAX), u64::from(u32::MAX)];
        let wide = self.wide.map(|(_, values)| values);
        let fits = told.iter().zip(widest).zip(found).enumerate().all(|(n, ((told, widest), found))| {
            let told =
                if *told == widest { wide.and_then(|wide| wide.get(n).copied()).unwrap_or(*told) } else { *told };
            told == found
        });
        if fits && self.entries == entries.len() && wide.is_none_or(|wide| wide == found) {
            return Ok(true);
        }
        Err(differs("another number of files, length or offset"))
    }
}

/// Holds an entry of the directory against the local header and what was seen.
fn same(record: &[u8], entry: &Entry) -> Result<(), Fault> {
    let (name, extra) = name_and_extra(record, 46, 28)?;
    let mut wide = Wide::of(extra);
    let size = wide.or(le_u32(record, 24)?)?;
    let packed = wide.or(le_u32(record, 20)?)?;
    let offset = wide.or(le_u32(record, 42)?)?;
    let method = le_u16(record, 10)?;
    if le_u16(record, 34)? != 0 {
        return Err(split());
    }
    let told = (name, method, le_u32(record, 16)?, packed, size, offset);
    if told != (entry.name.as_slice(), entry.method, entry.crc, entry.packed, entry.size, entry.offset) {
        return Err(differs("another name, method, checksum, length or offset of a file than its own header"));
    }
    // Made on Unix, the upper half of the external attributes is the mode. What came through a pipe is marked as one.
    let (host, mode) = (le_u16(record, 4)? >> 8, le_u32(record, 38)? >> 28);
    if host == 3 && !entry.folder && !matches!(mode, 0 | 0o1 | 0o10) {
        let message = "what the archive holds is a link or a device, not a file: put the file itself there";
        return Err(refuse(Rule::ExternalDataFile, "external file attributes", format!("{mode:#o}"), message));
    }
    Ok(())
}

/// Where the local header stands that a record of the directory is of, how long the file is, and whether it is none but a folder.
pub(super) fn listed(record: &[u8]) -> Result<(u64, u64, bool), Fault> {
    let (name, extra) = name_and_extra(record, 46, 28)?;
    let mut wide = Wide::of(extra);
    let size = wide.or(le_u32(record, 24)?)?;
    wide.or(le_u32(record, 20)?)?;
    Ok((wide.or(le_u32(record, 42)?)?, size, name.ends_with(b"/")))
}

/// Length of the part of a record that all of its kind have.
pub(super) fn fixed_length(held: &[u8]) -> Result<usize, Fault> {
    Ok(match held.first_chunk() {
        Some(&LOCAL) => 30,
        Some(&CENTRAL) => 46,
        Some(&END_64) => 56,
        Some(&LOCATOR_64) => 20,
        Some(&END) => 22,
        _ => return Err("something stands in it that is no header".into()),
    })
}

/// Length of the whole record, whose fixed part is there.
pub(super) fn whole_length(held: &[u8]) -> Result<usize, Fault> {
    let fixed = fixed_length(held)?;
    let more = match held.first_chunk() {
        Some(&LOCAL) => [26, 28].as_slice(),
        Some(&CENTRAL) => &[28, 30, 32],
        Some(&END) => &[20],
        Some(&END_64) => {
            return if le_u64(held, 4)? == 44 {
                Ok(fixed)
            } else {
                Err("its zip64 record has an unknown length".into())
            };
        }
        _ => &[],
    };
    more.iter().try_fold(fixed, |length, at| Ok(length.saturating_add(usize::from(le_u16(held, *at)?))))
}

/// The zip64 extra field: 64-bit values for those fields that are all ones, in order.
struct Wide<'a>(&'a [u8]);

impl<'a> Wide<'a> {
    fn of(mut extra: &'a [u8]) -> Self {
        while let Some((id, rest)) = extra.split_first_chunk::<2>() {
            let Some((length, rest)) = rest.split_first_chunk::<2>() else { break };
            let Some((data, rest)) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length))) else { break };
            if u16::from_le_bytes(*id) == 1 {
                return Self(data);
            }
            extra = rest;
        }
        Self(&[])
    }

    fn or(&mut self, narrow: u32) -> Result<u64, Fault> {
        if narrow != u32::MAX {
            return Ok(u64::from(narrow));
        }
        let (value, rest) = self.0.split_first_chunk().ok_or("a length of 64 bits is missing")?;
        self.0 = rest;
        Ok(u64::from_le_bytes(*value))
    }
}

fn name_and_extra(record: &[u8], fixed: usize, lengths: usize) -> Result<(&[u8], &[u8]), Fault> {
    let name = usize::from(le_u16(record, lengths)?);
    let extra = usize::from(le_u16(record, lengths.saturating_add(2))?);
    let rest = record.get(fixed..).unwrap_or_default();
    let (name, rest) = rest.split_at_checked(name).ok_or_else(short)?;
    Ok((name, rest.get(..extra).ok_or_else(short)?))
}

pub(super) fn le_u16(bytes: &[u8], at: usize) -> Result<u16, Fault> {
    bytes.get(at..).and_then(|b| b.first_chunk()).map(|b| u16::from_le_bytes(*b)).ok_or_else(short)
}

pub(super) fn le_u32(bytes: &[u8], at: usize) -> Result<u32, Fault> {
    bytes.get(at..).and_then(|b| b.first_chunk()).map(|b| u32::from_le_bytes(*b)).ok_or_else(short)
}

pub(super) fn le_u64(bytes: &[u8], at: usize) -> Result<u64, Fault> {
    bytes.get(at..).and_then(|b| b.first_chunk()).map(|b| u64::from_le_bytes(*b)).ok_or_else(short)
}

fn short() -> Fault {
    "a header in it is too short".into()
}

fn split() -> Fault {
    refuse(Rule::UnsupportedFormat, "disk number", "split", "an archive in several parts is not put together")
}

pub(super) fn differs(what: &str) -> Fault {
    let message = "the central directory does not agree with what stands in the archive, so that other programs see another file in it";
    refuse(Rule::InvalidField, "central directory", what, message)
}
