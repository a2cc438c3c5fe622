//! Gateways that die, hang and come back, buckets that are full, and pieces that somebody else removed.

use std::time::{Duration, Instant};

use object_store::{ObjectStoreExt as _, path::Path};
use vitrine_engine::{
    error::Kind,
    model::OutputFormat,
    store::{Store, s3::S3Options},
};
use vitrine_harness::{CephCluster, Gateway};

use super::{BUCKET, client, objects, open, options, options_for, pieces};
use crate::{
    conformance::{key, noise, proof, publish, read_all, refused},
    leftovers::sweep_all,
};

const PIECE: usize = 1 << 20;
const LENGTH: u64 = 40 << 20;

/// A gateway of its own, for a test that breaks it; its buckets are those of all.
async fn own_gateway() -> Gateway<'static> {
    let gateway = Gateway::start(CephCluster::shared().await.unwrap()).await.unwrap();
    gateway.make_bucket(BUCKET).unwrap();
    gateway
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_dies_and_comes_back_costs_time_only() {
    let gateway = own_gateway().await;
    let options = S3Options { retry_timeout: Duration::from_secs(120), ..options_for(&gateway) };
    let store = open(&options);
    let mut sink = store.create(&key(1), 1, OutputFormat::RAW).await.unwrap();
    for piece in 0..LENGTH / PIECE as u64 {
        if piece == 20 {
            gateway.kill();
        }
        if piece == 24 {
            gateway.restart().await.unwrap();
        }
        sink.write_at(piece * PIECE as u64, noise(piece, PIECE)).await.unwrap();
    }
    sink.commit(LENGTH, &proof(LENGTH)).await.unwrap();
    let content = read_all(&*store.open(&key(1)).await.unwrap()).await;
    for piece in 0..LENGTH as usize / PIECE {
        assert!(content.slice(piece * PIECE..(piece + 1) * PIECE) == noise(piece as u64, PIECE), "piece {piece}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_hangs_is_told_in_time_and_nothing_is_left() {
    let gateway = own_gateway().await;
    let options = options_for(&gateway);
    let second = Duration::from_secs(1);
    let impatient =
        open(&S3Options { request_timeout: second, retry_timeout: second, lease: second, ..options.clone() });
    publish(&*impatient, &key(3), 5000, &[(0, noise(3, 5000))]).await;
    let mut sink = impatient.create(&key(1), 1, OutputFormat::RAW).await.unwrap();
    sink.write_at(0, noise(1, PIECE)).await.unwrap();
    gateway.pause().unwrap();
    let start = Instant::now();
    let failed = loop {
        if let Err(error) = sink.write_at(0, noise(1, PIECE)).await {
            break error;
        }
    };
    assert_eq!(failed.kind(), Kind::Unavailable, "{failed}");
    // The first error is told again to everybody who asks.
    assert_eq!(sink.write_at(0, noise(1, 10)).await.unwrap_err().to_string(), failed.to_string());
    assert_eq!(refused(sink.commit(LENGTH, &proof(LENGTH)).await), Kind::Unavailable);
    let (second, third) = (key(2), key(3));
    let (probed, listed, created, opened) = tokio::join!(
        impatient.probe(),
        impatient.list(),
        impatient.create(&second, 1, OutputFormat::RAW),
        impatient.open(&third)
    );
    for error in
        [probed.unwrap_err(), listed.unwrap_err(), created.map(|_| ()).unwrap_err(), opened.map(|_| ()).unwrap_err()]
    {
        assert_eq!(error.kind(), Kind::Unavailable, "{error}");
        assert!(error.to_string().contains(&gateway.endpoint()), "{error}");
    }
    assert!(start.elapsed() < Duration::from_secs(60), "the answers took {} s", start.elapsed().as_secs());
    gateway.resume().unwrap();

    // Back to work, with what was there and without what was not finished.
    let store = open(&S3Options { lease: Duration::from_secs(1), ..options });
    assert_eq!(read_all(&*store.open(&key(3)).await.unwrap()).await, noise(3, 5000));
    sweep_all(&*store).await;
    publish(&*store, &key(2), 5000, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pieces_that_are_gone_or_shorter_are_damage_that_is_named() {
    let options = S3Options { object_size: 1 << 20, ..options().await };
    let store = open(&options);
    let stat = publish(&*store, &key(1), 3 << 20, &[(0, noise(1, 3 << 20))]).await;
    let reader = store.open(&key(1)).await.unwrap();
    let mut names: Vec<Path> = pieces(&options).await.into_iter().map(|piece| piece.location).collect();
    names.sort();
    client(&options).delete(&names[1]).await.unwrap();
    client(&options).put(&names[2], noise(9, 1000).into()).await.unwrap();
    assert_eq!(reader.read_at(0, 1 << 20).await.unwrap(), noise(1, 3 << 20).slice(..1 << 20));
    for (piece, what) in [(1, "gone"), (2, "shorter")] {
        for (from, length) in [(0, 1 << 20), (500, 1000), (5000, 5000)] {
            let error = reader.read_at((piece << 20) + from, length).await.unwrap_err();
            let said = error.to_string();
            assert!(error.kind() == Kind::Io && error.is_damage(), "{said}");
            assert!(said.contains(what) && said.contains(names[piece as usize].as_ref()), "{said}");
            assert!(said.contains("store bucket, bucket images") && said.contains("import it again"), "{said}");
        }
    }
    // What does not need them goes on; without the record nothing does.
    assert_eq!(store.stat(&key(1)).await.unwrap(), stat);
    let record =
        objects(&options).await.into_iter().find(|object| object.location.filename() == Some("record")).unwrap();
    client(&options).delete(&record.location).await.unwrap();
    for error in
        [store.stat(&key(1)).await.map(|_| ()).unwrap_err(), store.open(&key(1)).await.map(|_| ()).unwrap_err()]
    {
        assert!(error.is_damage() && error.to_string().contains("record"), "{error}");
    }
    drop(reader);
    store.delete(&key(1), 1).await.unwrap();
    assert_eq!(store.list().await.unwrap(), vec![]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_bucket_says_so_and_can_be_emptied() {
    let gateway = own_gateway().await;
    let bucket = "narrow";
    gateway.make_bucket(bucket).unwrap();
    let options = S3Options { bucket: bucket.to_owned(), ..options_for(&gateway) };
    let store = open(&options);
    publish(&*store, &key(1), 4 << 20, &[(0, noise(1, 4 << 20))]).await;
    gateway.admin(&["quota", "set", "--quota-scope", "bucket", "--bucket", bucket, "--max-size", "6M"]).unwrap();
    gateway.admin(&["quota", "enable", "--quota-scope", "bucket", "--bucket", bucket]).unwrap();
    let start = Instant::now();
    let error = loop {
        let mut sink = store.create(&key(2), 1, OutputFormat::RAW).await.unwrap();
        sink.write_at(0, noise(2, 20 << 20)).await.unwrap();
        // The gateway looks at quotas when it likes.
        match sink.commit(20 << 20, &proof(20 << 20)).await {
            Err(error) => break error,
            Ok(_) => store.delete(&key(2), 1).await.unwrap(),
        }
        assert!(start.elapsed() < Duration::from_secs(120), "the quota is not enforced");
    };
    assert_eq!(error.kind(), Kind::NoSpace, "{error}");
    assert!(error.to_string().contains("QuotaExceeded") && error.to_string().contains("bucket narrow"), "{error}");
    let left: Vec<_> = store.list().await.unwrap().into_iter().map(|entry| entry.key).collect();
    assert_eq!(left, [Some(key(1))], "nothing of it is left");
    // Nothing at all fits any more: neither a byte nor an entry that says that something is deleted.
    gateway.admin(&["quota", "set", "--quota-scope", "bucket", "--bucket", bucket, "--max-size", "1M"]).unwrap();
    let start = Instant::now();
    while store.probe().await.map_err(|error| error.kind()) != Err(Kind::NoSpace) {
        assert!(start.elapsed() < Duration::from_secs(120), "the quota is not enforced");
    }
    assert_eq!(read_all(&*store.open(&key(1)).await.unwrap()).await, noise(1, 4 << 20), "what is there can be read");
    store.delete(&key(1), 1).await.unwrap();
    assert_eq!(store.list().await.unwrap(), vec![]);
    store.probe().await.unwrap();
}
