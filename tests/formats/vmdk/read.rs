//! Every vmdk in one file that qemu-img writes, read here and compared with what went in.

use std::{fs::File, os::unix::fs::FileExt, path::Path};

use vitrine_engine::{
    format::{self, Order, Place},
    io::FileReader,
    model::{DiskFormat, Limits},
};

use super::{bytes, content, content_of, patterns};
use crate::qemu::Qemu;

const SUBFORMATS: [&str; 4] = [
    "subformat=monolithicSparse",
    "subformat=streamOptimized",
    "subformat=monolithicSparse,zeroed_grain=on",
    "subformat=streamOptimized,compat6=on",
];

fn write_raw(path: &Path, size: u64, parts: &[(u64, Vec<u8>)]) {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    for (at, bytes) in parts {
        file.write_all_at(bytes, *at).unwrap();
    }
}

/// Our reading of `image` in every way is `raw`, and inspection finds nothing.
fn check(image: &Path, raw: &Path, what: &str) {
    let expected = std::fs::read(raw).unwrap();
    let mut input = FileReader::open(image).unwrap();
    for most in [u64::MAX, 4 << 20, 5000] {
        let found = content(&mut input, Order::Tables, most).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(found == expected, "{what}: read as something else");
    }
    let streamed = content_of(&std::fs::read(image).unwrap().into(), Order::Stream);
    assert!(streamed.unwrap_or_else(|e| panic!("{what}: {e}")) == expected, "{what}: streamed as something else");
    let inspection = format::inspect(&mut input, Some(DiskFormat::Vmdk), &Limits::default()).unwrap();
    assert!(inspection.reasons.is_empty(), "{what}: {:?}", inspection.reasons);
    assert_eq!(inspection.virtual_size, Some(expected.len() as u64));
}

#[test]
fn every_subformat_size_and_pattern_is_read_as_qemu_wrote_it() {
    let qemu = Qemu::new();
    let (raw, image) = (qemu.path("raw"), qemu.path("image"));
    for size in [512, 65_536, 65_536 + 512, 11 * 65_536 - 512, 9_000_448, 70_000_128] {
        for (pattern, parts) in patterns(size) {
            write_raw(&raw, size, &parts);
            for options in SUBFORMATS {
                let (from, to) = (raw.to_str().unwrap(), image.to_str().unwrap());
                qemu.img(&["convert", "-f", "raw", "-O", "vmdk", "-o", options, from, to]);
                check(&image, &raw, &format!("{options} {size} {pattern}"));
            }
        }
    }
}

#[test]
fn disks_that_were_lived_in_are_read_as_qemu_reads_them() {
    let qemu = Qemu::new();
    let (raw, image) = (qemu.path("raw"), qemu.path("image"));
    let (from, to) = (image.to_str().unwrap(), raw.to_str().unwrap());
    for options in ["subformat=monolithicSparse", "subformat=monolithicSparse,zeroed_grain=on"] {
        qemu.img(&["create", "-q", "-f", "vmdk", "-o", options, from, "134217728"]);
        for seed in 1..4_u64 {
            let writes: Vec<String> = (0..60_u64)
                .map(|n| {
                    let at = (n * 7_919 + seed * 104_729) % 262_000 * 512;
                    match n % 4 {
                        0 => format!("write -z {} 131072", at / 65_536 * 65_536),
                        1 => format!("write -P {} {at} 70656", n + 1),
                        _ => format!("write -P {} {at} 512", n + 1),
                    }
                })
                .collect();
            qemu.io("vmdk", &image, &writes);
        }
        qemu.img(&["convert", "-f", "vmdk", "-O", "raw", from, to]);
        check(&image, &raw, options);
    }
}

#[test]
fn a_huge_sparse_disk_is_read_in_few_answers() {
    let qemu = Qemu::new();
    let (raw, image) = (qemu.path("raw"), qemu.path("image"));
    let parts = [(0, bytes(1, 70_000, true)), ((3 << 40) + 512, bytes(2, 600, false)), ((4 << 40) - 1, vec![5])];
    write_raw(&raw, 4 << 40, &parts);
    for options in SUBFORMATS {
        let (from, to) = (raw.to_str().unwrap(), image.to_str().unwrap());
        qemu.img(&["convert", "-f", "raw", "-O", "vmdk", "-o", options, from, to]);
        let mut input = FileReader::open(&image).unwrap();
        let mut map = format::open(&mut input, None, &Limits::default(), Order::Tables).unwrap();
        let (mut guest, mut answers, mut data) = (0, 0, Vec::new());
        while guest < 4 << 40 {
            let mapping = map.resolve(&mut input, guest, u64::MAX).unwrap();
            if mapping.place != Place::Zero {
                data.push(guest);
            }
            guest += mapping.length;
            answers += 1;
        }
        data.retain(|at| at % (1 << 30) == 0 || *at > 1 << 40);
        assert_eq!(data.first(), Some(&0), "{options}");
        assert_eq!(data.last(), Some(&((4 << 40) - 65_536)), "{options}");
        // One for each of its 131,072 grain tables.
        assert!(answers < 132_000, "{options}: {answers}");
        let mut found = Vec::new();
        super::walk(&mut input, Order::Tables, u64::MAX, &Limits::default(), |at, bytes| {
            found.extend(bytes.iter().enumerate().filter(|(_, b)| **b != 0).map(|(n, b)| (at + n as u64, *b)));
        })
        .unwrap();
        let wanted: Vec<(u64, u8)> = parts
            .iter()
            .flat_map(|(at, bytes)| bytes.iter().enumerate().map(move |(n, b)| (at + n as u64, *b)))
            .filter(|(_, b)| *b != 0)
            .collect();
        assert!(found == wanted, "{options}");
    }
}
