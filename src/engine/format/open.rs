//! From an input to the map of the disk in it.
//!
//! The only place that knows which formats exist; knows nothing of their insides.

use crate::{
    error::Result,
    format::{
        DiskMap,
        detect::{HEAD_LENGTH, Reader, detect, settle},
        qcow2::Qcow2Map,
        raw::RawMap,
    },
    io::ReadAt,
    model::{DiskFormat, Limits},
};

/// Finds out what `input` is, checks it against `declared` (`None`: whatever it is) and reads its header.
///
/// # Errors
/// A violation (`Kind::Refused`) if it is no disk, not the declared format, or breaks a rule of its format; else what
/// `input` says.
pub fn open(input: &mut dyn ReadAt, declared: Option<DiskFormat>, limits: &Limits) -> Result<Box<dyn DiskMap>> {
    let head = input.read_up_to(0, HEAD_LENGTH)?;
    Ok(match settle(detect(&head), declared)? {
        Reader::Qcow2 => Box::new(Qcow2Map::open(input, &head, limits)?),
        Reader::Flat(format) => Box::new(RawMap::new(format, input.length(), limits)?),
    })
}
