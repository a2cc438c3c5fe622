//! Quotas, full clusters, and how much room there is.

use std::time::{Duration, Instant};

use vitrine_engine::{error::Kind, model::OutputFormat, store::Store};
use vitrine_harness::{CephCluster, CephOptions};

use super::{POOL, open, options_for, own_cluster};
use crate::conformance::{key, noise, proof, publish};

const PATIENCE: Duration = Duration::from_secs(120);

/// What every write says while there is no room; deleting works all the same.
async fn assert_full(store: &dyn Store, words: &str) {
    for error in
        [store.create(&key(2), 1, OutputFormat::RAW).await.map(|_| ()).unwrap_err(), store.probe().await.unwrap_err()]
    {
        assert_eq!(error.kind(), Kind::NoSpace, "{error}");
        let said = error.to_string();
        assert!(said.contains("pool images") && said.contains(words), "{said}");
    }
    assert_eq!(store.list().await.unwrap().iter().filter(|entry| entry.key == Some(key(1))).count(), 1);
    store.delete(&key(1), 1).await.unwrap();
    assert_eq!(store.list().await.unwrap(), vec![]);
}

async fn wait_for_flag(cluster: &CephCluster, flag: &str, there: bool) {
    let is_there = |dump: &str| {
        let dump: serde_json::Value = serde_json::from_str(dump).unwrap();
        let flags = dump["pools"].as_array().unwrap().iter().filter_map(|pool| pool["flags_names"].as_str());
        flags.flat_map(|flags| flags.split(',')).any(|found| found == flag)
    };
    let dump = r#"{"prefix": "osd dump"}"#;
    cluster.wait_for(dump, PATIENCE, |dump| is_there(dump) == there).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_cluster_says_so_at_once() {
    let cluster = own_cluster(&CephOptions::default()).await;
    let store = open(&options_for(&cluster, POOL).await).await;
    publish(&*store, &key(1), 5000, &[(0, noise(1, 5000))]).await;
    let mut sink = store.create(&key(3), 1, OutputFormat::RAW).await.unwrap();
    let object = |number: u64| number * (4 << 20);
    for number in 0..8 {
        sink.write_at(object(number), noise(number, 1 << 20)).await.unwrap();
    }
    // 8 MiB of 8 GiB.
    cluster.set_full_ratio(0.001).await.unwrap();
    // That it is full reaches the client by and by. Each write is to an object that does not exist yet.
    let (start, mut next) = (Instant::now(), 8);
    let failed = loop {
        assert!(start.elapsed() < PATIENCE, "the cluster is not full after {next} objects");
        if let Err(error) = sink.write_at(object(next), noise(3, 8192)).await {
            break error;
        }
        next += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(failed.kind(), Kind::NoSpace, "{failed}");
    sink.abort().await.unwrap();
    assert_full(&*store, "the cluster is full").await;
    cluster.set_full_ratio(0.95).await.unwrap();
    wait_for_flag(&cluster, "full", false).await;
    publish(&*store, &key(4), 5000, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_is_told_from_a_full_cluster_and_is_the_pools_size() {
    let cluster = own_cluster(&CephOptions { statistics: true, ..CephOptions::default() }).await;
    let store = open(&options_for(&cluster, POOL).await).await;
    publish(&*store, &key(1), 64 << 20, &[(0, noise(1, 8 << 20))]).await;
    let quota = |value: &str| {
        format!(r#"{{"prefix": "osd pool set-quota", "pool": "{POOL}", "field": "max_bytes", "val": "{value}"}}"#)
    };
    cluster.command(&quota("4194304")).await.unwrap();
    wait_for_flag(&cluster, "full_quota", true).await;
    let capacity = store.capacity().await.unwrap().unwrap();
    assert_eq!((capacity.total, capacity.available), (4 << 20, 0));
    assert_full(&*store, "quota").await;
    cluster.command(&quota("0")).await.unwrap();
    wait_for_flag(&cluster, "full_quota", false).await;
    let capacity = store.capacity().await.unwrap().unwrap();
    assert!(capacity.total > 1 << 30 && capacity.available > 1 << 30, "{capacity:?}");
    let sink = store.create(&key(2), 1, OutputFormat::RAW).await.unwrap();
    sink.commit(10, &proof(10)).await.unwrap();
}
