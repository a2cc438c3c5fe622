//! Several digests of one stream at once.

use bytes::Bytes;
use sha2::Digest as _;

use crate::{
    error::Result,
    io::Feed,
    model::{Digest, DigestAlgorithm, Received},
};

enum State {
    Md5(md5::Md5),
    Sha1(sha1::Sha1),
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
    Blake3(Box<blake3::Hasher>),
}

impl State {
    fn new(algorithm: DigestAlgorithm) -> Self {
        match algorithm {
            DigestAlgorithm::Md5 => Self::Md5(md5::Md5::new()),
            DigestAlgorithm::Sha1 => Self::Sha1(sha1::Sha1::new()),
            DigestAlgorithm::Sha256 => Self::Sha256(sha2::Sha256::new()),
            DigestAlgorithm::Sha512 => Self::Sha512(sha2::Sha512::new()),
            DigestAlgorithm::Blake3 => Self::Blake3(Box::default()),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Md5(h) => h.update(bytes),
            Self::Sha1(h) => h.update(bytes),
            Self::Sha256(h) => h.update(bytes),
            Self::Sha512(h) => h.update(bytes),
            Self::Blake3(h) => {
                h.update(bytes);
            }
        }
    }

    fn finish(self) -> Option<Digest> {
        match self {
            Self::Md5(h) => Digest::new(DigestAlgorithm::Md5, &h.finalize()),
            Self::Sha1(h) => Digest::new(DigestAlgorithm::Sha1, &h.finalize()),
            Self::Sha256(h) => Digest::new(DigestAlgorithm::Sha256, &h.finalize()),
            Self::Sha512(h) => Digest::new(DigestAlgorithm::Sha512, &h.finalize()),
            Self::Blake3(h) => Digest::new(DigestAlgorithm::Blake3, h.finalize().as_bytes()),
        }
    }
}

/// Computes a set of digests and counts the bytes.
pub struct DigestSet {
    states: Vec<State>,
    length: u64,
}

impl DigestSet {
    /// A set with each of `algorithms` once.
    pub fn new(algorithms: impl IntoIterator<Item = DigestAlgorithm>) -> Self {
        let unique: std::collections::BTreeSet<_> = algorithms.into_iter().collect();
        Self { states: unique.into_iter().map(State::new).collect(), length: 0 }
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.states.iter_mut().for_each(|state| state.update(bytes));
        self.length = self.length.saturating_add(bytes.len() as u64);
    }

    /// How many bytes came and what their digests are.
    pub fn finish(self) -> Received {
        Received { length: self.length, digests: self.states.into_iter().filter_map(State::finish).collect() }
    }
}

/// A feed that digests what passes, and hands the result to `done` when the feed has ended.
pub struct DigestedFeed<F, D> {
    inner: F,
    digests: Option<(DigestSet, D)>,
}

impl<F: Feed, D: FnOnce(Received) + Send> DigestedFeed<F, D> {
    /// Digests `inner` with `digests`.
    pub fn new(inner: F, digests: DigestSet, done: D) -> Self {
        Self { inner, digests: Some((digests, done)) }
    }
}

impl<F: Feed, D: FnOnce(Received) + Send> Feed for DigestedFeed<F, D> {
    fn next(&mut self) -> Result<Option<Bytes>> {
        let piece = self.inner.next()?;
        match &piece {
            Some(bytes) => {
                if let Some((digests, _)) = &mut self.digests {
                    digests.update(bytes);
                }
            }
            None => {
                if let Some((digests, done)) = self.digests.take() {
                    done(digests.finish());
                }
            }
        }
        Ok(piece)
    }
}
