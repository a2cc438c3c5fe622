//! Buffers that are used again: fresh blocks of this size would be mapped, zeroed and taken back by the kernel each time, which costs
//! more than filling them. They begin at a page, so that a disk can fetch from them.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::AlignedBuffer;

/// Buffers of about one size that nobody uses at the moment.
#[derive(Debug)]
pub struct Pool {
    free: Mutex<Vec<AlignedBuffer>>,
    most: usize,
}

impl Pool {
    /// A pool that keeps up to `most` free buffers.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { free: Mutex::default(), most })
    }

    /// A buffer of `length` bytes with arbitrary old content.
    pub fn take(self: &Arc<Self>, length: usize) -> PoolBuffer {
        let mut bytes = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        bytes.resize(length);
        PoolBuffer { bytes, pool: self.clone() }
    }

    fn give_back(&self, bytes: AlignedBuffer) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < self.most {
            free.push(bytes);
        }
    }
}

/// One buffer; goes back to its pool when the last reader drops it.
#[derive(Debug)]
pub struct PoolBuffer {
    bytes: AlignedBuffer,
    pool: Arc<Pool>,
}

impl PoolBuffer {
    /// The bytes, to be filled.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.bytes.bytes_mut()
    }

    /// Ends the filling.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for PoolBuffer {
    fn as_ref(&self) -> &[u8] {
        self.bytes.bytes()
    }
}

impl Drop for PoolBuffer {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_after_its_last_reader() {
        let pool = Pool::new(1);
        let mut buffer = pool.take(10);
        buffer.bytes_mut().fill(7);
        let bytes = buffer.freeze();
        let part = bytes.slice(2..4);
        let place = bytes.as_ptr();
        drop(bytes);
        assert!(pool.free.lock().unwrap().is_empty());
        assert_eq!(&part[..], [7, 7]);
        drop(part);
        assert_eq!(pool.take(5).as_ref().as_ptr(), place);
    }

    #[test]
    fn no_more_than_wanted_are_kept() {
        let pool = Pool::new(1);
        drop((pool.take(1), pool.take(1)));
        assert_eq!(pool.free.lock().unwrap().len(), 1);
    }
}
