//! Writers, deleters and readers that are held up at the worst moment, while others go on.

use std::{sync::Arc, time::Duration};

use tokio::runtime::Handle;
use vitrine_engine::{
    error::Kind,
    store::{
        Store,
        rbd::{RbdStore, Step},
    },
};

use super::{POOL, cluster, open, options};
use crate::{
    conformance::{key, noise, publish, publish_with, read_all, refused},
    overtaken::overtake,
};

/// Has `store` do `work` once, when it has done `step` and before it goes on.
fn at_step<W>(store: &RbdStore, step: Step, work: impl Fn() -> W + Send + Sync + 'static)
where
    W: Future<Output = ()> + Send + 'static,
{
    let (runtime, done) = (Handle::current(), std::sync::atomic::AtomicBool::new(false));
    store.watch_steps(move |now| {
        if now == step && !done.swap(true, std::sync::atomic::Ordering::Relaxed) {
            runtime.block_on(work());
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_overtaken_before_the_last_step_does_not_publish() {
    for at_once in [false, true] {
        let options = options().await;
        let (store, again) = (open(&options).await, open(&options).await);
        overtake(store.clone(), again, at_once, |work| at_step(&store, Step::Recorded, work)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleter_that_is_held_up_takes_nothing_from_the_next_attempt() {
    let options = options().await;
    let (store, again) = (open(&options).await, open(&options).await);
    publish(&*store, &key(1), 5000, &[(0, noise(1, 5000))]).await;
    let other = Arc::clone(&again);
    at_step(&store, Step::Unprotected, move || {
        let other = Arc::clone(&other);
        async move {
            other.delete(&key(1), 1).await.unwrap();
            publish_with(&*other, &key(1), 2, 5000, &[(0, noise(2, 5000))]).await;
        }
    });
    assert_eq!(refused(store.delete(&key(1), 1).await), Kind::Conflict);
    assert_eq!(read_all(&*again.open(&key(1)).await.unwrap()).await, noise(2, 5000));
    let image = format!("{POOL}/{}/{}@snap", options.namespace.unwrap(), key(1));
    assert!(cluster().await.rbd(&["info", &image]).unwrap().contains("protected: True"));
}

/// What is taken apart under a reader reads as zeros.
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_image_stays_whole_until_its_last_reader_is_gone() {
    let options = options().await;
    let (store, again) = (open(&options).await, open(&options).await);
    publish(&*store, &key(1), 5000, &[(0, noise(1, 5000))]).await;
    let reader = store.open(&key(1)).await.unwrap();
    for _ in 0..2 {
        again.delete(&key(1), 1).await.unwrap();
        assert_eq!(again.sweep(Duration::ZERO).await.unwrap(), Vec::<String>::new());
    }
    let left = again.list().await.unwrap();
    assert!(left.len() == 1 && !left[0].published && left[0].key == Some(key(1)), "{left:?}");
    let image = format!("{POOL}/{}/{}", options.namespace.unwrap(), left[0].name);
    assert!(cluster().await.rbd(&["snap", "ls", &image]).unwrap().contains("snap"));
    assert_eq!(read_all(&*reader).await, noise(1, 5000));
    drop(reader);
    // The reader's store has closed the image when it answers.
    store.list().await.unwrap();
    assert_eq!(again.sweep(Duration::ZERO).await.unwrap(), [left[0].name.clone()]);
    assert_eq!(again.list().await.unwrap(), vec![]);
}
