//! Early writeback: has the kernel write to disk while the image still comes in, so that the sync at the end is short and dirty
//! pages stay few.

use std::{num::NonZeroU64, os::fd::OwnedFd, sync::Arc};

use rustix::{fs::Advice, io::Errno};

/// After how many bytes the kernel is told to begin.
const WINDOW: u64 = 16 << 20;

/// What was written and not yet handed to the disk.
pub(super) struct Writeback {
    file: Arc<OwnedFd>,
    start: u64,
    end: u64,
    size: u64,
}

impl Writeback {
    /// For writes to `file`.
    pub(super) fn new(file: Arc<OwnedFd>) -> Self {
        Self { file, start: u64::MAX, end: 0, size: 0 }
    }

    /// Notes that `start..end` was written.
    pub(super) fn wrote(&mut self, start: u64, end: u64) -> Result<(), Errno> {
        self.start = self.start.min(start);
        self.end = self.end.max(end);
        self.size = self.size.saturating_add(end.saturating_sub(start));
        if self.size < WINDOW {
            return Ok(());
        }
        let length = NonZeroU64::new(self.end.saturating_sub(self.start));
        // `DontNeed` starts writing back what is dirty in the range, without waiting, before it drops what is clean.
        rustix::fs::fadvise(&*self.file, self.start, length, Advice::DontNeed)?;
        (self.start, self.end, self.size) = (u64::MAX, 0, 0);
        Ok(())
    }
}
