//! Decompressors: what comes out must not depend on how the input comes, and have its limit.

use bytes::Bytes;
use vitrine_engine::{
    error::{Kind, Result},
    io::Feed,
    unpack::{Packing, UnpackLimits, unpacker},
};

use crate::mend;

/// Enough for blocks that are worth a thread of their own (xz), and for windows of a few MiB.
const LIMITS: UnpackLimits =
    UnpackLimits { memory: 8 << 20, parallel_memory: 8 << 20, threads: 2, max_output: 1 << 20 };
/// Bytes at once of an input that comes slowly. Odd, so that nothing lines up with them.
const SLOW: usize = 13;

struct Pieces {
    bytes: Bytes,
    most: usize,
}

impl Feed for Pieces {
    fn next(&mut self) -> Result<Option<Bytes>> {
        let piece = self.bytes.split_to(self.most.min(self.bytes.len()));
        Ok((!piece.is_empty()).then_some(piece))
    }
}

fn unpack(packing: Packing, bytes: &Bytes, most: usize) -> Result<Vec<u8>> {
    let mut feed = unpacker(packing, Box::new(Pieces { bytes: bytes.clone(), most }), LIMITS);
    let mut output = Vec::new();
    while let Some(piece) = feed.next()? {
        assert!(!piece.is_empty(), "an empty piece is no end");
        output.extend_from_slice(&piece);
        assert!(output.len() as u64 <= LIMITS.max_output, "{} bytes came out", output.len());
    }
    Ok(output)
}

fn check(packing: Packing, bytes: Vec<u8>) -> bool {
    let bytes = Bytes::from(bytes);
    let [at_once, slowly] = [bytes.len().max(1), SLOW].map(|most| {
        unpack(packing, &bytes, most).map_err(|error| {
            assert_eq!(error.kind(), Kind::Refused, "{error}");
            error.to_string()
        })
    });
    match (at_once, slowly) {
        (Ok(at_once), Ok(slowly)) => {
            assert!(at_once == slowly, "{} and {} bytes", at_once.len(), slowly.len());
            true
        }
        (Err(_), Err(_)) => false,
        (at_once, slowly) => {
            panic!("at once {:?}, slowly {:?}", at_once.map(|bytes| bytes.len()), slowly.map(|bytes| bytes.len()))
        }
    }
}

fn mended(data: &[u8], mend: fn(&mut [u8])) -> Vec<u8> {
    let mut bytes = data.to_vec();
    mend(&mut bytes);
    bytes
}

/// The target `zip`.
pub fn zip(data: &[u8]) -> bool {
    check(Packing::Zip, data.to_vec())
}

/// The target `lz4`.
pub fn lz4(data: &[u8]) -> bool {
    check(Packing::Lz4, mended(data, mend::lz4))
}

/// The target `gz`.
pub fn gz(data: &[u8]) -> bool {
    check(Packing::Gzip, data.to_vec())
}

/// The target `xz`: at once, blocks of a size are decoded side by side by threads of ours, and slowly by the library alone.
pub fn xz(data: &[u8]) -> bool {
    check(Packing::Xz, mended(data, mend::xz))
}

/// The target `zst`.
pub fn zst(data: &[u8]) -> bool {
    check(Packing::Zstd, data.to_vec())
}

/// The target `bz2`.
pub fn bz2(data: &[u8]) -> bool {
    check(Packing::Bzip2, data.to_vec())
}
