//! A block that is decoded where it stands, while it comes: its header does not tell its lengths, or it is too costly to be held.
//!
//! The library decodes it, and checks it. It does not say where a block ends, so that is read off the chunks in it: LZMA2, always the
//! last filter, puts its lengths before each.

use liblzma::stream::{Action, Error, Stream};

use super::{
    STREAM_HEADER,
    index::{self, Record},
};
use crate::unpack::codec::{Fault, lacks_memory};

/// A block under way.
pub(super) struct Alone {
    stream: Stream,
    chunks: Chunks,
    /// Length of its header in bytes.
    header: u64,
    /// Length of its check in bytes.
    check: u64,
    /// Bytes at the beginning of the input that are known to be of this block, and which the library has not taken yet.
    ahead: usize,
}

impl Alone {
    /// Begins with a block whose header is `block`, in the stream with this header. `memory` in bytes.
    pub fn new(header: &[u8; STREAM_HEADER], block: &[u8], memory: u64) -> Result<Self, Fault> {
        let mut stream = Stream::new_stream_decoder(memory, 0).map_err(|e| e.to_string())?;
        for part in [header.as_slice(), block] {
            let mut nothing = Vec::with_capacity(1);
            stream.process_vec(part, &mut nothing, Action::Run).map_err(explain)?;
        }
        let (chunks, check) = (Chunks::default(), index::check_length(header)?);
        Ok(Self { stream, chunks, header: block.len() as u64, check, ahead: 0 })
    }

    /// Decodes as much of `input` as there is and as fits into `output`. Gives how much it was, and, at the block's end, what the index
    /// must have of it.
    pub fn decode(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<(usize, Option<Record>), Fault> {
        let fresh = self.chunks.take(input.get(self.ahead..).unwrap_or_default(), self.check)?;
        let known = self.ahead.saturating_add(fresh);
        let before = self.stream.total_in();
        match self.stream.process_vec(input.get(..known).unwrap_or_default(), output, Action::Run) {
            // It may have had nothing to do.
            Ok(_) | Err(Error::Program) => {}
            Err(error) => return Err(explain(error).into()),
        }
        let read = usize::try_from(self.stream.total_in().saturating_sub(before)).unwrap_or(usize::MAX);
        self.ahead = known.saturating_sub(read);
        let whole = self.chunks.ended() && self.ahead == 0 && self.stream.total_out() == self.chunks.size;
        let unpadded = self.header.saturating_add(self.chunks.packed).saturating_add(self.check);
        Ok((read, whole.then_some(Record { unpadded, size: self.chunks.size })))
    }
}

fn explain(error: Error) -> String {
    if error == Error::MemLimit { lacks_memory() } else { error.to_string() }
}

/// Walks over the chunks of a block, from length to length.
#[derive(Default)]
struct Chunks {
    at: At,
    /// Bytes of all chunks so far, with their lengths and the mark of the end.
    packed: u64,
    /// Bytes that come out of them.
    size: u64,
}

/// What comes next.
#[derive(Clone, Copy, Default)]
enum At {
    /// The first byte of a chunk.
    #[default]
    Control,
    /// The rest of a chunk's header: its control byte, so many bytes still, and the last four of those that came.
    Lengths(u8, u32, u32),
    /// So many bytes of a chunk.
    Body(u64),
    /// So many bytes of padding and check.
    Tail(u64),
}

impl Chunks {
    fn ended(&self) -> bool {
        matches!(self.at, At::Tail(0))
    }

    /// How many of `input` belong to the block, behind which a check of `check` bytes stands.
    fn take(&mut self, input: &[u8], check: u64) -> Result<usize, Fault> {
        let mut rest = input;
        while let Some(byte) = rest.first().copied() {
            let length = match self.at {
                At::Tail(0) => break,
                At::Body(left) | At::Tail(left) => left.min(rest.len() as u64),
                At::Control | At::Lengths(..) => 1,
            };
            if !matches!(self.at, At::Tail(_)) {
                self.packed = self.packed.saturating_add(length);
            }
            self.at = match self.at {
                At::Control => self.begin(byte, check)?,
                At::Lengths(control, 1, found) => self.measure(control, found << 8 | u32::from(byte)),
                At::Lengths(control, left, found) => {
                    At::Lengths(control, left.saturating_sub(1), found << 8 | u32::from(byte))
                }
                At::Body(left) if left <= length => At::Control,
                At::Body(left) => At::Body(left.saturating_sub(length)),
                At::Tail(left) => At::Tail(left.saturating_sub(length)),
            };
            rest = rest.get(usize::try_from(length).unwrap_or(usize::MAX)..).unwrap_or_default();
        }
        Ok(input.len().saturating_sub(rest.len()))
    }

    fn begin(&self, control: u8, check: u64) -> Result<At, Fault> {
        match control {
            0 => Ok(At::Tail((self.packed.wrapping_neg() & 3).saturating_add(check))),
            1 | 2 => Ok(At::Lengths(control, 2, 0)),
            0x80.. => Ok(At::Lengths(control, 4, 0)),
            _ => Err("a block has a chunk of a kind that there is not".into()),
        }
    }

    /// Reads the lengths of a chunk, each one less than it is: of what comes out, and but for a chunk that is stored, of what is packed.
    fn measure(&mut self, control: u8, found: u32) -> At {
        if control < 0x80 {
            let length = u64::from(found & 0xffff).saturating_add(1);
            self.size = self.size.saturating_add(length);
            return At::Body(length);
        }
        let high = u64::from(control & 0x1f) << 16;
        self.size = self.size.saturating_add(high | u64::from(found >> 16)).saturating_add(1);
        // With new properties, a byte of them stands before the data.
        At::Body(u64::from(found & 0xffff).saturating_add(if control >= 0xc0 { 2 } else { 1 }))
    }
}
