//! Takes one layer of compression off a stream: gzip, xz, zstd, bzip2, lz4, or a zip archive.
//!
//! Knows nothing of where the bytes come from and what they hold. Output comes in bounded pieces and in bounded number;
//! memory is bounded by refusing streams that want more. A stream that ends early, or goes on with something else than
//! zeros, is refused.

mod codec;
mod detect;
mod feed;
mod lz4;
pub mod tar;
mod xz;
pub mod zip;

use std::{fmt, num::NonZero, thread};

pub use detect::{HEAD, detect};

use crate::{io::Feed, model::Limits};

/// A compression around a whole file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Packing {
    /// RFC 1952, one or more members.
    Gzip,
    /// The .xz file format, one or more streams.
    Xz,
    /// RFC 8878, one or more frames, skippable ones among them.
    Zstd,
    /// bzip2, one or more streams.
    Bzip2,
    /// LZ4 frames, one or more.
    Lz4,
    /// A zip archive.
    Zip,
}

impl Packing {
    /// The name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
            Self::Lz4 => "lz4",
            Self::Zip => "zip",
        }
    }
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What unpacking may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnpackLimits {
    /// Memory for the decoder, in bytes. A stream that needs more is refused.
    pub memory: u64,
    /// Memory up to which the library unpacks blocks of an xz stream side by side, in bytes; 0 for one after the other in any case.
    pub parallel_memory: u64,
    /// Threads for an xz stream made of blocks.
    pub threads: u32,
    /// Bytes that may come out.
    pub max_output: u64,
}

impl UnpackLimits {
    /// For blocks too small or too costly for threads of ours. The library holds all that comes out of a block until its turn has come:
    /// two of 12 MiB leave the rest of an import enough of 128 MiB.
    const PARALLEL_MEMORY: u64 = 40 << 20;

    /// More threads than this are not fed by one stream within the memory.
    const MAX_THREADS: u32 = 8;

    /// Defaults, with the output bounded by the largest disk that `limits` lets in and the tables that may come with it:
    /// no format has more than a sixty-fourth of them.
    pub fn new(limits: &Limits) -> Self {
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        Self {
            memory: limits.unpack_memory,
            parallel_memory: Self::PARALLEL_MEMORY,
            threads: u32::try_from(threads).unwrap_or(1).min(Self::MAX_THREADS),
            max_output: limits.max_virtual_size.saturating_add(limits.max_virtual_size / 64).saturating_add(1 << 20),
        }
    }
}

/// What comes out of `inner`, which holds a stream packed with `packing`.
pub fn unpacker(packing: Packing, inner: Box<dyn Feed>, limits: UnpackLimits) -> Box<dyn Feed> {
    Box::new(feed::Unpacker::new(packing, inner, limits))
}

/// The files of a zip archive, which `inner` holds, as a tar archive.
pub fn zip_files(listing: zip::Listing, inner: Box<dyn Feed>, limits: UnpackLimits) -> Box<dyn Feed> {
    Box::new(feed::Unpacker::of_files(listing, inner, limits))
}

#[cfg(test)]
mod tests;
