//! The bytes of one member, or of several one behind the other, as a stream and by offset.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use crate::{
    error::Result,
    io::{Feed, ReadAt, Window},
    unpack::tar::{self, Member},
};

/// Bytes asked of the archive at once.
const PIECE: u64 = 512 << 10;

/// Stretches of something longer, which are read as if one followed on the other: where each begins, and how long it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parts(Vec<(u64, u64)>);

impl Parts {
    /// Where the members lie in their archive.
    pub fn of(members: &[Member]) -> Self {
        Self(members.iter().map(|member| (member.offset, member.size)).collect())
    }

    /// The first `length` bytes.
    pub fn whole(length: u64) -> Self {
        Self(vec![(0, length)])
    }

    /// Length of all together.
    pub fn length(&self) -> u64 {
        self.0.iter().fold(0, |sum: u64, (_, length)| sum.saturating_add(*length))
    }

    /// Where the byte at `offset` is, and how many follow it there; `None` past the end.
    pub fn locate(&self, mut offset: u64) -> Option<(u64, u64)> {
        for (start, length) in &self.0 {
            match offset.checked_sub(*length) {
                Some(behind) => offset = behind,
                None => return Some((start.saturating_add(offset), length.saturating_sub(offset))),
            }
        }
        None
    }
}

/// Members as a stream. After their last byte the rest of the archive passes, so that all of it is checked.
pub(super) struct SectionFeed<F> {
    archive: Option<Window<F>>,
    parts: Parts,
    at: u64,
    name: String,
    pieces: VecDeque<Bytes>,
}

impl<F: Feed> SectionFeed<F> {
    /// The bytes of `archive` in `parts`; `name` is what they are called.
    pub fn new(archive: Window<F>, parts: Parts, name: &str) -> Self {
        Self { archive: Some(archive), parts, at: 0, name: name.to_owned(), pieces: VecDeque::new() }
    }
}

impl<F: Feed> Feed for SectionFeed<F> {
    fn next(&mut self) -> Result<Option<Bytes>> {
        if let Some(piece) = self.pieces.pop_front() {
            return Ok(Some(piece));
        }
        let Some(archive) = &mut self.archive else { return Ok(None) };
        let Some((offset, left)) = self.parts.locate(self.at) else {
            archive.finish()?;
            self.archive = None;
            return Ok(None);
        };
        let length = left.min(PIECE);
        let pieces = archive.read_pieces(offset, usize::try_from(length).unwrap_or(usize::MAX))?;
        let got: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
        if got < length {
            return Err(tar::truncated(offset.saturating_add(got), &self.name).into());
        }
        self.at = self.at.saturating_add(got);
        self.pieces.extend(pieces.into_iter().filter(|piece| !piece.is_empty()));
        Ok(self.pieces.pop_front())
    }
}

/// Members by offset.
pub struct Section<'a> {
    archive: &'a mut dyn ReadAt,
    parts: Parts,
}

impl<'a> Section<'a> {
    /// The bytes of `archive` in `parts`.
    pub(super) fn new(archive: &'a mut dyn ReadAt, parts: Parts) -> Self {
        Self { archive, parts }
    }
}

impl ReadAt for Section<'_> {
    fn is_near(&self) -> bool {
        self.archive.is_near()
    }

    fn length(&self) -> Option<u64> {
        Some(self.parts.length())
    }

    fn read_up_to(&mut self, offset: u64, length: usize) -> Result<Bytes> {
        let mut joined = BytesMut::new();
        loop {
            let (at, wanted) = (offset.saturating_add(joined.len() as u64), length.saturating_sub(joined.len()));
            let Some((start, left)) = self.parts.locate(at).filter(|_| wanted > 0) else { return Ok(joined.freeze()) };
            let now = wanted.min(usize::try_from(left).unwrap_or(usize::MAX));
            let bytes = self.archive.read_up_to(start, now)?;
            // Nothing is copied where one part has it all, or the archive ends.
            if joined.is_empty() && (now == wanted || bytes.len() < now) {
                return Ok(bytes);
            }
            joined.extend_from_slice(&bytes);
            if bytes.len() < now {
                return Ok(joined.freeze());
            }
        }
    }

    fn can_skip(&self) -> bool {
        self.archive.can_skip()
    }
}
