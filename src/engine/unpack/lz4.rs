//! LZ4 frames (the LZ4 Frame Format Description, version 1.6): the framing here, the blocks by a library.
//!
//! Legacy frames are recognised and refused: they end where the file does, so that a cut does not show.

use std::hash::Hasher as _;

use twox_hash::XxHash32;

use super::codec::{Codec, Fault, Step};

/// Magic numbers of a frame and of a legacy frame.
pub(super) const MAGIC: [u8; 4] = 0x184d_2204_u32.to_le_bytes();
pub(super) const LEGACY: [u8; 4] = 0x184c_2102_u32.to_le_bytes();

/// How far back a block may refer into the ones before it.
const WINDOW: usize = 64 << 10;

/// Bits of the flags.
const BLOCKS_STAND_ALONE: u8 = 1 << 5;
const BLOCK_CHECKSUM: u8 = 1 << 4;
const CONTENT_SIZE: u8 = 1 << 3;
const CONTENT_CHECKSUM: u8 = 1 << 2;
const RESERVED: u8 = 1 << 1;
const DICTIONARY: u8 = 1;

/// Decodes one frame.
pub(super) struct Lz4 {
    state: State,
    /// Bytes of the part that has not come whole.
    held: Vec<u8>,
    flags: u8,
    /// Largest block, in bytes; 0 before the header.
    largest: usize,
    content_size: Option<u64>,
    given: u64,
    hasher: Option<Box<XxHash32>>,
    window: Vec<u8>,
    /// The block that is being handed out, and how much of it was.
    block: Vec<u8>,
    handed: usize,
}

#[derive(Clone, Copy)]
enum State {
    /// Magic, flags and block size.
    Magic,
    /// What else the flags say that the header has, in bytes.
    Header(usize),
    Length,
    Block {
        length: usize,
        raw: bool,
    },
    Checksum,
    Done,
}

impl Lz4 {
    pub fn new() -> Self {
        Self {
            state: State::Magic,
            held: Vec::new(),
            flags: 0,
            largest: 0,
            content_size: None,
            given: 0,
            hasher: None,
            window: Vec::new(),
            block: Vec::new(),
            handed: 0,
        }
    }

    /// How many bytes the next part has.
    fn needed(&self) -> usize {
        let checksum = if self.flags & BLOCK_CHECKSUM == 0 { 0 } else { 4 };
        match self.state {
            State::Magic => 6,
            State::Header(length) => length.saturating_add(6),
            State::Length | State::Checksum => 4,
            State::Block { length, .. } => length.saturating_add(checksum),
            State::Done => 0,
        }
    }

    /// Takes the part that has come whole.
    fn take(&mut self) -> Result<(), Fault> {
        self.state = match self.state {
            // The header's checksum is over all of it, so it stays.
            State::Magic => return self.flags(),
            State::Header(_) => self.header()?,
            State::Length => self.length()?,
            State::Block { length, raw } => self.block(length, raw)?,
            State::Checksum => {
                let found = self.hasher.as_ref().map(|hasher| hasher.finish_32());
                if found != le_u32(&self.held, 0) {
                    return Err("the checksum of its content is wrong".into());
                }
                State::Done
            }
            State::Done => State::Done,
        };
        self.held.clear();
        Ok(())
    }

