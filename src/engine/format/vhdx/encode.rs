//! Writing vhdx: chunks go into the file as they are, so the parallel half has only zeros to leave out.

use super::layout::VhdxLayout;
use crate::{
    error::{Error, Kind, Result},
    format::{EncodedChunk, Encoder, Layout, raw::RawEncoder},
    model::{Chunk, Compression, OutputFormat, Subformat},
};

/// Writes vhdx, dynamic or fixed.
#[derive(Debug)]
pub(in crate::format) struct VhdxEncoder {
    output: OutputFormat,
    fixed: bool,
}

impl VhdxEncoder {
    /// An encoder for this variant; the cluster size is the format's own business.
    ///
    /// # Errors
    /// `InvalidInput` if vhdx has no such variant or compression.
    pub(in crate::format) fn new(output: OutputFormat) -> Result<Self> {
        let refuse = |message| Err(Error::new(Kind::InvalidInput, message));
        if output.compression != Compression::None {
            return refuse(format!("vhdx has no compression `{}`: use none", output.compression));
        }
        let fixed = match output.subformat {
            None | Some(Subformat::Dynamic) => false,
            Some(Subformat::Fixed) => true,
            Some(other) => return refuse(format!("vhdx has no variant `{other}`: use dynamic or fixed")),
        };
        Ok(Self { output, fixed })
    }
}

impl Encoder for VhdxEncoder {
    fn encode(&self, chunk: &Chunk) -> Result<EncodedChunk> {
        RawEncoder.encode(chunk)
    }

    fn layout(&self, virtual_size: Option<u64>) -> Result<Box<dyn Layout>> {
        Ok(Box::new(VhdxLayout::new(self.fixed, virtual_size)?))
    }

    fn output(&self) -> OutputFormat {
        self.output
    }
}
