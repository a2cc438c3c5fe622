//! The marker: a folder that is not the store is never taken for it.

use std::{fs, path::Path};

use vitrine_engine::{
    error::Kind,
    model::OutputFormat,
    store::{
        Store,
        filesystem::{FilesystemOptions, FilesystemStore, StoreId},
    },
};

use super::{names, objects, open};
use crate::conformance::{key, noise, proof, publish, refused};

const MARKER: &str = ".vitrine-store";

fn reopen(folder: &Path, expected: &StoreId) -> Result<FilesystemStore, vitrine_engine::error::Error> {
    let options = FilesystemOptions { expected: Some(expected.clone()), ..FilesystemOptions::default() };
    FilesystemStore::open("files", folder, &options)
}

#[tokio::test]
async fn nothing_is_read_or_written_without_the_marker() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    publish(&store, &key(1), 10, &[]).await;
    let mut sink = store.create(&key(2), 1, OutputFormat::RAW).await.unwrap();
    sink.write_at(0, noise(1, 10)).await.unwrap();
    let marker = folder.path().join(MARKER);
    let kept = fs::read(&marker).unwrap();
    fs::remove_file(&marker).unwrap();

    assert_eq!(refused(sink.commit(10, &proof(10)).await), Kind::Unavailable);
    assert_eq!(refused(store.create(&key(3), 1, OutputFormat::RAW).await.map(|_| ())), Kind::Unavailable);
    assert_eq!(refused(store.open(&key(1)).await.map(|_| ())), Kind::Unavailable);
    // Neither "it is not there" nor "it is deleted" may be said of a volume that is not there.
    assert_eq!(refused(store.stat(&key(1)).await), Kind::Unavailable);
    assert_eq!(refused(store.delete(&key(9), 1).await), Kind::Unavailable);
    assert_eq!(refused(store.list().await), Kind::Unavailable);
    assert_eq!(refused(store.sweep(std::time::Duration::ZERO).await), Kind::Unavailable);
    assert_eq!(refused(store.probe().await), Kind::Unavailable);
    assert_eq!(refused(store.capacity().await), Kind::Unavailable);
    assert_eq!(objects(folder.path()), [key(1).to_string()]);

    fs::write(marker, kept).unwrap();
    store.stat(&key(1)).await.unwrap();
    publish(&store, &key(2), 10, &[]).await;
}

#[tokio::test]
async fn a_folder_that_took_the_stores_place_is_not_written_to() {
    let folder = tempfile::tempdir().unwrap();
    let (root, away) = (folder.path().join("root"), folder.path().join("away"));
    fs::create_dir(&root).unwrap();
    let store = open(&root);
    let sink = store.create(&key(1), 1, OutputFormat::RAW).await.unwrap();
    fs::rename(&root, &away).unwrap();
    assert_eq!(refused(store.probe().await), Kind::Unavailable);
    fs::create_dir(&root).unwrap();
    let second = store.create(&key(2), 1, OutputFormat::RAW).await;
    assert_eq!(refused(second.map(|_| ())), Kind::Unavailable);
    assert_eq!(refused(sink.commit(0, &proof(0)).await), Kind::Unavailable);
    assert!(names(&root).is_empty());
    assert!(objects(&away).is_empty());
}

#[tokio::test]
async fn a_sink_does_not_outlive_a_mount_of_the_same_store() {
    let folder = tempfile::tempdir().unwrap();
    let (root, away) = (folder.path().join("root"), folder.path().join("away"));
    fs::create_dir(&root).unwrap();
    let store = open(&root);
    let sink = store.create(&key(1), 1, OutputFormat::RAW).await.unwrap();
    fs::rename(&root, &away).unwrap();
    fs::create_dir(&root).unwrap();
    fs::copy(away.join(MARKER), root.join(MARKER)).unwrap();
    assert_eq!(refused(sink.commit(0, &proof(0)).await), Kind::Unavailable);
    assert!(objects(&root).is_empty() && objects(&away).is_empty());
    publish(&store, &key(1), 0, &[]).await;
}

#[test]
fn an_empty_folder_is_not_the_expected_store() {
    let folder = tempfile::tempdir().unwrap();
    let expected = StoreId::parse(&"0a".repeat(16)).unwrap();
    assert_eq!(refused(reopen(folder.path(), &expected)), Kind::Unavailable);
    assert!(names(folder.path()).is_empty());
    let store = open(folder.path());
    assert_eq!(refused(reopen(folder.path(), &expected)), Kind::Unavailable);
    assert_eq!(reopen(folder.path(), store.id()).unwrap().id(), store.id());
    assert_eq!(open(folder.path()).id(), store.id());
}

#[test]
fn a_folder_with_something_else_in_it_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("lost+found")).unwrap();
    let taken = folder.path().join("precious");
    fs::write(&taken, "").unwrap();
    let open = || FilesystemStore::open("files", folder.path(), &FilesystemOptions::default());
    let error = open().unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidInput);
    assert!(error.to_string().contains("precious"), "{error}");
    assert_eq!(names(folder.path()), ["lost+found", "precious"]);
    fs::remove_file(taken).unwrap();
    open().unwrap();
}

#[test]
fn what_is_no_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let open = || refused(FilesystemStore::open("files", &path, &FilesystemOptions::default()));
    assert_eq!(open(), Kind::Unavailable);
    assert!(!path.exists());
    fs::write(&path, "").unwrap();
    assert_eq!(open(), Kind::InvalidInput);
}

#[test]
fn a_newer_or_damaged_marker_is_refused() {
    for (marker, kind) in [
        (format!(r#"{{"version": 2, "id": "{}"}}"#, "0".repeat(32)), Kind::InvalidInput),
        ("{}".to_owned(), Kind::Unavailable),
        (String::new(), Kind::Unavailable),
    ] {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(MARKER), &marker).unwrap();
        assert_eq!(refused(FilesystemStore::open("files", folder.path(), &FilesystemOptions::default())), kind);
        assert_eq!(fs::read_to_string(folder.path().join(MARKER)).unwrap(), marker);
    }
}

#[test]
fn agents_that_start_together_agree_on_one_id() {
    for _ in 0..20 {
        let folder = tempfile::tempdir().unwrap();
        let ids: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| open(folder.path()).id().clone())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(ids.iter().all(|id| id == &ids[0]), "{ids:?}");
        assert_eq!(names(folder.path()), [MARKER]);
    }
}
