//! Reads tar archives: POSIX.1-1988 ustar, POSIX.1-2001 pax, and GNU's long names and large sizes.
//!
//! A member's bytes stand in one stretch of the archive, so nothing is unpacked here: the answer is where they are. Links, devices
//! and sparse members are refused, because what they hold is not what stands in that stretch. No name is ever opened.
#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used)]
#![cfg_attr(test, allow(clippy::arithmetic_side_effects, reason = "tests build their own bytes and may panic"))]

mod header;
mod pax;
mod scan;

pub use scan::{Item, Scan, is_tar, trailing};

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

/// The next member after those that `scan` has seen; `None` at the archive's end.
///
/// # Errors
/// A violation if the archive breaks a rule, else what `input` says.
pub fn next_member(scan: &mut Scan, input: &mut dyn ReadAt) -> Result<Option<Member>> {
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
            Item::Member(member) => {
                // Padding is not needed, and some writers leave that of the last member out.
                if input.length().is_some_and(|length| member.offset.saturating_add(member.size) > length) {
                    return Err(truncated(input.length().unwrap_or(0), &member.name).into());
                }
                return Ok(Some(member));
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
