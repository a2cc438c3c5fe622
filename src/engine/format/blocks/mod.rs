//! Disks of equal blocks, each of which lies whole at one place of the file or nowhere: what vhdx and ploop have in common.
//!
//! ```text
//! map (asks the format's table, piece by piece, and checks every place it names)          reading
//! layout (gives every block its place) ─► entries (the table, written as it fills)        writing
//! ```
//! Knows places and lengths; must not know how any format writes an entry.

mod entries;
mod layout;
mod map;

pub(super) use entries::Entries;
pub(super) use layout::BlockLayout;
pub(super) use map::{ABSENT, BlockMap, BlockTable, Geometry};

use crate::{
    error::Result,
    io::ReadAt,
    model::{Rule, Violation},
};

/// Exactly `length` bytes of `table`, or `Truncated`.
///
/// # Errors
/// The violation, or what `input` says.
pub(super) fn read_exact(input: &mut dyn ReadAt, table: &str, offset: u64, length: u64) -> Result<bytes::Bytes> {
    let wanted = usize::try_from(length).unwrap_or(usize::MAX);
    let bytes = input.read_up_to(offset, wanted)?;
    if bytes.len() < wanted {
        let message = format!(
            "{length} bytes are needed there, and the file ends after {}: the download was cut short",
            bytes.len()
        );
        return Err(Violation::new(Rule::Truncated, table, format!("{offset:#x}"), message).into());
    }
    Ok(bytes)
}
