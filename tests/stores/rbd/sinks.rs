//! How images are written: sparsely, several writes at once, in bounded memory.

use std::time::Duration;

use bytes::Bytes;
use vitrine_engine::{
    model::OutputFormat,
    store::{Store, rbd::RbdStore},
};
use vitrine_harness::CephCluster;

use super::{POOL, cluster, open, options, options_for};
use crate::conformance::{key, noise, proof, publish};

const OBJECT: u64 = 4 << 20;

/// The sum of what `rbd diff` lists of an image's snapshot.
fn diff(cluster: &CephCluster, image: &str) -> u64 {
    let listed = cluster.rbd(&["diff", "--format", "json", image]).unwrap();
    let listed: Vec<serde_json::Value> = serde_json::from_str(&listed).unwrap();
    listed.iter().map(|extent| extent["length"].as_u64().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_objects_with_data_are_stored() {
    const LENGTH: u64 = 8 << 30;
    const OBJECTS: u64 = 48;
    let options = options().await;
    let store = open(&options).await;
    let data = noise(1, OBJECT as usize);
    // Every 41st object: 41 and their number have no common factor, so they lie scattered.
    let pieces: Vec<_> = (0..OBJECTS).map(|i| (i * 41 % (LENGTH / OBJECT) * OBJECT, data.clone())).collect();
    let stat = publish(&*store, &key(1), LENGTH, &pieces).await;
    let image = format!("{POOL}/{}/{}@snap", options.namespace.unwrap(), key(1));
    assert_eq!(diff(cluster().await, &image), OBJECTS * OBJECT);
    assert_eq!(stat.allocated_size, OBJECTS * OBJECT);
    let (fsid, url) = (cluster().await.fsid(), stat.url.clone());
    assert_eq!(url, format!("rbd://{fsid}/{}", image.replace('@', "/")));
    let info = cluster().await.rbd(&["info", "--format", "json", &image]).unwrap();
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!((info["size"].as_u64(), info["protected"].as_str()), (Some(LENGTH), Some("true")), "{info}");
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_as_large_as_asked() {
    let mut options = options().await;
    options.object_order = Some(20);
    options.features = Some(1);
    let store = open(&options).await;
    let stat = publish(&*store, &key(1), 64 << 20, &[(5 << 20, noise(1, 1 << 20)), (9 << 20, noise(2, 100))]).await;
    assert!((1 << 20..=2 << 20).contains(&stat.allocated_size), "{}", stat.allocated_size);
    let reader = store.open(&key(1)).await.unwrap();
    assert_eq!(reader.next_data(0).await.unwrap(), Some((5 << 20, 6 << 20)));
    assert_eq!(reader.next_data(6 << 20).await.unwrap(), Some((9 << 20, (9 << 20) + 100)));
}

/// Writes `pieces` while no OSD answers, until a write waits; returns how many were taken.
async fn write_into_silence(cluster: &CephCluster, store: &RbdStore, pieces: &[(u64, Bytes)]) -> usize {
    let mut sink = store.create(&key(1), 1, OutputFormat::RAW).await.unwrap();
    // The image gets its length while somebody answers.
    sink.write_at(1 << 29, Bytes::from_static(b"first")).await.unwrap();
    cluster.pause_osd().unwrap();
    let mut taken = 0;
    for (offset, bytes) in pieces {
        let write = tokio::time::timeout(Duration::from_secs(2), sink.write_at(*offset, bytes.clone()));
        match write.await {
            Ok(written) => written.unwrap(),
            Err(_) => break,
        }
        taken += 1;
    }
    cluster.resume_osd().unwrap();
    // The write that was given up may not have arrived, so nothing may be published.
    assert!(sink.commit(1 << 30, &proof(1 << 30)).await.is_err());
    assert_eq!(store.list().await.unwrap(), vec![]);
    taken
}

#[tokio::test(flavor = "multi_thread")]
async fn several_writes_are_under_way_and_no_more_than_allowed() {
    let cluster = CephCluster::start().await.unwrap();
    cluster.create_pool(POOL).await.unwrap();
    let store = open(&options_for(&cluster, POOL).await).await;
    // Small ones are bounded by their number, large ones by the memory they hold.
    let small: Vec<_> = (0..100).map(|i| (i * OBJECT, noise(i, 8192))).collect();
    let taken = write_into_silence(&cluster, &store, &small).await;
    // The one before the silence may have been answered or not.
    let most = RbdStore::MAX_WRITES_UNDER_WAY;
    assert!((most - 1..=most + 1).contains(&taken), "{taken}");
    assert_eq!(store.most_writes_under_way(), most);

    let data = noise(1, OBJECT as usize);
    let large: Vec<_> = (0..64).map(|i| (i * OBJECT, data.clone())).collect();
    let mut options = options_for(&cluster, POOL).await;
    options.namespace = Some("large".to_owned());
    cluster.create_namespace(POOL, "large").await.unwrap();
    let store = open(&options).await;
    let taken = write_into_silence(&cluster, &store, &large).await;
    assert!((4..=8).contains(&taken), "{taken} pieces of 4 MiB were taken, and 8 is what the memory allows");
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_a_sink_takes_no_time_of_its_caller() {
    let cluster = CephCluster::start().await.unwrap();
    cluster.create_pool(POOL).await.unwrap();
    let store = open(&options_for(&cluster, POOL).await).await;
    let mut sink = store.create(&key(1), 1, OutputFormat::RAW).await.unwrap();
    sink.write_at(0, noise(1, 100)).await.unwrap();
    cluster.pause_osd().unwrap();
    // Were it to wait for the OSD, it would wait for ever: nobody lets the OSD go on before it is back.
    drop(sink);
    cluster.resume_osd().unwrap();
    assert_eq!(store.list().await.unwrap(), vec![]);
}
