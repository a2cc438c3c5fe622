//! Packing single clusters: the other half of `codec`.
//!
//! Knows compressors and their levels; must not know where a cluster lies. Contexts are kept per thread.

use std::cell::RefCell;

use libdeflater::{CompressionLvl, Compressor};
use zstd::zstd_safe::{CCtx, CParameter};

use crate::model::Compression;

/// libdeflate's level. On the file system of the benchmarks, 64 KiB clusters, one core: level 1 makes 227 MiB/s to 34.1 % of
/// the size, level 3 156 to 32.6 %, level 6 82 to 31.7 %; zlib as qemu-img calls it makes 49 to 34.3 %. So level 1 is as small as
/// what people know and 4.6 times as fast; who wants it smaller takes zstd, which is both.
///
/// qemu-img deflates with a window of 4 KiB and opens its inflater for such a window. Ours refers up to 32 KiB back all the same:
/// a window is what inflate keeps between calls, and QEMU inflates a cluster in one call into one buffer, where every
/// distance is at hand. zlib, zlib-ng and zlib-rs were all tried that way, and `tests/formats` has qemu-img read what we write.
const DEFLATE_LEVEL: i32 = 1;

/// zstd's own default level, which qemu-img uses as well: 378 MiB/s to 32.8 % in the same measurement.
const ZSTD_LEVEL: i32 = 3;

/// The compressors and the buffer of one thread.
struct Packer {
    deflate: Compressor,
    zstd: CCtx<'static>,
    buffer: Vec<u8>,
}

thread_local! {
    static PACKER: RefCell<Packer> = RefCell::new(Packer::new());
}

impl Packer {
    fn new() -> Self {
        let mut zstd = CCtx::create();
        // Every level that is a constant here is one that both libraries have; a refusal leaves their default.
        let _ = zstd.set_parameter(CParameter::CompressionLevel(ZSTD_LEVEL));
        let level = CompressionLvl::new(DEFLATE_LEVEL).unwrap_or_default();
        Self { deflate: Compressor::new(level), zstd, buffer: Vec::new() }
    }

    fn pack(&mut self, cluster: &[u8], compression: Compression) -> Option<&[u8]> {
        // A cluster that does not shrink is stored as it is, so there is no need for room to hold more.
        self.buffer.resize(cluster.len().saturating_sub(1), 0);
        let length = match compression {
            Compression::None => return None,
            Compression::Zlib => self.deflate.deflate_compress(cluster, &mut self.buffer).ok()?,
            Compression::Zstd => self.zstd.compress2(self.buffer.as_mut_slice(), cluster).ok()?,
        };
        self.buffer.get(..length)
    }
}

/// Appends `cluster` to `output` in packed form, and gives the number of bytes; `None` if it does not shrink.
pub(super) fn pack(cluster: &[u8], compression: Compression, output: &mut Vec<u8>) -> Option<usize> {
    PACKER.with_borrow_mut(|packer| {
        let packed = packer.pack(cluster, compression)?;
        output.extend_from_slice(packed);
        Some(packed.len())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{
        Codec,
        qcow2::codec::{Deflate, Zstd},
    };

    #[test]
    fn what_is_packed_unpacks_and_noise_is_left_alone() {
        let text: Vec<u8> = (0..65536_u32).flat_map(|n| (n / 40).to_string().into_bytes()).take(65536).collect();
        let mut state = 1_u32;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .take(65536)
        .collect();
        for (compression, codec) in [(Compression::Zlib, &Deflate as &dyn Codec), (Compression::Zstd, &Zstd)] {
            let mut packed = vec![7];
            assert_eq!(pack(&noise, compression, &mut packed), None);
            let length = pack(&text, compression, &mut packed).unwrap();
            assert_eq!(packed.len(), length + 1);
            assert!(length < text.len() / 2);
            let mut unpacked = vec![0; text.len()];
            codec.unpack(&packed[1..], &mut unpacked).unwrap();
            assert_eq!(unpacked, text);
        }
        assert_eq!(pack(&text, Compression::None, &mut Vec::new()), None);
    }
}
