//! VDI against qemu-img, and files made to break one rule each.

use std::{fs, os::unix::fs::MetadataExt as _};

use vitrine_engine::{
    format::{self, Order, Place},
    io::FileReader,
    model::{DiskFormat, Limits},
};

use crate::{
    blocks::output,
    blockwise::{Case, assert_reads_as, assert_refused, assert_survives, huge, refused, sample},
    qemu::Qemu,
};

#[test]
fn a_disk_that_was_lived_in_is_read_as_qemu_reads_it() {
    let qemu = Qemu::new();
    let (image, raw) = (qemu.path("image"), qemu.path("raw"));
    let name = image.to_str().unwrap();
    qemu.img(&["create", "-q", "-f", "vdi", name, "50000384"]);
    let write = |n: u64| match n % 4 {
        0 => format!("write -z {} 70k", n * 7_919 * 512 % 49_000_000 / 512 * 512),
        _ => format!("write -P {} {} 70k", n + 1, n * 104_729 * 512 % 49_000_000 / 512 * 512),
    };
    qemu.io("vdi", &image, &(0..40).map(write).collect::<Vec<_>>());
    qemu.img(&["convert", "-f", "vdi", "-O", "raw", name, raw.to_str().unwrap()]);
    let expected = fs::read(&raw).unwrap();
    assert_reads_as(&image, &expected, DiskFormat::Vdi, "lived in");
}

#[test]
fn huge_sparse_disks_cost_little() {
    let qemu = Qemu::new();
    for (size, told) in [(4 << 40, true), (16 << 40, true), (4 << 40, false)] {
        let (image, at) = huge(&qemu, output(DiskFormat::Vdi, None), size, told);
        assert!(fs::metadata(&image).unwrap().blocks() * 512 < 70 << 20);
        qemu.img(&["check", "-q", "-f", "vdi", image.to_str().unwrap()]);
        let mut input = FileReader::open(&image).unwrap();
        let mut map = format::open(&mut input, None, &Limits::default(), Order::Tables).unwrap();
        let (mut guest, mut data) = (0, Vec::new());
        while guest < size {
            let mapping = map.resolve(&mut input, guest, u64::MAX).unwrap();
            data.extend((mapping.place != Place::Zero).then_some((guest, mapping.length)));
            guest += mapping.length;
        }
        let block = |at: u64| (at >> 20 << 20, 1 << 20);
        assert_eq!(data, at.map(block), "{size}");
    }
}

fn put(image: &mut [u8], at: usize, value: u32) {
    image[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn put64(image: &mut [u8], at: usize, value: u64) {
    image[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

#[test]
fn discarded_blocks_are_zeros() {
    let mut image = sample("vdi", "static=on");
    put(&mut image, 0x200, u32::MAX - 1);
    put(&mut image, 0x210, u32::MAX);
    let qemu = Qemu::new();
    let (path, raw) = (qemu.path("image"), qemu.path("raw"));
    fs::write(&path, &image).unwrap();
    qemu.img(&["convert", "-f", "vdi", "-O", "raw", path.to_str().unwrap(), raw.to_str().unwrap()]);
    let expected = fs::read(&raw).unwrap();
    assert!(expected.iter().all(|byte| *byte == 0));
    assert_reads_as(&path, &expected, DiskFormat::Vdi, "discarded");
}

/// qemu reads no other blocks than of 1 MiB; VirtualBox does.
#[test]
fn blocks_may_have_other_sizes() {
    let mut image = sample("vdi", "static=on");
    let expected = image[0x400..].to_vec();
    put(&mut image, 0x178, 4 << 20);
    put(&mut image, 0x180, 2);
    // Of the last block, only what the guest sees has to be there.
    let qemu = Qemu::new();
    let path = qemu.path("image");
    fs::write(&path, &image).unwrap();
    assert_reads_as(&path, &expected, DiskFormat::Vdi, "4 MiB blocks");
}

#[test]
fn each_rule_is_held() {
    let good = sample("vdi", "static=on");
    let cases: &[Case<'_>] = &[
        ("version 0.1", &|f| put(f, 0x44, 1), "version", "u32Version"),
        ("undo", &|f| put(f, 0x4c, 3), "backing-file", "u32Type"),
        ("differencing", &|f| put(f, 0x4c, 4), "backing-file", "u32Type"),
        ("no type", &|f| put(f, 0x4c, 0), "invalid-field", "u32Type"),
        ("link", &|f| f[0x1a8] = 1, "backing-file", "uuidLinkage"),
        ("parent", &|f| f[0x1c7] = 1, "backing-file", "uuidParentModify"),
        ("sector", &|f| put(f, 0x168, 4096), "invalid-field", "cbSector"),
        ("block", &|f| put(f, 0x178, 3 << 20), "cluster-size", "cbBlock"),
        ("no block", &|f| put(f, 0x178, 0), "cluster-size", "cbBlock"),
        ("small block", &|f| put(f, 0x178, 2048), "cluster-size", "cbBlock"),
        ("large block", &|f| put(f, 0x178, 512 << 20), "cluster-size", "cbBlock"),
        ("extra", &|f| put(f, 0x17c, 512), "unsupported-format", "cbBlockExtra"),
        ("too large", &|f| put64(f, 0x170, (16 << 40) + 1), "virtual-size-limit", "cbDisk"),
        ("far too large", &|f| put64(f, 0x170, u64::MAX), "virtual-size-limit", "cbDisk"),
        ("map too small", &|f| put(f, 0x180, 4), "invalid-field", "cBlocks"),
        ("header short", &|f| put(f, 0x48, 100), "header-length", "cbHeader"),
        ("header long", &|f| put(f, 0x48, 0x1b9), "header-length", "cbHeader"),
        ("map unaligned", &|f| put(f, 0x154, 0x201), "table-out-of-range", "offBlocks"),
        ("data unaligned", &|f| put(f, 0x158, 0x401), "table-out-of-range", "offData"),
        ("map in data", &|f| put(f, 0x154, 0x400), "table-overlap", "offData"),
        ("entry outside", &|f| put(f, 0x204, 5), "table-out-of-range", "block_map[1]"),
        ("entry twice", &|f| put(f, 0x208, 0), "table-overlap", "block_map[2]"),
        ("data past the end", &|f| put(f, 0x158, 0x600), "truncated", "block_map[4]"),
        ("cut in the header", &|f| f.truncate(0x1c0), "truncated", "header"),
        ("cut in the map", &|f| f.truncate(0x20a), "truncated", "block_map"),
        ("cut before the data", &|f| f.truncate(0x400), "truncated", "block_map[4]"),
        ("cut in the data", &|f| f.truncate(f.len() - 1), "truncated", "block_map[4]"),
    ];
    assert_refused(&good, cases);
    let limits = Limits { max_table_memory: 8 * 4, ..Limits::default() };
    assert_eq!(refused(&good, None, &limits), None, "one run needs little");
    let mut scattered = good.clone();
    for (number, entry) in [4, 3, 1, 2, 0].into_iter().enumerate() {
        put(&mut scattered, 0x200 + 4 * number, entry);
    }
    assert_eq!(refused(&scattered, None, &limits).unwrap().0, "size-limit");
    assert_eq!(refused(&good, Some(DiskFormat::Vhd), &Limits::default()).unwrap().0, "format-mismatch");
}

#[test]
fn damaged_files_are_read_or_refused_and_nothing_else() {
    for options in ["static=off", "static=on"] {
        assert_survives(&sample("vdi", options), 2000, |_| {});
    }
}
