//! What we write: qemu-img finds nothing wrong with it and the same disk in it, and so do we.

use std::{fs::File, ops::Range, os::unix::fs::FileExt, path::Path};

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use vitrine_engine::{
    format::{self, Write},
    io::{FileReader, nonzero_runs},
    model::{CHUNK_SIZE, Chunk, Compression, DiskFormat, Limits, OutputFormat},
};

use crate::{
    disk::{self, Memory},
    qemu::Qemu,
};

const COMPRESSIONS: [Compression; 3] = [Compression::None, Compression::Zlib, Compression::Zstd];

fn qcow2(compression: Compression, cluster_size: u32) -> OutputFormat {
    OutputFormat { disk_format: DiskFormat::Qcow2, subformat: None, compression, cluster_size }
}

/// The chunks of a sparse disk, whose data lies in `parts`: where, and the bytes.
pub fn chunks(size: u64, parts: &[(u64, Bytes)]) -> Vec<Chunk> {
    let touched = parts.iter().flat_map(|(at, bytes)| at / CHUNK_SIZE..(at + bytes.len() as u64).div_ceil(CHUNK_SIZE));
    let mut indices: Vec<u64> = touched.collect();
    indices.sort_unstable();
    indices.dedup();
    indices.into_iter().map(|index| chunk(index, size, parts)).filter(|chunk| !chunk.runs.is_empty()).collect()
}

fn chunk(index: u64, size: u64, parts: &[(u64, Bytes)]) -> Chunk {
    let span: Range<u64> = index * CHUNK_SIZE..size.min((index + 1) * CHUNK_SIZE);
    let mut data = BytesMut::zeroed(usize::try_from(span.end - span.start).unwrap());
    for (at, bytes) in parts {
        let part = (*at).max(span.start)..(at + bytes.len() as u64).min(span.end);
        if part.start < part.end {
            let from = usize::try_from(part.start - at).unwrap();
            let to = usize::try_from(part.start - span.start).unwrap();
            let length = usize::try_from(part.end - part.start).unwrap();
            data[to..to + length].copy_from_slice(&bytes[from..from + length]);
        }
    }
    let data = data.freeze();
    Chunk { index, runs: nonzero_runs(&data), data, digest: [0; 32] }
}

/// Encodes a disk; `write` gets every write in order. The file's length.
pub fn encode(output: OutputFormat, size: u64, told: bool, chunks: &[Chunk], mut write: impl FnMut(&Write)) -> u64 {
    let encoder = format::encoder(output).unwrap();
    let mut layout = encoder.layout(told.then_some(size)).unwrap();
    for chunk in chunks {
        layout.place(encoder.encode(chunk).unwrap()).unwrap().iter().for_each(&mut write);
    }
    let finish = layout.finish(size).unwrap();
    finish.writes.iter().for_each(&mut write);
    finish.length
}

pub fn encode_to_file(output: OutputFormat, size: u64, told: bool, chunks: &[Chunk], path: &Path) {
    let file = File::create(path).unwrap();
    let length = encode(output, size, told, chunks, |w| file.write_all_at(&w.bytes, w.offset).unwrap());
    assert!(file.metadata().unwrap().len() <= length, "writes past the end");
    file.set_len(length).unwrap();
}

/// Bytes that compress (`n / 50` in digits) or do not, for `seed`.
pub fn bytes(seed: u32, length: usize, noise: bool) -> Bytes {
    let mut state = seed;
    if noise {
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        return (0..length).map(|_| next()).collect();
    }
    (0..).flat_map(|n: u32| (seed + n / 50).to_string().into_bytes()).take(length).collect()
}

/// A disk with a bit of everything, for clusters of this size.
pub fn parts(cluster: u64, size: u64) -> Vec<(u64, Bytes)> {
    let one = usize::try_from(cluster).unwrap();
    let all = [
        (0, bytes(1, 3 * one + 100, false)),
        (4 * cluster + 5, bytes(2, one, true)),
        (6 * cluster, bytes(3, 2 * one, true)),
        (8 * cluster, bytes(4, 9 * one, false)),
        (CHUNK_SIZE - 700, bytes(5, 2000, false)),
        (size / 2 / 512 * 512, bytes(6, 70_000, false)),
        (size.saturating_sub(513), bytes(7, 513, true)),
    ];
    all.into_iter()
        .filter(|(at, _)| *at < size)
        .map(|(at, bytes)| (at, bytes.slice(..bytes.len().min(usize::try_from(size - at).unwrap()))))
        .collect()
}

pub fn write_raw(path: &Path, size: u64, parts: &[(u64, Bytes)]) {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    for (at, bytes) in parts {
        file.write_all_at(bytes, *at).unwrap();
    }
}

#[test]
fn qemu_finds_nothing_wrong_with_what_we_write() {
    let qemu = Qemu::new();
    let (raw, image) = (qemu.path("raw"), qemu.path("image"));
    for bits in 9..=21 {
        let cluster = 1_u64 << bits;
        for size in [0, 512, 1000, cluster + 512, 20 * cluster + 1536, 70_000_000] {
            let parts = parts(cluster, size);
            write_raw(&raw, size, &parts);
            let chunks = chunks(size, &parts);
            for (number, compression) in COMPRESSIONS.into_iter().enumerate() {
                let told = number % 2 == 0 || bits % 2 == 0;
                encode_to_file(qcow2(compression, 1 << bits), size, told, &chunks, &image);
                qemu.img(&["check", "-q", "-f", "qcow2", image.to_str().unwrap()]);
                qemu.assert_equal("qcow2", &image, &raw);
                let mut input = FileReader::open(&image).unwrap();
                assert!(disk::refusals(&mut input, None).is_empty());
                let read = disk::content(&mut input, 4 << 20).unwrap();
                let mut expected = std::fs::read(&raw).unwrap();
                expected.resize(expected.len().next_multiple_of(512), 0);
                assert!(read == expected, "{bits} {size} {compression}");
            }
        }
    }
}

