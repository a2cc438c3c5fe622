//! Buffers that are used again: fresh blocks of this size would be mapped, zeroed and taken back by the kernel each time, which costs
//! more than filling them. They begin at a page, so that a disk can fetch from them.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::AlignedBuffer;

/// Buffers of about one size.
#[derive(Debug)]
pub struct Pool {
    state: Mutex<State>,
    came_back: Condvar,
    /// Free buffers that are kept.
    kept: usize,
    /// Buffers in use at most.
    most: usize,
}

#[derive(Debug, Default)]
struct State {
    free: Vec<AlignedBuffer>,
    used: usize,
}

impl Pool {
    /// A pool that keeps up to `kept` free buffers and never makes anybody wait.
    pub fn new(kept: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), came_back: Condvar::new(), kept, most: usize::MAX })
    }

    /// A pool of `most` buffers: whoever takes another waits until one comes back. This is what bounds the memory of small slices, each
    /// of which keeps its whole buffer.
    pub fn bounded(most: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), came_back: Condvar::new(), kept: most, most })
    }

    /// A buffer of `length` bytes with arbitrary old content. Blocks while all of a bounded pool are in use.
    pub fn take(self: &Arc<Self>, length: usize) -> PoolBuffer {
        let mut state = self.lock();
        while state.used >= self.most {
            state = self.came_back.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.used = state.used.saturating_add(1);
        let mut bytes = state.free.pop().unwrap_or_default();
        drop(state);
        bytes.resize(length);
        PoolBuffer { bytes, pool: self.clone() }
    }

    fn give_back(&self, bytes: AlignedBuffer) {
        let mut state = self.lock();
        state.used = state.used.saturating_sub(1);
        if state.free.len() < self.kept {
            state.free.push(bytes);
        }
        drop(state);
        self.came_back.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One buffer; goes back to its pool when the last reader drops it.
#[derive(Debug)]
pub struct PoolBuffer {
    bytes: AlignedBuffer,
    pool: Arc<Pool>,
}

impl PoolBuffer {
    /// Makes it `length` bytes long.
    pub fn resize(&mut self, length: usize) {
        self.bytes.resize(length);
    }

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
        assert!(pool.lock().free.is_empty());
        assert_eq!(&part[..], [7, 7]);
        drop(part);
        assert_eq!(pool.take(5).as_ref().as_ptr(), place);
    }

    #[test]
    fn no_more_than_wanted_are_kept() {
        let pool = Pool::new(1);
        drop((pool.take(1), pool.take(1)));
        assert_eq!(pool.lock().free.len(), 1);
    }

    #[test]
    fn a_bounded_pool_makes_wait() {
        let pool = Pool::bounded(1);
        let first = pool.take(1);
        let (sender, taken) = std::sync::mpsc::channel();
        let other = Arc::clone(&pool);
        std::thread::spawn(move || sender.send(other.take(1).as_ref().len()));
        assert!(taken.recv_timeout(std::time::Duration::from_millis(50)).is_err());
        drop(first);
        assert_eq!(taken.recv_timeout(std::time::Duration::from_secs(5)), Ok(1));
    }
}
