//! Two installations and one store.

use std::{sync::Arc, time::Duration};

use object_store::ObjectStoreExt as _;
use vitrine_engine::{
    error::{Error, Kind},
    model::OutputFormat,
    store::{
        Store,
        fault::{Faults, FaultyStore},
        filesystem::{FilesystemOptions, FilesystemStore},
        limit::LimitedStore,
        rbd::RbdOptions,
        s3::S3Options,
        thick::ThickStore,
    },
};

use crate::{
    conformance::{key, noise, publish, read_all},
    filesystem::objects,
    rbd, s3,
};

/// The same place as `first` and `second` see it, and as somebody does who does not ask whose it is.
async fn one_writes_and_others_read(first: &dyn Store, second: &dyn Store, anybody: &dyn Store, hand_over: &str) {
    // Who only reads, or removes nothing, marks nothing.
    assert_eq!(second.sweep(Duration::ZERO).await.unwrap(), Vec::<String>::new());
    second.delete(&key(9), 1).await.unwrap();
    assert_eq!(second.list().await.unwrap(), vec![]);
    publish(first, &key(1), 5000, &[(0, noise(1, 5000))]).await;
    first.claim().await.unwrap();
    let refused = |error: Error| {
        assert_eq!(error.kind(), Kind::Denied, "{error}");
        for part in ["another cluster, first", "readOnly", hand_over] {
            assert!(error.to_string().contains(part), "{part}: {error}");
        }
    };
    refused(second.claim().await.unwrap_err());
    refused(second.create(&key(2), 1, OutputFormat::RAW).await.map(drop).unwrap_err());
    refused(second.delete(&key(1), 7).await.unwrap_err());
    refused(second.sweep(Duration::ZERO).await.map(drop).unwrap_err());
    assert_eq!(read_all(&*second.open(&key(1)).await.unwrap()).await, noise(1, 5000));
    assert_eq!(second.list().await.unwrap().len(), 1);
    second.stat(&key(1)).await.unwrap();
    second.probe().await.unwrap();
    anybody.claim().await.unwrap();
    publish(anybody, &key(3), 5000, &[]).await;
    first.delete(&key(1), 1).await.unwrap();
    first.delete(&key(3), 1).await.unwrap();
}

fn folder(root: &std::path::Path, owner: Option<&str>) -> FilesystemStore {
    let options = FilesystemOptions { owner: owner.map(str::to_owned), ..FilesystemOptions::default() };
    FilesystemStore::open("files", root, &options).unwrap()
}

#[tokio::test]
async fn a_folder_is_written_to_by_one_installation() {
    let root = tempfile::tempdir().unwrap();
    let (first, second) = (folder(root.path(), Some("first")), folder(root.path(), Some("second")));
    let mark = root.path().join(".vitrine-owner");
    let command = format!("rm {}", mark.display());
    one_writes_and_others_read(&first, &second, &folder(root.path(), None), &command).await;
    assert_eq!(objects(root.path()), [".vitrine-owner"]);
    std::fs::remove_file(&mark).unwrap();
    second.claim().await.unwrap();
    assert_eq!(first.claim().await.unwrap_err().kind(), Kind::Denied);
    assert_eq!(std::fs::read_to_string(&mark).unwrap(), "second");
}

#[tokio::test]
async fn of_two_that_come_at_once_one_gets_it() {
    for _ in 0..20 {
        let root = tempfile::tempdir().unwrap();
        let (first, second) = (folder(root.path(), Some("first")), folder(root.path(), Some("second")));
        let (a, b) = tokio::join!(first.claim(), second.claim());
        assert!(a.is_ok() != b.is_ok(), "{a:?} {b:?}");
        assert_eq!((first.claim().await.is_ok(), second.claim().await.is_ok()), (a.is_ok(), b.is_ok()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_is_written_to_by_one_installation() {
    let options = rbd::options().await;
    let owned = |owner: &str| RbdOptions { owner: Some(owner.to_owned()), ..options.clone() };
    let (first, second, anybody) =
        (rbd::open(&owned("first")).await, rbd::open(&owned("second")).await, rbd::open(&options).await);
    let namespace = options.namespace.clone().unwrap();
    let command = ["--pool", rbd::POOL, "--namespace", &namespace, "rmomapkey", "vitrine_index", "owner"];
    one_writes_and_others_read(&*first, &*second, &*anybody, &format!("rados {}", command.join(" "))).await;
    rbd::cluster().await.rados(&command).unwrap();
    let (a, b) = tokio::join!(first.claim(), second.claim());
    assert!(a.is_ok() != b.is_ok(), "{a:?} {b:?}");
    // A namespace is a store of its own.
    let other = RbdOptions { namespace: rbd::options().await.namespace, ..owned("second") };
    rbd::open(&other).await.claim().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_of_a_bucket_is_written_to_by_one_installation() {
    let options = s3::options().await;
    let owned = |owner: &str| S3Options { owner: Some(owner.to_owned()), ..options.clone() };
    let (first, second, anybody) = (s3::open(&owned("first")), s3::open(&owned("second")), s3::open(&options));
    let mark = format!("{}/.owner", options.prefix);
    let endpoint = options.endpoint.as_str().trim_end_matches('/');
    let command = format!("aws --endpoint-url {endpoint} s3 rm s3://{}/{mark}", options.bucket);
    one_writes_and_others_read(&*first, &*second, &*anybody, &command).await;
    anybody.sweep(Duration::ZERO).await.unwrap();
    let left = s3::objects(&options).await.into_iter().map(|object| object.location.to_string());
    assert_eq!(left.filter(|name| !name.contains("-r")).collect::<Vec<_>>(), [mark.as_str()]);
    s3::client(&options).delete(&mark.as_str().into()).await.unwrap();
    let (a, b) = tokio::join!(first.claim(), second.claim());
    assert!(a.is_ok() != b.is_ok(), "{a:?} {b:?}");
    // Another prefix is a store of its own.
    s3::open(&S3Options { prefix: s3::options().await.prefix, ..owned("second") }).claim().await.unwrap();
}

#[tokio::test]
async fn decorators_do_not_hide_whose_it_is() {
    let root = tempfile::tempdir().unwrap();
    folder(root.path(), Some("first")).claim().await.unwrap();
    let limited = Arc::new(LimitedStore::new(Arc::new(folder(root.path(), Some("second"))), 1));
    let wrapped = ThickStore::new(Arc::new(FaultyStore::new(limited, Faults::default())));
    assert_eq!(wrapped.claim().await.unwrap_err().kind(), Kind::Denied);
}
