//! Names, links, modes, damage: what an object directory may not do to the store, and what the store may not do to others.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

use vitrine_engine::{
    error::Kind,
    model::OutputFormat,
    store::{Store, filesystem::FilesystemStore},
};

use super::{names, objects, open};
use crate::conformance::{key, noise, proof, publish, publish_with, read_all, refused};

async fn published(folder: &Path) -> (FilesystemStore, std::path::PathBuf) {
    let store = open(folder);
    publish(&store, &key(1), 5000, &[(0, noise(1, 5000))]).await;
    (store, folder.join(key(1).to_string()))
}

#[tokio::test]
async fn an_object_is_three_files_that_others_cannot_read() {
    let folder = tempfile::tempdir().unwrap();
    let (_store, object) = published(folder.path()).await;
    assert_eq!(objects(folder.path()), [key(1).to_string()]);
    assert_eq!(names(&object), ["data", "image.json", "manifest"]);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&object) & 0o027, 0);
    assert_eq!(mode(&object) & 0o700, 0o700);
    for name in names(&object) {
        assert_eq!(mode(&object.join(&name)) & 0o137, 0, "{name}");
    }
}

#[tokio::test]
async fn links_are_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let (root, outside) = (folder.path().join("root"), folder.path().join("outside"));
    fs::create_dir(&root).unwrap();
    let (store, object) = published(&root).await;
    fs::rename(&object, &outside).unwrap();
    symlink(&outside, &object).unwrap();
    assert_eq!(refused(store.open(&key(1)).await.map(|_| ())), Kind::Io);
    assert!(!store.list().await.unwrap()[0].published);
    store.delete(&key(1), 1).await.unwrap();
    assert_eq!(names(&outside), ["data", "image.json", "manifest"]);

    fs::rename(&outside, &object).unwrap();
    fs::rename(object.join("data"), folder.path().join("secret")).unwrap();
    symlink(folder.path().join("secret"), object.join("data")).unwrap();
    assert_eq!(refused(store.open(&key(1)).await.map(|_| ())), Kind::Io);
    assert_eq!(refused(store.stat(&key(1)).await), Kind::Io);
    store.delete(&key(1), 1).await.unwrap();
    assert!(folder.path().join("secret").exists());

    fs::remove_dir_all(root.join(".fences")).unwrap();
    fs::create_dir(&outside).unwrap();
    symlink(&outside, root.join(".fences")).unwrap();
    assert_eq!(refused(store.create(&key(1), 1, OutputFormat::RAW).await.map(|_| ())), Kind::Io);
    assert!(names(&outside).is_empty());
}

#[tokio::test]
async fn a_pipe_in_the_place_of_data_does_not_hang_the_reader() {
    let folder = tempfile::tempdir().unwrap();
    let (store, object) = published(folder.path()).await;
    fs::remove_file(object.join("data")).unwrap();
    super::private::run("mkfifo", &[object.join("data").to_str().unwrap()]);
    assert_eq!(refused(store.open(&key(1)).await.map(|_| ())), Kind::Io);
}

#[tokio::test]
async fn a_damaged_record_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let (store, object) = published(folder.path()).await;
    let (manifest, record) = (object.join("manifest"), object.join("image.json"));
    let whole = (fs::read(&manifest).unwrap(), fs::read_to_string(&record).unwrap());
    let mut flipped = whole.0.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let longer = [whole.0.clone(), vec![0; 40]].concat();
    let newer = whole.1.replace("\"version\": 1", "\"version\": 2");
    let huge = whole.1.replace("\"chunks\": 1", "\"chunks\": 4611686018427387904");
    assert!(newer != whole.1 && huge != whole.1);
    let damages = [
        (flipped.as_slice(), whole.1.as_str(), "digest"),
        (&whole.0[1..], &whole.1, "does not hold"),
        (&longer, &whole.1, "does not hold"),
        (&whole.0, &newer, "newer"),
        (&whole.0, &huge, "does not hold"),
        (&whole.0, &whole.1[1..], "image.json"),
    ];
    for (digests, facts, said) in damages {
        fs::write(&manifest, digests).unwrap();
        fs::write(&record, facts).unwrap();
        for error in [store.stat(&key(1)).await.unwrap_err(), store.open(&key(1)).await.err().unwrap()] {
            assert_eq!(error.kind(), Kind::Io);
            assert!(error.to_string().contains(said), "{error}");
        }
    }
    store.delete(&key(1), 1).await.unwrap();
    publish_with(&store, &key(1), 2, 10, &[]).await;
}

