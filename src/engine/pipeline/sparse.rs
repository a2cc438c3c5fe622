//! A disk map that knows the holes of what it is read from, so that they need not be read.
//!
//! Knows nothing of what that is: a file, or an object in a store.

use std::ops::Range;

use crate::{
    error::Result,
    format::{DiskMap, Mapping, Place},
    io::ReadAt,
    model::DiskFormat,
};

/// Who tells where there is data.
pub trait Holes: Send {
    /// The first stretch of data at or after `offset`, in bytes; an empty one at the end if only holes follow. `None` where it cannot
    /// be told: then all is read, and who reads says what is wrong.
    fn next_data(&mut self, offset: u64) -> Option<Range<u64>>;
}

/// A map that knows holes: what the format calls data there is zeros.
pub struct Sparse<H> {
    inner: Box<dyn DiskMap>,
    holes: H,
    /// The last stretches that were told.
    data: Range<u64>,
    hole: Range<u64>,
}

impl<H: Holes> Sparse<H> {
    /// The same disk as `inner`, with `holes`.
    pub fn new(inner: Box<dyn DiskMap>, holes: H) -> Self {
        Self { inner, holes, data: 0..0, hole: 0..0 }
    }

    /// The end of the stretch that begins at or before `host`, and whether it is a hole; `None` where it cannot be told, which
    /// is also the case past the end: there the format says what is missing.
    fn stretch(&mut self, host: u64) -> Option<(u64, bool)> {
        if self.data.contains(&host) {
            return Some((self.data.end, false));
        }
        if self.hole.contains(&host) {
            return Some((self.hole.end, true));
        }
        let next = self.holes.next_data(host)?;
        if next.start > host {
            self.hole = host..next.start;
            return Some((next.start, true));
        }
        self.data = host..next.end;
        (next.end > host).then_some((next.end, false))
    }
}

impl<H: Holes> DiskMap for Sparse<H> {
    fn format(&self) -> DiskFormat {
        self.inner.format()
    }

    fn virtual_size(&self) -> Option<u64> {
        self.inner.virtual_size()
    }

    fn may_read_twice(&self) -> bool {
        self.inner.may_read_twice()
    }

    fn check_length(&self, length: u64) -> Result<()> {
        self.inner.check_length(length)
    }

    fn finish(&mut self, input: &mut dyn ReadAt) -> Result<()> {
        self.inner.finish(input)
    }

    fn resolve(&mut self, input: &mut dyn ReadAt, guest: u64, most: u64) -> Result<Mapping> {
        let mapping = self.inner.resolve(input, guest, most)?;
        let Place::Raw { host } = mapping.place else { return Ok(mapping) };
        Ok(match self.stretch(host) {
            None => mapping,
            Some((end, hole)) => Mapping {
                length: mapping.length.min(end.saturating_sub(host)),
                place: if hole { Place::Zero } else { mapping.place },
            },
        })
    }
}
