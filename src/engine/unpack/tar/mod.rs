//! Reads tar archives, and writes their headers: POSIX.1-1988 ustar, POSIX.1-2001 pax, and GNU's long names and large sizes.
//!
//! A member's bytes stand in one stretch of the archive, so nothing is unpacked here: the answer is where they are. Where files are
//! wanted, links, devices and sparse members are refused, because what they hold is not what stands in that stretch. No name is ever
//! opened.
#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used)]
#![cfg_attr(test, allow(clippy::arithmetic_side_effects, reason = "tests build their own bytes and may panic"))]

mod header;
mod pax;
mod scan;
mod write;

use scan::shown;
pub use scan::{Item, Scan, is_tar, trailing};
pub use write::Heading;

use crate::{
    error::Result,
    io::ReadAt,
    model::{Rule, Violation},
};

/// Length of a header, and what every member is padded to, in bytes.
pub const BLOCK: usize = 512;

/// A file or folder in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name without a leading `./`; never absolute, and never with `..` in it.
    pub name: String,
    /// Whether it is a folder.
    pub folder: bool,
    /// Where its bytes begin in the archive.
    pub offset: u64,
    /// How many bytes it has.
    pub size: u64,
}

/// Anything that has a name in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name, as `Member::name`, in whatever character set the archive was made with.
    pub name: Vec<u8>,
    /// What it is, by POSIX: `0` a file, `1` a hard link, `2` a symbolic link, `3` and `4` devices, `5` a folder, `6` a pipe. Others
    /// are of one tool or another.
    pub typeflag: u8,
    /// Where its bytes begin in the archive.
    pub offset: u64,
    /// How many bytes it has.
    pub size: u64,
    /// What a link names, as it stands there.
    pub link: Vec<u8>,
    /// Permissions.
    pub mode: u32,
    /// Number of its user.
    pub owner: u64,
    /// Number of its group.
    pub group: u64,
    /// When it was modified, in seconds since 1970.
    pub modified: u64,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Extended attributes: keywords of pax, and values.
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    /// The member, if it is a file or folder that holds its own bytes.
    ///
    /// # Errors
    /// A violation if it is something else.
    pub fn into_member(self) -> Result<Member, Violation> {
        let name = String::from_utf8_lossy(&self.name).into_owned();
        match self.typeflag {
            b'0' | b'5' => Ok(Member { name, folder: self.typeflag == b'5', offset: self.offset, size: self.size }),
            b'1' | b'2' => {
                let message = "a link in an archive names another file: put the file itself there";
                Err(Violation::new(Rule::ExternalDataFile, "typeflag", shown(&self.name), message))
            }
            b'S' => Err(pax::sparse()),
            other => {
                let message = format!(
                    "{} is a device, a pipe or another thing that holds no bytes of its own: leave it out of the archive",
                    shown(&self.name)
                );
                Err(Violation::new(Rule::InvalidField, "typeflag", char::from(other).escape_debug(), message))
            }
        }
    }
}

/// The next member after those that `scan` has seen; `None` at the archive's end.
///
/// # Errors
/// A violation if the archive breaks a rule, or this is no file or folder; else what `input` says.
pub fn next_member(scan: &mut Scan, input: &mut dyn ReadAt) -> Result<Option<Member>> {
    Ok(next_entry(scan, input)?.map(Entry::into_member).transpose()?)
}

/// The same of anything that has a name.
///
/// # Errors
/// A violation if the archive breaks a rule, else what `input` says.
pub fn next_entry(scan: &mut Scan, input: &mut dyn ReadAt) -> Result<Option<Entry>> {
    loop {
        let at = scan.at();
        let block = input.read_up_to(at, BLOCK)?;
        if block.len() < BLOCK {
            return Err(truncated(at, "a header").into());
        }
        match scan.header(&block)? {
            Item::Extension { length } => {
                let body = input.read_up_to(scan.at(), length)?;
                if body.len() < length {
                    return Err(truncated(scan.at(), "an extended header").into());
                }
                scan.extension(&body)?;
            }
            Item::Entry(entry) => {
                // Padding is not needed, and some writers leave that of the last member out.
                if input.length().is_some_and(|length| entry.offset.saturating_add(entry.size) > length) {
                    return Err(truncated(input.length().unwrap_or(0), &shown(&entry.name)).into());
                }
                return Ok(Some(entry));
            }
            Item::Zeros => {}
            Item::End => return Ok(None),
        }
    }
}

/// Refuses an archive that ends at byte `at`, inside of `what`.
pub fn truncated(at: u64, what: &str) -> Violation {
    let message = format!("the archive ends in {what}: it was cut off; fetch or make it again");
    Violation::new(Rule::Truncated, "archive", format!("byte {at}"), message)
}

#[cfg(test)]
mod tests;
