//! Every way of writing a qcow2 that qemu-img has, decoded here and compared with its own conversion.

use std::path::Path;

use vitrine_engine::{
    format::{self, Order, Place},
    io::FileReader,
    model::{DiskFormat, Limits},
};

use crate::{disk, qemu::Qemu};

/// How one image is created.
#[derive(Clone, Debug)]
struct Kind {
    cluster_size: u64,
    options: String,
    compressed: bool,
}

fn kinds() -> Vec<Kind> {
    let mut kinds = Vec::new();
    for bits in 9..=21 {
        let cluster_size = 1_u64 << bits;
        for (version, extended, compression) in [
            ("0.10", false, None),
            ("0.10", false, Some("zlib")),
            ("1.1", false, None),
            ("1.1", false, Some("zlib")),
            ("1.1", false, Some("zstd")),
            ("1.1", true, None),
            ("1.1", true, Some("zlib")),
            ("1.1", true, Some("zstd")),
        ] {
            if extended && bits < 14 {
                continue;
            }
            let subclusters = if extended { ",extended_l2=on" } else { "" };
            let kind = match compression {
                Some(name) if version == "1.1" => format!(",compression_type={name}"),
                Some(_) | None => String::new(),
            };
            let options = format!("compat={version},cluster_size={cluster_size}{subclusters}{kind}");
            kinds.push(Kind { cluster_size, options, compressed: compression.is_some() });
        }
    }
    kinds
}

/// Data with structure, incompressible data, explicit zeros and holes, at even and odd places.
fn fill(qemu: &Qemu, raw: &Path, cluster: u64, size: u64) {
    let mut noise = vec![0_u8; usize::try_from(cluster.max(4096)).unwrap()];
    let mut state = 0x9e37_79b9_u32;
    for byte in &mut noise {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = (state >> 24) as u8;
    }
    let noise_file = qemu.path("noise");
    std::fs::write(&noise_file, &noise).unwrap();
    let noise_length = noise.len() as u64;
    let mut commands = Vec::new();
    let mut write = |what: &str, offset: u64, length: u64| {
        let offset = offset / 512 * 512;
        let length = length.next_multiple_of(512).min(size.saturating_sub(offset));
        if length > 0 && offset < size {
            commands.push(format!("write {what} {offset} {length}"));
        }
    };
    write("-P 0x41", 0, cluster);
    write("-P 0x42", cluster * 3 / 2, 512);
    write(&format!("-s {}", noise_file.display()), cluster * 3, noise_length);
    write("-P 0x43", cluster * 5, cluster * 3);
    write("-P 0x44", cluster * 6 + 1024, 512);
    write("-z", cluster * 7, cluster);
    write("-P 0x45", size.saturating_sub(512), 512);
    write("-P 0x46", size / 2, 1024);
    qemu.io("raw", raw, &commands);
}

fn check(image: &Path, raw: &Path, what: &str) {
    let expected = std::fs::read(raw).unwrap();
    let mut input = FileReader::open(image).unwrap();
    for most in [u64::MAX, 4 << 20, 5000] {
        let found = disk::content(&mut input, most).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(found == expected, "{what}: decoded to something else");
    }
    let inspection = format::inspect(&mut input, Some(DiskFormat::Qcow2), &Limits::default()).unwrap();
    assert!(inspection.reasons.is_empty(), "{what}: {:?}", inspection.reasons);
    assert_eq!(inspection.virtual_size, Some(expected.len() as u64));
}

#[test]
fn every_kind_of_qcow2_decodes_as_qemu_decodes_it() {
    let qemu = Qemu::new();
    let (raw, image) = (qemu.path("raw"), qemu.path("image"));
    for kind in kinds() {
        let cluster = kind.cluster_size;
        for size in [0, 512, cluster + 512, 11 * cluster, 12 * cluster + 1536] {
            let what = format!("{kind:?} {size}");
            drop(std::fs::remove_file(&raw));
            std::fs::File::create(&raw).unwrap().set_len(size).unwrap();
            fill(&qemu, &raw, cluster, size);
            let mut arguments = vec!["convert", "-f", "raw", "-O", "qcow2", "-o", &kind.options];
            if kind.compressed {
                arguments.push("-c");
            }
            arguments.extend([raw.to_str().unwrap(), image.to_str().unwrap()]);
            qemu.img(&arguments);
            check(&image, &raw, &what);
        }
    }
}

#[test]
fn images_that_were_lived_in_decode_as_qemu_decodes_them() {
    let qemu = Qemu::new();
    let (raw, image) = (qemu.path("raw"), qemu.path("image"));
    for options in
        ["cluster_size=512", "cluster_size=4k", "extended_l2=on", "cluster_size=2M,extended_l2=on", "compat=0.10"]
    {
        let path = image.to_str().unwrap();
        qemu.img(&["create", "-q", "-f", "qcow2", "-o", options, path, "67108864"]);
        let writes = |seed: u64| -> Vec<String> {
            (0..40_u64)
                .map(|n| {
                    let at = (n * 7_919 + seed * 104_729) % 131_000 * 512;
                    match n % 5 {
                        0 => format!("write -z {at} {}", (n + 1) * 512),
                        1 => format!("discard {at} 65536"),
                        2 => format!("write -P {} {at} 70656", n + 1),
                        _ => format!("write -P {} {at} 512", n + 1),
                    }
                })
                .collect()
        };
        qemu.io("qcow2", &image, &writes(1));
        qemu.img(&["snapshot", "-c", "before", path]);
        qemu.io("qcow2", &image, &writes(2));
        qemu.img(&["snapshot", "-c", "between", path]);
        qemu.io("qcow2", &image, &writes(3));
        qemu.img(&["convert", "-f", "qcow2", "-O", "raw", path, raw.to_str().unwrap()]);
        check(&image, &raw, options);
    }
}

#[test]
fn a_huge_sparse_disk_costs_one_answer_per_run() {
    let qemu = Qemu::new();
    let image = qemu.path("image");
    qemu.img(&["create", "-q", "-f", "qcow2", image.to_str().unwrap(), "4T"]);
    qemu.io("qcow2", &image, &["write -P 1 3T 64k".into(), "write -P 2 1T 512".into()]);
    let mut input = FileReader::open(&image).unwrap();
    let mut map = format::open(&mut input, None, &Limits::default(), Order::Tables).unwrap();
    let (mut guest, mut answers, mut data) = (0, 0, 0);
    while guest < 4 << 40 {
        let mapping = map.resolve(&mut input, guest, u64::MAX).unwrap();
        data += if mapping.place == Place::Zero { 0 } else { mapping.length };
        guest += mapping.length;
        answers += 1;
    }
    assert_eq!((data, answers), (2 << 16, 7));
}

#[test]
fn preallocated_and_lazy_images_are_read() {
    let qemu = Qemu::new();
    let (raw, image) = (qemu.path("raw"), qemu.path("image"));
    for options in [
        "preallocation=metadata",
        "preallocation=falloc",
        "preallocation=full",
        "lazy_refcounts=on",
        "refcount_bits=1",
        "refcount_bits=64",
    ] {
        let path = image.to_str().unwrap();
        qemu.img(&["create", "-q", "-f", "qcow2", "-o", options, path, "9000448"]);
        qemu.io("qcow2", &image, &["write -P 7 100k 300k".into(), "write -P 8 8999936 512".into()]);
        qemu.img(&["convert", "-f", "qcow2", "-O", "raw", path, raw.to_str().unwrap()]);
        check(&image, &raw, options);
    }
}
