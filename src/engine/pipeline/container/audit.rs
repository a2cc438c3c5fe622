//! Sees all of an archive as it passes: every header, and the digest of every member.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};

use super::contents::{Contents, Stored, is_read};
use crate::{
    error::Result,
    io::Feed,
    model::{DigestAlgorithm, Violation},
    unpack::tar::{BLOCK, Item, Scan, trailing, truncated},
    verify::DigestSet,
};

/// Where the result is put when the archive has passed.
pub(super) type Slot = Arc<Mutex<Option<Contents>>>;

/// A feed that reads along.
pub(super) struct Audit<F> {
    inner: F,
    scan: Scan,
    at: u64,
    state: State,
    contents: Contents,
    algorithms: &'static [DigestAlgorithm],
    slot: Slot,
}

enum State {
    /// In a header, of which this much has come.
    Header(BytesMut),
    /// In an extended header of this length.
    Extension(BytesMut, usize),
    /// In a member, which is read if it is a text, with so many bytes to come.
    Member(Stored, DigestSet, Option<BytesMut>, u64),
    /// Between a member and the next header.
    Padding,
    /// After the end.
    Ended,
}

impl<F: Feed> Audit<F> {
    /// Reads along with `inner` and leaves the result in `slot`. Every member is digested with `algorithms`.
    pub fn new(inner: F, algorithms: &'static [DigestAlgorithm], slot: Slot) -> Self {
        let (scan, contents, state) = (Scan::default(), Contents::default(), State::Header(BytesMut::new()));
        Self { inner, scan, at: 0, state, contents, algorithms, slot }
    }

    /// Takes as much of `piece` as belongs to the state; the next state follows if it is complete.
    fn take(&mut self, piece: &mut Bytes) -> Result<(), Violation> {
        let left = |held: &BytesMut, length: usize| length.saturating_sub(held.len()).min(piece.len());
        let before = piece.len();
        match std::mem::replace(&mut self.state, State::Ended) {
            State::Header(mut held) => {
                held.extend_from_slice(&piece.split_to(left(&held, BLOCK)));
                self.state = if held.len() == BLOCK { self.header(&held)? } else { State::Header(held) };
            }
            State::Extension(mut held, length) => {
                held.extend_from_slice(&piece.split_to(left(&held, length)));
                self.state = if held.len() == length {
                    self.scan.extension(&held)?;
                    State::Padding
                } else {
                    State::Extension(held, length)
                };
            }
            State::Member(stored, mut digests, mut text, length) => {
                let now = length.min(piece.len() as u64);
                let part = piece.split_to(usize::try_from(now).unwrap_or(usize::MAX));
                digests.update(&part);
                if let Some(text) = &mut text {
                    text.extend_from_slice(&part);
                }
                self.state = self.member(stored, digests, text, length.saturating_sub(now))?;
            }
            State::Padding => {
                let next = self.scan.at().saturating_sub(self.at).min(piece.len() as u64);
                drop(piece.split_to(usize::try_from(next).unwrap_or(usize::MAX)));
                let done = self.at.saturating_add(next) >= self.scan.at();
                self.state = if done { State::Header(BytesMut::with_capacity(BLOCK)) } else { State::Padding };
            }
            State::Ended => {
                if piece.iter().any(|byte| *byte != 0) {
                    return Err(trailing(self.at));
                }
                piece.clear();
            }
        }
        self.at = self.at.saturating_add(before.saturating_sub(piece.len()) as u64);
        Ok(())
    }

    fn header(&mut self, block: &[u8]) -> Result<State, Violation> {
        match self.scan.header(block)? {
            Item::Extension { length } => Ok(State::Extension(BytesMut::with_capacity(length), length)),
            Item::Zeros => Ok(State::Header(BytesMut::with_capacity(BLOCK))),
            Item::End => Ok(State::Ended),
            Item::Member(member) => {
                let (length, read) = (member.size, is_read(&member)?);
                let stored = Stored::new(member);
                let text = read.then(BytesMut::new);
                self.member(stored, DigestSet::new(self.algorithms.iter().copied()), text, length)
            }
        }
    }

    /// The state in a member of which `length` bytes are still to come.
    fn member(
        &mut self,
        mut stored: Stored,
        digests: DigestSet,
        text: Option<BytesMut>,
        length: u64,
    ) -> Result<State, Violation> {
        if length > 0 {
            return Ok(State::Member(stored, digests, text, length));
        }
        stored.digests = digests.finish().digests;
        if let Some(text) = text {
            stored.read(text.freeze());
        }
        self.contents.add(stored)?;
        Ok(State::Padding)
    }

    fn finish(&mut self) -> Result<(), Violation> {
        match &self.state {
            State::Ended => {}
            State::Member(stored, ..) => return Err(truncated(self.at, &stored.member.name)),
            State::Header(_) | State::Extension(..) | State::Padding => {
                return Err(truncated(self.at, "its headers, before the zeros that mark its end"));
            }
        }
        self.contents.complete = true;
        let contents = std::mem::take(&mut self.contents);
        *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(contents);
        Ok(())
    }
}

impl<F: Feed> Feed for Audit<F> {
    fn next(&mut self) -> Result<Option<Bytes>> {
        let Some(piece) = self.inner.next()? else {
            self.finish()?;
            return Ok(None);
        };
        let mut rest = piece.clone();
        loop {
            self.take(&mut rest)?;
            if rest.is_empty() {
                return Ok(Some(piece));
            }
        }
    }
}
