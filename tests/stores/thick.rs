//! Stores that hold every byte for real.

use std::{path::Path, process::Command, sync::Arc};

use bytes::Bytes;
use vitrine_engine::{
    error::Kind,
    model::OutputFormat,
    store::{
        ObjectStat, Store,
        fault::{Faults, FaultyStore},
        filesystem::{FilesystemOptions, FilesystemStore},
        limit::LimitedStore,
        memory::MemoryStore,
        thick::ThickStore,
    },
};

use crate::{
    conformance::{key, noise, proof, publish, read_all, refused},
    filesystem::{
        objects, open,
        private::{mount_ext4, mount_tmpfs, run, with_mounts},
    },
    rbd,
};

const MIB: u64 = 1 << 20;

fn block_on(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap().block_on(work);
}

/// Pieces in no order, with gaps before, between and behind them, one over another, and one in a long gap that was passed by.
fn pieces() -> Vec<(u64, Bytes)> {
    let at =
        [(5 * MIB + 17, 100_000), (21 * MIB, 3 << 20), (5 * MIB + 60_000, 10), (13 * MIB + 1, 5000), (30 * MIB, 512)];
    (1..).zip(at).map(|(seed, (offset, length))| (offset, noise(seed, length))).collect()
}

/// Publishes them, and looks at what comes back.
async fn publish_pieces(store: &dyn Store, revision: u64, length: u64) -> ObjectStat {
    let stat = publish(store, &key(revision), length, &pieces()).await;
    let mut expected = vec![0; length as usize];
    for (offset, bytes) in pieces() {
        expected[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
    }
    assert!(read_all(&*store.open(&key(revision)).await.unwrap()).await == expected);
    assert_eq!(store.stat(&key(revision)).await.unwrap(), stat);
    stat
}

/// What `du` says of an object's data.
fn du(folder: &Path, revision: u64) -> u64 {
    let data = folder.join(key(revision).to_string()).join("data");
    let output = Command::new("du").arg("--block-size=1").arg(data).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().parse().unwrap()
}

/// The same object with holes and without.
async fn compare(folder: &Path, length: u64) {
    let thin: Arc<dyn Store> = Arc::new(open(folder));
    let thick = ThickStore::new(thin.clone());
    assert!(publish_pieces(&*thin, 1, length).await.allocated_size < 4 * MIB && du(folder, 1) < 4 * MIB);
    let stat = publish_pieces(&thick, 2, length).await;
    assert!(stat.allocated_size >= length && du(folder, 2) >= length, "{} of {length}", stat.allocated_size);
    assert!(stat.allocated_size < length + MIB, "{}", stat.allocated_size);
    assert_eq!(publish(&thick, &key(3), 0, &[]).await.allocated_size, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_sets_room_aside_for_every_byte() {
    let folder = tempfile::tempdir().unwrap();
    // More than is filled in one step, and no multiple of anything.
    let length = 300 * MIB + 777;
    compare(folder.path(), length).await;
    // What was set aside is known to be zeros: who reads it first need not look. What was read already the kernel counts as data.
    let store = open(folder.path());
    publish(&ThickStore::new(Arc::new(store.clone())), &key(4), length, &pieces()).await;
    let reader = store.open(&key(4)).await.unwrap();
    let (mut at, mut data) = (0, 0);
    while let Some((start, end)) = reader.next_data(at).await.unwrap() {
        (at, data) = (end, data + end - start);
    }
    assert!(data < 4 * MIB, "{data}");
}

/// A file system without extents, which cannot set room aside.
#[test]
fn a_folder_that_cannot_writes_zeros() {
    with_mounts("thick::a_folder_that_cannot_writes_zeros", || {
        let folder = tempfile::tempdir().unwrap();
        let (disk, root) = (folder.path().join("disk"), folder.path().join("root"));
        std::fs::create_dir(&root).unwrap();
        std::fs::File::create(&disk).unwrap().set_len(96 << 20).unwrap();
        run("mkfs.ext4", &["-q", "-F", "-O", "^extents,^64bit", disk.to_str().unwrap()]);
        mount_ext4(&disk, &root);
        block_on(compare(&root, 40 * MIB + 777));
    });
}

#[test]
fn a_folder_without_the_room_says_so_and_keeps_its_reserve() {
    with_mounts("thick::a_folder_without_the_room_says_so_and_keeps_its_reserve", || {
        let folder = tempfile::tempdir().unwrap();
        mount_tmpfs(folder.path(), "64m");
        block_on(async {
            let options = FilesystemOptions { min_free: 16 << 20, ..FilesystemOptions::default() };
            let store = Arc::new(FilesystemStore::open("files", folder.path(), &options).unwrap());
            let store = ThickStore::new(store);
            // It fits on the volume, and not beside the reserve.
            let mut sink = store.create(&key(1), 1, OutputFormat::RAW).await.unwrap();
            sink.write_at(0, noise(1, 5000)).await.unwrap();
            let error = sink.commit(56 * MIB, &proof(56 * MIB)).await.unwrap_err();
            assert_eq!(error.kind(), Kind::NoSpace, "{error}");
            assert!(error.to_string().contains("store files") && error.to_string().contains("enlarge"), "{error}");
            assert_eq!(objects(folder.path()), [""; 0]);
            publish_pieces(&store, 1, 40 * MIB).await;
        });
    });
}

/// The one number in what `rbd du` says of an image at its snapshot.
async fn rbd_du(spec: &str) -> u64 {
    let told = rbd::cluster().await.rbd(&["du", "--format", "json", spec]).unwrap();
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    told["images"][0]["used_size"].as_u64().unwrap()
}

/// The sum of what `rbd diff` lists.
async fn rbd_diff(spec: &str) -> u64 {
    let told = rbd::cluster().await.rbd(&["diff", "--format", "json", spec]).unwrap();
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    told.as_array().unwrap().iter().map(|extent| extent["length"].as_u64().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_gets_every_byte_written() {
    let options = rbd::options().await;
    let store: Arc<dyn Store> = rbd::open(&options).await;
    // More than is written in one step, and no multiple of anything.
    let length = 90 * MIB + 777;
    let thin = publish_pieces(&*store, 1, length).await;
    assert!(thin.allocated_size <= 20 * MIB, "{}", thin.allocated_size);
    let thick = ThickStore::new(store);
    let stat = publish_pieces(&thick, 2, length).await;
    assert!(stat.allocated_size >= length, "{} of {length}", stat.allocated_size);
    let spec = |revision| format!("{}/{}/{}@snap", rbd::POOL, options.namespace.as_deref().unwrap(), key(revision));
    assert!(rbd_diff(&spec(1)).await <= 20 * MIB);
    assert_eq!(rbd_diff(&spec(2)).await, length);
    assert!(rbd_du(&spec(2)).await >= length);
    let reader = thick.open(&key(2)).await.unwrap();
    assert_eq!(reader.next_data(0).await.unwrap(), Some((0, length)));
    assert_eq!(publish(&thick, &key(3), 0, &[]).await.allocated_size, 0);
}

#[tokio::test]
async fn who_cannot_hold_zeros_says_so_at_once() {
    let memory = Arc::new(MemoryStore::new("memory"));
    let error = ThickStore::new(memory.clone()).create(&key(1), 1, OutputFormat::RAW).await.map(drop).unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidInput);
    assert!(error.to_string().contains("store memory") && error.to_string().contains("thinProvisioning"), "{error}");
    assert_eq!(memory.list().await.unwrap(), vec![]);
    assert_eq!(refused(ThickStore::new(memory).stat(&key(1)).await), Kind::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn decorators_around_it_do_not_keep_it_from_that() {
    let folder = tempfile::tempdir().unwrap();
    let limited = Arc::new(LimitedStore::new(Arc::new(open(folder.path())), 1));
    let thick = ThickStore::new(Arc::new(FaultyStore::new(limited, Faults::default())));
    assert!(publish_pieces(&thick, 1, 40 * MIB).await.allocated_size >= 40 * MIB);
}
