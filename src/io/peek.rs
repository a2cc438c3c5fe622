//! Looks at the head of a feed without taking it.

use bytes::{Bytes, BytesMut};

use super::Feed;
use crate::error::Result;

/// A feed whose first bytes have been looked at.
pub struct Peeked<F> {
    head: Option<Bytes>,
    rest: F,
}

impl<F: Feed> Peeked<F> {
    /// Pulls at least `length` bytes, fewer only if the feed is shorter.
    ///
    /// # Errors
    /// What the feed says.
    pub fn new(mut rest: F, length: usize) -> Result<Self> {
        let mut head = BytesMut::new();
        while head.len() < length {
            match rest.next()? {
                Some(piece) => head.extend_from_slice(&piece),
                None => break,
            }
        }
        Ok(Self { head: Some(head.freeze()).filter(|h| !h.is_empty()), rest })
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
            None => self.rest.next(),
        }
    }
}
