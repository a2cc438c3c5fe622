//! The parallel half of writing: the runs of a chunk, cut where blocks end.
//!
//! Knows the variants; must not know where anything lies in the file.

use super::{BLOCK, layout::VdiLayout};
use crate::{
    error::{Error, Kind, Result},
    format::{EncodedChunk, Encoder, Layout, raw::pieces},
    model::{Chunk, Compression, OutputFormat, Subformat},
};

/// Writes vdi.
#[derive(Debug)]
pub(in crate::format) struct VdiEncoder {
    output: OutputFormat,
    /// Whether every block is allocated.
    all: bool,
}

impl VdiEncoder {
    /// An encoder for the variant that `output` names: dynamic if none.
    ///
    /// # Errors
    /// `InvalidInput` if vdi has no such variant, or compression is asked for.
    pub(in crate::format) fn new(output: OutputFormat) -> Result<Self> {
        let all = match output.subformat {
            None | Some(Subformat::Dynamic) => false,
            Some(Subformat::Static) => true,
            Some(other) => {
                let message = format!("vdi has no subformat {other}: use dynamic or static");
                return Err(Error::new(Kind::InvalidInput, message));
            }
        };
        if output.compression != Compression::None {
            let message = format!("a vdi cannot be compressed with {}: use no compression", output.compression);
            return Err(Error::new(Kind::InvalidInput, message));
        }
        Ok(Self { output, all })
    }
}

impl Encoder for VdiEncoder {
    fn encode(&self, chunk: &Chunk) -> Result<EncodedChunk> {
        Ok(EncodedChunk { index: chunk.index, pieces: pieces(chunk, BLOCK) })
    }

    fn layout(&self, virtual_size: Option<u64>) -> Result<Box<dyn Layout>> {
        Ok(Box::new(VdiLayout::new(self.all, virtual_size)?))
    }

    fn output(&self) -> OutputFormat {
        self.output
    }
}
