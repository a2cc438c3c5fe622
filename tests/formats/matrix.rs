//! Every format in every subformat and compression, of every size and pattern: what qemu-img writes read here, and what is written
//! here read by qemu-img and read back.
//!
//! How many combinations there are is part of what is held: a matrix that shrinks shows less.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use bytes::Bytes;
use proptest::prelude::*;
use vitrine_engine::model::{Compression, DiskFormat, OutputFormat, Subformat};

use crate::{
    blocks::{Parts, assert_holds, assert_qemu_reads, output, sectors_of},
    qemu::Qemu,
    written::{bytes, chunks, encode_to_file, sparse_disk, write_raw},
};

const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;
/// The largest disk of a vhd.
const VHD_MOST: u64 = 2040 << 30;

/// A way of writing a disk that qemu-img has.
#[derive(Clone, Copy, Debug)]
struct Theirs {
    driver: &'static str,
    options: &'static str,
    format: DiskFormat,
}

const fn theirs(driver: &'static str, options: &'static str, format: DiskFormat) -> Theirs {
    Theirs { driver, options, format }
}

const READ: [Theirs; 20] = [
    theirs("raw", "", DiskFormat::Raw),
    theirs("qcow2", "compat=0.10", DiskFormat::Qcow2),
    theirs("qcow2", "extended_l2=on", DiskFormat::Qcow2),
    theirs("qcow2", "compression_type=zlib", DiskFormat::Qcow2),
    theirs("qcow2", "compression_type=zstd", DiskFormat::Qcow2),
    theirs("qcow2", "compression_type=zlib,cluster_size=2M", DiskFormat::Qcow2),
    theirs("vmdk", "subformat=monolithicSparse", DiskFormat::Vmdk),
    theirs("vmdk", "subformat=streamOptimized", DiskFormat::Vmdk),
    theirs("vpc", "subformat=dynamic", DiskFormat::Vhd),
    theirs("vpc", "subformat=dynamic,force_size=on", DiskFormat::Vhd),
    theirs("vpc", "subformat=fixed,force_size=on", DiskFormat::Vhd),
    theirs("vhdx", "subformat=dynamic", DiskFormat::Vhdx),
    theirs("vhdx", "block_size=1M", DiskFormat::Vhdx),
    theirs("vhdx", "block_size=32M,log_size=4M", DiskFormat::Vhdx),
    theirs("vhdx", "subformat=fixed", DiskFormat::Vhdx),
    theirs("vdi", "static=off", DiskFormat::Vdi),
    theirs("vdi", "static=on", DiskFormat::Vdi),
    theirs("parallels", "cluster_size=1M", DiskFormat::Ploop),
    theirs("parallels", "cluster_size=64k", DiskFormat::Ploop),
    theirs("parallels", "cluster_size=4M", DiskFormat::Ploop),
];

impl Theirs {
    /// Whether qemu-img makes such a disk.
    fn takes(&self, size: u64) -> bool {
        let (least, most) = match (self.driver, self.options) {
            // A file without bytes is no disk, qemu-img makes no empty vmdk, and does not open the empty vhdx that it makes.
            ("raw" | "vmdk", _) | ("vhdx", "block_size=1M") => (1, u64::MAX),
            ("vpc", options) => (u64::from(options.contains("fixed")), VHD_MOST),
            _ => (0, u64::MAX),
        };
        (least..=most).contains(&size)
    }

    /// Has qemu-img write `raw` as `image`; `zeros` of the raw file are stored as data then.
    fn write(&self, qemu: &Qemu, raw: &Path, image: &Path, zeros: bool) {
        let mut arguments = vec!["convert", "-f", "raw", "-O", self.driver];
        if !self.options.is_empty() {
            arguments.extend(["-o", self.options]);
        }
        if self.options.contains("compression_type") {
            arguments.push("-c");
        } else if zeros {
            arguments.extend(["-S", "0"]);
        }
        arguments.extend([raw.to_str().unwrap(), image.to_str().unwrap()]);
        qemu.img(&arguments);
    }
}

