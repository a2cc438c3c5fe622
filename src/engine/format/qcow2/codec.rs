//! Unpacking and packing of single clusters.
//!
//! Knows deflate and zstd; must not know where a cluster lies. Contexts are kept per thread: making one costs as much as a
//! small cluster.

use std::cell::RefCell;

use libdeflater::{DecompressionError, Decompressor};
use zstd::zstd_safe::{self, DCtx};

use crate::{
    error::Result,
    format::Codec,
    model::{Rule, Violation},
};

thread_local! {
    static INFLATE: RefCell<Decompressor> = RefCell::new(Decompressor::new());
    static UNZSTD: RefCell<DCtx<'static>> = RefCell::new(DCtx::create());
}

fn refused(codec: &str, problem: impl std::fmt::Display) -> crate::error::Error {
    let message = "the image is damaged: fetch it again, or look at it with `qemu-img check`";
    Violation::new(Rule::CompressedCluster, "cluster", format!("{codec}: {problem}"), message).into()
}

fn wrong_length(codec: &str, found: usize, expected: usize) -> crate::error::Error {
    refused(codec, format!("unpacks to {found} bytes instead of {expected}"))
}

/// Raw deflate (RFC 1951), without a zlib header.
#[derive(Debug)]
pub(super) struct Deflate;

impl Codec for Deflate {
    fn unpack(&self, input: &[u8], output: &mut [u8]) -> Result<()> {
        let unpacked = INFLATE.with_borrow_mut(|inflate| inflate.deflate_decompress(input, output));
        match unpacked {
            Ok(length) if length == output.len() => Ok(()),
            Ok(length) => Err(wrong_length("zlib", length, output.len())),
            Err(DecompressionError::InsufficientSpace) => {
                Err(refused("zlib", format!("unpacks to more than {} bytes", output.len())))
            }
            Err(DecompressionError::BadData) => Err(refused("zlib", "no complete deflate stream")),
        }
    }
}

/// Zstandard frames (RFC 8878).
#[derive(Debug)]
pub(super) struct Zstd;

impl Codec for Zstd {
    /// Frame by frame, each straight into `output`: then no window is allocated, whatever size a frame asks for.
    fn unpack(&self, input: &[u8], output: &mut [u8]) -> Result<()> {
        let fail = |code| refused("zstd", zstd_safe::get_error_name(code));
        let expected = output.len();
        let (mut input, mut rest) = (input, output);
        while !rest.is_empty() {
            let length = zstd_safe::find_frame_compressed_size(input).map_err(fail)?;
            let (Some(frame), Some(behind)) = (input.get(..length), input.get(length..)) else {
                return Err(refused("zstd", "no complete frame"));
            };
            let filled = UNZSTD.with_borrow_mut(|context| context.decompress(rest, frame)).map_err(fail)?;
            if length == 0 || filled > rest.len() {
                return Err(wrong_length("zstd", filled, expected));
            }
            input = behind;
            rest = rest.get_mut(filled..).unwrap_or_default();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> Vec<u8> {
        (0..65536_u32).map(|n| (n / 7 % 251) as u8).collect()
    }

    fn deflated(data: &[u8]) -> Vec<u8> {
        let mut compressor = libdeflater::Compressor::new(libdeflater::CompressionLvl::default());
        let mut packed = vec![0; compressor.deflate_compress_bound(data.len())];
        let length = compressor.deflate_compress(data, &mut packed).unwrap();
        packed.truncate(length);
        packed
    }

    fn check(codec: &dyn Codec, pack: impl Fn(&[u8]) -> Vec<u8>) {
        let data = cluster();
        let mut packed = pack(&data);
        let whole = packed.len();
        packed.extend_from_slice(&[0xff; 511]);
        let mut output = vec![0; data.len()];
        codec.unpack(&packed, &mut output).unwrap();
        assert_eq!(output, data);
        for (input, length) in [(&packed[..], 65535), (&packed, 65537), (&packed[..whole - 1], 65536), (&[], 65536)] {
            let error = codec.unpack(input, &mut vec![0; length]).unwrap_err();
            assert_eq!(error.violation().unwrap().rule, Rule::CompressedCluster, "{length}");
        }
    }

    #[test]
    fn only_whole_clusters_unpack() {
        check(&Deflate, deflated);
        check(&Zstd, |data| zstd::bulk::compress(data, 3).unwrap());
        check(&Zstd, |data| {
            let (first, second) = data.split_at(1000);
            [zstd::bulk::compress(first, 1).unwrap(), zstd::bulk::compress(second, 1).unwrap()].concat()
        });
    }

    #[test]
    fn a_frame_without_size_or_with_an_absurd_window_needs_no_window() {
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
        encoder.include_contentsize(false).unwrap();
        std::io::Write::write_all(&mut encoder, &cluster()).unwrap();
        let mut packed = encoder.finish().unwrap();
        let mut output = vec![0; 65536];
        Zstd.unpack(&packed, &mut output).unwrap();
        assert_eq!(output, cluster());
        packed[5] = 0xff;
        assert!(Zstd.unpack(&packed, &mut output).is_err());
    }
}
