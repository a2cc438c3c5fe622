//! The right bytes arrive, whatever they came in, and their content digest does not depend on it.

use std::{io::Write as _, sync::Arc};

use vitrine_engine::{
    error::Kind,
    model::{ContainerFormat, Digest, DiskFormat, Limits, OutputFormat},
    pipeline::Target,
    store::{
        Store as _,
        filesystem::{FilesystemOptions, FilesystemStore},
    },
};
use vitrine_harness::qemu::{debian_disk, qemu_img};

use crate::support::{Bytestream, QCOW2_ZSTD, disk, job, memory, run, stored};

#[tokio::test(flavor = "multi_thread")]
async fn a_debian_disk_is_the_same_disk_in_every_dress() {
    let folder = debian_disk().unwrap();
    let raw = std::fs::read(folder.join("disk.raw")).unwrap();
    let sums = std::fs::read_to_string(folder.join("SHA256SUMS")).unwrap();
    let mut content = None;
    for line in sums.lines() {
        let (sum, name) = line.split_once("  ").unwrap();
        if std::path::Path::new(name).extension().is_some_and(|e| e == "iso") {
            continue;
        }
        let store = memory();
        let mut job = job(Bytestream::file(&folder.join(name)), vec![(store.clone(), OutputFormat::RAW)]);
        job.checksums = vec![format!("sha256:{sum}").parse().unwrap()];
        let imported = run(&job).await.unwrap_or_else(|e| panic!("{name}: {e}"));
        let packed = name.starts_with("disk.raw.");
        assert_eq!(imported.container_format == ContainerFormat::Compressed, packed, "{name}");
        assert_eq!(imported.disk_format == DiskFormat::Qcow2, name.ends_with("qcow2"), "{name}");
        assert_eq!(imported.virtual_size, raw.len() as u64, "{name}");
        assert_eq!(*content.get_or_insert(imported.content_digest.clone()), imported.content_digest, "{name}");
        assert!(stored(store.as_ref()).await == raw, "{name}: the stored bytes are not the disk's");
    }
    assert!(content.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_pass_feeds_raw_and_qcow2_stores() {
    let folder = debian_disk().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let names = ["raw", "zlib", "zstd", "plain"];
    let mut targets = Vec::new();
    for name in names {
        std::fs::create_dir(dir.path().join(name)).unwrap();
        let store = FilesystemStore::open(name, &dir.path().join(name), &FilesystemOptions::default()).unwrap();
        let compression = name.parse().unwrap_or(vitrine_engine::model::Compression::None);
        let output = match name {
            "raw" => OutputFormat::RAW,
            _ => OutputFormat { disk_format: DiskFormat::Qcow2, subformat: None, compression, cluster_size: 64 << 10 },
        };
        targets.push((Arc::new(store) as _, output));
    }
    let imported = run(&job(Bytestream::file(&folder.join("zlib.qcow2")), targets)).await.unwrap();
    let original = folder.join("disk.raw");
    for (name, published) in names.iter().zip(&imported.published) {
        let stat = published.result.as_ref().unwrap();
        let path = stat.url.split_once("://").unwrap().1;
        let path = &path[path.find('/').unwrap()..];
        let format = if *name == "raw" { "raw" } else { "qcow2" };
        if format == "qcow2" {
            qemu_img(&["check", "-f", format, path]).unwrap();
        }
        qemu_img(&["compare", "-f", "raw", "-F", format, original.to_str().unwrap(), path]).unwrap();
        assert!(stat.allocated_size <= 140 << 20, "{name} is not sparse: {} bytes allocated", stat.allocated_size);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_iso_stays_an_iso() {
    let path = debian_disk().unwrap().join("grub-rescue.iso");
    let store = memory();
    let mut job = job(Bytestream::file(&path), vec![(store.clone(), OutputFormat::RAW)]);
    job.disk_format = Some(DiskFormat::Iso);
    assert_eq!(run(&job).await.unwrap().disk_format, DiskFormat::Iso);
    assert!(stored(store.as_ref()).await == std::fs::read(path).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_lengths_and_unknown_lengths() {
    for length in [512, 65_536, (4 << 20) - 1, 4 << 20, (4 << 20) + 1, (9 << 20) + 513] {
        let bytes = disk(length);
        for sized in [true, false] {
            let store = memory();
            let mut source = Bytestream::new(bytes.clone());
            source.sized = sized;
            let imported = run(&job(source, vec![(store.clone(), OutputFormat::RAW)])).await.unwrap();
            assert_eq!(imported.virtual_size, length as u64);
            assert!(stored(store.as_ref()).await == bytes, "{length} {sized}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn holes_zeros_and_stored_zeros_have_one_digest() {
    let mut bytes = disk(20 << 20);
    bytes[5 << 20..14 << 20].fill(0);
    let plain = run(&job(Bytestream::new(bytes.clone()), vec![(memory(), OutputFormat::RAW)])).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (raw, qcow2) = (dir.path().join("d.raw"), dir.path().join("d.qcow2"));
    std::fs::write(&raw, &bytes).unwrap();
    let (raw, qcow2) = (raw.to_str().unwrap(), qcow2.to_str().unwrap());
    // -S 0 stores zeros as data.
    for sparse in ["0", "4k"] {
        qemu_img(&["convert", "-S", sparse, "-f", "raw", "-O", "qcow2", raw, qcow2]).unwrap();
        let source = Bytestream::file(std::path::Path::new(qcow2));
        let again = run(&job(source, vec![(memory(), QCOW2_ZSTD)])).await.unwrap();
        assert_eq!(again.content_digest, plain.content_digest);
    }
    bytes[7 << 20] = 1;
    let other = run(&job(Bytestream::new(bytes), vec![(memory(), OutputFormat::RAW)])).await.unwrap();
    assert_ne!(other.content_digest, plain.content_digest, "one byte more must change the digest");
}

#[tokio::test(flavor = "multi_thread")]
async fn declared_digests_of_every_kind_are_computed() {
    let bytes = b"not much of a disk, but with a signature".repeat(100);
    let mut disk = disk(1 << 20);
    disk[1024..1024 + bytes.len()].copy_from_slice(&bytes);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    std::fs::File::create(&path).unwrap().write_all(&disk).unwrap();
    let mut checksums = Vec::new();
    for (tool, name) in [("md5sum", "md5"), ("sha1sum", "sha1"), ("sha256sum", "sha256"), ("sha512sum", "sha512")] {
        let output = std::process::Command::new(tool).arg(&path).output().unwrap();
        let hex = String::from_utf8(output.stdout).unwrap();
        checksums.push(format!("{name}:{}", hex.split_whitespace().next().unwrap()).parse::<Digest>().unwrap());
    }
    let mut job = job(Bytestream::new(disk), vec![(memory(), OutputFormat::RAW)]);
    job.checksums.clone_from(&checksums);
    let mut digests = run(&job).await.unwrap().received.digests;
    digests.sort();
    checksums.sort();
    assert_eq!(digests, checksums);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_attempt_published_is_adopted() {
    let store = memory();
    let first = job(Bytestream::new(disk(5 << 20)), vec![(store.clone(), OutputFormat::RAW)]);
    let published = run(&first).await.unwrap();
    let source = Arc::new(Bytestream::new(Vec::new()));
    let mut again = job(Bytestream::new(Vec::new()), vec![(store.clone(), OutputFormat::RAW)]);
    (again.source, again.attempt) = (source.clone(), 2);
    let adopted = run(&again).await.unwrap();
    assert_eq!(source.opened.load(std::sync::atomic::Ordering::SeqCst), 0, "nothing needs to be fetched again");
    assert_eq!((adopted.content_digest, adopted.received), (published.content_digest, published.received));
    // A store that joined later gets its copy, the others keep theirs.
    let second = memory();
    let mut third = job(Bytestream::new(disk(5 << 20)), vec![(store.clone(), OutputFormat::RAW)]);
    third.targets.push(Target { store: second.clone(), output: OutputFormat::RAW });
    assert_eq!(run(&third).await.unwrap().published.len(), 2);
    assert_eq!(second.list().await.unwrap().len(), 1);
    // What is there must be what is asked for.
    again.checksums = vec![format!("md5:{}", "00".repeat(16)).parse().unwrap()];
    assert_eq!(run(&again).await.unwrap_err().kind(), Kind::Refused);
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_for_streams_that_do_not_tell_their_length() {
    let limits =
        [Limits { max_size: 1 << 20, ..Limits::default() }, Limits { max_virtual_size: 1 << 20, ..Limits::default() }];
    for limits in limits {
        for sized in [true, false] {
            let mut source = Bytestream::new(disk(3 << 20));
            source.sized = sized;
            let store = memory();
            let mut job = job(source, vec![(store.clone(), OutputFormat::RAW)]);
            job.limits = limits.clone();
            assert_eq!(run(&job).await.unwrap_err().kind(), Kind::Refused);
            assert!(store.list().await.unwrap().is_empty());
        }
    }
}