/// A way of writing a disk that there is here, and what qemu-img calls it.
fn ours() -> Vec<(&'static str, OutputFormat)> {
    let plain = |driver, format, subformat| (driver, output(format, subformat));
    let packed = |compression| ("qcow2", OutputFormat { compression, ..output(DiskFormat::Qcow2, None) });
    vec![
        plain("raw", DiskFormat::Raw, None),
        plain("qcow2", DiskFormat::Qcow2, None),
        packed(Compression::Zlib),
        packed(Compression::Zstd),
        plain("vmdk", DiskFormat::Vmdk, Some(Subformat::StreamOptimized)),
        plain("vmdk", DiskFormat::Vmdk, Some(Subformat::MonolithicSparse)),
        plain("vpc", DiskFormat::Vhd, Some(Subformat::Dynamic)),
        plain("vpc", DiskFormat::Vhd, Some(Subformat::Fixed)),
        plain("vhdx", DiskFormat::Vhdx, Some(Subformat::Dynamic)),
        plain("vhdx", DiskFormat::Vhdx, Some(Subformat::Fixed)),
        plain("vdi", DiskFormat::Vdi, Some(Subformat::Dynamic)),
        plain("vdi", DiskFormat::Vdi, Some(Subformat::Static)),
        plain("parallels", DiskFormat::Ploop, None),
    ]
}

/// Whether a disk of this size can be written so.
fn can_be(output: OutputFormat, size: u64) -> bool {
    let (least, most) = match (output.disk_format, output.subformat) {
        (DiskFormat::Vhd, Some(Subformat::Fixed)) => (1, VHD_MOST),
        (DiskFormat::Vhd, _) => (0, VHD_MOST),
        (DiskFormat::Vmdk | DiskFormat::Raw, _) => (1, u64::MAX),
        _ => (0, u64::MAX),
    };
    (least..=most).contains(&size)
}

/// Size of the disk in the file, by what is written.
fn rounded(output: OutputFormat, size: u64) -> u64 {
    if output.disk_format == DiskFormat::Raw { size } else { size.next_multiple_of(512) }
}

/// A disk to be written and read.
struct Disk {
    name: String,
    size: u64,
    parts: Parts,
    /// Whether its zeros are to be stored.
    zeros: bool,
}

/// Every size with every pattern that fits it: nothing, a sector, a multiple of nothing, a GiB and 4 TiB with little in them.
fn disks() -> Vec<Disk> {
    let mut disks = Vec::new();
    for size in [0, 512, 5 * MIB + 512, 5 * MIB + 515, 1 << 30, 4 * TIB] {
        for (name, places) in patterns(size) {
            let part = |(at, length, noise): (u64, u64, bool)| {
                let length = usize::try_from(length.min(size - at)).unwrap();
                (at, bytes(u32::try_from(at % 1000).unwrap(), length, noise))
            };
            let parts = places.into_iter().map(part).collect();
            disks.push(Disk { name: format!("{name}, {size} bytes"), size, parts, zeros: name == "zero runs" });
        }
    }
    disks
}

/// Data: where, how much, and whether it is noise.
type Place = (u64, u64, bool);

/// Names and places of data.
fn patterns(size: u64) -> Vec<(&'static str, Vec<Place>)> {
    let last = size.saturating_sub(1);
    let full = vec![(0, size, true)];
    let ends = vec![(0, 1, true), (last, 1, true)];
    // qemu-img is asked for each place on a large disk by itself.
    let count = if size < 64 * MIB { 40 } else { 12 };
    let scattered = (1..count).map(|n| (n * 0x9e37_79b9_7f4a % size.max(1) / 512 * 512, 512 + 1000 * n, n % 2 == 0));
    // Data with gaps from a sector to more than a block between, of which none begins or ends where anything else does.
    let gaps = [512, 4096, 20_000, 65_536, 700_000, 2_200_000];
    let runs = gaps.iter().scan(100_u64, |at, gap| {
        let place = (*at, 30_000, gap % 3 == 0);
        *at += 30_000 + gap;
        Some(place)
    });
    match size {
        0 => vec![("empty", Vec::new())],
        512 => vec![("empty", Vec::new()), ("full", full)],
        _ if size < 64 * MIB => vec![
            ("empty", Vec::new()),
            ("full", full),
            ("ends", ends),
            ("scattered", scattered.collect()),
            ("zero runs", runs.collect()),
        ],
        _ => vec![("empty", Vec::new()), ("ends", ends), ("scattered", scattered.collect())],
    }
}

