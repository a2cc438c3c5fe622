//! Sinks under awkward circumstances: a held lock, a cancelled write, a runtime that goes away.

use std::{
    fs,
    time::{Duration, Instant},
};

use futures::FutureExt;
use vitrine_engine::{
    error::Kind,
    model::OutputFormat,
    store::{Sink, Store},
};

use super::{objects, open};
use crate::conformance::{key, noise, proof, refused};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_decided_while_another_process_holds_the_lock() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let sink = store.create(&key(1), 1, OutputFormat::RAW).await.unwrap();
    let fence = fs::File::open(folder.path().join(".fences").join(key(1).to_string())).unwrap();
    rustix::fs::flock(&fence, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let proof = proof(0);
    let mut commit = sink.commit(0, &proof);
    let wait = Duration::from_millis(100);
    assert!(tokio::time::timeout(wait, &mut commit).await.is_err());
    assert!(tokio::time::timeout(wait, store.delete(&key(1), 1)).await.is_err());
    assert!(tokio::time::timeout(wait, store.create(&key(1), 1, OutputFormat::RAW)).await.is_err());
    assert_eq!(refused(store.stat(&key(1)).await), Kind::NotFound);
    drop(fence);
    // The three that wait go on in any order; each is whole.
    let _ = commit.await;
    let published = store.list().await.unwrap().iter().filter(|entry| entry.published).count();
    assert!(published <= 1);
}

#[tokio::test]
async fn memory_is_bounded_and_a_cancelled_write_is_not_published() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let mut sink = store.create(&key(1), 1, OutputFormat::RAW).await.unwrap();
    // Far more than may wait: the write cannot be taken over at once, so one poll leaves it half done.
    let bytes = noise(1, 96 << 20);
    assert!(sink.write_at(0, bytes).now_or_never().is_none());
    assert_eq!(refused(sink.commit(96 << 20, &proof(96 << 20)).await), Kind::Internal);
    assert!(objects(folder.path()).is_empty());
}

#[tokio::test]
async fn tiny_pieces_are_bounded_too() {
    const MANY: u64 = 1_000_000;
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let mut sink = store.create(&key(1), 1, OutputFormat::RAW).await.unwrap();
    let byte = noise(1, 1);
    // With a hole between any two, each is a system call of its own: they come faster than they can be written.
    // `unconstrained`, because otherwise tokio itself would make the task wait now and then.
    let mut taken = 0;
    while taken < MANY {
        let write = tokio::task::unconstrained(sink.write_at(taken * 8192, byte.clone()));
        if write.now_or_never().is_none() {
            break;
        }
        taken += 1;
    }
    assert!(taken < MANY, "{taken} pieces were taken without waiting");
    sink.abort().await.unwrap();
}

#[tokio::test]
async fn offsets_beyond_the_largest_file_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let mut sink = store.create(&key(1), 1, OutputFormat::RAW).await.unwrap();
    for offset in [u64::MAX, i64::MAX as u64] {
        assert_eq!(refused(sink.write_at(offset, noise(1, 10)).await), Kind::InvalidInput);
    }
}

#[test]
fn a_runtime_that_goes_away_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let store = open(folder.path());
    let sinks: Vec<Box<dyn Sink>> = runtime.block_on(async {
        let mut sinks = Vec::new();
        for revision in 1..=3 {
            let mut sink = store.create(&key(revision), 1, OutputFormat::RAW).await.unwrap();
            sink.write_at(0, noise(1, 8 << 20)).await.unwrap();
            sinks.push(sink);
        }
        sinks
    });
    runtime.spawn(async move {
        let _sinks = sinks;
        std::future::pending::<()>().await;
    });
    assert_eq!(objects(folder.path()).len(), 3);
    drop(runtime);
    assert!(objects(folder.path()).is_empty());
}

#[tokio::test]
async fn a_commit_that_nobody_waits_for_is_whole_or_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let mut sink = store.create(&key(1), 1, OutputFormat::RAW).await.unwrap();
    sink.write_at(0, noise(1, 1 << 20)).await.unwrap();
    // Polled once, so the order is given, and dropped.
    assert!(sink.commit(1 << 20, &proof(1 << 20)).now_or_never().is_none());
    let until = Instant::now() + Duration::from_secs(5);
    while store.stat(&key(1)).await.is_err() {
        assert!(Instant::now() < until, "{:?}", objects(folder.path()));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(objects(folder.path()), [key(1).to_string()]);
}
