//! Good images, made by the engine's own encoders, so that they need no place in the tree.

use std::sync::LazyLock;

use bytes::{Bytes, BytesMut};
use vitrine_engine::{
    format,
    io::nonzero_runs,
    model::{CHUNK_SIZE, Chunk, Compression, DiskFormat, OutputFormat, Subformat},
};

use crate::{mend, sparse::Sparse};

const MIB: u64 = 1 << 20;
/// Size of the disks: so many chunks that one lacks, and not whole.
const SIZE: u64 = 9 * MIB + 1536;

/// Text near the beginning, noise across a block border, text in the last sector.
fn contents() -> [(u64, Vec<u8>); 3] {
    let noise = (0..3000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    [(100, b"a line of text\n".repeat(60)), (2 * MIB - 700, noise), (SIZE - 400, vec![7; 400])]
}

fn chunk(index: u64) -> Chunk {
    let (start, end) = (index * CHUNK_SIZE, SIZE.min((index + 1) * CHUNK_SIZE));
    let mut data = BytesMut::zeroed(usize::try_from(end - start).unwrap());
    for (at, bytes) in contents().iter().filter(|(at, _)| (start..end).contains(at)) {
        let from = usize::try_from(at - start).unwrap();
        data[from..from + bytes.len()].copy_from_slice(bytes);
    }
    let data = data.freeze();
    Chunk { index, runs: nonzero_runs(&data), data, digest: [0; 32] }
}

fn image(disk_format: DiskFormat, subformat: Option<Subformat>, compression: Compression, cluster_size: u32) -> Sparse {
    let encoder = format::encoder(OutputFormat { disk_format, subformat, compression, cluster_size }).unwrap();
    let mut layout = encoder.layout(Some(SIZE)).unwrap();
    let mut file = Sparse::default();
    for chunk in (0..SIZE.div_ceil(CHUNK_SIZE)).map(chunk).filter(|chunk| !chunk.runs.is_empty()) {
        for write in layout.place(encoder.encode(&chunk).unwrap()).unwrap() {
            file.write(write.offset, &write.bytes);
        }
    }
    let finish = layout.finish(SIZE).unwrap();
    finish.writes.iter().for_each(|write| file.write(write.offset, &write.bytes));
    file.set_length(finish.length);
    file
}

fn plain(disk_format: DiskFormat, subformat: Option<Subformat>) -> Sparse {
    image(disk_format, subformat, Compression::None, 64 << 10)
}

/// Empty, to be filled; not packed, and packed in both ways.
pub fn qcow2() -> &'static [Sparse] {
    static BASES: LazyLock<Vec<Sparse>> = LazyLock::new(|| {
        let with = |compression, cluster| image(DiskFormat::Qcow2, None, compression, cluster);
        vec![
            Sparse::default(),
            with(Compression::None, 64 << 10),
            with(Compression::Zlib, 4 << 10),
            with(Compression::Zstd, 16 << 10),
        ]
    });
    &BASES
}

/// Empty, to be filled; sparse, and for streams.
pub fn vmdk() -> &'static [Sparse] {
    static BASES: LazyLock<Vec<Sparse>> = LazyLock::new(|| {
        vec![
            Sparse::default(),
            plain(DiskFormat::Vmdk, Some(Subformat::MonolithicSparse)),
            image(DiskFormat::Vmdk, Some(Subformat::StreamOptimized), Compression::Zlib, 64 << 10),
        ]
    });
    &BASES
}

/// Dynamic and fixed.
pub fn vhd() -> &'static [Sparse] {
    static BASES: LazyLock<Vec<Sparse>> =
        LazyLock::new(|| [Subformat::Dynamic, Subformat::Fixed].map(|s| plain(DiskFormat::Vhd, Some(s))).into());
    &BASES
}

/// Dynamic, fixed, and with a log that was not replayed.
pub fn vhdx() -> &'static [Sparse] {
    static BASES: LazyLock<Vec<Sparse>> = LazyLock::new(|| {
        let [dynamic, fixed] = [Subformat::Dynamic, Subformat::Fixed].map(|s| {
            let mut image = plain(DiskFormat::Vhdx, Some(s));
            // What is drawn by lot.
            for header in mend::VHDX_HEADERS {
                image.write(header + 16, &[1; 32]);
            }
            image.write(2 * MIB + (64 << 10) + 16, &[2; 16]);
            image
        });
        let mut logged = dynamic.clone();
        for header in mend::VHDX_HEADERS {
            logged.write(header + 48, &LOG_GUID);
        }
        let bat = 3 * MIB;
        let sector = logged.read(bat, 4096);
        logged.write(mend::VHDX_LOG, &log_entry(&[(bat, &sector)]));
        logged.write(bat, &[0; 4096]);
        [dynamic, fixed, logged].into_iter().map(mended(mend::vhdx)).collect()
    });
    &BASES
}

fn mended(mend: fn(&mut Sparse)) -> impl FnMut(Sparse) -> Sparse {
    move |mut file| {
        mend(&mut file);
        file
    }
}

const LOG_GUID: [u8; 16] = *b"names this log!!";

/// An entry of a vhdx log ("Log Entry"): so many sectors, and where they go.
fn log_entry(changes: &[(u64, &[u8])]) -> Vec<u8> {
    let number = 5_u64.to_le_bytes();
    let mut bytes = vec![0; 64];
    let mut data = Vec::new();
    for (offset, sector) in changes {
        bytes.extend([b"desc", &sector[4092..], &sector[..8], &offset.to_le_bytes(), &number].concat());
        data.extend([b"data", &number[4..], &sector[8..4092], &number[..4]].concat());
    }
    bytes.resize(4096, 0);
    bytes.extend(data);
    let length = u32::try_from(bytes.len()).unwrap();
    bytes[..4].copy_from_slice(b"loge");
    bytes[8..12].copy_from_slice(&length.to_le_bytes());
    bytes[16..24].copy_from_slice(&number);
    bytes[24..28].copy_from_slice(&u32::try_from(changes.len()).unwrap().to_le_bytes());
    bytes[32..48].copy_from_slice(&LOG_GUID);
    bytes[48..56].copy_from_slice(&(4 * MIB).to_le_bytes());
    bytes[56..64].copy_from_slice(&(4 * MIB).to_le_bytes());
    bytes
}

/// Dynamic and static.
pub fn vdi() -> &'static [Sparse] {
    static BASES: LazyLock<Vec<Sparse>> =
        LazyLock::new(|| [Subformat::Dynamic, Subformat::Static].map(|s| plain(DiskFormat::Vdi, Some(s))).into());
    &BASES
}

/// As it is written.
pub fn ploop() -> &'static [Sparse] {
    static BASES: LazyLock<Vec<Sparse>> = LazyLock::new(|| vec![plain(DiskFormat::Ploop, None)]);
    &BASES
}

/// Nothing, to be filled.
pub fn raw() -> &'static [Sparse] {
    static BASES: LazyLock<Vec<Sparse>> = LazyLock::new(|| {
        let mut empty = Sparse::default();
        empty.set_length(128 << 10);
        vec![empty]
    });
    &BASES
}

/// A disk of two sectors with a partition table, for what is around it.
pub fn disk() -> Bytes {
    let mut disk = vec![0; 1024];
    disk[510..512].copy_from_slice(b"\x55\xaa");
    disk.into()
}
