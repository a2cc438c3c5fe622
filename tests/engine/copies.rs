//! Copies from stores to stores, verification of what is stored, and stores that fail or hang beside others that do not.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio_util::sync::CancellationToken;
use vitrine_engine::{
    error::Kind,
    model::{Compression, Digest, DiskFormat, Limits, ObjectKey, OutputFormat, Subformat},
    pipeline::{Copied, Copy, Progress, Target, Verdict, Verification, copy, verify},
    store::{
        Store,
        fault::{CommitFault, Faults, FaultyStore},
        filesystem::{FilesystemOptions, FilesystemStore},
        memory::MemoryStore,
    },
};

use crate::support::{Bytestream, QCOW2_ZSTD, disk, job, run, stored};

const SIZE: usize = 20 << 20;
/// Much shorter than the delay of a store that hangs, much longer than any step of one that does not.
const STALL: Duration = Duration::from_secs(2);
const HANGS: Faults = Faults { delay: Duration::from_hours(1), ..SOUND };
const SOUND: Faults = Faults { write: None, delay: Duration::ZERO, commit: None, read: None, probe: None, stat: None };

fn memory(name: &str) -> Arc<MemoryStore> {
    Arc::new(MemoryStore::new(name))
}

fn key() -> ObjectKey {
    ObjectKey::new("5f1d8a3e-uid", 1).unwrap()
}

/// A store in a folder, where what is kept can rot.
struct Folder {
    dir: tempfile::TempDir,
    store: Arc<FilesystemStore>,
}

impl Folder {
    fn new(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = FilesystemStore::open(name, dir.path(), &FilesystemOptions::default()).unwrap();
        Self { dir, store: Arc::new(store) }
    }

    fn data(&self) -> PathBuf {
        let object = self.dir.path().join("5f1d8a3e-uid-r1");
        let files = fs::read_dir(object).unwrap().map(|entry| entry.unwrap().path());
        files.max_by_key(|path| path.metadata().unwrap().len()).unwrap()
    }

    fn rot(&self) {
        let data = self.data();
        let file = OpenOptions::new().write(true).open(data).unwrap();
        file.write_all_at(b"rotten", 8 << 20).unwrap();
    }
}

/// The same disk in every one of `stores`; gives its content digest.
async fn fill(stores: &[(Arc<dyn Store>, OutputFormat)]) -> Digest {
    run(&job(Bytestream::new(disk(SIZE)), stores.to_vec())).await.unwrap().content_digest
}

fn limits() -> Limits {
    Limits { store_stall: STALL, ..Limits::default() }
}

fn to_copy(sources: Vec<Arc<dyn Store>>, content: &Digest, targets: Vec<(Arc<dyn Store>, OutputFormat)>) -> Copy {
    Copy {
        sources,
        content: content.clone(),
        key: key(),
        attempt: 2,
        targets: targets.into_iter().map(|(store, output)| Target { store, output }).collect(),
        permit: None,
        limits: limits(),
        workers: 2,
    }
}

async fn done(job: &Copy) -> Copied {
    copy(job, &Arc::new(Progress::default()), &CancellationToken::new()).await
}

