//! The central directory, read from the archive's end before anything else.
//!
//! Nothing of it is believed: it says how many files to expect and how long they are, and is held against the archive when that passes.

use std::collections::HashMap;

use super::record::{CENTRAL, END, END_64, LOCATOR_64, le_u16, le_u32, le_u64, listed, whole_length};
use crate::{error::Result, io::ReadAt};

/// Length of the last record without its comment, and of the longest comment.
const END_LENGTH: usize = 22;
const MAX_COMMENT: usize = 65_535;
/// Length of the directory in bytes: many times what the files that are read need.
const MAX_DIRECTORY: u64 = 1 << 20;

/// What the directory says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Lengths of the files, by the place of their headers.
    sizes: HashMap<u64, u64>,
}

impl Listing {
    /// How many files there are, without folders.
    pub fn files(&self) -> usize {
        self.sizes.len()
    }

    /// Length of the file whose header stands at `offset`.
    pub(super) fn size(&self, offset: u64) -> Option<u64> {
        self.sizes.get(&offset).copied()
    }
}

/// Reads the directory of an archive whose length is known; `None` if it has none that can be read. What is wrong with it shows when the
/// archive passes.
///
/// # Errors
/// What `input` says.
pub fn list(input: &mut dyn ReadAt) -> Result<Option<Listing>> {
    let Some((offset, length)) = find(input)?.filter(|(_, length)| *length <= MAX_DIRECTORY) else { return Ok(None) };
    let bytes = input.read_up_to(offset, usize::try_from(length).unwrap_or(usize::MAX))?;
    let (mut rest, mut listing) = (bytes.as_ref(), Listing::default());
    while rest.starts_with(&CENTRAL) {
        let record = rest.get(..46).and_then(|fixed| whole_length(fixed).ok());
        let Some((record, behind)) = record.and_then(|length| rest.split_at_checked(length)) else { return Ok(None) };
        let Ok((offset, size, folder)) = listed(record) else { return Ok(None) };
        if !folder {
            listing.sizes.insert(offset, size);
        }
        rest = behind;
    }
    Ok(Some(listing))
}

/// Where the directory is, and how long.
fn find(input: &mut dyn ReadAt) -> Result<Option<(u64, u64)>> {
    let Some(length) = input.length() else { return Ok(None) };
    let start = length.saturating_sub((END_LENGTH + MAX_COMMENT) as u64);
    let tail = input.read_up_to(start, END_LENGTH + MAX_COMMENT)?;
    let is_end = |at: &usize| {
        let record = tail.get(*at..).unwrap_or_default();
        let comment = le_u16(record, 20).map_or(usize::MAX, usize::from);
        record.starts_with(&END) && comment.saturating_add(END_LENGTH) == record.len()
    };
    let Some(at) = (0..=tail.len().saturating_sub(END_LENGTH)).rev().find(is_end) else { return Ok(None) };
    let record = tail.get(at..).unwrap_or_default();
    let (Ok(size), Ok(offset)) = (le_u32(record, 12), le_u32(record, 16)) else { return Ok(None) };
    let wide = at.checked_sub(20).and_then(|at| tail.get(at..)).filter(|record| record.starts_with(&LOCATOR_64));
    match wide.and_then(|locator| le_u64(locator, 8).ok()) {
        Some(place) if size == u32::MAX || offset == u32::MAX => {
            let record = input.read_up_to(place, 56)?;
            match (record.starts_with(&END_64), le_u64(&record, 40), le_u64(&record, 48)) {
                (true, Ok(size), Ok(offset)) => Ok(Some((offset, size))),
                _ => Ok(None),
            }
        }
        _ => Ok(Some((u64::from(offset), u64::from(size)))),
    }
}
