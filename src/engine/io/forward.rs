//! A stream that is read forward: what was passed over is gone.

use bytes::{Buf, Bytes, BytesMut};

use super::{Feed, ReadAt};
use crate::error::{Error, Kind, Result};

/// Reads a feed by ascending offsets. Nothing is kept.
pub struct Forward<F> {
    feed: F,
    /// The piece in hand, and where it stands.
    piece: Bytes,
    at: u64,
    ended: bool,
}

impl<F: Feed> Forward<F> {
    /// At the beginning of `feed`.
    pub fn new(feed: F) -> Self {
        Self { feed, piece: Bytes::new(), at: 0, ended: false }
    }

    /// Lets the rest pass, and tells whether it is zeros; else where something else stands.
    ///
    /// # Errors
    /// What the feed says.
    pub fn finish(&mut self) -> Result<Option<u64>> {
        let mut other = None;
        while self.refill()? {
            let found = self.piece.iter().position(|byte| *byte != 0);
            other = other.or(found.map(|place| self.at.saturating_add(place as u64)));
            self.skip(self.piece.len());
        }
        Ok(other)
    }

    /// The feed, of which some may have been read.
    pub fn into_inner(self) -> F {
        self.feed
    }

    fn skip(&mut self, length: usize) {
        self.piece.advance(length.min(self.piece.len()));
        self.at = self.at.saturating_add(length as u64);
    }

    /// Takes the next piece if there is none; false at the end.
    fn refill(&mut self) -> Result<bool> {
        while self.piece.is_empty() && !self.ended {
            match self.feed.next()? {
                Some(piece) => self.piece = piece,
                None => self.ended = true,
            }
        }
        Ok(!self.piece.is_empty())
    }
}

impl<F: Feed> ReadAt for Forward<F> {
    fn length(&self) -> Option<u64> {
        self.ended.then(|| self.at.saturating_add(self.piece.len() as u64))
    }

    fn read_up_to(&mut self, offset: u64, length: usize) -> Result<Bytes> {
        let Some(mut ahead) = offset.checked_sub(self.at) else {
            let message = format!("byte {offset} of a stream was asked for after byte {}", self.at);
            return Err(Error::new(Kind::Internal, message));
        };
        while ahead > 0 && self.refill()? {
            let step = self.piece.len().min(usize::try_from(ahead).unwrap_or(usize::MAX));
            self.skip(step);
            ahead = ahead.saturating_sub(step as u64);
        }
        if ahead > 0 {
            return Ok(Bytes::new());
        }
        let mut joined = BytesMut::new();
        while joined.len() < length && self.refill()? {
            let step = self.piece.len().min(length.saturating_sub(joined.len()));
            let part = self.piece.slice(..step);
            self.skip(step);
            if step == length {
                return Ok(part);
            }
            joined.extend_from_slice(&part);
        }
        Ok(joined.freeze())
    }

    fn can_skip(&self) -> bool {
        false
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

    fn forward() -> Forward<Pieces> {
        let all: Vec<u8> = (0..250).collect();
        Forward::new(Pieces(all.chunks(7).rev().map(Bytes::copy_from_slice).collect()))
    }

    #[test]
    fn goes_forward_only() {
        let mut input = forward();
        assert_eq!(&input.read_up_to(3, 10).unwrap()[..], [3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        assert_eq!(&input.read_up_to(13, 1).unwrap()[..], [13]);
        assert_eq!(&input.read_up_to(100, 2).unwrap()[..], [100, 101]);
        assert_eq!(input.read_up_to(100, 2).unwrap_err().kind(), Kind::Internal);
        assert_eq!(input.read_up_to(248, 10).unwrap().len(), 2);
        assert_eq!((input.length(), input.read_up_to(300, 1).unwrap().len()), (Some(250), 0));
    }

    #[test]
    fn what_is_left_is_looked_at() {
        let mut input = forward();
        input.read_up_to(0, 20).unwrap();
        assert_eq!(input.finish().unwrap(), Some(20));
        let mut zeros = Forward::new(Pieces(vec![Bytes::from_static(&[0; 9]), Bytes::from_static(&[1, 0])]));
        zeros.read_up_to(0, 1).unwrap();
        assert_eq!(zeros.finish().unwrap(), None);
    }
}
