//! What of a stream has gone by, fetched again by range and proved to be the same.
//!
//! The digest of the source covers its stream, so bytes that come another way are held against hashes of what the stream brought.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::Fetch;
use crate::error::{Error, Kind, Result};

/// Bytes that have one hash, and are fetched at once. For 4 TiB, the largest source, there are 32 MiB of hashes.
const BLOCK: usize = 4 << 20;

/// The part of a stream that has gone by.
pub(super) struct Recall {
    fetch: Fetch,
    hashes: Vec<[u8; 32]>,
    /// The block that has not gone by whole.
    last: BytesMut,
    /// The block fetched last.
    held: Option<(usize, Bytes)>,
}

impl Recall {
    /// Nothing has gone by; `fetch` will bring it again.
    pub fn new(fetch: Fetch) -> Self {
        Self { fetch, hashes: Vec::new(), last: BytesMut::new(), held: None }
    }

    /// Takes the stream's next bytes, which will not be there any more.
    pub fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = BLOCK.saturating_sub(self.last.len());
            let (now, rest) = bytes.split_at(room.min(bytes.len()));
            self.last.extend_from_slice(now);
            if self.last.len() == BLOCK {
                self.hashes.push(*blake3::hash(&self.last).as_bytes());
                self.last.clear();
            }
            bytes = rest;
        }
    }

    /// Gives `range`, all of which has gone by, piece by piece to `take`.
    ///
    /// # Errors
    /// `Changed` if it is not what the stream brought, `NeedsSpill` if the source only claims to have ranges; else what it says.
    pub fn read(&mut self, range: &Range<u64>, take: &mut dyn FnMut(Bytes)) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            let number = usize::try_from(at / BLOCK as u64).unwrap_or(usize::MAX);
            let start = (number as u64).saturating_mul(BLOCK as u64);
            let within = |offset: u64| usize::try_from(offset.saturating_sub(start)).unwrap_or(usize::MAX).min(BLOCK);
            let part = within(at)..within(range.end);
            let gone = number != self.hashes.len();
            let block = if gone { self.block(number)?.as_ref() } else { self.last.as_ref() };
            let piece = block.get(part.clone()).map(Bytes::copy_from_slice);
            take(piece.ok_or_else(|| Error::new(Kind::Internal, format!("byte {at} has not gone by")))?);
            at = at.saturating_add(part.len() as u64);
        }
        Ok(())
    }

    fn block(&mut self, number: usize) -> Result<&Bytes> {
        if self.held.as_ref().is_none_or(|(held, _)| *held != number) {
            self.held = None;
            let offset = (number as u64).saturating_mul(BLOCK as u64);
            let bytes = (self.fetch)(offset, BLOCK as u64)?
                .ok_or_else(|| Error::new(Kind::NeedsSpill, "the source only claims to have ranges"))?;
            if self.hashes.get(number) != Some(blake3::hash(&bytes).as_bytes()) {
                let message = format!("what the source has at byte {offset} is not what it sent before");
                return Err(Error::new(Kind::Changed, message));
            }
            self.held = Some((number, bytes));
        }
        let held = self.held.as_ref().map(|(_, bytes)| bytes);
        held.ok_or_else(|| Error::new(Kind::Internal, "a block that was not held"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recall(changed: Option<usize>) -> (Recall, Vec<u8>) {
        let all: Vec<u8> = (0..=250).cycle().take(BLOCK * 2 + 1000).collect();
        let mut source = all.clone();
        if let Some(place) = changed {
            source[place] ^= 1;
        }
        let fetch = move |offset, length| {
            let start = usize::try_from(offset).unwrap();
            Ok(Some(Bytes::copy_from_slice(&source[start..start + usize::try_from(length).unwrap()])))
        };
        let mut recall = Recall::new(Box::new(fetch));
        all.chunks(77_777).for_each(|piece| recall.pass(piece));
        (recall, all)
    }

    fn read(recall: &mut Recall, range: Range<usize>) -> Result<Vec<u8>> {
        let mut got = Vec::new();
        recall.read(&(range.start as u64..range.end as u64), &mut |piece| got.extend_from_slice(&piece))?;
        Ok(got)
    }

    #[test]
    fn what_has_gone_by_comes_again() {
        let (mut recall, all) = recall(None);
        for range in [0..10, BLOCK - 5..BLOCK + 5, 17..BLOCK * 2 + 1000, BLOCK * 2 + 1..BLOCK * 2 + 2] {
            assert!(read(&mut recall, range.clone()).unwrap() == all[range]);
        }
    }

    #[test]
    fn what_differs_is_not_given_out() {
        let (mut recall, _) = recall(Some(BLOCK + 7));
        assert!(read(&mut recall, 0..BLOCK).is_ok());
        assert_eq!(read(&mut recall, BLOCK..BLOCK + 1).unwrap_err().kind(), Kind::Changed);
        recall.fetch = Box::new(|_, _| Ok(None));
        recall.held = None;
        assert_eq!(read(&mut recall, 0..1).unwrap_err().kind(), Kind::NeedsSpill);
    }
}
