//! The bytes of one member, as a stream and by offset.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::{
    error::Result,
    io::{Feed, ReadAt, Window},
    unpack::tar,
};

/// Bytes asked of the archive at once.
const PIECE: u64 = 512 << 10;

/// A member as a stream. After its last byte the rest of the archive passes, so that all of it is checked.
pub(super) struct SectionFeed<F> {
    archive: Option<Window<F>>,
    at: u64,
    end: u64,
    name: String,
    pieces: VecDeque<Bytes>,
}

impl<F: Feed> SectionFeed<F> {
    /// The `size` bytes at `offset` of `archive`; `name` is what they are called.
    pub fn new(archive: Window<F>, offset: u64, size: u64, name: &str) -> Self {
        let end = offset.saturating_add(size);
        Self { archive: Some(archive), at: offset, end, name: name.to_owned(), pieces: VecDeque::new() }
    }
}

impl<F: Feed> Feed for SectionFeed<F> {
    fn next(&mut self) -> Result<Option<Bytes>> {
        if let Some(piece) = self.pieces.pop_front() {
            return Ok(Some(piece));
        }
        let Some(archive) = &mut self.archive else { return Ok(None) };
        let length = self.end.saturating_sub(self.at).min(PIECE);
        if length == 0 {
            archive.finish()?;
            self.archive = None;
            return Ok(None);
        }
        let pieces = archive.read_pieces(self.at, usize::try_from(length).unwrap_or(usize::MAX))?;
        let got: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
        if got < length {
            return Err(tar::truncated(self.at.saturating_add(got), &self.name).into());
        }
        self.at = self.at.saturating_add(got);
        self.pieces.extend(pieces.into_iter().filter(|piece| !piece.is_empty()));
        Ok(self.pieces.pop_front())
    }
}

/// A member by offset.
pub struct Section<'a> {
    archive: &'a mut dyn ReadAt,
    offset: u64,
    size: u64,
}

impl<'a> Section<'a> {
    /// The `size` bytes at `offset` of `archive`.
    pub fn new(archive: &'a mut dyn ReadAt, offset: u64, size: u64) -> Self {
        Self { archive, offset, size }
    }
}

impl ReadAt for Section<'_> {
    fn length(&self) -> Option<u64> {
        Some(self.size)
    }

    fn read_up_to(&mut self, offset: u64, length: usize) -> Result<Bytes> {
        let left = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        self.archive.read_up_to(self.offset.saturating_add(offset), length.min(left))
    }

    fn can_skip(&self) -> bool {
        self.archive.can_skip()
    }
}
