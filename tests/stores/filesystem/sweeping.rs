//! Leftovers: what is collected and what is not.

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use vitrine_engine::{error::Kind, model::OutputFormat, store::Store};

use super::{names, objects, open};
use crate::conformance::{key, noise, proof, publish, refused};

const HOUR: Duration = Duration::from_hours(1);

/// What a writer leaves that was killed.
fn leave_partial(folder: &Path, revision: u64, age: Duration) -> String {
    let name = format!(".partial-{}-a1-00000000000000aa", key(revision));
    let directory = folder.join(&name);
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("data"), noise(1, 5000)).unwrap();
    for path in [directory.join("data"), directory] {
        set_age(&path, age);
    }
    name
}

fn set_age(path: &Path, age: Duration) {
    fs::File::open(path).unwrap().set_modified(SystemTime::now() - age).unwrap();
}

#[tokio::test]
async fn only_old_leftovers_are_collected() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    publish(&store, &key(1), 10, &[]).await;
    set_age(&folder.path().join(key(1).to_string()), 9 * HOUR);
    let (old, young) = (leave_partial(folder.path(), 2, 2 * HOUR), leave_partial(folder.path(), 3, HOUR / 2));
    // Begun long ago and written to lately.
    let slow = leave_partial(folder.path(), 5, HOUR / 2);
    set_age(&folder.path().join(&slow), 9 * HOUR);
    let removed = format!(".removed-{}-00000000000000bb", key(4));
    fs::create_dir(folder.path().join(&removed)).unwrap();
    fs::write(folder.path().join(".scratch-00000000000000cc"), "").unwrap();
    let ages: Vec<_> =
        store.list().await.unwrap().into_iter().map(|entry| (entry.name, entry.age_seconds / 1800)).collect();
    assert!(ages.contains(&(old.clone(), 4)) && ages.contains(&(young.clone(), 1)), "{ages:?}");

    assert_eq!(store.sweep(HOUR).await.unwrap(), [old]);
    let mut rest = store.sweep(Duration::ZERO).await.unwrap();
    rest.sort();
    assert_eq!(rest, [young, slow, removed, ".scratch-00000000000000cc".to_owned()]);
    assert_eq!(objects(folder.path()), [key(1).to_string()]);
}

#[tokio::test]
async fn a_slow_writer_is_not_swept_away() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let mut sink = store.create(&key(1), 1, OutputFormat::RAW).await.unwrap();
    sink.write_at(0, noise(1, 10)).await.unwrap();
    let name = objects(folder.path()).remove(0);
    let until = std::time::Instant::now() + Duration::from_secs(5);
    while fs::metadata(folder.path().join(&name).join("data")).unwrap().len() < 10 {
        assert!(std::time::Instant::now() < until);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    for path in [folder.path().join(&name).join("data"), folder.path().join(&name)] {
        set_age(&path, 100 * HOUR);
    }
    assert_eq!(open(folder.path()).sweep(HOUR).await.unwrap(), Vec::<String>::new());
    sink.commit(10, &proof(10)).await.unwrap();
}

#[tokio::test]
async fn beginning_and_deleting_collect_the_leftovers_of_their_key() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let other = leave_partial(folder.path(), 2, Duration::ZERO);
    leave_partial(folder.path(), 1, Duration::ZERO);
    let sink = store.create(&key(1), 1, OutputFormat::RAW).await.unwrap();
    assert_eq!(objects(folder.path()).len(), 2);
    sink.abort().await.unwrap();
    assert_eq!(objects(folder.path()), [other]);
    store.delete(&key(2), 1).await.unwrap();
    assert!(objects(folder.path()).is_empty());
}

#[tokio::test]
async fn fences_go_when_nothing_is_left_to_fence() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let fences = folder.path().join(".fences");
    for revision in 1..=3 {
        publish(&store, &key(revision), 0, &[]).await;
    }
    store.delete(&key(2), 1).await.unwrap();
    store.delete(&key(3), 1).await.unwrap();
    set_age(&fences.join(key(1).to_string()), 2 * HOUR);
    set_age(&fences.join(key(2).to_string()), 2 * HOUR);
    store.sweep(HOUR).await.unwrap();
    // The object of the first is there, and the deletion of the third is recent.
    assert_eq!(names(&fences), [key(1).to_string(), key(3).to_string()]);
    assert_eq!(refused(store.create(&key(3), 0, OutputFormat::RAW).await.map(|_| ())), Kind::Conflict);
}

#[tokio::test]
async fn what_cannot_be_removed_does_not_keep_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let names: Vec<_> = (1..=3).map(|revision| leave_partial(folder.path(), revision, 2 * HOUR)).collect();
    // Deeper than the store removes: nothing of its own looks like this.
    fs::create_dir_all(folder.path().join(&names[1]).join("a/b/c/d/e/f/g/h/i/j")).unwrap();
    set_age(&folder.path().join(&names[1]), 2 * HOUR);
    let error = store.sweep(HOUR).await.unwrap_err();
    assert!(error.to_string().contains("1 leftovers") && error.to_string().contains(&names[1]), "{error}");
    assert_eq!(objects(folder.path()), [names[1].clone()]);
}
