//! Looks at the head of a feed without taking it.

use bytes::{Bytes, BytesMut};

use super::Feed;
use crate::error::Result;

/// A feed whose first bytes have been looked at.
pub struct Peeked<F> {
    head: Option<Bytes>,
    rest: F,
    /// Whether `rest` has ended, after which it must not be asked again.
    ended: bool,
}

impl<F: Feed> Peeked<F> {
    /// Pulls at least `length` bytes, fewer only if the feed is shorter.
    ///
    /// # Errors
    /// What the feed says.
    pub fn new(mut rest: F, length: usize) -> Result<Self> {
        let (mut head, mut ended) = (BytesMut::new(), false);
        while !ended && head.len() < length {
            match rest.next()? {
                Some(piece) => head.extend_from_slice(&piece),
                None => ended = true,
            }
        }
        Ok(Self { head: Some(head.freeze()).filter(|h| !h.is_empty()), rest, ended })
    }

    /// The first bytes.
    pub fn head(&self) -> &[u8] {
        self.head.as_deref().unwrap_or_default()
    }
}

impl<F: Feed> Feed for Peeked<F> {
    fn next(&mut self) -> Result<Option<Bytes>> {
        match self.head.take() {
            Some(head) => Ok(Some(head)),
            None if self.ended => Ok(None),
            None => {
                let piece = self.rest.next()?;
                self.ended = piece.is_none();
                Ok(piece)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A feed that must not be asked once it has ended.
    struct Strict(Option<Vec<&'static [u8]>>);

    impl Feed for Strict {
        fn next(&mut self) -> Result<Option<Bytes>> {
            let mut pieces = self.0.take().unwrap();
            let piece = pieces.pop();
            self.0 = piece.map(|_| pieces);
            Ok(piece.map(Bytes::from_static))
        }
    }

    #[test]
    fn a_feed_that_ended_is_not_asked_again() {
        for pieces in [vec![], vec![b"ab".as_slice()], vec![b"cd", b"ab"]] {
            let total: usize = pieces.iter().map(|piece| piece.len()).sum();
            let mut peeked = Peeked::new(Strict(Some(pieces)), 3).unwrap();
            assert_eq!(peeked.head().len(), total);
            let mut got = 0;
            while let Some(piece) = peeked.next().unwrap() {
                got += piece.len();
            }
            assert_eq!(got, total);
            assert_eq!(peeked.next().unwrap(), None);
        }
    }
}