/// Long enough for several refcount blocks and L2 tables, so that compressed data meets their borders.
#[test]
fn borders_of_refcount_blocks_and_tables_are_crossed() {
    let qemu = Qemu::new();
    let (raw, image) = (qemu.path("raw"), qemu.path("image"));
    let size = 24 << 20;
    let parts: Vec<(u64, Bytes)> =
        (0..48_u32).map(|n| (u64::from(n) * (1 << 19), bytes(n, 400_000 + 7 * n as usize, n % 3 == 0))).collect();
    write_raw(&raw, size, &parts);
    for (cluster, compression) in [512, 1024, 4096].into_iter().flat_map(|c| COMPRESSIONS.map(|z| (c, z))) {
        for told in [false, true] {
            encode_to_file(qcow2(compression, cluster), size, told, &chunks(size, &parts), &image);
            qemu.img(&["check", "-q", "-f", "qcow2", image.to_str().unwrap()]);
            qemu.assert_equal("qcow2", &image, &raw);
        }
    }
}

#[test]
fn a_huge_sparse_disk_is_a_small_file() {
    let qemu = Qemu::new();
    let image = qemu.path("image");
    let size = 16 << 40;
    let parts = [(5 << 40, bytes(1, 100_000, true)), (size - 512, bytes(2, 512, false))];
    for compression in COMPRESSIONS {
        encode_to_file(qcow2(compression, 65536), size, true, &chunks(size, &parts), &image);
        qemu.img(&["check", "-q", "-f", "qcow2", image.to_str().unwrap()]);
        assert!(std::fs::metadata(&image).unwrap().len() < 2 << 20);
    }
}

/// A reader of the file as a stream must find every table before its data, and a header only when all is there.
#[test]
fn tables_lie_before_their_data_and_the_header_is_written_last() {
    let size = 1 << 30;
    let parts: Vec<(u64, Bytes)> = (0..40).map(|n| (n * (25 << 20), bytes(1, 300_000, n % 2 == 0))).collect();
    for compression in COMPRESSIONS {
        let mut image = vec![0; 64 << 20];
        let mut last = u64::MAX;
        let length = encode(qcow2(compression, 65536), size, true, &chunks(size, &parts), |w| {
            let at = usize::try_from(w.offset).unwrap();
            image[at..at + w.bytes.len()].copy_from_slice(&w.bytes);
            last = w.offset;
        });
        assert_eq!(last, 0);
        image.truncate(usize::try_from(length).unwrap());
        let mut reads = Vec::new();
        let mut input = Ordered { inner: Memory::new(image), reads: &mut reads };
        disk::walk(&mut input, u64::MAX, &Limits::default(), |_, _| {}).unwrap();
        let mut table = 0;
        for (at, length) in &reads[1..] {
            assert!(*at > table, "{at} is read after the table at {table}: {reads:?}");
            table = if *length == 65536 { *at } else { table };
        }
        assert!(table > 0);
    }
}

/// Notes what is read, in order.
struct Ordered<'a> {
    inner: Memory,
    reads: &'a mut Vec<(u64, usize)>,
}

impl vitrine_engine::io::ReadAt for Ordered<'_> {
    fn length(&self) -> Option<u64> {
        self.inner.length()
    }

    fn read_up_to(&mut self, offset: u64, length: usize) -> vitrine_engine::error::Result<Bytes> {
        self.reads.push((offset, length));
        self.inner.read_up_to(offset, length)
    }
}

pub fn sparse_disk() -> impl Strategy<Value = (u64, Vec<(u64, Bytes)>)> {
    let part = (any::<u64>(), 1_usize..150_000, any::<u16>(), any::<bool>());
    (0_u64..20 << 20, prop::collection::vec(part, 0..8)).prop_map(|(size, drafts)| {
        let parts = drafts.into_iter().filter(|_| size > 0).map(|(at, length, seed, noise)| {
            let at = at % size;
            let length = length.min(usize::try_from(size - at).unwrap());
            (at, bytes(u32::from(seed), length, noise))
        });
        (size, parts.collect())
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_disks_come_back_as_they_were(
        (size, parts) in sparse_disk(),
        bits in 9_u32..=21,
        compression in prop::sample::select(&COMPRESSIONS[..]),
        raw in prop::bool::weighted(0.2),
        told in any::<bool>(),
    ) {
        let mut disk = vec![0; usize::try_from(size).unwrap()];
        for (at, bytes) in &parts {
            let at = usize::try_from(*at).unwrap();
            disk[at..at + bytes.len()].copy_from_slice(bytes);
        }
        // Overlapping parts: the chunks are cut from the disk as it is.
        let whole = [(0, Bytes::from(disk.clone()))];
        let output = if raw { OutputFormat::RAW } else { qcow2(compression, 1 << bits) };
        let mut image = Vec::new();
        let length = encode(output, size, told, &chunks(size, &whole), |w| {
            let end = usize::try_from(w.offset).unwrap() + w.bytes.len();
            image.resize(image.len().max(end), 0);
            image[end - w.bytes.len()..end].copy_from_slice(&w.bytes);
        });
        image.resize(usize::try_from(length).unwrap(), 0);
        if raw {
            prop_assert!(image == disk);
        } else {
            disk.resize(disk.len().next_multiple_of(512), 0);
            for streamed in [false, true] {
                let read = disk::content(&mut Memory { bytes: image.clone().into(), streamed }, u64::MAX).unwrap();
                prop_assert!(read == disk);
            }
        }
    }
}
