//! Holding what was never written: zeros that take room like any other byte.
//!
//! Knows files. A file system that can set room aside does so, and still knows that these are zeros, so nobody has to read them; where
//! it cannot, they are written.

use std::{ops::Range, os::fd::OwnedFd};

use rustix::{
    fs::{FallocateFlags, SeekFrom},
    io::Errno,
};

/// The stretches of `within` that the file holds nothing for, also behind its end.
pub(super) fn holes(file: &OwnedFd, within: &Range<u64>) -> Result<Vec<Range<u64>>, Errno> {
    let (mut found, mut at) = (Vec::new(), within.start);
    while at < within.end {
        let hole = seek(file, SeekFrom::Hole(at))?.unwrap_or(at).min(within.end);
        let data = if hole < within.end { seek(file, SeekFrom::Data(hole))? } else { None };
        at = data.unwrap_or(within.end).min(within.end);
        if hole < at {
            found.push(hole..at);
        }
    }
    Ok(found)
}

/// `None` behind the end.
fn seek(file: &OwnedFd, to: SeekFrom) -> Result<Option<u64>, Errno> {
    match rustix::fs::seek(file, to) {
        Ok(at) => Ok(Some(at)),
        Err(Errno::NXIO) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Sets room aside for all of `stretch`; false where the file system cannot.
pub(super) fn reserve(file: &OwnedFd, stretch: &Range<u64>) -> Result<bool, Errno> {
    let length = stretch.end.saturating_sub(stretch.start);
    loop {
        match rustix::fs::fallocate(file, FallocateFlags::empty(), stretch.start, length) {
            Ok(()) => return Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn holes_are_found_before_between_and_behind_data() {
        let file = tempfile::tempfile().unwrap();
        for at in [1_u64 << 20, 3 << 20] {
            file.write_all_at(&vec![1; 1 << 20], at).unwrap();
        }
        let file = OwnedFd::from(file);
        let mib = |from: u64, to: u64| from << 20..to << 20;
        assert_eq!(holes(&file, &mib(0, 9)).unwrap(), [mib(0, 1), mib(2, 3), mib(4, 9)]);
        assert_eq!(holes(&file, &mib(1, 2)).unwrap(), []);
        assert_eq!(holes(&file, &mib(7, 8)).unwrap(), [mib(7, 8)]);
    }
}
