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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::DiskFormat;

    #[test]
    fn only_variants_that_vhdx_has_are_written() {
        let written = |subformat, compression| {
            VhdxEncoder::new(OutputFormat { disk_format: DiskFormat::Vhdx, subformat, compression, cluster_size: 0 })
                .map(|encoder| encoder.fixed)
                .map_err(|error| error.kind())
        };
        assert_eq!(written(None, Compression::None), Ok(false));
        assert_eq!(written(Some(Subformat::Dynamic), Compression::None), Ok(false));
        assert_eq!(written(Some(Subformat::Fixed), Compression::None), Ok(true));
        assert_eq!(written(Some(Subformat::Static), Compression::None), Err(Kind::InvalidInput));
        assert_eq!(written(None, Compression::Zstd), Err(Kind::InvalidInput));
    }
}
