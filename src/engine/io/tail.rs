//! Keeps the end of a feed that passes.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::{Bytes, BytesMut};

use super::Feed;
use crate::error::Result;

/// The last bytes of a feed, once it has passed.
pub type LastBytes = Arc<Mutex<Bytes>>;

/// A feed whose last bytes are kept.
pub struct Tailed<F> {
    inner: F,
    keep: usize,
    /// The latest pieces: as many as it takes to have the last `keep` bytes.
    pieces: VecDeque<Bytes>,
    held: usize,
    last: LastBytes,
}

impl<F: Feed> Tailed<F> {
    /// Leaves the last `keep` bytes of `inner`, or all there are, in what is given back.
    pub fn new(inner: F, keep: usize) -> (Self, LastBytes) {
        let last = LastBytes::default();
        (Self { inner, keep, pieces: VecDeque::new(), held: 0, last: last.clone() }, last)
    }

    fn hold(&mut self, piece: &Bytes) {
        let part = piece.slice(piece.len().saturating_sub(self.keep)..);
        // A piece is not kept in memory for a small part of it.
        self.pieces.push_back(if part.len() < piece.len() { Bytes::copy_from_slice(&part) } else { part });
        self.held = self.held.saturating_add(piece.len().min(self.keep));
        while let Some(oldest) = self.pieces.front().map(Bytes::len)
            && self.held.saturating_sub(oldest) >= self.keep
        {
            self.held = self.held.saturating_sub(oldest);
            self.pieces.pop_front();
        }
    }
}

impl<F: Feed> Feed for Tailed<F> {
    fn next(&mut self) -> Result<Option<Bytes>> {
        if let Some(piece) = self.inner.next()? {
            self.hold(&piece);
            return Ok(Some(piece));
        }
        let mut all = BytesMut::with_capacity(self.held);
        self.pieces.iter().for_each(|piece| all.extend_from_slice(piece));
        let last = all.split_off(all.len().saturating_sub(self.keep));
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = last.freeze();
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Pieces(Vec<Bytes>);
    impl Feed for Pieces {
        fn next(&mut self) -> Result<Option<Bytes>> {
            Ok(self.0.pop())
        }
    }

    #[test]
    fn the_last_bytes_are_kept_however_they_came() {
        let all: Vec<u8> = (0..=255).collect();
        for (piece, keep) in [(1, 10), (7, 10), (100, 10), (256, 10), (3, 300), (64, 64)] {
            let (mut feed, last) =
                Tailed::new(Pieces(all.chunks(piece).rev().map(Bytes::copy_from_slice).collect()), keep);
            while feed.next().unwrap().is_some() {}
            // Whoever does not know that it has ended asks again.
            assert!(feed.next().unwrap().is_none());
            assert_eq!(*last.lock().unwrap(), all[256 - keep.min(256)..], "{piece} {keep}");
        }
    }
}
