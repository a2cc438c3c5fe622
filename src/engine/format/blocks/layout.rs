//! Gives every block that has data its place: one behind the other, in the order in which they come.

use crate::{
    error::{Error, Kind, Result},
    format::{EncodedChunk, Write},
};

/// Where the blocks of one file go.
#[derive(Debug)]
pub(in crate::format) struct BlockLayout {
    block_size: u64,
    /// File offset of the next block.
    next: u64,
    /// Number and file offset of the last block.
    last: Option<(u64, u64)>,
    /// Everything before this guest byte is placed.
    placed: u64,
}

impl BlockLayout {
    /// Blocks of `block_size` bytes from file offset `origin` on.
    pub(in crate::format) fn new(block_size: u64, origin: u64) -> Self {
        Self { block_size: block_size.max(1), next: origin, last: None, placed: 0 }
    }

    /// File offset behind the last block.
    pub(in crate::format) fn end(&self) -> u64 {
        self.next
    }

    /// Appends the writes of `chunk`; `enter` hears of every new block's number and file offset. What of a block is not
    /// written stays a hole and reads as zeros.
    ///
    /// # Errors
    /// `Internal`, if the chunks are not in order.
    pub(in crate::format) fn place(
        &mut self,
        chunk: EncodedChunk,
        writes: &mut Vec<Write>,
        mut enter: impl FnMut(u64, u64),
    ) -> Result<()> {
        for piece in chunk.pieces {
            if piece.guest < self.placed {
                let message = format!("blocks: a piece at {:#x} comes after {:#x}", piece.guest, self.placed);
                return Err(Error::new(Kind::Internal, message));
            }
            let (mut guest, mut bytes) = (piece.guest, piece.bytes);
            while !bytes.is_empty() {
                let within = guest.checked_rem(self.block_size).unwrap_or(0);
                let left = self.block_size.saturating_sub(within);
                let part = bytes.split_to(usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len()));
                let host = self.host(guest.checked_div(self.block_size).unwrap_or(0), &mut enter);
                guest = guest.saturating_add(part.len() as u64);
                writes.push(Write { offset: host.saturating_add(within), bytes: part });
            }
            self.placed = guest;
        }
        Ok(())
    }

    /// Holds what was placed against the disk's size, now that it is known.
    ///
    /// # Errors
    /// `Internal`, if something lies past its end.
    pub(in crate::format) fn check(&self, virtual_size: u64) -> Result<()> {
        if self.placed <= virtual_size {
            return Ok(());
        }
        let message = format!("blocks: data up to {:#x} on a disk of {virtual_size:#x} bytes", self.placed);
        Err(Error::new(Kind::Internal, message))
    }

    /// File offset of a block, which is the last one or a new one.
    fn host(&mut self, block: u64, enter: &mut impl FnMut(u64, u64)) -> u64 {
        match self.last {
            Some((last, host)) if last == block => host,
            _ => {
                let host = self.next;
                self.next = host.saturating_add(self.block_size);
                self.last = Some((block, host));
                enter(block, host);
                host
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::EncodedPiece;

    fn chunk(pieces: &[(u64, usize)]) -> EncodedChunk {
        let piece = |(guest, length): &(u64, usize)| EncodedPiece {
            guest: *guest,
            bytes: vec![1; *length].into(),
            packed: false,
        };
        EncodedChunk { index: 0, pieces: pieces.iter().map(piece).collect() }
    }

    #[test]
    fn blocks_follow_each_other_and_keep_their_holes() {
        let mut layout = BlockLayout::new(100, 1000);
        let (mut writes, mut entered) = (Vec::new(), Vec::new());
        layout.place(chunk(&[(20, 10), (50, 60), (150, 10)]), &mut writes, |b, h| entered.push((b, h))).unwrap();
        layout.place(chunk(&[(190, 5), (900, 250)]), &mut writes, |b, h| entered.push((b, h))).unwrap();
        assert_eq!(entered, [(0, 1000), (1, 1100), (9, 1200), (10, 1300), (11, 1400)]);
        let seen: Vec<_> = writes.iter().map(|w| (w.offset, w.bytes.len())).collect();
        let expected =
            [(1020, 10), (1050, 50), (1100, 10), (1150, 10), (1190, 5), (1200, 100), (1300, 100), (1400, 50)];
        assert_eq!(seen, expected);
        assert_eq!(layout.end(), 1500);
        assert!(layout.check(1150).is_ok() && layout.check(1149).is_err());
        assert!(layout.place(chunk(&[(0, 1)]), &mut writes, |_, _| {}).is_err());
    }
}
