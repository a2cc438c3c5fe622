//! Copies into stores where a killed copy has left something.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::PathBuf,
    sync::Arc,
};

use tokio_util::sync::CancellationToken;
use vitrine_engine::{
    model::{Digest, Limits, ObjectKey, OutputFormat},
    pipeline::{Copied, Copy, Progress, Target, copy},
    store::{
        Store,
        fault::{Faults, FaultyStore},
        filesystem::{FilesystemOptions, FilesystemStore},
        memory::MemoryStore,
        thick::ThickStore,
    },
};

use crate::support::{Bytestream, QCOW2_ZSTD, disk, job, run, stored};

const CHUNK: usize = 4 << 20;
/// Five chunks, the last one short; half of each is data.
const SIZE: usize = 4 * CHUNK + (1 << 20);

fn key() -> ObjectKey {
    ObjectKey::new("5f1d8a3e-uid", 1).unwrap()
}

/// A store in a folder with what a writer that died left of `key`.
struct Folder {
    dir: tempfile::TempDir,
    store: Arc<FilesystemStore>,
}

impl Folder {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = FilesystemStore::open("target", dir.path(), &FilesystemOptions::default()).unwrap();
        Self { dir, store: Arc::new(store) }
    }

    /// Leaves `pieces`, as a writer of the first attempt that was killed.
    fn leave(&self, pieces: &[(usize, &[u8])]) {
        let left = self.dir.path().join(format!(".partial-{}-a1-00000000000000aa", key()));
        fs::create_dir(&left).unwrap();
        let file = File::create(left.join("data")).unwrap();
        pieces.iter().for_each(|(at, bytes)| file.write_all_at(bytes, *at as u64).unwrap());
    }

    fn entries(&self) -> Vec<String> {
        let names = fs::read_dir(self.dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        names.filter(|name| !matches!(name.as_str(), ".vitrine-store" | ".fences")).collect()
    }

    fn object(&self) -> PathBuf {
        self.dir.path().join(key().to_string())
    }
}

/// A source of which every read is counted, and its content.
async fn source() -> (Arc<FaultyStore>, Digest) {
    let store = Arc::new(MemoryStore::new("source"));
    let filled = run(&job(Bytestream::new(disk(SIZE)), vec![(store.clone() as _, OutputFormat::RAW)])).await.unwrap();
    (Arc::new(FaultyStore::new(store, Faults::default())), filled.content_digest)
}

