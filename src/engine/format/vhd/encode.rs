//! The parallel half of writing: the runs of a chunk, cut where blocks end.
//!
//! Knows the variants; must not know where anything lies in the file.

use super::{
    BLOCK,
    layout::{DynamicLayout, FixedLayout},
};
use crate::{
    error::{Error, Kind, Result},
    format::{EncodedChunk, Encoder, Layout, raw::pieces},
    model::{CHUNK_SIZE, Chunk, Compression, OutputFormat, Subformat},
};

/// Writes vhd.
#[derive(Debug)]
pub(in crate::format) struct VhdEncoder {
    output: OutputFormat,
    /// Whether everything is allocated.
    fixed: bool,
}

impl VhdEncoder {
    /// An encoder for the variant that `output` names: dynamic if none.
    ///
    /// # Errors
    /// `InvalidInput` if vhd has no such variant, or compression is asked for.
    pub(in crate::format) fn new(output: OutputFormat) -> Result<Self> {
        let fixed = match output.subformat {
            None | Some(Subformat::Dynamic) => false,
            Some(Subformat::Fixed) => true,
            Some(other) => {
                let message = format!("vhd has no subformat {other}: use dynamic or fixed");
                return Err(Error::new(Kind::InvalidInput, message));
            }
        };
        if output.compression != Compression::None {
            let message = format!("a vhd cannot be compressed with {}: use no compression", output.compression);
            return Err(Error::new(Kind::InvalidInput, message));
        }
        Ok(Self { output, fixed })
    }
}

impl Encoder for VhdEncoder {
    fn encode(&self, chunk: &Chunk) -> Result<EncodedChunk> {
        let block = if self.fixed { CHUNK_SIZE } else { BLOCK };
        Ok(EncodedChunk { index: chunk.index, pieces: pieces(chunk, block) })
    }

    fn layout(&self, virtual_size: Option<u64>) -> Result<Box<dyn Layout>> {
        Ok(if self.fixed {
            Box::new(FixedLayout::new(virtual_size)?)
        } else {
            Box::new(DynamicLayout::new(virtual_size)?)
        })
    }

    fn output(&self) -> OutputFormat {
        self.output
    }

    fn is_forward(&self, _virtual_size: Option<u64>) -> bool {
        self.output.subformat == Some(Subformat::Fixed)
    }
}
