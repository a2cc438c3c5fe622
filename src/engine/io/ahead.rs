//! Has the kernel fetch what is read next of a file while what was read is worked on.
//!
//! The kernel does so by itself, but not past a hole, nor further than a fraction of a chunk. Knows offsets; nothing of what is read.

use std::os::fd::AsFd;

use rustix::fs::{Advice, SeekFrom};

/// Data that is fetched ahead, in bytes: two chunks, so that the disk has work while one of them is computed.
const WINDOW: u64 = 8 << 20;
/// Shorter reads are of tables, and tell nothing of what comes next.
const SHORTEST: u64 = 256 << 10;
/// Stretches of data that are looked for at once: where they are tiny, looking for them costs more than it gains.
const MOST: usize = 32;

/// How far a file that is read from its beginning to its end was asked for.
#[derive(Debug, Default)]
pub struct Ahead {
    /// Where the last long read ended.
    read: u64,
    /// Up to where the kernel was asked.
    asked: u64,
}

impl Ahead {
    /// Called right before `start..end` of `file` is read. That anything goes wrong costs only time.
    pub fn reading(&mut self, file: impl AsFd + Copy, start: u64, end: u64) {
        if end.saturating_sub(start) < SHORTEST {
            return;
        }
        let forward = start >= self.read;
        self.read = end;
        if !forward {
            self.asked = end;
            return;
        }
        let mut at = self.asked.max(end);
        let mut left = WINDOW.saturating_sub(at.saturating_sub(end));
        for _ in 0..MOST {
            let Some((from, to)) = (left > 0).then(|| data(file, at)).flatten() else { break };
            let length = to.saturating_sub(from).min(left);
            let Some(some) = std::num::NonZeroU64::new(length) else { break };
            let _ = rustix::fs::fadvise(file, from, Some(some), Advice::WillNeed);
            at = from.saturating_add(length);
            left = left.saturating_sub(length);
        }
        self.asked = at;
    }
}

/// The first stretch of data at or after `offset`.
fn data(file: impl AsFd + Copy, offset: u64) -> Option<(u64, u64)> {
    let from = rustix::fs::seek(file, SeekFrom::Data(offset)).ok()?;
    Some((from, rustix::fs::seek(file, SeekFrom::Hole(from)).ok()?))
}
