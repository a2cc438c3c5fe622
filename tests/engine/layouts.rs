//! Files whose parts do not stand in the order in which the guest's disk is read.

use std::path::{Path, PathBuf};

use vitrine_engine::{
    error::Kind,
    model::{DiskFormat, Limits, OutputFormat},
};
use vitrine_harness::qemu::{qemu_img, qemu_io};

use crate::support::{Bytestream, disk, job, memory, run, stored};

/// A qcow2 file of 48 MiB whose clusters were written back to front, and its raw content.
fn backwards(dir: &Path) -> (PathBuf, Vec<u8>) {
    let path = dir.join("backwards.qcow2");
    let name = path.to_str().unwrap().to_owned();
    qemu_img(&["create", "-q", "-f", "qcow2", &name, "48M"]).unwrap();
    let writes: Vec<String> = (0..768_u32).rev().map(|i| format!("write -P {} {}k 64k", i % 250 + 1, i * 64)).collect();
    for batch in writes.chunks(128) {
        let mut arguments = vec!["-f", "qcow2"];
        for command in batch {
            arguments.extend(["-c", command]);
        }
        arguments.push(&name);
        qemu_io(&arguments).unwrap();
    }
    (path, raw_of(dir, &name))
}

fn raw_of(dir: &Path, qcow2: &str) -> Vec<u8> {
    let raw = dir.join("expected.raw");
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw", qcow2, raw.to_str().unwrap()]).unwrap();
    std::fs::read(raw).unwrap()
}

fn small_window() -> Limits {
    Limits { window_memory: 1 << 20, ..Limits::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn clusters_written_back_to_front_wait_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (path, expected) = backwards(dir.path());
    let store = memory();
    let mut job = job(Bytestream::file(&path), vec![(store.clone(), OutputFormat::RAW)]);
    job.limits = small_window();
    run(&job).await.unwrap();
    assert!(stored(store.as_ref()).await == expected);
    job.limits.max_spill = 1 << 20;
    (job.key, job.attempt) = (vitrine_engine::model::ObjectKey::new("other", 1).unwrap(), 1);
    let error = run(&job).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Refused, "the spill file must stay bounded: {error}");
}

/// What cannot be read twice need not be kept for that if its data stands in the guest's order: only what lies between waits on disk, with qemu's vhdx some MiB.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_only_once_and_in_order_is_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (raw, path) = (dir.path().join("raw"), dir.path().join("image"));
    let expected = disk(80 << 20);
    std::fs::write(&raw, &expected).unwrap();
    for (driver, options) in [
        ("raw", "size=80M"),
        ("vmdk", "subformat=streamOptimized"),
        ("vmdk", "subformat=monolithicSparse"),
        ("vpc", "subformat=dynamic,force_size=on"),
        ("vpc", "subformat=fixed,force_size=on"),
        ("vhdx", "subformat=dynamic"),
        ("vdi", "static=off"),
        ("vdi", "static=on"),
        ("parallels", "cluster_size=1M"),
        ("ours", "tables at the end"),
    ] {
        let (from, to) = (raw.to_str().unwrap(), path.to_str().unwrap());
        let mut source = if driver == "ours" {
            let vmdk = OutputFormat { disk_format: DiskFormat::Vmdk, subformat: None, ..OutputFormat::RAW };
            let store = memory();
            run(&job(Bytestream::new(expected.clone()), vec![(store.clone(), vmdk)])).await.unwrap();
            Bytestream::new(stored(store.as_ref()).await)
        } else {
            qemu_img(&["convert", "-f", "raw", "-O", driver, "-o", options, from, to]).unwrap();
            Bytestream::file(&path)
        };
        (source.once, source.sized) = (true, false);
        let store = memory();
        let mut job = job(source, vec![(store.clone(), OutputFormat::RAW)]);
        job.limits = Limits { max_spill: 8 << 20, ..small_window() };
        run(&job).await.unwrap_or_else(|e| panic!("{driver} {options}: {e}"));
        assert!(stored(store.as_ref()).await == expected, "{driver} {options}");
    }
}

/// A disk that was resized keeps its first-level table at the file's end; then one range request does what would else be a copy.
#[tokio::test(flavor = "multi_thread")]
async fn tables_at_the_end_are_fetched_by_range_and_must_not_lie() {
    let dir = tempfile::tempdir().unwrap();
    let (raw, path) = (dir.path().join("d.raw"), dir.path().join("d.qcow2"));
    std::fs::write(&raw, disk(40 << 20)).unwrap();
    let (raw, name) = (raw.to_str().unwrap(), path.to_str().unwrap());
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=4k", raw, name]).unwrap();
    qemu_img(&["resize", "-q", "-f", "qcow2", name, "4G"]).unwrap();
    let header = std::fs::read(&path).unwrap();
    let l1_offset = u64::from_be_bytes(header[40..48].try_into().unwrap());
    assert!(l1_offset > 15 << 20, "this test needs the table behind the data, it is at {l1_offset}");
    let mut limits = small_window();
    limits.max_spill = 1 << 20;

    let mut honest = job(Bytestream::file(&path).ranged(), vec![(memory(), OutputFormat::RAW)]);
    honest.limits = limits.clone();
    assert_eq!(run(&honest).await.unwrap().virtual_size, 4 << 30);

    let mut without = job(Bytestream::file(&path), vec![(memory(), OutputFormat::RAW)]);
    without.limits = limits.clone();
    assert_eq!(run(&without).await.unwrap_err().kind(), Kind::Refused, "without ranges everything has to wait");

    let mut source = Bytestream::file(&path).ranged();
    let mut lie = source.bytes.to_vec();
    // The guest would see nothing of its disk, and the digest of the stream would still be right.
    let at = usize::try_from(l1_offset).unwrap();
    lie[at..at + 160].fill(0);
    source.ranges = Some(lie.into());
    let store = memory();
    let mut lied = job(source, vec![(store.clone(), OutputFormat::RAW)]);
    lied.limits = limits;
    assert_eq!(run(&lied).await.unwrap_err().kind(), Kind::Changed);
    assert!(vitrine_engine::store::Store::list(store.as_ref()).await.unwrap().is_empty());
}

/// Compressed clusters share sectors. Written back to front, a sector is needed again long after it went by.
#[tokio::test(flavor = "multi_thread")]
async fn shared_sectors_far_apart_start_over_with_everything_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shuffled.qcow2");
    let name = path.to_str().unwrap();
    qemu_img(&["create", "-q", "-f", "qcow2", name, "64M"]).unwrap();
    // Noise that hardly compresses would leave no shared sectors far apart; text in a pattern of its own does.
    let noise = dir.path().join("noise");
    let bytes: Vec<u8> = disk(4 << 20).into_iter().take(60_000).chain(std::iter::repeat_n(7, 5_536)).collect();
    std::fs::write(&noise, bytes).unwrap();
    let order = (0..1024_u32).map(|i| (i * 387) % 1024);
    let writes: Vec<String> = order.map(|i| format!("write -c -s {} {}k 64k", noise.display(), i * 64)).collect();
    for batch in writes.chunks(128) {
        let mut arguments = vec!["-f", "qcow2"];
        for command in batch {
            arguments.extend(["-c", command]);
        }
        arguments.push(name);
        qemu_io(&arguments).unwrap();
    }
    let expected = raw_of(dir.path(), name);
    let store = memory();
    let mut job = job(Bytestream::file(&path), vec![(store.clone(), OutputFormat::RAW)]);
    job.limits = small_window();
    run(&job).await.unwrap();
    assert!(stored(store.as_ref()).await == expected);
}
