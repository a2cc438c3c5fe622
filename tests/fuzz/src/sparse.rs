//! A file that may be large and holds little.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use vitrine_engine::{error::Result, io::ReadAt};

const PAGE_LENGTH: usize = 4096;
const PAGE: u64 = PAGE_LENGTH as u64;

/// A file of which only pages with something in them take memory. Clones share them.
#[derive(Clone, Default)]
pub struct Sparse {
    pages: BTreeMap<u64, Arc<[u8; PAGE_LENGTH]>>,
    length: u64,
}

impl Sparse {
    /// A file of these bytes.
    pub fn new(bytes: &[u8]) -> Self {
        let mut file = Self::default();
        file.write(0, bytes);
        file
    }

    /// Length in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Cuts the file, or adds a hole.
    pub fn set_length(&mut self, length: u64) {
        self.length = length;
        let kept = length.next_multiple_of(PAGE);
        self.pages.retain(|page, _| page * PAGE < kept);
        if let Some(last) = self.pages.get_mut(&(length / PAGE)) {
            Arc::make_mut(last)[usize::try_from(length % PAGE).unwrap()..].fill(0);
        }
    }

    /// Writes, and makes the file longer if need be.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.length = self.length.max(offset + bytes.len() as u64);
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let within = usize::try_from(at % PAGE).unwrap();
            let (part, behind) = rest.split_at(rest.len().min(PAGE_LENGTH - within));
            if self.pages.contains_key(&(at / PAGE)) || part.iter().any(|byte| *byte != 0) {
                let page = self.pages.entry(at / PAGE).or_insert_with(|| Arc::new([0; PAGE_LENGTH]));
                Arc::make_mut(page)[within..within + part.len()].copy_from_slice(part);
            }
            at += part.len() as u64;
            rest = behind;
        }
    }

    /// Up to `length` bytes; fewer only at the file's end.
    pub fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        let left = usize::try_from(self.length.saturating_sub(offset)).unwrap();
        let mut bytes = vec![0; length.min(left)];
        let end = offset.saturating_add(bytes.len() as u64);
        for (number, page) in self.pages.range(offset / PAGE..end.div_ceil(PAGE)) {
            let start = number * PAGE;
            let (from, to) = (offset.max(start), end.min(start + PAGE));
            let within = |base: u64| usize::try_from(from - base).unwrap()..usize::try_from(to - base).unwrap();
            if from < to {
                bytes[within(offset)].copy_from_slice(&page[within(start)]);
            }
        }
        bytes
    }
}

/// The file as a format reads it.
pub struct Input {
    file: Sparse,
    /// As a stream, it tells its length only once its end was read, and cannot skip.
    streamed: bool,
    most: u64,
}

impl Input {
    /// A file, or a stream. Nobody may ask for more than `most` bytes of it at once: that much is allocated.
    pub fn new(file: Sparse, streamed: bool, most: u64) -> Self {
        Self { file, streamed, most }
    }

    /// Length in bytes, told or not.
    pub fn end(&self) -> u64 {
        self.file.length
    }
}

impl ReadAt for Input {
    fn length(&self) -> Option<u64> {
        (!self.streamed).then_some(self.file.length)
    }

    fn read_up_to(&mut self, offset: u64, length: usize) -> Result<Bytes> {
        let end = offset.saturating_add(length as u64);
        if end > self.file.length {
            self.streamed = false;
        }
        let bytes = self.file.read(offset, length);
        assert!(bytes.len() as u64 <= self.most, "{} bytes at {offset} are read at once", bytes.len());
        Ok(bytes.into())
    }

    fn can_skip(&self) -> bool {
        !self.streamed
    }

    fn available(&mut self, offset: u64, length: usize) -> Result<usize> {
        let left = usize::try_from(self.file.length.saturating_sub(offset)).unwrap_or(usize::MAX);
        self.streamed &= left >= length;
        Ok(left.min(length))
    }
}
