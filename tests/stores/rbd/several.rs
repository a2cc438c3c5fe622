//! Several writers, several pools, several clusters.

use std::sync::Arc;

use vitrine_engine::{
    error::Kind,
    model::OutputFormat,
    store::{
        Store,
        rbd::{RbdOptions, RbdStore},
    },
};
use vitrine_harness::CephOptions;

use super::{POOL, cluster, open, options, options_for, own_cluster};
use crate::conformance::{key, noise, proof, publish, read_all, refused};

#[tokio::test(flavor = "multi_thread")]
async fn two_clusters_and_two_pools_are_kept_apart() {
    let other = own_cluster(&CephOptions::default()).await;
    other.create_pool("second").await.unwrap();
    let first = options().await;
    let stores = [
        open(&first).await,
        open(&options_for(&other, POOL).await).await,
        open(&options_for(&other, "second").await).await,
    ];
    for (number, store) in (1..).zip(&stores) {
        publish(&**store, &key(1), 5000, &[(0, noise(number, 5000))]).await;
    }
    let mut urls = Vec::new();
    for (number, store) in (1..).zip(&stores) {
        assert_eq!(read_all(&*store.open(&key(1)).await.unwrap()).await, noise(number, 5000));
        urls.push(store.stat(&key(1)).await.unwrap().url);
    }
    assert!(urls[0].starts_with(&format!("rbd://{}/{POOL}/", cluster().await.fsid())), "{urls:?}");
    assert_eq!(urls[1], format!("rbd://{}/{POOL}/{}/snap", other.fsid(), key(1)));
    assert_eq!(urls[2], format!("rbd://{}/second/{}/snap", other.fsid(), key(1)));
    stores[1].delete(&key(1), 1).await.unwrap();
    assert_eq!(refused(stores[1].stat(&key(1)).await), Kind::NotFound);
    stores[0].stat(&key(1)).await.unwrap();
    stores[2].stat(&key(1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn data_can_be_kept_in_a_pool_of_its_own() {
    let other = own_cluster(&CephOptions::default()).await;
    other.create_pool("data").await.unwrap();
    let options = RbdOptions { data_pool: Some("data".to_owned()), ..options_for(&other, POOL).await };
    let store = open(&options).await;
    store.probe().await.unwrap();
    publish(&*store, &key(1), 5000, &[(0, noise(1, 5000))]).await;
    assert_eq!(read_all(&*store.open(&key(1)).await.unwrap()).await, noise(1, 5000));
    let objects = |pool: &str| other.rados(&["--pool", pool, "ls"]).unwrap();
    assert!(objects("data").contains("rbd_data.") && !objects(POOL).contains("rbd_data."));
    store.delete(&key(1), 1).await.unwrap();
    assert!(!objects("data").contains("rbd_data."));
}

/// Writes and publishes with `attempt`; what it wrote tells who it was.
async fn race(store: Arc<RbdStore>, attempt: u32) -> Result<u32, Kind> {
    let kind = |error: vitrine_engine::error::Error| error.kind();
    let mut sink = store.create(&key(1), attempt, OutputFormat::RAW).await.map_err(kind)?;
    sink.write_at(0, noise(u64::from(attempt), 5000)).await.map_err(kind)?;
    sink.commit(5000, &proof(5000)).await.map_err(kind)?;
    Ok(attempt)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_writers_at_once_one_publishes() {
    let options = options().await;
    let stores = [open(&options).await, open(&options).await, open(&options).await];
    for round in 0..5 {
        let first = round * 10;
        let tasks: Vec<_> =
            (1..=6).map(|n| tokio::spawn(race(Arc::clone(&stores[n as usize % 3]), first + n))).collect();
        let mut winners = Vec::new();
        for task in tasks {
            match task.await.unwrap() {
                Ok(attempt) => winners.push(attempt),
                Err(kind) => assert!(matches!(kind, Kind::Conflict | Kind::AlreadyExists), "{kind:?}"),
            }
        }
        assert_eq!(winners.len(), 1, "{winners:?}");
        let content = read_all(&*stores[0].open(&key(1)).await.unwrap()).await;
        assert_eq!(content, noise(u64::from(winners[0]), 5000));
        stores[1].delete(&key(1), first + 9).await.unwrap();
        assert_eq!(refused(stores[2].stat(&key(1)).await), Kind::NotFound);
    }
    for store in &stores {
        store.sweep(std::time::Duration::ZERO).await.unwrap();
    }
    assert_eq!(stores[0].list().await.unwrap(), vec![]);
}
