//! Who may do what, and what a store says that is not set up right.

use std::time::Duration;

use vitrine_engine::{
    error::Kind,
    model::OutputFormat,
    store::{
        Store,
        rbd::{RbdCluster, RbdOptions},
    },
};
use vitrine_harness::port::PortLease;

use super::{POOL, cluster, open, options, refusal};
use crate::{
    conformance::{key, noise, publish, publish_with, read_all, refused},
    filesystem::private::{run, with_mounts},
};

#[tokio::test(flavor = "multi_thread")]
async fn wrong_keys_and_users_are_told_from_an_absent_cluster() {
    let good = options().await;
    let other_key = cluster().await.admin_key().to_owned();
    for wrong in
        [RbdOptions { key: other_key, ..good.clone() }, RbdOptions { user: "nobody".to_owned(), ..good.clone() }]
    {
        let error = refusal(&wrong).await;
        assert_eq!(error.kind(), Kind::Denied, "{error}");
        let said = error.to_string();
        assert!(said.contains("store ceph") && said.contains(&format!("client.{}", wrong.user)), "{said}");
        assert!(!said.contains(&wrong.key));
    }
    let error = refusal(&RbdOptions { key: "no key".to_owned(), ..good.clone() }).await;
    assert!(matches!(error.kind(), Kind::InvalidInput | Kind::Denied), "{error}");

    let nobody = PortLease::reserve().unwrap();
    let away = RbdCluster::Monitors(format!("[v2:127.0.0.1:{}]", nobody.port()));
    let absent = RbdOptions { cluster: away, connect_timeout: Duration::from_secs(2), ..good };
    let error = refusal(&absent).await;
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    assert!(error.to_string().contains(&nobody.port().to_string()), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_pools_and_namespaces_are_named() {
    let good = options().await;
    let error = refusal(&RbdOptions { pool: "attic".to_owned(), ..good.clone() }).await;
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(error.to_string().contains("no pool attic"), "{error}");
    let error = refusal(&RbdOptions { data_pool: Some("cellar".to_owned()), ..good.clone() }).await;
    assert!(error.kind() == Kind::NotFound && error.to_string().contains("no pool cellar"), "{error}");
    let error = refusal(&RbdOptions { namespace: Some("nowhere".to_owned()), ..good }).await;
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(error.to_string().contains("rbd namespace create images/nowhere"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_only_read_is_told_what_is_missing() {
    let options = options().await;
    let store = open(&options).await;
    publish(&*store, &key(1), 5000, &[(0, noise(1, 5000))]).await;
    let caps = [("mon", "profile rbd"), ("osd", "profile rbd-read-only")];
    let key_of_reader = cluster().await.create_user("reader", &caps).await.unwrap();
    let reader = open(&RbdOptions { user: "reader".to_owned(), key: key_of_reader, ..options }).await;
    for error in [
        reader.probe().await.unwrap_err(),
        reader.create(&key(2), 1, OutputFormat::RAW).await.map(|_| ()).unwrap_err(),
        reader.delete(&key(1), 1).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), Kind::Denied, "{error}");
        let said = error.to_string();
        assert!(said.contains("client.reader") && said.contains("profile rbd pool=images"), "{said}");
    }
    assert_eq!(reader.stat(&key(1)).await.unwrap(), store.stat(&key(1)).await.unwrap());
    assert_eq!(reader.list().await.unwrap().len(), 1);
    assert_eq!(store.list().await.unwrap().len(), 1);
    let unseen = reader.open(&key(1)).await.unwrap();
    assert_eq!(read_all(&*unseen).await, noise(1, 5000));
    // Nobody can see that it is read, so it is removed; and what is gone would read as zeros.
    store.delete(&key(1), 1).await.unwrap();
    for error in [unseen.read_at(0, 100).await.unwrap_err(), unseen.next_data(0).await.unwrap_err()] {
        assert_eq!(error.kind(), Kind::NotFound, "{error}");
    }
    publish_with(&*store, &key(1), 2, 5000, &[(0, noise(2, 5000))]).await;
    assert_eq!(unseen.read_at(0, 100).await.unwrap_err().kind(), Kind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_can_be_told_by_its_ceph_conf() {
    let options = options().await;
    let RbdCluster::Monitors(monitors) = &options.cluster else { panic!("the tests name monitors") };
    let text = format!("[global]\nmon_host = {monitors}\nlog_file = /nowhere/client.log\nlog_to_stderr = true\n");
    let by_text = RbdOptions { cluster: RbdCluster::Config(text), ..options.clone() };
    let (store, again) = (open(&options).await, open(&by_text).await);
    assert_eq!(store.id(), again.id());
    let namespace = RbdOptions { namespace: None, ..options.clone() };
    assert_ne!(store.id(), open(&namespace).await.id(), "a namespace is a store of its own");
    publish(&*again, &key(1), 5000, &[]).await;
    store.stat(&key(1)).await.unwrap();
    let error = refusal(&RbdOptions { cluster: RbdCluster::Config("[global]\n".to_owned()), ..options.clone() }).await;
    assert!(matches!(error.kind(), Kind::InvalidInput | Kind::Unavailable), "{error}");
    for shown in [format!("{options:?}"), format!("{by_text:?}"), format!("{store:?}")] {
        assert!(!shown.contains(&options.key), "{shown}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_have_in_the_pool_is_shown_and_left_alone() {
    let options = options().await;
    let store = open(&options).await;
    let namespace = options.namespace.unwrap();
    let foreign = [format!("{POOL}/{namespace}/volume-1"), format!("{POOL}/{namespace}/{}", key(1))];
    for image in &foreign {
        cluster().await.rbd(&["create", "--size", "1M", image]).unwrap();
    }
    let mut entries = store.list().await.unwrap();
    entries.sort_by_key(|entry| entry.name.len());
    assert_eq!(entries.iter().map(|entry| entry.key.clone()).collect::<Vec<_>>(), [None, Some(key(1))]);
    assert!(entries.iter().all(|entry| !entry.published && entry.age_seconds < 3600));
    assert_eq!(store.sweep(Duration::ZERO).await.unwrap(), Vec::<String>::new());
    // The name is taken, by something that is not ours to remove.
    let error = store.create(&key(1), 1, OutputFormat::RAW).await.map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), Kind::AlreadyExists);
    assert!(error.to_string().contains("rbd info"), "{error}");
    store.delete(&key(1), 1).await.unwrap();
    assert_eq!(store.list().await.unwrap().len(), 2);
    assert_eq!(refused(store.open(&key(1)).await.map(|_| ())), Kind::NotFound);
}

/// In a mount namespace of its own, where the library is an empty file.
#[test]
fn without_the_libraries_the_store_says_what_to_install() {
    with_mounts("rbd::access::without_the_libraries_the_store_says_what_to_install", || {
        let listed = std::process::Command::new("ldconfig").arg("-p").output().unwrap();
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        let libraries: Vec<_> = listed
            .lines()
            .filter(|line| line.trim_start().starts_with("librados.so.2 "))
            .filter_map(|line| line.split_once("=> ").map(|(_, path)| path.to_owned()))
            .collect();
        assert!(!libraries.is_empty(), "Ceph's libraries are not installed: run tests/ceph/install.sh");
        for library in &libraries {
            run("mount", &["--bind", "/dev/null", library]);
        }
        let options = RbdOptions::new(RbdCluster::Monitors("127.0.0.1".to_owned()), "vitrine", "key", POOL);
        let error = vitrine_engine::store::rbd::RbdStore::open("ceph", &options).unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable, "{error}");
        assert!(error.to_string().contains("librbd1"), "{error}");
    });
}
