//! The decoders behind one small trait. Each decodes one member; what follows a member is the feed's business.

use bzip2::Decompress as BzDecoder;
use flate2::{Decompress as GzDecoder, FlushDecompress};
use liblzma::stream::{Action, MtStreamBuilder, Status as XzStatus, Stream as XzDecoder};
use zstd::stream::raw::{DParameter, Decoder as ZstdDecoder, InBuffer, Operation, OutBuffer};

use super::{Packing, UnpackLimits, lz4::Lz4, xz, zip::Zip};
use crate::model::Violation;

/// What one call of `decode` did.
pub(super) struct Step {
    /// Bytes of the input that were used.
    pub read: usize,
    /// Whether the member is over.
    pub ended: bool,
}

/// Why a member cannot be decoded.
pub(super) enum Fault {
    /// It is damaged, by what the library says.
    Broken(String),
    /// It is not accepted.
    Refused(Violation),
}

impl From<String> for Fault {
    fn from(why: String) -> Self {
        Self::Broken(why)
    }
}

impl From<&str> for Fault {
    fn from(why: &str) -> Self {
        Self::Broken(why.to_owned())
    }
}

/// Decodes one member.
pub(super) trait Codec: Send {
    /// Appends to `output` as much as `input` gives and as fits into what `output` has reserved. `last` says that no more
    /// input will come.
    fn decode(&mut self, input: &[u8], output: &mut Vec<u8>, last: bool) -> Result<Step, Fault>;
}

/// A decoder for one member of `packing`, which begins with `head`, or as much of it as has come.
pub(super) fn new(packing: Packing, head: &[u8], limits: &UnpackLimits) -> Result<Box<dyn Codec>, String> {
    Ok(match packing {
        Packing::Gzip => Box::new(Gzip(GzDecoder::new_gzip(GZIP_WINDOW_BITS))),
        Packing::Xz if xz::fits(head, limits) => Box::new(xz::Blocks::new(limits)),
        Packing::Xz => Box::new(new_xz(limits)?),
        Packing::Zstd => Box::new(new_zstd(limits)?),
        Packing::Bzip2 => Box::new(Bzip2(BzDecoder::new(false))),
        Packing::Lz4 => Box::new(Lz4::new()),
        Packing::Zip => Box::new(Zip::new(None)),
    })
}

/// The largest window of deflate (RFC 1951): 32 KiB.
const GZIP_WINDOW_BITS: u8 = 15;

struct Gzip(GzDecoder);

impl Codec for Gzip {
    fn decode(&mut self, input: &[u8], output: &mut Vec<u8>, _last: bool) -> Result<Step, Fault> {
        let before = self.0.total_in();
        let status = self.0.decompress_vec(input, output, FlushDecompress::None).map_err(|e| e.to_string())?;
        Ok(Step { read: used(before, self.0.total_in()), ended: status == flate2::Status::StreamEnd })
    }
}

struct Xz(XzDecoder);

/// Why xz data is not unpacked that wants more than it may have.
pub(super) fn lacks_memory() -> String {
    "it was packed with a larger dictionary than the memory set aside for unpacking holds".to_owned()
}

/// Blocks are decoded side by side if their headers tell their sizes and they fit into the memory; else one after the other.
fn new_xz(limits: &UnpackLimits) -> Result<Xz, String> {
    MtStreamBuilder::new()
        .threads(limits.threads.max(1))
        .memlimit_threading(limits.parallel_memory)
        .memlimit_stop(limits.memory)
        .decoder()
        .map(Xz)
        .map_err(|e| e.to_string())
}

impl Codec for Xz {
    fn decode(&mut self, input: &[u8], output: &mut Vec<u8>, last: bool) -> Result<Step, Fault> {
        let before = self.0.total_in();
        let action = if last { Action::Finish } else { Action::Run };
        let status = match self.0.process_vec(input, output, action) {
            Ok(status) => status,
            // Nothing could be done with what there is: the feed finds out whether more comes.
            Err(liblzma::stream::Error::Program) if input.is_empty() => XzStatus::Ok,
            Err(liblzma::stream::Error::MemLimit) => return Err(lacks_memory().into()),
            Err(error) => return Err(error.to_string().into()),
        };
        Ok(Step { read: used(before, self.0.total_in()), ended: status == XzStatus::StreamEnd })
    }
}

struct Zstd(ZstdDecoder<'static>);

fn new_zstd(limits: &UnpackLimits) -> Result<Zstd, String> {
    let mut decoder = ZstdDecoder::new().map_err(|e| e.to_string())?;
    // Between 1 KiB, the smallest window of the format, and what fits; the library wants the exponent.
    let window_log = limits.memory.max(1 << 10).ilog2().min(31);
    decoder.set_parameter(DParameter::WindowLogMax(window_log)).map_err(|e| e.to_string())?;
    Ok(Zstd(decoder))
}

impl Codec for Zstd {
    fn decode(&mut self, input: &[u8], output: &mut Vec<u8>, _last: bool) -> Result<Step, Fault> {
        let filled = output.len();
        let mut from = InBuffer::around(input);
        let mut to = OutBuffer::around_pos(output, filled);
        let hint = self.0.run(&mut from, &mut to).map_err(|e| e.to_string())?;
        Ok(Step { read: from.pos(), ended: hint == 0 })
    }
}

struct Bzip2(BzDecoder);

impl Codec for Bzip2 {
    fn decode(&mut self, input: &[u8], output: &mut Vec<u8>, _last: bool) -> Result<Step, Fault> {
        let before = self.0.total_in();
        let status = self.0.decompress_vec(input, output).map_err(|e| e.to_string())?;
        Ok(Step { read: used(before, self.0.total_in()), ended: status == bzip2::Status::StreamEnd })
    }
}

fn used(before: u64, after: u64) -> usize {
    usize::try_from(after.saturating_sub(before)).unwrap_or(usize::MAX)
}