#[tokio::test]
async fn data_that_was_cut_off_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let (store, object) = published(folder.path()).await;
    fs::OpenOptions::new().write(true).open(object.join("data")).unwrap().set_len(4000).unwrap();
    let reader = store.open(&key(1)).await.unwrap();
    assert_eq!(refused(reader.read_at(0, 5000).await), Kind::Io);
}

#[tokio::test]
async fn publishing_never_replaces_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let sink = store.create(&key(1), 1, OutputFormat::RAW).await.unwrap();
    // Made by somebody who does not take our lock; being empty, a plain rename would replace it.
    let object = folder.path().join(key(1).to_string());
    fs::create_dir(&object).unwrap();
    assert_eq!(refused(sink.commit(0, &proof(0)).await), Kind::AlreadyExists);
    assert_eq!(objects(folder.path()), [key(1).to_string()]);
    assert!(names(&object).is_empty());
    assert!(!store.list().await.unwrap()[0].published);
}

#[tokio::test]
async fn a_deletion_that_gets_stuck_leaves_nothing_visible() {
    let folder = tempfile::tempdir().unwrap();
    let (store, object) = published(folder.path()).await;
    // Deeper than the store removes: nothing of its own looks like this.
    fs::create_dir_all(object.join("a/b/c/d/e/f/g/h/i/j")).unwrap();
    refused(store.delete(&key(1), 1).await);
    assert_eq!(refused(store.stat(&key(1)).await), Kind::NotFound);
    let entries = store.list().await.unwrap();
    assert!(entries.len() == 1 && !entries[0].published && entries[0].key == Some(key(1)), "{entries:?}");
}

/// Opens and measures the object while it comes and goes, until it was there `times` times.
async fn watch(store: FilesystemStore, times: usize) {
    let mut seen = 0;
    while seen < times {
        match store.open(&key(1)).await {
            Ok(reader) => {
                assert_eq!(read_all(&*reader).await, noise(1, 5000));
                seen += 1;
            }
            Err(error) => assert_eq!(error.kind(), Kind::NotFound, "{error}"),
        }
        match store.stat(&key(1)).await {
            Ok(stat) => assert_eq!(stat.image.length, 5000),
            Err(error) => assert_eq!(error.kind(), Kind::NotFound, "{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_object_is_seen_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let watchers: Vec<_> = (0..8).map(|_| tokio::spawn(watch(store.clone(), 40))).collect();
    for attempt in 1.. {
        if watchers.iter().all(tokio::task::JoinHandle::is_finished) {
            break;
        }
        publish_with(&store, &key(1), attempt, 5000, &[(0, noise(1, 5000))]).await;
        store.delete(&key(1), attempt).await.unwrap();
    }
    for watcher in watchers {
        watcher.await.unwrap();
    }
}

#[tokio::test]
async fn what_vitrine_did_not_name_is_listed_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = published(folder.path()).await;
    fs::write(folder.path().join("README"), "").unwrap();
    fs::create_dir(folder.path().join("x-r01")).unwrap();
    let foreign: Vec<_> = store.list().await.unwrap().into_iter().filter(|entry| entry.key.is_none()).collect();
    assert!(foreign.len() == 2 && foreign.iter().all(|entry| !entry.published), "{foreign:?}");
    store.sweep(std::time::Duration::ZERO).await.unwrap();
    assert_eq!(objects(folder.path()), [key(1).to_string().as_str(), "README", "x-r01"]);
}
