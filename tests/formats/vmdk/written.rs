//! What we write: qemu-img finds nothing wrong with it and the same disk in it, and so do we in both orders.

use std::{fs::File, os::unix::fs::FileExt, path::Path};

use bytes::Bytes;
use vitrine_engine::{
    error::Kind,
    format::{self, Order},
    io::FileReader,
    model::{Compression, DiskFormat, Limits, OutputFormat, Subformat},
};

use super::{bytes, content, content_of, patterns, walk};
use crate::{
    qemu::Qemu,
    written::{chunks, encode, encode_to_file},
};

fn vmdk(subformat: Option<Subformat>) -> OutputFormat {
    OutputFormat { disk_format: DiskFormat::Vmdk, subformat, compression: Compression::None, cluster_size: 65_536 }
}

const SUBFORMATS: [Subformat; 2] = [Subformat::StreamOptimized, Subformat::MonolithicSparse];

fn write_raw(path: &Path, size: u64, parts: &[(u64, Bytes)]) {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    for (at, bytes) in parts {
        file.write_all_at(bytes, *at).unwrap();
    }
}

fn check(qemu: &Qemu, subformat: Subformat, image: &Path, raw: &Path, what: &str) {
    let path = image.to_str().unwrap();
    qemu.img(&["check", "-q", "-f", "vmdk", path]);
    qemu.assert_equal("vmdk", image, raw);
    let info = qemu.img(&["info", "-f", "vmdk", path]);
    assert!(info.contains(&format!("create type: {subformat}")), "{info}");
    let mut expected = std::fs::read(raw).unwrap();
    expected.resize(expected.len().next_multiple_of(512), 0);
    let mut input = FileReader::open(image).unwrap();
    let inspection = format::inspect(&mut input, None, &Limits::default()).unwrap();
    assert!(inspection.reasons.is_empty(), "{what}: {:?}", inspection.reasons);
    assert!(content(&mut input, Order::Tables, 4 << 20).unwrap() == expected, "{what}");
    assert!(content_of(&std::fs::read(image).unwrap().into(), Order::Stream).unwrap() == expected, "{what}");
}

#[test]
fn qemu_finds_nothing_wrong_with_what_we_write() {
    let qemu = Qemu::new();
    let (raw, image) = (qemu.path("raw"), qemu.path("image"));
    for size in [1, 512, 1000, 65_536, 65_536 + 513, (32 << 20) + 512, 70_000_000] {
        for (pattern, parts) in patterns(size) {
            let parts: Vec<(u64, Bytes)> = parts.into_iter().map(|(at, bytes)| (at, bytes.into())).collect();
            write_raw(&raw, size, &parts);
            // Overlapping parts: the chunks are cut from the disk as it is.
            let whole = [(0, Bytes::from(std::fs::read(&raw).unwrap()))];
            let chunks = chunks(size, &whole);
            for subformat in SUBFORMATS {
                for told in [false, true] {
                    encode_to_file(vmdk(Some(subformat)), size, told, &chunks, &image);
                    check(&qemu, subformat, &image, &raw, &format!("{subformat} {size} {pattern} told: {told}"));
                }
            }
        }
    }
}

/// A pipe takes a stream: every write begins where the last one ended.
#[test]
fn a_stream_of_known_size_is_written_from_its_beginning_to_its_end() {
    let size = 200 << 20;
    let parts: Vec<(u64, Bytes)> =
        (0..20_u32).map(|n| (u64::from(n) * (9 << 20) + 77, bytes(n, 300_000, n % 2 == 0).into())).collect();
    let mut at = 0;
    let length = encode(vmdk(None), size, true, &chunks(size, &parts), |write| {
        assert_eq!(write.offset, at);
        at += write.bytes.len() as u64;
    });
    assert_eq!(at, length);
}

#[test]
fn a_huge_sparse_disk_is_a_small_file() {
    let qemu = Qemu::new();
    let image = qemu.path("image");
    let size = 16 << 40;
    let parts = [(5 << 40, bytes(1, 100_000, true).into()), (size - 512, bytes(2, 512, false).into())];
    for (subformat, largest) in [(Subformat::StreamOptimized, 3 << 20), (Subformat::MonolithicSparse, 6 << 20)] {
        encode_to_file(vmdk(Some(subformat)), size, true, &chunks(size, &parts), &image);
        qemu.img(&["info", "-f", "vmdk", image.to_str().unwrap()]);
        let allocated = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&image).unwrap()) * 512;
        assert!(allocated < largest, "{subformat}: {allocated}");
        let mut found = 0;
        let mut input = FileReader::open(&image).unwrap();
        let limits = Limits::default();
        walk(&mut input, Order::Tables, u64::MAX, &limits, |_, data| found += data.iter().filter(|b| **b != 0).count())
            .unwrap();
        assert_eq!(found, parts.iter().flat_map(|(_, b)| b.iter()).filter(|b| **b != 0).count());
    }
}

#[test]
fn what_vmdk_cannot_be_is_said() {
    let kind = |output| format::encoder(output).map(|_| ()).unwrap_err().kind();
    for subformat in [Subformat::Dynamic, Subformat::Fixed, Subformat::Static] {
        assert_eq!(kind(vmdk(Some(subformat))), Kind::InvalidInput);
    }
    assert_eq!(kind(OutputFormat { cluster_size: 4096, ..vmdk(None) }), Kind::InvalidInput);
    assert_eq!(kind(OutputFormat { compression: Compression::Zstd, ..vmdk(None) }), Kind::InvalidInput);
    let packed = OutputFormat { compression: Compression::Zlib, ..vmdk(Some(Subformat::MonolithicSparse)) };
    assert_eq!(kind(packed), Kind::InvalidInput);
    for subformat in SUBFORMATS {
        let encoder = format::encoder(vmdk(Some(subformat))).unwrap();
        assert_eq!(encoder.layout(Some(0)).map(|_| ()).unwrap_err().kind(), Kind::InvalidInput);
        assert_eq!(encoder.layout(None).unwrap().finish(0).unwrap_err().kind(), Kind::InvalidInput);
    }
}