    fn flags(&mut self) -> Result<(), Fault> {
        if self.held.starts_with(&LEGACY) {
            return Err(
                "it is a legacy frame, whose end cannot be told from a cut: compress it again with a newer lz4".into(),
            );
        }
        let (flags, size) = match self.held.as_slice() {
            [a, b, c, d, flags, size, ..] if [*a, *b, *c, *d] == MAGIC => (*flags, *size),
            _ => return Err("a frame does not begin as one".into()),
        };
        if flags >> 6 != 1 || flags & RESERVED != 0 || size & 0b1000_1111 != 0 {
            return Err("its header has a version or bits that are not known".into());
        }
        if flags & DICTIONARY != 0 {
            return Err("it needs a dictionary, which does not come with it".into());
        }
        // From 4 for 64 KiB to 7 for 4 MiB.
        self.largest = match size >> 4 {
            n @ 4..=7 => 1 << (8_u32.saturating_add(2_u32.saturating_mul(u32::from(n)))),
            _ => return Err("its header has a block size that the format does not have".into()),
        };
        self.flags = flags;
        self.hasher = (flags & CONTENT_CHECKSUM != 0).then(|| Box::new(XxHash32::with_seed(0)));
        self.state = State::Header(if flags & CONTENT_SIZE == 0 { 1 } else { 9 });
        Ok(())
    }

    fn header(&mut self) -> Result<State, Fault> {
        let described = self.held.get(4..self.held.len().saturating_sub(1)).unwrap_or_default();
        let [_, _, found, _] = XxHash32::oneshot(0, described).to_be_bytes();
        if self.held.last() != Some(&found) {
            return Err("the checksum of its header is wrong".into());
        }
        self.content_size =
            described.get(2..).and_then(|size| size.first_chunk()).map(|size| u64::from_le_bytes(*size));
        Ok(State::Length)
    }

    fn length(&mut self) -> Result<State, Fault> {
        let word = le_u32(&self.held, 0).unwrap_or(0);
        if word == 0 {
            if self.content_size.is_some_and(|size| size != self.given) {
                return Err("it has another length than its header says".into());
            }
            return Ok(if self.hasher.is_some() { State::Checksum } else { State::Done });
        }
        let length = usize::try_from(word & 0x7fff_ffff).unwrap_or(usize::MAX);
        if length > self.largest {
            return Err("a block is larger than its header allows".into());
        }
        Ok(State::Block { length, raw: word >> 31 != 0 })
    }

    fn block(&mut self, length: usize, raw: bool) -> Result<State, Fault> {
        let packed = self.held.get(..length).unwrap_or_default();
        if self.flags & BLOCK_CHECKSUM != 0 && le_u32(&self.held, length) != Some(XxHash32::oneshot(0, packed)) {
            return Err("the checksum of a block is wrong".into());
        }
        self.handed = 0;
        if raw {
            self.block.clear();
            self.block.extend_from_slice(packed);
        } else {
            self.block.resize(self.largest, 0);
            let unpacked = lz4_flex::block::decompress_into_with_dict(packed, &mut self.block, &self.window);
            self.block.truncate(unpacked.map_err(|e| e.to_string())?);
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.write(&self.block);
        }
        self.given = self.given.saturating_add(self.block.len() as u64);
        if self.flags & BLOCKS_STAND_ALONE == 0 {
            self.window.extend_from_slice(&self.block);
            let surplus = self.window.len().saturating_sub(WINDOW);
            self.window.drain(..surplus);
        }
        Ok(State::Length)
    }
}

impl Codec for Lz4 {
    fn decode(&mut self, input: &[u8], output: &mut Vec<u8>, _last: bool) -> Result<Step, Fault> {
        let mut rest = input;
        loop {
            let ready = self.block.get(self.handed..).unwrap_or_default();
            let now = ready.len().min(output.capacity().saturating_sub(output.len()));
            output.extend_from_slice(ready.get(..now).unwrap_or_default());
            self.handed = self.handed.saturating_add(now);
            let full = self.handed < self.block.len();
            let wanted = self.needed().saturating_sub(self.held.len());
            let (part, behind) = rest.split_at(if full { 0 } else { wanted.min(rest.len()) });
            self.held.extend_from_slice(part);
            rest = behind;
            let ended = matches!(self.state, State::Done) && !full;
            if full || ended || self.held.len() < self.needed() {
                return Ok(Step { read: input.len().saturating_sub(rest.len()), ended });
            }
            self.take()?;
        }
    }
}

fn le_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}
