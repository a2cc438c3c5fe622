//! OSDs and monitors that die, hang and come back.

use std::time::{Duration, Instant};

use vitrine_engine::{
    error::Kind,
    model::OutputFormat,
    store::{
        Store,
        rbd::{RbdOptions, RbdStore},
    },
};
use vitrine_harness::CephOptions;

use super::{POOL, open, options_for, own_cluster, refusal};
use crate::conformance::{key, noise, proof, publish, read_all, refused};

const PIECE: usize = 1 << 20;
const LENGTH: u64 = 64 << 20;

/// Writes an image and does `in_between` after half of it; then commits.
async fn write_through(store: &RbdStore, in_between: impl FnOnce()) {
    let mut sink = store.create(&key(1), 1, OutputFormat::RAW).await.unwrap();
    let mut in_between = Some(in_between);
    for piece in 0..LENGTH / PIECE as u64 {
        if piece == 32 {
            in_between.take().unwrap()();
        }
        sink.write_at(piece * PIECE as u64, noise(piece, PIECE)).await.unwrap();
    }
    sink.commit(LENGTH, &proof(LENGTH)).await.unwrap();
}

async fn assert_written(store: &RbdStore) {
    let content = read_all(&*store.open(&key(1)).await.unwrap()).await;
    for piece in 0..LENGTH as usize / PIECE {
        assert!(content.slice(piece * PIECE..(piece + 1) * PIECE) == noise(piece as u64, PIECE), "piece {piece}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_osd_that_dies_and_comes_back_costs_time_only() {
    let cluster = own_cluster(&CephOptions { on_disk: true, ..CephOptions::default() }).await;
    let store = open(&options_for(&cluster, POOL).await).await;
    write_through(&store, || {
        cluster.kill_osd();
        cluster.start_osd().unwrap();
    })
    .await;
    assert_written(&store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_that_dies_keeps_nobody_from_writing() {
    let cluster = own_cluster(&CephOptions::default()).await;
    let options = options_for(&cluster, POOL).await;
    let store = open(&options).await;
    let mut sink = store.create(&key(1), 1, OutputFormat::RAW).await.unwrap();
    sink.write_at(0, noise(0, PIECE)).await.unwrap();
    cluster.kill_monitor();
    for piece in 1..LENGTH / PIECE as u64 {
        sink.write_at(piece * PIECE as u64, noise(piece, PIECE)).await.unwrap();
    }
    let impatient = RbdOptions { connect_timeout: Duration::from_secs(2), ..options.clone() };
    let error = refusal(&impatient).await;
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    cluster.start_monitor().unwrap();
    sink.commit(LENGTH, &proof(LENGTH)).await.unwrap();
    assert_written(&store).await;
}

/// A snapshot takes a number from the monitor.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_published_without_a_monitor_and_nothing_is_left() {
    let cluster = own_cluster(&CephOptions::default()).await;
    let options = RbdOptions { connect_timeout: Duration::from_secs(2), ..options_for(&cluster, POOL).await };
    let store = open(&options).await;
    let mut sink = store.create(&key(1), 1, OutputFormat::RAW).await.unwrap();
    sink.write_at(0, noise(1, PIECE)).await.unwrap();
    cluster.kill_monitor();
    let error = sink.commit(LENGTH, &proof(LENGTH)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    cluster.start_monitor().unwrap();
    sweep_all(&store).await;
    assert_eq!(store.list().await.unwrap(), vec![]);
    publish(&*store, &key(1), 5000, &[]).await;
}

/// Sweeps until nothing unpublished is left.
async fn sweep_all(store: &RbdStore) {
    let start = Instant::now();
    loop {
        let swept = store.sweep(Duration::ZERO).await;
        let left = store.list().await;
        if matches!((&swept, &left), (Ok(_), Ok(left)) if left.iter().all(|entry| entry.published)) {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(120), "{swept:?} {left:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// What a store says of an OSD that hangs, to all at once: when it hangs for more than 16 s, the only copy of a placement group never
/// becomes readable again (Ceph's read leases wait for other copies).
async fn assert_told(store: &RbdStore) {
    let start = Instant::now();
    let (second, third) = (key(2), key(3));
    let (probed, listed, created, opened) =
        tokio::join!(store.probe(), store.list(), store.create(&second, 1, OutputFormat::RAW), store.open(&third));
    for error in
        [probed.unwrap_err(), listed.unwrap_err(), created.map(|_| ()).unwrap_err(), opened.map(|_| ()).unwrap_err()]
    {
        assert_eq!(error.kind(), Kind::Unavailable, "{error}");
        let said = error.to_string();
        assert!(said.contains("store ceph") && said.contains("pool images") && said.contains("ceph -s"), "{said}");
    }
    assert!(start.elapsed() < Duration::from_secs(60), "the answers took {} s", start.elapsed().as_secs());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_osd_that_hangs_is_told_in_time_and_nothing_is_left() {
    let cluster = own_cluster(&CephOptions::default()).await;
    let options = options_for(&cluster, POOL).await;
    let impatient = RbdOptions { operation_timeout: Duration::from_secs(1), ..options.clone() };
    let store = open(&impatient).await;
    publish(&*store, &key(3), 5000, &[(0, noise(3, 5000))]).await;
    let mut sink = store.create(&key(1), 1, OutputFormat::RAW).await.unwrap();
    sink.write_at(0, noise(1, PIECE)).await.unwrap();
    cluster.pause_osd().unwrap();
    let failed = loop {
        if let Err(error) = sink.write_at(0, noise(1, PIECE)).await {
            break error;
        }
    };
    assert_eq!(failed.kind(), Kind::Unavailable, "{failed}");
    assert!(failed.to_string().contains(&format!("{}", key(1))), "{failed}");
    // The first error is told again to everybody who asks.
    assert_eq!(sink.write_at(0, noise(1, 10)).await.unwrap_err().to_string(), failed.to_string());
    assert_eq!(refused(sink.commit(LENGTH, &proof(LENGTH)).await), Kind::Unavailable);
    assert_told(&store).await;
    cluster.resume_osd().unwrap();

    // Back to work, with what was there and without what was not finished.
    let patient = open(&options).await;
    assert_eq!(read_all(&*patient.open(&key(3)).await.unwrap()).await, noise(3, 5000));
    sweep_all(&patient).await;
    assert_eq!(patient.list().await.unwrap().len(), 1);
    publish(&*patient, &key(2), 5000, &[]).await;
}
