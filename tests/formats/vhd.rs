//! VHD against qemu-img, and files made to break one rule each.

use std::fs;

use vitrine_engine::{
    format::{self, Order, Place},
    io::FileReader,
    model::{DiskFormat, Limits},
};

use crate::{
    blocks::output,
    blockwise::{Case, assert_reads_as, assert_refused, assert_survives, huge, refused, sample},
    disk::{Memory, content},
    qemu::Qemu,
};

#[test]
fn a_disk_that_was_lived_in_is_read_as_qemu_reads_it() {
    let qemu = Qemu::new();
    let (image, raw) = (qemu.path("image"), qemu.path("raw"));
    let name = image.to_str().unwrap();
    qemu.img(&["create", "-q", "-f", "vpc", "-o", "force_size=on", name, "50000384"]);
    let write = |n: u64| format!("write -P {} {} 70k", n + 1, n * 104_729 * 512 % 49_000_000 / 512 * 512);
    qemu.io("vpc", &image, &(0..40).map(write).collect::<Vec<_>>());
    qemu.img(&["convert", "-f", "vpc", "-O", "raw", name, raw.to_str().unwrap()]);
    let expected = fs::read(&raw).unwrap();
    assert_reads_as(&image, &expected, DiskFormat::Vhd, "lived in");
}

#[test]
fn the_largest_disk_costs_little() {
    let qemu = Qemu::new();
    let size = 2040 << 30;
    for told in [true, false] {
        let (image, at) = huge(&qemu, output(DiskFormat::Vhd, None), size, told);
        assert!(fs::metadata(&image).unwrap().len() < 10 << 20);
        let info = qemu.img(&["info", "-f", "vpc", image.to_str().unwrap()]);
        assert!(info.contains(&format!("({size} bytes)")), "{info}");
        let mut input = FileReader::open(&image).unwrap();
        let mut map = format::open(&mut input, None, &Limits::default(), Order::Tables).unwrap();
        let (mut guest, mut data) = (0, Vec::new());
        while guest < size {
            let mapping = map.resolve(&mut input, guest, u64::MAX).unwrap();
            data.extend((mapping.place != Place::Zero).then_some((guest, mapping.length)));
            guest += mapping.length;
        }
        assert_eq!(data, at.map(|at| (at >> 21 << 21, 2 << 20)));
        map.finish(&mut input).unwrap();
    }
}

