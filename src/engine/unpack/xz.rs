//! Blocks of an .xz stream, side by side (the .xz file format, version 1.1.0).
//!
//! A block whose header tells its lengths can be decoded by itself, before those in front of it are done. The library decodes each one,
//! and checks it; here stand the framing around them, the index, and the bounds. The library's own threads hold every block's output
//! twice as long as it takes to hand it on, so that blocks as `xz -6` makes them would not fit into the memory of an import. A block
//! among them that does not tell its lengths, or would take too much, is decoded when those before it have come out.

mod alone;
mod index;
mod job;

use alone::Alone;
use index::{Index, Record, vli};
use job::{Crew, MAX_JOBS};

use super::{
    UnpackLimits,
    codec::{Codec, Fault, Step},
};

/// Length of a stream's header and footer, in bytes.
const STREAM_HEADER: usize = 12;
/// Flags of a block's header: which lengths it tells.
const HAS_PACKED: u8 = 0x40;
const HAS_SIZE: u8 = 0x80;
/// The last filter of every block, by its number.
const LZMA2: u8 = 0x21;

/// Decodes one stream.
pub(super) struct Blocks {
    state: State,
    held: Vec<u8>,
    header: [u8; STREAM_HEADER],
    crew: Crew,
    /// The block that is decoded by itself, if one is.
    alone: Option<Alone>,
    index: Index,
    memory: u64,
}

#[derive(Clone, Copy)]
enum State {
    Header,
    /// Before a block's header or the index.
    Block,
    /// In a block, of so many bytes with its header, that takes so many to decode.
    Body(usize, Record, u64),
    /// In a block that is decoded by itself.
    Alone,
    Index,
    Footer,
    Done,
}

/// What a block's header says.
pub(super) struct BlockHeader {
    packed: u64,
    pub(super) size: u64,
    dictionary: u64,
}

impl BlockHeader {
    /// Reads the header at the beginning of `bytes`; `None` if it does not tell both lengths, or is not whole.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let length = usize::from(*bytes.first()?).checked_add(1)?.checked_mul(4)?;
        let header = bytes.get(..length)?;
        let flags = *header.get(1)?;
        if flags & (HAS_PACKED | HAS_SIZE) != HAS_PACKED | HAS_SIZE {
            return None;
        }
        let (packed, rest) = vli(header.get(2..)?)?;
        let (size, mut rest) = vli(rest)?;
        for _ in 0..flags & 3 {
            let (_, length) = vli(rest)?;
            let (length, properties) = vli(length)?;
            rest = properties.get(usize::try_from(length).ok()?..)?;
        }
        let [LZMA2, 1, bits @ 0..=40, ..] = rest else { return None };
        let dictionary = u64::from(2 | bits & 1).checked_shl(u32::from(bits / 2).checked_add(11)?)?;
        Some(Self { packed, size, dictionary })
    }

    /// Bytes that decoding it takes, beside what comes out.
    pub(super) fn cost(&self) -> u64 {
        self.packed.saturating_add(self.dictionary)
    }
}

/// Whether the stream that begins with `head` is decoded here: its first block tells its lengths, and more than one such block fits
/// into the memory.
pub(super) fn fits(head: &[u8], limits: &UnpackLimits) -> bool {
    let block = head.get(STREAM_HEADER..).and_then(BlockHeader::parse);
    limits.threads > 1 && limits.parallel_memory > 0 && block.is_some_and(|block| Crew::suits(&block))
}

impl Blocks {
    pub fn new(limits: &UnpackLimits) -> Self {
        let crew = Crew::new(usize::try_from(limits.threads).unwrap_or(1).min(MAX_JOBS));
        let (held, header, index) = (Vec::new(), [0; STREAM_HEADER], Index::default());
        Self { state: State::Header, held, header, crew, alone: None, index, memory: limits.memory }
    }

    /// Bytes that the part in hand has, as far as is known.
    fn needed(&self) -> usize {
        match self.state {
            State::Header | State::Footer => STREAM_HEADER,
            State::Block => match self.held.first() {
                // The index begins with a zero, where a block has the length of its header.
                None | Some(0) => 1,
                Some(length) => usize::from(*length).saturating_add(1).saturating_mul(4),
            },
            State::Body(length, ..) => length,
            State::Index => self.index.length(),
            State::Alone | State::Done => 0,
        }
    }

