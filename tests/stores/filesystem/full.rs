//! A full disk, on file systems that really are full.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, Instant},
};

use vitrine_engine::{
    error::Kind,
    model::{ChunkDigest, ContainerFormat, ContentManifest, DiskFormat, Evidence, OutputFormat, Received, Verified},
    store::{
        Store,
        filesystem::{FilesystemOptions, FilesystemStore},
    },
};

use super::{
    objects, open,
    private::{make_ext4, mount_ext4, mount_tmpfs, with_mounts},
};
use crate::conformance::{key, noise, proof, publish, read_all, refused};

const MIB: u64 = 1 << 20;

fn block_on(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work);
}

async fn available(store: &FilesystemStore) -> u64 {
    store.capacity().await.unwrap().unwrap().available
}

/// Writes until the store says no; gives its kind and message.
async fn fill(sink: &mut dyn vitrine_engine::store::Sink, most: u64) -> (Kind, String) {
    for offset in 0..most / MIB {
        if let Err(error) = sink.write_at(offset * MIB, noise(offset, MIB as usize)).await {
            return (error.kind(), error.to_string());
        }
    }
    panic!("{most} bytes fit");
}

async fn survives_a_full_disk(folder: &Path, room: u64) {
    let store = open(folder);
    publish(&store, &key(9), MIB, &[(0, noise(9, MIB as usize))]).await;
    let before = available(&store).await;
    let mut sink = store.create(&key(1), 1, OutputFormat::RAW).await.unwrap();
    let (kind, message) = fill(&mut *sink, 8 * room).await;
    assert_eq!(kind, Kind::NoSpace, "{message}");
    for part in ["store files", folder.to_str().unwrap(), &key(1).to_string(), "bytes needed", "available", "enlarge"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    // Given back before anybody drops the sink: its import may be one of many.
    assert_eq!(objects(folder), [key(9).to_string()]);
    assert!(available(&store).await + MIB / 2 >= before);
    assert_eq!(refused(sink.commit(8 * room, &proof(8 * room)).await), Kind::NoSpace);
    assert_eq!(read_all(&*store.open(&key(9)).await.unwrap()).await, noise(9, MIB as usize));
    publish(&store, &key(1), 2 * MIB, &[(0, noise(1, 2 * MIB as usize))]).await;
    can_be_emptied(&store, folder).await;
}

/// What is there can be removed when not a byte is left, and what is not there too.
async fn can_be_emptied(store: &FilesystemStore, folder: &Path) {
    let filler = folder.join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    for length in [MIB as usize, 4096, 1] {
        while std::io::Write::write_all(&mut file, &vec![1; length]).and_then(|()| file.sync_all()).is_ok() {}
    }
    assert_eq!(refused(store.probe().await), Kind::NoSpace);
    for revision in [7, 1, 9] {
        store.delete(&key(revision), 1).await.unwrap();
    }
    assert_eq!(objects(folder), ["filler"]);
    fs::remove_file(filler).unwrap();
}

#[test]
fn a_full_tmpfs_gets_its_room_back() {
    with_mounts("filesystem::full::a_full_tmpfs_gets_its_room_back", || {
        let folder = tempfile::tempdir().unwrap();
        mount_tmpfs(folder.path(), "16m");
        block_on(survives_a_full_disk(folder.path(), 16 * MIB));
    });
}

#[test]
fn a_full_ext4_gets_its_room_back() {
    with_mounts("filesystem::full::a_full_ext4_gets_its_room_back", || {
        let folder = tempfile::tempdir().unwrap();
        let (image, root) = (folder.path().join("image"), folder.path().join("root"));
        fs::create_dir(&root).unwrap();
        make_ext4(&image, 24);
        mount_ext4(&image, &root);
        block_on(survives_a_full_disk(&root, 24 * MIB));
    });
}

#[test]
fn an_object_longer_than_files_can_be_is_refused() {
    with_mounts("filesystem::full::an_object_longer_than_files_can_be_is_refused", || {
        let folder = tempfile::tempdir().unwrap();
        let (image, root) = (folder.path().join("image"), folder.path().join("root"));
        fs::create_dir(&root).unwrap();
        make_ext4(&image, 16);
        mount_ext4(&image, &root);
        block_on(async {
            let store = open(&root);
            // ext4 has files of at most 16 TiB.
            let sink = store.create(&key(1), 1, OutputFormat::RAW).await.unwrap();
            assert_eq!(refused(sink.commit(32 << 40, &proof(0)).await), Kind::InvalidInput);
            assert!(objects(&root).is_empty());
        });
    });
}

#[test]
fn what_is_written_reaches_the_disk_before_the_commit() {
    with_mounts("filesystem::full::what_is_written_reaches_the_disk_before_the_commit", || {
        let folder = tempfile::tempdir().unwrap();
        let (image, root) = (folder.path().join("image"), folder.path().join("root"));
        fs::create_dir(&root).unwrap();
        make_ext4(&image, 96);
        mount_ext4(&image, &root);
        block_on(async {
            let store = open(&root);
            // The device is a sparse file: what it has allocated is what the file system has written back.
            let allocated = || fs::metadata(&image).unwrap().blocks() * 512;
            let before = allocated();
            let mut sink = store.create(&key(1), 1, OutputFormat::RAW).await.unwrap();
            for offset in 0..48 {
                sink.write_at(offset * MIB, noise(offset, MIB as usize)).await.unwrap();
            }
            // The kernel by itself begins after 5 seconds at the earliest, with pages 30 seconds old (vm.dirty_*).
            let until = Instant::now() + Duration::from_secs(4);
            while allocated() < before + 30 * MIB {
                assert!(Instant::now() < until, "only {} bytes reached the disk", allocated() - before);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            sink.abort().await.unwrap();
        });
    });
}

#[test]
fn the_reserve_stays_free() {
    with_mounts("filesystem::full::the_reserve_stays_free", || {
        let folder = tempfile::tempdir().unwrap();
        mount_tmpfs(folder.path(), "16m");
        block_on(async {
            let reserve = |min_free| FilesystemOptions { min_free, ..FilesystemOptions::default() };
            let store = FilesystemStore::open("files", folder.path(), &reserve(8 * MIB)).unwrap();
            let mut sink = store.create(&key(1), 1, OutputFormat::RAW).await.unwrap();
            assert!(available(&store).await <= 8 * MIB);
            let file = folder.path().join(&objects(folder.path())[0]).join("data");
            let mut longest = 0;
            for offset in 0..16 {
                let result = sink.write_at(offset * MIB, noise(offset, MIB as usize)).await;
                longest = longest.max(fs::metadata(&file).map_or(0, |m| m.len()));
                let Err(error) = result else { continue };
                assert_eq!(error.kind(), Kind::NoSpace);
                assert!(error.to_string().contains("kept free"), "{error}");
            }
            assert!(longest <= 8 * MIB, "{longest}");
            drop(sink);
            let greedy = FilesystemStore::open("files", folder.path(), &reserve(20 * MIB)).unwrap();
            assert_eq!(refused(greedy.create(&key(1), 1, OutputFormat::RAW).await.map(|_| ())), Kind::NoSpace);
            assert_eq!(refused(greedy.probe().await), Kind::NoSpace);
        });
    });
}

#[test]
fn a_disk_that_fills_up_at_commit_publishes_nothing() {
    with_mounts("filesystem::full::a_disk_that_fills_up_at_commit_publishes_nothing", || {
        let folder = tempfile::tempdir().unwrap();
        mount_tmpfs(folder.path(), "16m");
        block_on(async {
            let store = open(folder.path());
            let mut sink = store.create(&key(1), 1, OutputFormat::RAW).await.unwrap();
            for offset in 0..12 {
                sink.write_at(offset * MIB, noise(offset, MIB as usize)).await.unwrap();
            }
            // The digests of a full disk of 1 TiB: 10 MiB, which do not fit beside the data.
            let chunks = (0..1 << 18).map(|index| ChunkDigest { index, digest: [7; 32] }).collect();
            let proof = Verified::try_from(Evidence {
                received: Received { length: 1, digests: vec![] },
                declared: vec![],
                source_format: DiskFormat::Raw,
                container_format: ContainerFormat::Bare,
                properties: std::collections::BTreeMap::new(),
                request: None,
                violations: vec![],
                manifest: ContentManifest { virtual_size: 1 << 40, chunks },
            });
            assert_eq!(refused(sink.commit(1 << 40, &proof.unwrap()).await), Kind::NoSpace);
            assert!(objects(folder.path()).is_empty());
            assert!(available(&store).await > 15 * MIB);
        });
    });
}