/// Reads what qemu-img makes of the raw file.
fn assert_read(qemu: &Qemu, kind: &Theirs, disk: &Disk, what: &str) {
    let (raw, image) = (qemu.path("raw"), qemu.path("image"));
    kind.write(qemu, &raw, &image, disk.zeros);
    // Rounded up by some.
    let size = qemu.virtual_size(kind.driver, &image).unwrap();
    assert!(size >= disk.size, "{what}");
    assert_holds(&image, kind.format, size, &sectors_of(&disk.parts), what);
}

/// Writes the disk, and has qemu-img and ourselves read it.
fn assert_written(qemu: &Qemu, (driver, output): (&str, OutputFormat), disk: &Disk, told: bool, what: &str) {
    let (raw, image) = (qemu.path("raw"), qemu.path("image"));
    let (sectors, size) = (sectors_of(&disk.parts), rounded(output, disk.size));
    encode_to_file(output, disk.size, told, &chunks(disk.size, &disk.parts), &image);
    // Of some there is no check, and of a large vmdk it takes seconds.
    if !matches!(driver, "raw" | "vpc") && (driver != "vmdk" || disk.size <= 1 << 30) {
        qemu.img(&["check", "-q", "-f", driver, image.to_str().unwrap()]);
    }
    if disk.size <= 1 << 30 {
        qemu.assert_equal(driver, &image, &raw);
    } else {
        assert_qemu_reads(qemu, driver, &image, &sectors, what);
        let allocated = fs::metadata(&image).unwrap().blocks() * 512;
        assert!(allocated < 128 * MIB, "{what}: {allocated} bytes for {} parts", disk.parts.len());
    }
    if driver != "raw" {
        assert_eq!(qemu.virtual_size(driver, &image), Some(size), "{what}");
    }
    assert_holds(&image, output.disk_format, size, &sectors, what);
}

#[test]
fn all_that_qemu_writes_is_read() {
    let qemu = Qemu::new();
    let mut count = 0;
    for disk in disks() {
        write_raw(&qemu.path("raw"), disk.size.next_multiple_of(512), &disk.parts);
        for kind in READ.iter().filter(|kind| kind.takes(disk.size)) {
            // Only a raw file is as long as it is.
            if kind.driver == "raw" {
                write_raw(&qemu.path("raw"), disk.size, &disk.parts);
            } else if !disk.size.is_multiple_of(512) {
                continue;
            }
            assert_read(&qemu, kind, &disk, &format!("{kind:?}, {}", disk.name));
            count += 1;
        }
    }
    println!("{count} combinations of what qemu writes");
    assert_eq!(count, 271);
}

#[test]
fn all_that_is_written_is_read_by_qemu_and_read_back() {
    let qemu = Qemu::new();
    let mut count = 0;
    for disk in disks() {
        write_raw(&qemu.path("raw"), disk.size, &disk.parts);
        for kind in ours().into_iter().filter(|(_, output)| can_be(*output, disk.size)) {
            for told in [true, false] {
                assert_written(&qemu, kind, &disk, told, &format!("{kind:?}, {}, told: {told}", disk.name));
                count += 1;
            }
        }
    }
    println!("{count} combinations of what is written");
    assert_eq!(count, 474);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_disks_are_the_same_on_both_sides(
        (size, parts) in sparse_disk(),
        theirs in prop::sample::select(&READ[..]),
        ours in prop::sample::select(ours()),
        told in any::<bool>(),
    ) {
        let qemu = Qemu::new();
        let raw = qemu.path("raw");
        let size = size.next_multiple_of(512).max(512);
        write_raw(&raw, size, &parts);
        // Parts overlap: the disk is what became of them.
        let parts = vec![(0, Bytes::from(fs::read(&raw).unwrap()))];
        let disk = Disk { name: "random".to_owned(), size, parts, zeros: told };
        assert_read(&qemu, &theirs, &disk, &format!("{theirs:?}"));
        assert_written(&qemu, ours, &disk, told, &format!("{ours:?}"));
    }
}