fn faults(copied: &Copied) -> Vec<(&str, bool)> {
    copied.faults.iter().map(|fault| (fault.store.as_str(), fault.rotten)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_hangs_is_dropped_and_the_others_get_the_image() {
    for require_all in [false, true] {
        let (good, hung) = (memory("good"), memory("hung"));
        let slow = Arc::new(FaultyStore::new(hung.clone(), HANGS));
        let mut job =
            job(Bytestream::new(disk(SIZE)), vec![(slow as _, OutputFormat::RAW), (good.clone() as _, QCOW2_ZSTD)]);
        (job.require_all, job.limits) = (require_all, limits());
        let result = run(&job).await;
        assert!(hung.list().await.unwrap().is_empty());
        if require_all {
            let error = result.unwrap_err();
            assert_eq!(error.kind(), Kind::Unavailable, "{error}");
            assert!(
                error.to_string().contains("store hung") && error.to_string().contains("no progress for 2 s"),
                "{error}"
            );
            assert!(good.list().await.unwrap().is_empty());
        } else {
            let published = result.unwrap().published;
            let failed = published.iter().find(|p| p.store == "hung").unwrap().result.as_ref().unwrap_err();
            assert!(failed.is_retryable(), "{failed}");
            assert_eq!(good.list().await.unwrap().len(), 1);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_has_the_content_the_record_and_the_holes_of_its_source() {
    for (from, to) in
        [(OutputFormat::RAW, QCOW2_ZSTD), (QCOW2_ZSTD, OutputFormat::RAW), (OutputFormat::RAW, OutputFormat::RAW)]
    {
        let (source, target) = (memory("source"), Folder::new("target"));
        let content = fill(&[(source.clone(), from)]).await;
        let copied = done(&to_copy(vec![source.clone()], &content, vec![(target.store.clone(), to)])).await;
        let imported = copied.result.unwrap();
        assert!(copied.faults.is_empty());
        let (old, new) = (source.stat(&key()).await.unwrap().image, target.store.stat(&key()).await.unwrap());
        assert_eq!((imported.content_digest, new.image.format), (content, to));
        assert_eq!(imported.received.digests, old.source_digests);
        assert_eq!(
            (&new.image.source_digests, new.image.source_size, new.image.source_format, &new.image.properties),
            (&old.source_digests, old.source_size, old.source_format, &old.properties)
        );
        if to == OutputFormat::RAW {
            assert!(stored(&*target.store).await == disk(SIZE));
            // Half of the disk is zeros.
            let held = target.data().metadata().unwrap().blocks() * 512;
            assert!(held < SIZE as u64 * 6 / 10, "{held} bytes are allocated");
        }
    }
}

/// Small clusters: many tables, in the midst of the data.
const QCOW2: OutputFormat = OutputFormat {
    disk_format: DiskFormat::Qcow2,
    subformat: None,
    compression: Compression::None,
    cluster_size: 4096,
};
const STREAM: OutputFormat = OutputFormat {
    disk_format: DiskFormat::Vmdk,
    subformat: Some(Subformat::StreamOptimized),
    compression: Compression::None,
    cluster_size: OutputFormat::RAW.cluster_size,
};

/// What copying took: reads of each source, and writes to the target, which holds the disk afterwards.
async fn effort(sources: &[Arc<FaultyStore>], content: &Digest) -> (Vec<u64>, u64, Copied) {
    let before: Vec<_> = sources.iter().map(|source| source.reads()).collect();
    let target = Arc::new(FaultyStore::new(memory("target"), SOUND));
    let from = sources.iter().map(|source| source.clone() as Arc<dyn Store>).collect();
    let copied = done(&to_copy(from, content, vec![(target.clone(), OutputFormat::RAW)])).await;
    assert!(stored(&*target).await == disk(SIZE));
    let reads = sources.iter().zip(before).map(|(source, before)| source.reads() - before).collect();
    (reads, target.writes(), copied)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_goes_on_from_the_next_source_when_one_breaks_off_in_the_middle() {
    let raw = OutputFormat::RAW;
    for (first, second) in
        [(raw, raw), (QCOW2_ZSTD, raw), (raw, QCOW2_ZSTD), (QCOW2, QCOW2_ZSTD), (STREAM, QCOW2), (QCOW2, STREAM)]
    {
        let (one, two) = (memory("one"), memory("two"));
        let content = fill(&[(one.clone(), first), (two.clone(), second)]).await;
        let two = Arc::new(FaultyStore::new(two, SOUND));
        let whole = Arc::new(FaultyStore::new(one.clone(), SOUND));
        let (all, clean, _) = effort(&[whole], &content).await;
        let (other, _, _) = effort(std::slice::from_ref(&two), &content).await;
        for at in [1, 2, all[0] / 2, all[0] - 1, all[0]] {
            let broken = Faults { read: Some((at, Kind::Unavailable)), ..SOUND };
            let broken = Arc::new(FaultyStore::new(one.clone(), broken));
            let (reads, writes, copied) = effort(&[broken, two.clone()], &content).await;
            assert_eq!(faults(&copied), [("one", false)], "{first:?} {second:?} {at}");
            assert_eq!(copied.result.unwrap().content_digest, content);
            // Nothing was begun again: nothing was written twice, and of the second source what was missing was read.
            assert_eq!(writes, clean, "{first:?} {second:?} {at} of {}", all[0]);
            assert_eq!(reads[0], at);
            assert!(at < all[0] || reads[1] < other[0] || other[0] < 5, "{reads:?} of {other:?}: {first:?} {second:?}");
        }
    }
}

/// A source whose tables are damaged, when there is another one, is as good as one that breaks off.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_goes_on_from_the_next_source_when_the_tables_of_one_are_damaged() {
    let (one, two, target) = (Folder::new("one"), memory("two"), Arc::new(FaultyStore::new(memory("target"), SOUND)));
    let content = fill(&[(one.store.clone(), QCOW2), (two.clone(), QCOW2_ZSTD)]).await;
    let file = OpenOptions::new().read(true).write(true).open(one.data()).unwrap();
    let number = |at: u64| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes)
    };
    // qcow2.txt: the offset of the L1 table stands at byte 40; bits 9 to 55 of its entries are the offsets of L2 tables. The last of them
    // covers the last 2 MiB.
    let last = number(number(40) + 8 * (SIZE as u64 / (2 << 20) - 1)) & 0x00ff_ffff_ffff_fe00;
    file.write_all_at(&[0xff; 4096], last).unwrap();
    let sources = vec![one.store.clone() as Arc<dyn Store>, two];
    let copied = done(&to_copy(sources, &content, vec![(target.clone(), OutputFormat::RAW)])).await;
    assert_eq!(faults(&copied), [("one", true)]);
    assert_eq!(copied.result.unwrap().content_digest, content);
    assert!(stored(&*target).await == disk(SIZE));
}

/// What came of a source before it broke off is held against the digest like everything else.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_broken_source_gave_before_counts_only_if_it_is_right() {
    let (one, two, target) = (Folder::new("one"), memory("two"), memory("target"));
    let content = fill(&[(one.store.clone(), OutputFormat::RAW), (two.clone(), QCOW2_ZSTD)]).await;
    one.rot();
    let reads = Arc::new(FaultyStore::new(one.store.clone(), SOUND));
    let verdict = verdict(reads.clone(), &content).await.unwrap();
    assert!(is_rotten(&verdict), "{verdict:?}");
    let broken = Faults { read: Some((reads.reads(), Kind::Unavailable)), ..SOUND };
    let sources = vec![Arc::new(FaultyStore::new(one.store.clone(), broken)) as Arc<dyn Store>, two];
    let copied = done(&to_copy(sources, &content, vec![(target.clone(), OutputFormat::RAW)])).await;
    assert_eq!(faults(&copied), [("one", false)]);
    assert_eq!(copied.result.unwrap().content_digest, content);
    assert!(stored(&*target).await == disk(SIZE));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_rotted_is_told_and_never_copied() {
    let [one, two] = ["one", "two"].map(Folder::new);
    let content = fill(&[(one.store.clone(), OutputFormat::RAW), (two.store.clone(), QCOW2_ZSTD)]).await;
    one.rot();
    let target = memory("target");
    let sources = vec![one.store.clone() as Arc<dyn Store>, two.store.clone()];
    let copied = done(&to_copy(sources.clone(), &content, vec![(target.clone(), OutputFormat::RAW)])).await;
    assert_eq!(faults(&copied), [("one", true)]);
    assert_eq!(copied.result.unwrap().content_digest, content);
    assert!(stored(&*target).await == disk(SIZE));

    two.store.delete(&key(), 1).await.unwrap();
    let target = memory("target");
    let copied = done(&to_copy(sources, &content, vec![(target.clone(), OutputFormat::RAW)])).await;
    assert_eq!(faults(&copied), [("two", true), ("one", true)]);
    let error = copied.result.unwrap_err();
    assert!(error.to_string().contains("no copy can be read"), "{error}");
    assert!(target.list().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_content_than_asked_for_is_not_copied() {
    let (source, target) = (memory("source"), memory("target"));
    fill(&[(source.clone(), OutputFormat::RAW)]).await;
    let other: Digest = format!("blake3:{}", "ab".repeat(32)).parse().unwrap();
    let copied = done(&to_copy(vec![source], &other, vec![(target.clone(), OutputFormat::RAW)])).await;
    assert_eq!(faults(&copied), [("source", true)]);
    assert!(copied.result.is_err() && target.list().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_target_of_a_copy_is_for_itself() {
    let full = Faults { write: Some((2, Kind::NoSpace)), ..SOUND };
    let lost = Faults { commit: Some(CommitFault::Before(Kind::Io)), ..SOUND };
    let source = memory("source");
    let content = fill(&[(source.clone(), OutputFormat::RAW)]).await;
    let good = memory("good");
    let mut targets: Vec<(Arc<dyn Store>, OutputFormat)> = vec![(good.clone(), OutputFormat::RAW)];
    for (name, faults) in [("full", full), ("lost", lost), ("hung", HANGS)] {
        targets.push((Arc::new(FaultyStore::new(memory(name), faults)), OutputFormat::RAW));
    }
    let copied = done(&to_copy(vec![source.clone()], &content, targets.clone())).await;
    let published = copied.result.unwrap().published;
    let ok: Vec<_> = published.iter().filter(|p| p.result.is_ok()).map(|p| p.store.as_str()).collect();
    assert_eq!((ok.as_slice(), published.len(), copied.faults.len()), (&["good"][..], 4, 0));
    assert!(stored(&*good).await == disk(SIZE));
    // None of them at all: that is no fault of the source.
    let copied = done(&to_copy(vec![source], &content, vec![targets.remove(2)])).await;
    assert!(copied.result.is_err() && copied.faults.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_attempt_left_is_taken_over_if_it_is_the_same() {
    let (source, same, other) = (memory("source"), memory("same"), memory("other"));
    let content = fill(&[(source.clone(), OutputFormat::RAW), (same.clone(), OutputFormat::RAW)]).await;
    run(&job(Bytestream::new(disk(1 << 20)), vec![(other.clone(), OutputFormat::RAW)])).await.unwrap();
    let targets = vec![(same.clone() as Arc<dyn Store>, OutputFormat::RAW), (other.clone() as _, OutputFormat::RAW)];
    let copied = done(&to_copy(vec![source], &content, targets)).await;
    let published = copied.result.unwrap().published;
    let result = |name: &str| published.iter().find(|p| p.store == name).unwrap().result.as_ref();
    assert_eq!(result("same").unwrap().image.manifest.root(), content);
    assert_eq!(result("other").unwrap_err().kind(), Kind::Changed);
    assert!(other.list().await.unwrap().is_empty(), "the next attempt can bring what is wanted");
}

async fn verdict(store: Arc<dyn Store>, content: &Digest) -> vitrine_engine::error::Result<Verdict> {
    let job = Verification { store, key: key(), content: content.clone(), limits: limits(), workers: 2 };
    verify(&job, &Arc::new(Progress::default()), &CancellationToken::new()).await
}

fn is_rotten(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Rotten(message) if message.contains("store"))
}

#[tokio::test(flavor = "multi_thread")]
async fn verification_tells_what_has_rotted_from_what_cannot_be_read() {
    type Harm = fn(&Path);
    let harms: [Harm; 4] = [
        |data| File::options().write(true).open(data).unwrap().write_all_at(b"x", 1 << 20).unwrap(),
        |data| File::options().write(true).open(data).unwrap().set_len(3 << 20).unwrap(),
        |data| fs::remove_file(data).unwrap(),
        |data| fs::remove_dir_all(data.parent().unwrap()).unwrap(),
    ];
    for output in [OutputFormat::RAW, QCOW2_ZSTD] {
        for (number, harm) in harms.into_iter().enumerate() {
            let folder = Folder::new("s");
            let content = fill(&[(folder.store.clone(), output)]).await;
            assert_eq!(verdict(folder.store.clone(), &content).await.unwrap(), Verdict::Sound);
            let failing = Faults { read: Some((1, Kind::Unavailable)), ..SOUND };
            let unreadable = verdict(Arc::new(FaultyStore::new(folder.store.clone(), failing)), &content).await;
            assert_eq!(unreadable.unwrap_err().kind(), Kind::Unavailable);
            harm(&folder.data());
            let found = verdict(folder.store.clone(), &content).await.unwrap();
            assert!(is_rotten(&found), "{output:?} {number}: {found:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unmounted_store_is_not_taken_for_a_rotten_one() {
    let folder = Folder::new("s");
    let content = fill(&[(folder.store.clone(), OutputFormat::RAW)]).await;
    let away = folder.dir.path().with_extension("away");
    fs::rename(folder.dir.path(), &away).unwrap();
    fs::create_dir(folder.dir.path()).unwrap();
    assert_eq!(verdict(folder.store.clone(), &content).await.unwrap_err().kind(), Kind::Unavailable);
    fs::remove_dir(folder.dir.path()).unwrap();
    fs::rename(&away, folder.dir.path()).unwrap();
    assert_eq!(verdict(folder.store.clone(), &content).await.unwrap(), Verdict::Sound);
}
