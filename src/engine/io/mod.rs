//! How bytes are handed from stage to stage inside the engine.
//!
//! Blocking traits: formats and codecs run on their own threads, where a plain call is simpler and faster than a future.
//! Knows nothing of HTTP, formats or stores.

mod aligned;
mod file;
mod forward;
mod peek;
mod pool;
mod pump;
mod ranges;
mod recall;
mod spill;
mod stream;
mod tail;
mod window;
mod zero;

use bytes::Bytes;

pub use aligned::{AlignedBuffer, PAGE};
pub use file::FileReader;
pub use forward::Forward;
pub use peek::Peeked;
pub use pool::{Pool, PoolBuffer};
pub use pump::Pump;
pub use ranges::RangeSet;
pub use spill::Spill;
pub use stream::feed_from;
pub use tail::{LastBytes, Tailed};
pub use window::{Fetch, Keep, Tables, Window, WindowLimits};
pub use zero::{NonzeroRuns, is_zero, nonzero_runs};

use crate::error::Result;

/// Bytes in order: what a stage gives to the next.
pub trait Feed: Send {
    /// The next piece, never empty; `None` at the end. After an error or the end it is not called again.
    fn next(&mut self) -> Result<Option<Bytes>>;
}

impl<F: Feed + ?Sized> Feed for Box<F> {
    fn next(&mut self) -> Result<Option<Bytes>> {
        (**self).next()
    }
}

/// Bytes by offset: what a format reads its tables and clusters from. Takes `&mut self` because behind it there may be a
/// stream that moves forward.
pub trait ReadAt: Send {
    /// Length of the whole in bytes; `None` while a stream's end has not been seen.
    fn length(&self) -> Option<u64>;

    /// Up to `length` bytes at `offset`: fewer only where the input ends, empty past the end.
    ///
    /// # Errors
    /// What the source, the spill file or the disk says. `NeedsSpill` if the bytes have gone by and were not kept.
    fn read_up_to(&mut self, offset: u64, length: usize) -> Result<Bytes>;

    /// Whether bytes far ahead can be read without everything that stands before them. False for a stream.
    fn can_skip(&self) -> bool {
        true
    }

    /// Whether reading a little here and there costs no more than reading on, as in a file of this machine.
    fn is_near(&self) -> bool {
        false
    }

    /// How many of the `length` bytes at `offset` there are: fewer only where the input ends. Lets a stream come so far and takes
    /// nothing of it: what is asked about can still be read.
    ///
    /// # Errors
    /// As `read_up_to`.
    fn available(&mut self, offset: u64, length: usize) -> Result<usize> {
        match self.length() {
            Some(end) => Ok(usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX).min(length)),
            None => Ok(self.read_up_to(offset, length)?.len()),
        }
    }

    /// Like `read_up_to`, of bytes that may be read once more.
    ///
    /// # Errors
    /// As `read_up_to`.
    fn peek(&mut self, offset: u64, length: usize) -> Result<Bytes> {
        self.read_up_to(offset, length)
    }

    /// Like `read_up_to`, but `None` where that would have to go through everything before `offset`.
    ///
    /// # Errors
    /// As `read_up_to`.
    fn read_ahead(&mut self, offset: u64, length: usize) -> Result<Option<Bytes>> {
        if self.can_skip() { self.read_up_to(offset, length).map(Some) } else { Ok(None) }
    }
}