/// What copying to `target` took: reads of the source, and bytes written.
async fn effort(
    source: &Arc<FaultyStore>,
    content: &Digest,
    target: Arc<dyn Store>,
    output: OutputFormat,
) -> (u64, u64) {
    let before = source.reads();
    let job = Copy {
        sources: vec![source.clone() as _],
        content: content.clone(),
        key: key(),
        attempt: 2,
        targets: vec![Target { store: target, output }],
        permit: None,
        limits: Limits::default(),
        workers: 2,
    };
    let progress = Arc::new(Progress::default());
    let Copied { result, faults } = copy(&job, &progress, &CancellationToken::new()).await;
    assert_eq!((result.unwrap().content_digest, faults.len()), (content.clone(), 0));
    (source.reads() - before, progress.snapshot().written)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_goes_on_with_what_is_right_of_a_leftover_and_with_nothing_else() {
    let (source, content) = source().await;
    let disk = disk(SIZE);
    let fresh = Folder::new();
    let (all_reads, all_bytes) = effort(&source, &content, fresh.store.clone(), OutputFormat::RAW).await;
    let target = Folder::new();
    // Two chunks that are right, one torn, one that was nothing like it, also where there are to be zeros, and bytes behind the end.
    let (right, torn, other) = (&disk[..2 * CHUNK], &disk[2 * CHUNK..2 * CHUNK + 700_000], vec![7; CHUNK]);
    target.leave(&[(0, right), (2 * CHUNK, torn), (3 * CHUNK, &other), (SIZE, b"behind the end")]);
    let (reads, bytes) = effort(&source, &content, target.store.clone(), OutputFormat::RAW).await;
    assert!(stored(&*target.store).await == disk);
    // 2.25 chunks of 4.25 were missing.
    assert!(bytes * 17 == all_bytes * 9, "{bytes} of {all_bytes}");
    assert!(reads < all_reads * 2 / 3, "{reads} of {all_reads}");
    assert_eq!(target.entries(), [key().to_string()]);
    let files: Vec<_> = fs::read_dir(target.object()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(files.len(), 3, "{files:?}");
    let data = target.object().join("data").metadata().unwrap();
    assert_eq!(data.len(), SIZE as u64);
    assert!(data.blocks() * 512 < SIZE as u64 * 8 / 10, "{} bytes are allocated", data.blocks() * 512);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leftover_that_is_whole_is_verified_and_published() {
    let (source, content) = source().await;
    let (target, disk) = (Folder::new(), disk(SIZE));
    target.leave(&[(0, &disk)]);
    let (reads, bytes) = effort(&source, &content, target.store.clone(), OutputFormat::RAW).await;
    // What is a disk and what is not is told by its end.
    assert!(reads <= 1 && bytes == 0, "{reads} {bytes}");
    assert!(stored(&*target.store).await == disk);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_what_somebody_writes_or_where_nobody_knows_what_it_is_nobody_goes_on() {
    let (source, content) = source().await;
    let disk = disk(SIZE);
    let fresh = Folder::new();
    let (_, all) = effort(&source, &content, fresh.store.clone(), OutputFormat::RAW).await;
    // Its writer lives.
    let target = Folder::new();
    let mut alive = target.store.create(&key(), 1, OutputFormat::RAW).await.unwrap();
    alive.write_at(0, disk[..2 * CHUNK].to_vec().into()).await.unwrap();
    let (_, bytes) = effort(&source, &content, target.store.clone(), OutputFormat::RAW).await;
    assert_eq!(bytes, all);
    assert!(alive.write_at(0, vec![9; 100].into()).await.is_ok() || stored(&*target.store).await == disk);
    alive.abort().await.unwrap();
    assert!(stored(&*target.store).await == disk);
    // Every byte is to be held.
    let target = Folder::new();
    target.leave(&[(0, &disk[..2 * CHUNK])]);
    let thick = Arc::new(ThickStore::new(target.store.clone()));
    let (_, bytes) = effort(&source, &content, thick, OutputFormat::RAW).await;
    assert_eq!(bytes, all);
    // Where a chunk lies depends on all before it.
    let target = Folder::new();
    target.leave(&[(0, &disk[..2 * CHUNK])]);
    effort(&source, &content, target.store.clone(), QCOW2_ZSTD).await;
    assert_eq!(target.entries(), [key().to_string()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_targets_go_on_with_what_all_of_them_hold() {
    let (source, content) = source().await;
    let disk = disk(SIZE);
    let (one, two) = (Folder::new(), Folder::new());
    one.leave(&[(0, &disk[..3 * CHUNK])]);
    two.leave(&[(CHUNK, &disk[CHUNK..2 * CHUNK])]);
    let before = source.reads();
    let target = |folder: &Folder| Target { store: folder.store.clone(), output: OutputFormat::RAW };
    let job = Copy {
        sources: vec![source.clone() as _],
        content: content.clone(),
        key: key(),
        attempt: 2,
        targets: vec![target(&one), target(&two)],
        permit: None,
        limits: Limits::default(),
        workers: 2,
    };
    let Copied { result, .. } = copy(&job, &Arc::new(Progress::default()), &CancellationToken::new()).await;
    assert!(result.unwrap().published.iter().all(|published| published.result.is_ok()));
    for folder in [&one, &two] {
        assert!(stored(&*folder.store).await == disk);
    }
    let fresh = Folder::new();
    let (all, _) = effort(&source, &content, fresh.store.clone(), OutputFormat::RAW).await;
    assert!(source.reads() - before - all < all, "a chunk that both hold is not read");
}
