//! Writing ploop: chunks go into the file as they are, so the parallel half has only zeros to leave out.

use super::layout::PloopLayout;
use crate::{
    error::{Error, Kind, Result},
    format::{EncodedChunk, Encoder, Layout, raw::RawEncoder},
    model::{Chunk, Compression, OutputFormat},
};

/// Writes ploop of the second kind.
#[derive(Debug)]
pub(in crate::format) struct PloopEncoder(OutputFormat);

impl PloopEncoder {
    /// An encoder; the cluster size is the format's own business.
    ///
    /// # Errors
    /// `InvalidInput` if ploop has no such variant or compression.
    pub(in crate::format) fn new(output: OutputFormat) -> Result<Self> {
        let refuse = |message| Err(Error::new(Kind::InvalidInput, message));
        if output.compression != Compression::None {
            return refuse(format!("ploop has no compression `{}`: use none", output.compression));
        }
        match output.subformat {
            None => Ok(Self(output)),
            Some(other) => refuse(format!("ploop has no variant `{other}`: leave it out")),
        }
    }
}

impl Encoder for PloopEncoder {
    fn encode(&self, chunk: &Chunk) -> Result<EncodedChunk> {
        RawEncoder.encode(chunk)
    }

    fn layout(&self, virtual_size: Option<u64>) -> Result<Box<dyn Layout>> {
        Ok(Box::new(PloopLayout::new(virtual_size)?))
    }

    fn output(&self) -> OutputFormat {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{DiskFormat, Subformat};

    #[test]
    fn only_the_one_variant_is_written() {
        let written = |subformat, compression| {
            PloopEncoder::new(OutputFormat { disk_format: DiskFormat::Ploop, subformat, compression, cluster_size: 0 })
                .map(|_| ())
                .map_err(|error| error.kind())
        };
        assert_eq!(written(None, Compression::None), Ok(()));
        assert_eq!(written(Some(Subformat::Dynamic), Compression::None), Err(Kind::InvalidInput));
        assert_eq!(written(None, Compression::Zlib), Err(Kind::InvalidInput));
    }
}
