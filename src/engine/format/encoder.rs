//! From an output format to its encoder.
//!
//! The only place that knows which formats can be written; knows nothing of their insides.

use crate::{
    error::{Error, Kind, Result},
    format::{
        Encoder, ploop::PloopEncoder, qcow2::Qcow2Encoder, raw::RawEncoder, vdi::VdiEncoder, vhd::VhdEncoder,
        vhdx::VhdxEncoder, vmdk::VmdkEncoder,
    },
    model::{Compression, DiskFormat, OutputFormat},
};

/// An encoder for `output`.
///
/// # Errors
/// `InvalidInput` if the format cannot be written, or not with this compression or cluster size.
pub fn encoder(output: OutputFormat) -> Result<Box<dyn Encoder>> {
    if let (format @ (DiskFormat::Raw | DiskFormat::Qcow2), Some(subformat)) = (output.disk_format, output.subformat) {
        return Err(Error::new(Kind::InvalidInput, format!("{format} has no subformat {subformat}: leave it out")));
    }
    match (output.disk_format, output.compression) {
        (DiskFormat::Raw, Compression::None) => Ok(Box::new(RawEncoder)),
        (DiskFormat::Raw, compression) => {
            let message = format!("raw disks cannot be compressed with {compression}: use qcow2, or no compression");
            Err(Error::new(Kind::InvalidInput, message))
        }
        (DiskFormat::Qcow2, _) => Ok(Box::new(Qcow2Encoder::new(output)?)),
        (DiskFormat::Vmdk, _) => Ok(Box::new(VmdkEncoder::new(output)?)),
        (DiskFormat::Vhd, _) => Ok(Box::new(VhdEncoder::new(output)?)),
        (DiskFormat::Vhdx, _) => Ok(Box::new(VhdxEncoder::new(output)?)),
        (DiskFormat::Vdi, _) => Ok(Box::new(VdiEncoder::new(output)?)),
        (DiskFormat::Ploop, _) => Ok(Box::new(PloopEncoder::new(output)?)),
        (DiskFormat::Iso | DiskFormat::Ami | DiskFormat::Ari | DiskFormat::Aki, _) => {
            let message =
                format!("{} cannot be written: use raw, qcow2, vmdk, vhd, vhdx, vdi or ploop", output.disk_format);
            Err(Error::new(Kind::InvalidInput, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Subformat;

    #[test]
    fn only_what_can_be_written_has_an_encoder() {
        let qcow2 = |cluster_size, compression| {
            encoder(OutputFormat { disk_format: DiskFormat::Qcow2, subformat: None, compression, cluster_size })
                .map(|e| e.output())
        };
        assert_eq!(encoder(OutputFormat::RAW).unwrap().output(), OutputFormat::RAW);
        assert_eq!(qcow2(512, Compression::Zstd).unwrap().cluster_size, 512);
        assert_eq!(qcow2(2 << 20, Compression::None).unwrap().cluster_size, 2 << 20);
        for wrong in [0, 256, 65535, 4 << 20, u32::MAX] {
            assert_eq!(qcow2(wrong, Compression::Zlib).unwrap_err().kind(), Kind::InvalidInput, "{wrong}");
        }
        for (disk_format, compression) in [(DiskFormat::Raw, Compression::Zlib), (DiskFormat::Vmdk, Compression::Zstd)]
        {
            let output = OutputFormat { disk_format, compression, ..OutputFormat::RAW };
            assert!(encoder(output).is_err());
        }
        for disk_format in [DiskFormat::Raw, DiskFormat::Qcow2] {
            let output = OutputFormat { disk_format, subformat: Some(Subformat::Fixed), ..OutputFormat::RAW };
            assert!(encoder(output).is_err());
        }
        for (disk_format, good, wrong) in [
            (DiskFormat::Vhd, [Subformat::Dynamic, Subformat::Fixed], Subformat::Static),
            (DiskFormat::Vdi, [Subformat::Dynamic, Subformat::Static], Subformat::Fixed),
        ] {
            let output = |subformat, compression| OutputFormat { disk_format, subformat, compression, cluster_size: 0 };
            for subformat in good.map(Some).into_iter().chain([None]) {
                let output = output(subformat, Compression::None);
                assert_eq!(encoder(output).unwrap().output(), output);
            }
            for output in [output(Some(wrong), Compression::None), output(None, Compression::Zstd)] {
                assert_eq!(encoder(output).map(|_| ()).unwrap_err().kind(), Kind::InvalidInput);
            }
        }
    }
}
