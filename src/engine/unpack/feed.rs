//! Drives a decoder from one feed and is another.

use bytes::{Buf, Bytes};

use super::{
    Packing, UnpackLimits,
    codec::{self, Codec, Fault},
    zip::{Listing, Zip},
};
use crate::{
    error::{Error, Result},
    io::Feed,
    model::{Rule, Violation},
};

/// Bytes handed on at once. Small enough that several pieces on the way cost little, large enough that handing them on
/// costs nothing; a piece still fits into a core's second-level cache.
const PIECE: usize = 512 << 10;

/// Calls of a decoder in a row that neither take nor give a byte. A sound one needs at most two to say that it lacks
/// something; the rest is for threads that have not come round yet. More would be for ever.
const MAX_IDLE: u32 = 16;

/// Bytes that may come out of each byte, whatever they are: zeros are not stored, but making them takes hours if there are enough.
/// gzip gives up to 1032, xz up to about 7,000, and zstd up to 32,768 (128 KiB from a block of 4 bytes), so this only meets bzip2,
/// which makes a million zeros of each byte.
const MOST_ZEROS: u64 = 100_000;

/// Bytes of output below which `MOST_ZEROS` is not applied: a moment's work.
const ZEROS_FLOOR: u64 = 1 << 30;

/// Unpacks what another feed brings.
pub(super) struct Unpacker {
    packing: Packing,
    limits: UnpackLimits,
    inner: Box<dyn Feed>,
    /// Of the member that is being decoded; `None` between members.
    codec: Option<Box<dyn Codec>>,
    /// The files of a zip archive, where several are wanted and it has not begun.
    listing: Option<Listing>,
    input: Bytes,
    /// Whether the inner feed has ended.
    ended: bool,
    members: u64,
    /// Calls of the decoder in a row that did nothing.
    idle: u32,
    /// Bytes taken in and given out so far.
    taken: u64,
    given: u64,
}

impl Unpacker {
    pub fn new(packing: Packing, inner: Box<dyn Feed>, limits: UnpackLimits) -> Self {
        let (codec, input, ended, members, idle, taken, given) = (None, Bytes::new(), false, 0, 0, 0, 0);
        Self { packing, limits, inner, codec, listing: None, input, ended, members, idle, taken, given }
    }

    /// Of a zip archive, for all files in `listing`.
    pub fn of_files(listing: Listing, inner: Box<dyn Feed>, limits: UnpackLimits) -> Self {
        Self { listing: Some(listing), ..Self::new(Packing::Zip, inner, limits) }
    }

    /// Takes the next input if there is none; afterwards, no input means that it has ended.
    fn refill(&mut self) -> Result<()> {
        while self.input.is_empty() && !self.ended {
            match self.inner.next()? {
                Some(piece) => self.input = piece,
                None => self.ended = true,
            }
        }
        Ok(())
    }

    fn consume(&mut self, length: usize) {
        self.input.advance(length.min(self.input.len()));
        self.taken = self.taken.saturating_add(length as u64);
    }

    /// Begins the next member. `false` if there is none: zeros up to the end are padding (tapes, xz's own).
    fn begin(&mut self) -> Result<bool> {
        loop {
            self.refill()?;
            if self.input.is_empty() {
                return if self.members > 0 { Ok(false) } else { Err(self.broken("it is empty")) };
            }
            let zeros = if self.members > 0 { self.input.iter().take_while(|b| **b == 0).count() } else { 0 };
            self.consume(zeros);
            if self.members > 0 && self.packing == Packing::Zip && !self.input.is_empty() {
                return Err(self.broken("something stands behind its end"));
            }
            if !self.input.is_empty() {
                let codec = match self.listing.take() {
                    Some(listing) => Ok(Box::new(Zip::new(Some(listing))) as Box<dyn Codec>),
                    None => codec::new(self.packing, &self.input, &self.limits),
                };
                self.codec = Some(codec.map_err(|e| self.broken(&e))?);
                return Ok(true);
            }
        }
    }

    /// One call of the decoder.
    fn step(&mut self, output: &mut Vec<u8>) -> Result<()> {
        self.refill()?;
        let Some(codec) = &mut self.codec else { return Ok(()) };
        let before = output.len();
        match codec.decode(&self.input, output, self.ended) {
            Ok(step) => {
                let did_nothing = step.read == 0 && output.len() == before;
                self.idle = if did_nothing { self.idle.saturating_add(1) } else { 0 };
                self.consume(step.read);
                if step.ended {
                    self.codec = None;
                    self.members = self.members.saturating_add(1);
                } else if self.idle > MAX_IDLE {
                    return Err(self.broken(if self.ended {
                        "it ends in the middle"
                    } else {
                        "nothing can be made of it"
                    }));
                }
                Ok(())
            }
            Err(Fault::Refused(violation)) => Err(violation.into()),
            Err(Fault::Broken(_)) if self.ended && self.input.is_empty() => Err(self.broken("it ends in the middle")),
            Err(Fault::Broken(why)) => Err(self.broken(&why)),
        }
    }

    fn broken(&self, why: &str) -> Error {
        let place = format!("byte {} of {} stream, byte {} unpacked", self.taken, self.packing, self.given);
        let message = format!(
            "{why} (after {} complete parts): the file is damaged or was cut off; fetch or publish it again",
            self.members
        );
        Violation::new(Rule::CompressedStream, self.packing.name(), place, message).into()
    }

    fn check_output(&self) -> Result<()> {
        let most = self.limits.max_output.min(ZEROS_FLOOR.max(self.taken.saturating_mul(MOST_ZEROS)));
        if self.given <= most {
            return Ok(());
        }
        let message = format!("more than {most} bytes come out of the first {} bytes", self.taken);
        Err(Violation::new(Rule::Bomb, self.packing.name(), self.given, message).into())
    }
}

impl Feed for Unpacker {
    fn next(&mut self) -> Result<Option<Bytes>> {
        let mut output = Vec::with_capacity(PIECE);
        let room = output.capacity();
        while output.len() < room {
            if self.codec.is_none() && !self.begin()? {
                break;
            }
            self.step(&mut output)?;
        }
        self.given = self.given.saturating_add(output.len() as u64);
        self.check_output()?;
        Ok((!output.is_empty()).then(|| output.into()))
    }
}
