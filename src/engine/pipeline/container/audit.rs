//! Sees all of an archive as it passes: every header, and the bytes of every member.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};

use super::{
    ahead::is_manifest,
    contents::{Contents, Stored, is_read},
    docker, manifest,
};
use crate::{
    error::Result,
    io::Feed,
    model::{DigestAlgorithm, Violation},
    unpack::tar::{BLOCK, Entry, Item, Scan, trailing, truncated},
    verify::DigestSet,
};

/// What is made of an archive that passes.
pub(super) trait Witness: Send {
    /// Takes what begins now.
    ///
    /// # Errors
    /// A violation if it may not be there.
    fn begin(&mut self, entry: Entry) -> Result<(), Violation>;

    /// Takes bytes of what began last.
    fn take(&mut self, bytes: &[u8]);

    /// All of it has passed.
    ///
    /// # Errors
    /// A violation if it is not what it should be.
    fn end(&mut self) -> Result<(), Violation>;

    /// All of the archive has passed.
    ///
    /// # Errors
    /// A violation if it is not what it should be.
    fn finish(&mut self) -> Result<(), Violation>;
}

/// A feed that reads along.
pub(super) struct Audit<F, W> {
    inner: F,
    scan: Scan,
    at: u64,
    state: State,
    witness: W,
}

enum State {
    /// In a header, of which this much has come.
    Header(BytesMut),
    /// In an extended header of this length.
    Extension(BytesMut, usize),
    /// In something of this name, with so many bytes to come.
    Entry(String, u64),
    /// Between that and the next header.
    Padding,
    /// After the end.
    Ended,
}

impl<F: Feed, W: Witness> Audit<F, W> {
    /// Reads along with `inner`, from the beginning of an archive that `scan` has seen nothing of.
    pub fn new(inner: F, scan: Scan, witness: W) -> Self {
        Self { inner, scan, at: 0, state: State::Header(BytesMut::new()), witness }
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
            State::Entry(name, length) => {
                let now = length.min(piece.len() as u64);
                self.witness.take(&piece.split_to(usize::try_from(now).unwrap_or(usize::MAX)));
                self.state = self.entry(name, length.saturating_sub(now))?;
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
            Item::Entry(entry) => {
                let (name, length) = (String::from_utf8_lossy(&entry.name).into_owned(), entry.size);
                self.witness.begin(entry)?;
                self.entry(name, length)
            }
        }
    }

    /// The state in something of which `length` bytes are still to come.
    fn entry(&mut self, name: String, length: u64) -> Result<State, Violation> {
        if length > 0 {
            return Ok(State::Entry(name, length));
        }
        self.witness.end()?;
        Ok(State::Padding)
    }

    fn finish(&mut self) -> Result<(), Violation> {
        match &self.state {
            State::Ended => {}
            State::Entry(name, _) => return Err(truncated(self.at, name)),
            State::Header(_) | State::Extension(..) | State::Padding => {
                return Err(truncated(self.at, "its headers, before the zeros that mark its end"));
            }
        }
        self.witness.finish()
    }
}

impl<F: Feed, W: Witness> Feed for Audit<F, W> {
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

/// Where the members are put when the archive has passed.
pub(super) type Slot = Arc<Mutex<Option<Contents>>>;

/// Collects the members, with their digests.
pub(super) struct Members {
    contents: Contents,
    algorithms: Vec<DigestAlgorithm>,
    slot: Slot,
    /// The one that passes: its digests, and its bytes if it is a text.
    current: Option<(Stored, DigestSet, Option<BytesMut>)>,
}

impl Members {
    /// Leaves the result in `slot`. Every member is digested with `algorithms`, from the manifest on with those that it names.
    pub fn new(algorithms: Vec<DigestAlgorithm>, slot: Slot) -> Self {
        Self { contents: Contents::default(), algorithms, slot, current: None }
    }
}

impl Witness for Members {
    fn begin(&mut self, entry: Entry) -> Result<(), Violation> {
        if let Some((name, target)) = docker::link(&entry) {
            return self.contents.add_link(&name, &target);
        }
        let member = entry.into_member()?;
        let text = is_read(&member)?.then(BytesMut::new);
        self.current = Some((Stored::new(member), DigestSet::new(self.algorithms.iter().copied()), text));
        Ok(())
    }

    fn take(&mut self, bytes: &[u8]) {
        if let Some((_, digests, text)) = &mut self.current {
            digests.update(bytes);
            if let Some(text) = text {
                text.extend_from_slice(bytes);
            }
        }
    }

    fn end(&mut self) -> Result<(), Violation> {
        let Some((mut stored, digests, text)) = self.current.take() else { return Ok(()) };
        stored.digests = digests.finish().digests;
        if let Some(text) = text {
            let text = text.freeze();
            if let Some(named) = is_manifest(&stored.member.name).then(|| manifest::algorithms(&text)).flatten() {
                self.algorithms = named;
            }
            stored.read(text);
        }
        self.contents.add(stored)
    }

    fn finish(&mut self) -> Result<(), Violation> {
        self.contents.complete = true;
        let contents = std::mem::take(&mut self.contents);
        *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(contents);
        Ok(())
    }
}