    /// Bytes of it that have come.
    fn had(&self) -> usize {
        if let State::Body(..) = self.state { self.crew.collected() } else { self.held.len() }
    }

    /// Takes the part that has come whole.
    fn take(&mut self) -> Result<(), Fault> {
        match self.state {
            State::Header => {
                self.header = *self.held.first_chunk().ok_or("a stream's header is too short")?;
                self.held.clear();
                self.state = State::Block;
            }
            State::Block if self.held.first() == Some(&0) => self.state = State::Index,
            State::Block => self.state = self.begin_block()?,
            State::Body(_, record, cost) => {
                self.crew.start(self.header, (record.size, cost), self.memory)?;
                self.index.add(record)?;
                self.state = State::Block;
            }
            State::Index => {
                self.index.check(&self.held)?;
                self.held.clear();
                self.state = State::Footer;
            }
            State::Footer => {
                self.index.check_footer(&self.held, &self.header)?;
                self.held.clear();
                self.state = State::Done;
            }
            State::Alone | State::Done => {}
        }
        Ok(())
    }

    /// Looks at the header of a block, which is held.
    fn begin_block(&mut self) -> Result<State, Fault> {
        let Some(block) = BlockHeader::parse(&self.held).filter(Crew::takes) else { return Ok(State::Alone) };
        let check = index::check_length(&self.header)?;
        let unpadded = block.packed.saturating_add(self.held.len() as u64).saturating_add(check);
        let record = Record { unpadded, size: block.size };
        let length = usize::try_from(record.padded()).unwrap_or(usize::MAX);
        self.crew.collect(&self.held);
        self.held.clear();
        Ok(State::Body(length, record, block.cost()))
    }

    /// Goes on with a block that is decoded by itself. Gives how much of `input` was used.
    fn go_on_alone(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<usize, Fault> {
        let block = match &mut self.alone {
            Some(block) => block,
            None => self.alone.insert(Alone::new(&self.header, &std::mem::take(&mut self.held), self.memory)?),
        };
        let (read, whole) = block.decode(input, output)?;
        if let Some(record) = whole {
            self.index.add(record)?;
            self.alone = None;
            self.state = State::Block;
        }
        Ok(read)
    }
}

impl Codec for Blocks {
    fn decode(&mut self, input: &[u8], output: &mut Vec<u8>, _last: bool) -> Result<Step, Fault> {
        let mut rest = input;
        loop {
            // A block waits outside until there is room for it beside the others, or until they are gone.
            let must_wait = match self.state {
                State::Body(_, _, cost) => !self.crew.has_room(cost),
                State::Alone | State::Done => self.crew.busy(),
                _ => false,
            };
            let wanted = if must_wait { 0 } else { self.needed().saturating_sub(self.had()) };
            let (part, behind) = rest.split_at(wanted.min(rest.len()));
            match self.state {
                State::Body(..) => self.crew.collect(part),
                _ => self.held.extend_from_slice(part),
            }
            rest = behind;
            self.crew.give(output, must_wait)?;
            let full = output.len() >= output.capacity();
            match self.state {
                State::Alone if !must_wait && !full => {
                    let read = self.go_on_alone(rest, output)?;
                    rest = rest.get(read..).unwrap_or_default();
                    if !matches!(self.state, State::Alone) {
                        continue;
                    }
                }
                State::Alone | State::Done => {}
                _ if !must_wait && self.had() >= self.needed() => {
                    self.take()?;
                    continue;
                }
                _ => {}
            }
            let ended = matches!(self.state, State::Done) && !self.crew.busy();
            if ended || full || !must_wait {
                return Ok(Step { read: input.len().saturating_sub(rest.len()), ended });
            }
        }
    }
}

/// Length of the block at the beginning of `bytes`, in the stream with this header.
#[cfg(test)]
pub(super) fn padded_length(bytes: &[u8], header: &[u8]) -> Option<usize> {
    let length = u64::from(*bytes.first()?).checked_add(1)?.checked_mul(4)?;
    let check = index::check_length(header.first_chunk()?).ok()?;
    let block = BlockHeader::parse(bytes)?;
    let unpadded = block.packed.checked_add(length)?.checked_add(check)?;
    usize::try_from(Record { unpadded, size: block.size }.padded()).ok()
}