fn put(image: &mut [u8], at: usize, value: u32) {
    image[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

fn put64(image: &mut [u8], at: usize, value: u64) {
    image[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

/// Sets the checksum at `at` of `bytes`.
fn sum(bytes: &mut [u8], at: usize) {
    put(bytes, at, 0);
    let sum = !bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    put(bytes, at, sum);
}

/// Changes both footers of a dynamic disk in the same way.
fn footers(image: &mut [u8], change: impl Fn(&mut [u8])) {
    let end = image.len() - 512;
    for at in [0, end] {
        last(&mut image[..at + 512], &change);
    }
}

/// Changes the footer that ends `image`.
fn last(image: &mut [u8], change: impl Fn(&mut [u8])) {
    let at = image.len() - 512;
    change(&mut image[at..]);
    sum(&mut image[at..], 64);
}

/// Changes the header of a dynamic disk.
fn header(image: &mut [u8], change: impl Fn(&mut [u8])) {
    change(&mut image[512..1536]);
    sum(&mut image[512..1536], 36);
}

/// Every creator that qemu or anybody knows, and some that nobody does, with every kind of geometry.
#[test]
fn the_size_is_the_one_that_qemu_takes() {
    let creators: [&[u8; 4]; 18] = [
        b"vpc ",
        b"vpc\0",
        b"vpcx",
        b"vs  ",
        b"qemu",
        b"qem2",
        b"qemx",
        b"win ",
        b"d2v ",
        b"tap\0",
        b"CTXS",
        b"wa\0\0",
        b"wa  ",
        b"vbox",
        b"vtrn",
        b"\0\0\0\0",
        b"VPC ",
        b"vmm ",
    ];
    let geometries = [(100, 4, 17), (65_535, 16, 255), (65_535, 17, 240), (65_535, 16, 254), (0, 0, 0), (300, 2, 16)];
    let sizes = [9_000 * 512, 9_000 * 512 + 511, 10_240 * 512, 0, 10_241 * 512, 0xff00_0000 * 512 + 512];
    let qemu = Qemu::new();
    let path = qemu.path("image");
    let good = sample("vpc", "subformat=dynamic,force_size=on");
    let mut sizes_seen = std::collections::BTreeSet::new();
    for creator in creators {
        for (cylinders, heads, sectors) in geometries {
            for size in sizes {
                let mut image = good.clone();
                footers(&mut image, |footer| {
                    footer[28..32].copy_from_slice(creator);
                    put64(footer, 48, size);
                    put(footer, 56, (cylinders << 16) | (heads << 8) | sectors);
                });
                fs::write(&path, &image).unwrap();
                let expected = qemu.virtual_size("vpc", &path);
                let limits = Limits::default();
                let inspection = format::inspect(&mut Memory::new(image.clone()), None, &limits).unwrap();
                let found = inspection.reasons.is_empty().then_some(inspection.virtual_size).flatten();
                assert_eq!(
                    found, expected,
                    "{creator:?} {cylinders}/{heads}/{sectors} {size}: {:?}",
                    inspection.reasons
                );
                sizes_seen.insert(found);
            }
        }
    }
    assert!(sizes_seen.len() > 5, "{sizes_seen:?}");
}

#[test]
fn a_fixed_disk_that_goes_by_its_geometry_is_cut_to_whole_cylinders() {
    let qemu = Qemu::new();
    let (path, raw) = (qemu.path("image"), qemu.path("raw"));
    let mut image = sample("vpc", "subformat=fixed,force_size=on");
    last(&mut image, |footer| {
        footer[28..32].copy_from_slice(b"vpc ");
        put(footer, 56, u32::from_be_bytes([0, 150, 4, 17]));
    });
    fs::write(&path, &image).unwrap();
    qemu.img(&["convert", "-f", "vpc", "-O", "raw", path.to_str().unwrap(), raw.to_str().unwrap()]);
    let expected = fs::read(&raw).unwrap();
    assert_eq!(expected.len(), 150 * 4 * 17 * 512);
    assert_reads_as(&path, &expected, DiskFormat::Vhd, "by geometry");
}

#[test]
fn sectors_that_are_not_there_are_zeros() {
    let mut image = sample("vpc", "subformat=dynamic,force_size=on");
    let expected = content(&mut Memory::new(image.clone()), u64::MAX).unwrap();
    let first = u32::from_be_bytes(image[1536..1540].try_into().unwrap()) as usize * 512;
    // Sectors 1, 9 and 12 to 15 of the first block are not there.
    image[first] = 0b1011_1111;
    image[first + 1] = 0b1011_0000;
    let mut holed = expected.clone();
    for sector in [1, 9, 12, 13, 14, 15] {
        assert!(holed[sector * 512..][..512].iter().any(|byte| *byte != 0));
        holed[sector * 512..][..512].fill(0);
    }
    for most in [u64::MAX, 5000, 512] {
        assert!(content(&mut Memory::new(image.clone()), most).unwrap() == holed, "{most}");
    }
    // None at all.
    image[first..first + 512].fill(0);
    holed[..2 << 20].fill(0);
    assert!(content(&mut Memory::new(image), u64::MAX).unwrap() == holed);
}

/// A footer's copy of a differencing disk's parent name.
fn differencing(image: &mut [u8]) {
    header(image, |header| {
        for (at, unit) in r"C:\base.vhd".encode_utf16().enumerate() {
            header[64 + 2 * at..][..2].copy_from_slice(&unit.to_be_bytes());
        }
    });
    footers(image, |footer| put(footer, 60, 4));
}

#[test]
fn each_rule_of_dynamic_disks_is_held() {
    let good = sample("vpc", "subformat=dynamic,force_size=on");
    let cases: &[Case<'_>] = &[
        ("differencing", &|f| differencing(f), "backing-file", "parent_unicode_name"),
        ("type none", &|f| footers(f, |f| put(f, 60, 0)), "invalid-field", "disk_type"),
        ("type reserved", &|f| footers(f, |f| put(f, 60, 5)), "invalid-field", "disk_type"),
        ("type fixed", &|f| footers(f, |f| put(f, 60, 2)), "invalid-field", "disk_type"),
        ("footer's checksum", &|f| f[100] = 1, "invalid-field", "checksum"),
        ("footer's version", &|f| footers(f, |f| put(f, 12, 0x20000)), "version", "file_format_version"),
        ("saved", &|f| footers(f, |f| f[84] = 1), "dirty", "saved_state"),
        ("too large", &|f| footers(f, |f| put64(f, 48, (2040 << 30) + 512)), "virtual-size-limit", "current_size"),
        ("far too large", &|f| footers(f, |f| put64(f, 48, u64::MAX)), "virtual-size-limit", "current_size"),
        ("no header", &|f| footers(f, |f| put64(f, 16, u64::MAX)), "table-out-of-range", "data_offset"),
        ("header in footer", &|f| footers(f, |f| put64(f, 16, 0)), "table-out-of-range", "data_offset"),
        ("header unaligned", &|f| footers(f, |f| put64(f, 16, 513)), "table-out-of-range", "data_offset"),
        ("header past the end", &|f| footers(f, |f| put64(f, 16, 1 << 40)), "truncated", "dynamic_disk_header"),
        ("header elsewhere", &|f| footers(f, |f| put64(f, 16, 1024)), "invalid-field", "cookie"),
        ("header's checksum", &|f| f[600] = 1, "invalid-field", "checksum"),
        ("header's version", &|f| header(f, |h| put(h, 24, 0)), "version", "header_version"),
        ("block of 3 MiB", &|f| header(f, |h| put(h, 32, 3 << 20)), "cluster-size", "block_size"),
        ("no block", &|f| header(f, |h| put(h, 32, 0)), "cluster-size", "block_size"),
        ("small block", &|f| header(f, |h| put(h, 32, 256 << 10)), "cluster-size", "block_size"),
        ("large block", &|f| header(f, |h| put(h, 32, 512 << 20)), "cluster-size", "block_size"),
        ("table too small", &|f| header(f, |h| put(h, 28, 2)), "invalid-field", "max_table_entries"),
        ("table unaligned", &|f| header(f, |h| put64(h, 16, 1537)), "table-out-of-range", "table_offset"),
        ("table in footer", &|f| header(f, |h| put64(h, 16, 0)), "table-out-of-range", "table_offset"),
        ("table beyond", &|f| header(f, |h| put64(h, 16, u64::MAX - 511)), "table-out-of-range", "table_offset"),
        ("table in header", &|f| header(f, |h| put64(h, 16, 1024)), "table-overlap", "table_offset"),
        ("table past the end", &|f| header(f, |h| put64(h, 16, 1 << 40)), "truncated", "bat"),
        ("block in footer", &|f| put(f, 1540, 0), "table-overlap", "bat[1]"),
        ("block in header", &|f| put(f, 1540, 2), "table-overlap", "bat[1]"),
        ("block in table", &|f| put(f, 1540, 3), "table-overlap", "bat[1]"),
        ("block twice", &|f| f.copy_within(1536..1540, 1544), "table-overlap", "bat[0]"),
        ("blocks overlap", &|f| put(f, 1544, 4 + 4096), "table-overlap", "bat[2]"),
        ("block past the end", &|f| put(f, 1540, 0xffff_fff0), "truncated", "bat[1]"),
        ("footer is of another", &|f| last(f, |f| f[70] ^= 1), "invalid-field", "unique_id"),
        ("footer has another size", &|f| last(f, |f| put64(f, 48, 512)), "invalid-field", "current_size"),
        ("footer of a fixed disk", &|f| last(f, |f| put(f, 60, 2)), "invalid-field", "disk_type"),
        ("no footer", &|f| f.truncate(f.len() - 512), "truncated", "footer"),
        ("half a footer", &|f| f.truncate(f.len() - 100), "truncated", "footer"),
        ("footer of 511 bytes", &|f| f.truncate(f.len() - 1), "version", "footer"),
        ("something behind the footer", &|f| f.push(0), "truncated", "footer"),
        ("cut in the data", &|f| f.truncate(f.len() - 513), "truncated", "bat[2]"),
        ("cut in a bitmap", &|f| f.truncate(2100), "truncated", "bat[2]"),
        ("cut in the table", &|f| f.truncate(1540), "truncated", "bat"),
        ("cut in the header", &|f| f.truncate(1000), "truncated", "dynamic_disk_header"),
        ("cut in the copy", &|f| f.truncate(300), "truncated", "footer"),
    ];
    assert_refused(&good, cases);
    let mut image = good.clone();
    differencing(&mut image);
    assert_eq!(refused(&image, None, &Limits::default()).unwrap().2, r"C:\\base.vhd", "the parent must be named");
    let small = |limits: Limits| refused(&good, None, &limits).map(|(rule, ..)| rule);
    assert_eq!(small(Limits { max_virtual_size: 5 << 20, ..Limits::default() }), None);
    assert_eq!(small(Limits { max_virtual_size: 4 << 20, ..Limits::default() }).as_deref(), Some("virtual-size-limit"));
    assert_eq!(small(Limits { max_table_memory: 23, ..Limits::default() }).as_deref(), Some("size-limit"));
    assert_eq!(refused(&good, Some(DiskFormat::Raw), &Limits::default()).unwrap().0, "format-mismatch");
}

#[test]
fn each_rule_of_fixed_disks_is_held() {
    let good = sample("vpc", "subformat=fixed,force_size=on");
    let cases: &[Case<'_>] = &[
        ("dynamic", &|f| last(f, |f| put(f, 60, 3)), "invalid-field", "disk_type"),
        ("differencing", &|f| last(f, |f| put(f, 60, 4)), "invalid-field", "disk_type"),
        ("reserved", &|f| last(f, |f| put(f, 60, 1)), "invalid-field", "disk_type"),
        ("checksum", &|f| *f.last_mut().unwrap() = 1, "invalid-field", "checksum"),
        ("version", &|f| last(f, |f| put(f, 12, 0)), "version", "file_format_version"),
        ("saved", &|f| last(f, |f| f[84] = 2), "dirty", "saved_state"),
        ("footer of 511 bytes", &|f| f.truncate(f.len() - 1), "version", "footer"),
        ("data is missing", &|f| drop(f.drain(1024..1536)), "truncated", "current_size"),
        ("size too large", &|f| last(f, |f| put64(f, 48, (5 << 20) + 512)), "truncated", "current_size"),
        ("size past the format", &|f| last(f, |f| put64(f, 48, 1 << 50)), "virtual-size-limit", "current_size"),
        ("size far too small", &|f| last(f, |f| put64(f, 48, 1 << 20)), "invalid-field", "current_size"),
        ("no size", &|f| last(f, |f| put64(f, 48, 0)), "invalid-field", "current_size"),
    ];
    assert_refused(&good, cases);
    let limits = Limits { max_virtual_size: (5 << 20) - 512, ..Limits::default() };
    assert_eq!(refused(&good, None, &limits).unwrap().0, "virtual-size-limit");
    let limits = Limits { max_virtual_size: 5 << 20, ..limits };
    assert_eq!(refused(&good, None, &limits), None, "the footer is no part of the disk");
}

#[test]
fn raw_and_fixed_are_told_apart_by_the_footer() {
    let limits = Limits::default();
    let fixed = sample("vpc", "subformat=fixed,force_size=on");
    let raw = &fixed[..fixed.len() - 512];
    let rule = |image: &[u8], declared| refused(image, declared, &limits).map(|(rule, ..)| rule);
    let (as_raw, as_vhd, as_iso) = (Some(DiskFormat::Raw), Some(DiskFormat::Vhd), Some(DiskFormat::Iso));
    assert_eq!(rule(&fixed, as_vhd), None);
    assert_eq!(rule(&fixed, as_raw).as_deref(), Some("format-mismatch"));
    assert_eq!(rule(&fixed, as_iso).as_deref(), Some("format-mismatch"));
    assert_eq!(rule(raw, as_raw), None);
    assert_eq!(rule(raw, as_vhd).as_deref(), Some("format-mismatch"));
    // A disk whose last sector only begins as a footer is a raw one if its owner says so.
    let mut broken = fixed.clone();
    *broken.last_mut().unwrap() = 1;
    assert_eq!(rule(&broken, as_raw), None);
    assert_eq!(rule(&broken, as_vhd).as_deref(), Some("invalid-field"));
    assert_eq!(rule(&broken, None).as_deref(), Some("invalid-field"));
    for cut in [1, 100, 511] {
        assert!(rule(&fixed[..fixed.len() - cut], as_vhd).is_some(), "{cut}");
    }
}

#[test]
fn damaged_files_are_read_or_refused_and_nothing_else() {
    let mend = |image: &mut Vec<u8>| {
        if image.len() >= 2048 {
            sum(&mut image[..512], 64);
            sum(&mut image[512..1536], 36);
            let copy = image[..512].to_vec();
            let at = image.len() - 512;
            image[at..].copy_from_slice(&copy);
        }
    };
    assert_survives(&sample("vpc", "subformat=dynamic,force_size=on"), 2000, mend);
    let mend = |image: &mut Vec<u8>| {
        if image.len() > 512 {
            let at = image.len() - 512;
            image[at..at + 8].copy_from_slice(b"conectix");
            sum(&mut image[at..], 64);
        }
    };
    assert_survives(&sample("vpc", "subformat=fixed,force_size=on"), 2000, mend);
}
