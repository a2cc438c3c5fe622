//! Memory that a disk can fetch from by itself.

/// Alignment in bytes of what an [`AlignedBuffer`] holds: a page, which is more than any disk asks for (`O_DIRECT`, open(2)).
pub const PAGE: usize = 4096;

/// Bytes that begin at a page's start.
#[derive(Debug, Default)]
pub struct AlignedBuffer {
    memory: Vec<u8>,
    skip: usize,
    length: usize,
}

impl AlignedBuffer {
    /// `length` zeros.
    pub fn new(length: usize) -> Self {
        // Nobody may move the vector's content from here on, so it never grows.
        let memory = vec![0; length.saturating_add(PAGE)];
        let skip = memory.as_ptr().align_offset(PAGE).min(PAGE);
        Self { memory, skip, length }
    }

    /// How many bytes it can hold.
    pub fn capacity(&self) -> usize {
        self.memory.len().saturating_sub(PAGE)
    }

    /// Makes it `length` bytes long; bytes that were not used before hold anything.
    pub fn resize(&mut self, length: usize) {
        if length > self.capacity() {
            *self = Self::new(length);
        }
        self.length = length;
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.memory.get(self.skip..).and_then(|rest| rest.get(..self.length)).unwrap_or_default()
    }

    /// The bytes, to be filled.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.memory.get_mut(self.skip..).and_then(|rest| rest.get_mut(..self.length)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_begin_at_a_page() {
        let mut buffer = AlignedBuffer::default();
        for length in [0, 1, 4096, 100_000, 5, 1 << 22] {
            buffer.resize(length);
            assert_eq!(buffer.bytes().len(), length);
            assert_eq!(buffer.bytes_mut().len(), length);
            assert!(length == 0 || buffer.bytes().as_ptr().addr().is_multiple_of(PAGE));
        }
    }
}
