//! Who publishes, deletes and reads when several are at it, and who is held up at the worst moment.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::runtime::Handle;
use vitrine_engine::{
    error::Kind,
    model::OutputFormat,
    store::{
        Store,
        s3::{S3Options, S3Store, Step},
    },
};

use super::{BUCKET, gateway, objects, open, options, short_lived};
use crate::{
    conformance::{key, noise, proof, publish, publish_with, read_all, refused},
    overtaken::overtake,
};

/// Uploads in parts below the prefix that were begun and not completed, as the gateway keeps them in the bucket's index.
pub async fn unfinished_uploads(options: &S3Options) -> usize {
    let listed = gateway().await.admin(&["bucket", "list", "--bucket", BUCKET, "--max-entries", "100000"]).unwrap();
    let listed: Vec<serde_json::Value> = serde_json::from_str(&listed).unwrap();
    let names = listed.iter().filter_map(|entry| entry["name"].as_str());
    names.filter(|name| name.starts_with("_multipart_") && name.contains(&format!("{}/", options.prefix))).count()
}

/// Has `store` do `work` once, when it has done `step` and before it goes on.
fn at_step<W>(store: &S3Store, step: Step, work: impl Fn() -> W + Send + Sync + 'static)
where
    W: Future<Output = ()> + Send + 'static,
{
    let (runtime, done) = (Handle::current(), AtomicBool::new(false));
    store.watch_steps(move |now| {
        if now == step && !done.swap(true, Ordering::Relaxed) {
            tokio::task::block_in_place(|| runtime.block_on(work()));
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_writers_at_once_one_publishes() {
    let options = options().await;
    for round in 1..=10 {
        let stores = [open(&options), open(&options)];
        let begin = async |store: &S3Store| {
            let mut sink = store.create(&key(round), 1, OutputFormat::RAW).await?;
            sink.write_at(0, noise(round, 5000)).await?;
            sink.commit(5000, &proof(5000)).await
        };
        let (first, second) = tokio::join!(begin(&stores[0]), begin(&stores[1]));
        let told: Vec<_> = [&first, &second].into_iter().filter_map(|done| done.as_ref().err()).collect();
        assert_eq!(told.len(), 1, "{first:?} {second:?}");
        assert!(matches!(told[0].kind(), Kind::Conflict | Kind::AlreadyExists), "{}", told[0]);
        assert_eq!(read_all(&*stores[0].open(&key(round)).await.unwrap()).await, noise(round, 5000));
    }
    let store = open(&options);
    let entries = store.list().await.unwrap();
    assert!(entries.len() == 10 && entries.iter().all(|entry| entry.published), "{entries:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_overtaken_before_the_last_step_does_not_publish() {
    for at_once in [false, true] {
        let options = options().await;
        let (store, again) = (open(&options), open(&options));
        overtake(store.clone(), again, at_once, |work| at_step(&store, Step::Recorded, work)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleter_that_is_held_up_takes_nothing_from_the_next_attempt() {
    let options = options().await;
    let (store, again) = (open(&options), open(&options));
    publish(&*store, &key(1), 5000, &[(0, noise(1, 5000))]).await;
    let other = Arc::clone(&again);
    at_step(&store, Step::Deleted, move || {
        let other = Arc::clone(&other);
        async move {
            publish_with(&*other, &key(1), 2, 5000, &[(0, noise(2, 5000))]).await;
        }
    });
    store.delete(&key(1), 1).await.unwrap();
    assert_eq!(read_all(&*again.open(&key(1)).await.unwrap()).await, noise(2, 5000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_object_stays_whole_until_its_last_reader_is_gone() {
    let options = short_lived().await;
    let (store, again) = (open(&options), open(&options));
    publish(&*store, &key(1), 5000, &[(0, noise(1, 5000))]).await;
    let reader = store.open(&key(1)).await.unwrap();
    let start = std::time::Instant::now();
    // For longer than a sign of life counts.
    while start.elapsed() < Duration::from_secs(5) {
        again.delete(&key(1), 1).await.unwrap();
        assert_eq!(again.sweep(Duration::ZERO).await.unwrap(), Vec::<String>::new());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let left = again.list().await.unwrap();
    assert!(left.len() == 1 && !left[0].published && left[0].key == Some(key(1)), "{left:?}");
    assert_eq!(read_all(&*reader).await, noise(1, 5000));
    drop(reader);
    // The reader's store has taken its sign of life away when it answers.
    store.list().await.unwrap();
    assert_eq!(again.sweep(Duration::ZERO).await.unwrap(), [left[0].name.clone()]);
    assert_eq!(again.list().await.unwrap(), vec![]);
    assert_eq!(again.sweep(Duration::ZERO).await.unwrap(), Vec::<String>::new());
    assert!(objects(&options).await.is_empty(), "the entry goes too");
}

/// A writer whose signs of life count is left alone; one whose signs are old is fenced off before anything of it is removed.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_is_alive_outlives_its_lease() {
    let options = short_lived().await;
    let (store, again) = (open(&options), open(&options));
    let mut sink = store.create(&key(1), 1, OutputFormat::RAW).await.unwrap();
    let start = std::time::Instant::now();
    while start.elapsed() < Duration::from_secs(5) {
        assert_eq!(again.sweep(Duration::ZERO).await.unwrap(), Vec::<String>::new());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    sink.write_at(0, noise(1, 5000)).await.unwrap();
    sink.commit(5000, &proof(5000)).await.unwrap();
    assert_eq!(read_all(&*again.open(&key(1)).await.unwrap()).await, noise(1, 5000));
}

/// Its data goes after that.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_seemed_dead_is_fenced_off_before_its_data_is_swept() {
    let options = S3Options { object_size: 1 << 20, ..options().await };
    let store = open(&options);
    let hasty = open(&S3Options { lease: Duration::ZERO, ..options.clone() });
    let mut sink = store.create(&key(1), 1, OutputFormat::RAW).await.unwrap();
    sink.write_at(0, noise(1, 2 << 20)).await.unwrap();
    let (sink, told) = (Arc::new(Mutex::new(Some(sink))), Arc::new(Mutex::new(None)));
    let (writer, heard) = (Arc::clone(&sink), Arc::clone(&told));
    at_step(&hasty, Step::Removed, move || {
        let (writer, heard) = (writer.lock().unwrap().take().unwrap(), Arc::clone(&heard));
        async move {
            let committed = writer.commit(2 << 20, &proof(2 << 20)).await;
            *heard.lock().unwrap() = Some(refused(committed));
        }
    });
    let start = std::time::Instant::now();
    while hasty.sweep(Duration::ZERO).await.unwrap().is_empty() {
        assert!(start.elapsed() < Duration::from_secs(60), "not swept");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(*told.lock().unwrap(), Some(Kind::Conflict));
    assert_eq!(store.list().await.unwrap(), vec![]);
    publish_with(&*store, &key(1), 2, 5000, &[]).await;
}

/// Whoever removes an entry does so some time after saying it, and must find what it said.
#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_is_being_removed_is_left_alone_for_a_while() {
    use object_store::{ObjectStoreExt as _, path::Path};
    let options = options().await;
    let store = open(&options);
    let entry = Path::from(format!("{}/{}", options.prefix, key(1)));
    let say = async |since: u64| {
        let text = format!("v1 closing 3 - {since} 0123456789abcdef\n");
        super::client(&options).put(&entry, text.into()).await.unwrap();
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    say(now - 60).await;
    for error in [
        store.create(&key(1), 4, OutputFormat::RAW).await.map(|_| ()).unwrap_err(),
        store.delete(&key(1), 4).await.unwrap_err(),
    ] {
        assert!(error.kind() == Kind::Unavailable && error.to_string().contains("being removed"), "{error}");
    }
    store.sweep(Duration::ZERO).await.unwrap();
    assert_eq!(objects(&options).await.len(), 1);
    // Who said so has died.
    say(now - 3600).await;
    publish_with(&*store, &key(1), 4, 5000, &[]).await;
    store.delete(&key(1), 4).await.unwrap();
    say(now - 3600).await;
    store.sweep(Duration::ZERO).await.unwrap();
    assert!(objects(&options).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_have_in_the_bucket_is_shown_and_left_alone() {
    use object_store::{ObjectStoreExt as _, path::Path};
    let options = options().await;
    let store = open(&options);
    let client = super::client(&options);
    let foreign = [
        format!("{}/notes.txt", options.prefix),
        format!("{}/.data/other/thing", options.prefix),
        format!("{}/folder/thing", options.prefix),
    ];
    for name in &foreign {
        client.put(&Path::from(name.as_str()), "mine".into()).await.unwrap();
    }
    let entries = store.list().await.unwrap();
    assert!(entries.len() == 1 && entries[0].name == "notes.txt" && entries[0].key.is_none(), "{entries:?}");
    assert_eq!(store.sweep(Duration::ZERO).await.unwrap(), Vec::<String>::new());
    assert_eq!(objects(&options).await.len(), foreign.len());
    // The name of an entry is taken, by something that is not ours to overwrite.
    client.put(&Path::from(format!("{}/{}", options.prefix, key(1))), "mine".into()).await.unwrap();
    for error in [
        store.create(&key(1), 1, OutputFormat::RAW).await.map(|_| ()).unwrap_err(),
        store.delete(&key(1), 1).await.unwrap_err(),
        store.open(&key(1)).await.map(|_| ()).unwrap_err(),
    ] {
        assert!(error.kind() == Kind::Io && error.to_string().contains("none of Vitrine's"), "{error}");
    }
}
