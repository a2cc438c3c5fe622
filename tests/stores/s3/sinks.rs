//! How objects are written: sparsely, in parts, in bounded memory.

use std::time::Duration;

use bytes::Bytes;
use vitrine_engine::{
    model::OutputFormat,
    store::{
        Store,
        s3::{S3Options, S3Store},
    },
};
use vitrine_harness::{CephCluster, Gateway};

use super::{BUCKET, objects, open, options, options_for, pieces};
use crate::conformance::{key, noise, proof, publish, read_all};

const MIB: u64 = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn only_data_is_stored() {
    const LENGTH: u64 = 8 << 30;
    const WRITES: u64 = 80;
    const WRITE: usize = 640 << 10;
    let options = options().await;
    let store = open(&options);
    // Every 37th MiB: 37 and their number have no common factor, so they lie scattered.
    let place = |number: u64| number * 37 * 97 % (LENGTH / MIB) * MIB;
    let writes: Vec<_> = (0..WRITES).map(|number| (place(number), noise(number, WRITE))).collect();
    let stat = publish(&*store, &key(1), LENGTH, &writes).await;
    let data = WRITES * WRITE as u64;
    let found = pieces(&options).await;
    assert_eq!(found.iter().map(|piece| piece.size).sum::<u64>(), data);
    assert_eq!((stat.allocated_size, found.len() as u64), (data, data.div_ceil(S3Options::OBJECT_SIZE)));
    // What is beside the data is small: the entry, the record, and nothing else.
    let all = objects(&options).await;
    assert_eq!(all.len(), found.len() + 2, "{all:?}");
    assert!(all.iter().map(|object| object.size).sum::<u64>() < data + (64 << 10));
    assert_eq!(stat.url, format!("s3://{BUCKET}/{}/{}", options.prefix, key(1)));
    let reader = store.open(&key(1)).await.unwrap();
    for (offset, bytes) in writes {
        let read = reader.read_at(offset.saturating_sub(4096), WRITE + 8192).await.unwrap();
        let start = usize::try_from(offset.min(4096)).unwrap();
        assert_eq!(read.slice(start..start + WRITE), bytes);
        assert!(read[..start].iter().chain(&read[start + WRITE..]).all(|byte| *byte == 0));
    }
}

/// The ETag of an object that was uploaded in parts ends with their number.
fn parts(tag: Option<&str>) -> u32 {
    let parts = tag.unwrap().trim_matches('"').rsplit_once('-');
    parts.map_or(1, |(_, number)| number.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn large_pieces_are_uploaded_in_parts() {
    let options = S3Options { object_size: 20 * MIB, ..options().await };
    let store = open(&options);
    let disk = noise(1, 45 << 20);
    publish(&*store, &key(1), 45 * MIB, &[(0, disk.clone())]).await;
    let mut found = pieces(&options).await;
    found.sort_by_key(|piece| piece.location.clone());
    let shape: Vec<_> = found.iter().map(|piece| (piece.size / MIB, parts(piece.e_tag.as_deref()))).collect();
    assert_eq!(shape, [(20, 3), (20, 3), (5, 1)]);
    assert!(read_all(&*store.open(&key(1)).await.unwrap()).await == disk);
    // One that ends where a part does.
    publish(&*store, &key(2), 16 * MIB, &[(0, disk.slice(..16 << 20))]).await;
    assert!(read_all(&*store.open(&key(2)).await.unwrap()).await == disk.slice(..16 << 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_takes_no_more_than_its_memory_while_nobody_answers() {
    const WRITE: usize = 1 << 20;
    let gateway = Gateway::start(CephCluster::shared().await.unwrap()).await.unwrap();
    gateway.make_bucket(BUCKET).unwrap();
    let store = open(&options_for(&gateway));
    let mut sink = store.create(&key(1), 1, OutputFormat::RAW).await.unwrap();
    gateway.pause().unwrap();
    let data = noise(1, WRITE);
    let mut taken = 0_u64;
    // The second byte of every MiB, so that nothing joins.
    while let Ok(written) =
        tokio::time::timeout(Duration::from_secs(2), sink.write_at(taken * 2 * MIB, data.clone())).await
    {
        written.unwrap();
        taken += 1;
        assert!(taken < 1000, "there is no bound");
    }
    gateway.resume().unwrap();
    assert_eq!(taken, (S3Store::MAX_MEMORY / WRITE) as u64);
    // The write that was given up may have been taken in part, so nothing may be published.
    assert!(sink.commit(1 << 40, &proof(1 << 40)).await.is_err());
    assert_eq!(store.list().await.unwrap(), vec![]);
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_a_sink_takes_no_time_of_its_caller_and_leaves_nothing() {
    let gateway = Gateway::start(CephCluster::shared().await.unwrap()).await.unwrap();
    gateway.make_bucket(BUCKET).unwrap();
    let options = S3Options { object_size: 64 * MIB, ..options_for(&gateway) };
    let store = open(&options);
    let mut sink = store.create(&key(1), 1, OutputFormat::RAW).await.unwrap();
    sink.write_at(0, noise(1, 9 << 20)).await.unwrap();
    gateway.pause().unwrap();
    // Were it to wait for an answer, it would wait for ever: nobody lets the gateway go on before it is back.
    drop(sink);
    gateway.resume().unwrap();
    assert_eq!(store.list().await.unwrap(), vec![]);
    assert!(objects(&options).await.iter().all(|object| object.location.filename() == Some(&key(1).to_string())));
    assert_eq!(store.sweep(Duration::ZERO).await.unwrap(), Vec::<String>::new(), "no upload in parts was left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_and_the_bucket_itself_are_places_of_their_own() {
    let options = options().await;
    let inner = S3Options { prefix: format!("{}/inner", options.prefix), ..options.clone() };
    let (store, inside) = (open(&options), open(&inner));
    assert_ne!(store.id(), inside.id());
    publish(&*inside, &key(1), 5000, &[(0, Bytes::from_static(b"x"))]).await;
    assert_eq!(store.list().await.unwrap(), vec![]);
    assert_eq!(store.sweep(Duration::ZERO).await.unwrap(), Vec::<String>::new());
    assert_eq!(inside.list().await.unwrap().len(), 1);
}
