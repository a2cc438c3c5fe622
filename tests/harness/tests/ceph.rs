//! The Ceph cluster does what Vitrine's tests rely on.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use vitrine_harness::{CephCluster, CephOptions};

#[tokio::test]
async fn a_cluster_takes_images_and_leaves_nothing() {
    let before = SystemTime::now();
    let (one, other) = (CephCluster::start().await.expect("a cluster"), CephCluster::start().await.expect("another"));
    assert_ne!((one.fsid(), one.monitors()), (other.fsid(), other.monitors()));
    one.create_pool("images").await.expect("a pool");
    one.create_namespace("images", "tenant").await.expect("a namespace");
    one.rbd(&["create", "images/tenant/disk", "--size", "1M"]).expect("an image");
    assert_eq!(one.rbd(&["ls", "images/tenant"]).expect("a listing").trim(), "disk");
    let missing = other.rbd(&["ls", "images"]).expect_err("the other has no such pool").to_string();
    assert!(missing.contains("images"), "{missing}");
    let dir = one.scope().dir().to_owned();
    drop((one, other));
    assert!(!dir.exists());
    for place in ["/etc/ceph", "/var/lib/ceph", "/var/log/ceph"] {
        assert!(newest(Path::new(place)) < before, "something was written to {place}");
    }
}

/// When anything in a folder was last changed.
fn newest(folder: &Path) -> SystemTime {
    let own = fs::metadata(folder).and_then(|metadata| metadata.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| newest(&entry.path())).fold(own, SystemTime::max)
}

#[tokio::test]
async fn a_user_may_do_what_its_capabilities_say() {
    let cluster = CephCluster::start().await.expect("a cluster");
    cluster.create_pool("images").await.expect("a pool");
    let key = cluster.create_user("reader", &[("mon", "profile rbd"), ("osd", "profile rbd-read-only")]).await;
    let key = key.expect("a user");
    let login = ["--id", "reader", "--key", &key];
    cluster.rbd(&[&["ls", "images"][..], &login].concat()).expect("reading is allowed");
    let refusal = cluster.rbd(&[&["create", "images/disk", "--size", "1M"][..], &login].concat());
    assert!(refusal.expect_err("writing is not").to_string().contains("not permitted"));
}

#[tokio::test]
async fn daemons_come_back_with_what_they_had() {
    let options = CephOptions { on_disk: true, ..CephOptions::default() };
    let cluster = CephCluster::start_with(&options).await.expect("a cluster");
    cluster.create_pool("images").await.expect("a pool");
    cluster.rbd(&["create", "images/disk", "--size", "1M"]).expect("an image");
    cluster.kill_osd();
    cluster.kill_monitor();
    cluster.start_monitor().expect("the monitor starts");
    cluster.start_osd().expect("the OSD starts");
    assert_eq!(cluster.rbd(&["ls", "images"]).expect("a listing").trim(), "disk");
}

#[tokio::test]
async fn a_cluster_with_statistics_notices_a_quota() {
    let options = CephOptions { statistics: true, ..CephOptions::default() };
    let cluster = CephCluster::start_with(&options).await.expect("a cluster");
    cluster.create_pool("images").await.expect("a pool");
    cluster.rbd(&["create", "images/disk", "--size", "1M"]).expect("an image");
    let quota = r#"{"prefix": "osd pool set-quota", "pool": "images", "field": "max_objects", "val": "1"}"#;
    cluster.command(quota).await.expect("a quota");
    let full =
        cluster.wait_for(r#"{"prefix": "osd dump"}"#, Duration::from_secs(120), |dump| dump.contains("full_quota"));
    full.await.expect("the quota is noticed");
}
