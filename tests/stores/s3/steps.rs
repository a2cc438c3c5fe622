//! A process that is killed at any step of publishing or deleting.

use std::{
    os::unix::process::ExitStatusExt,
    process::{Child, Command},
    time::{Duration, Instant},
};

use rustix::process::{Signal, getpid, kill_process};
use vitrine_engine::{
    error::Kind,
    store::{
        Store,
        s3::{S3Options, S3Store, Step},
    },
};

use super::{BUCKET, objects, open, short_lived};
use crate::conformance::{key, noise, publish, publish_with, read_all};

const VICTIM: &str = "VITRINE_TEST_S3_VICTIM";
const LENGTH: u64 = 30 << 20;

/// Starts a victim and tells it what it needs to know.
fn start_victim(options: &S3Options, number: usize) -> Child {
    let S3Options { endpoint, access_key_id, secret_access_key, prefix, .. } = options;
    let orders = [endpoint.as_str(), access_key_id, secret_access_key, prefix, &number.to_string()].join("\n");
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "s3::steps::nothing_is_lost_and_nothing_is_left_at_any_step", "--nocapture"])
        .env(VICTIM, orders)
        .spawn()
        .unwrap()
}

/// What `start_victim` told.
fn orders() -> Option<(S3Options, usize)> {
    let orders = std::env::var(VICTIM).ok()?;
    let orders: Vec<_> = orders.lines().collect();
    let [endpoint, id, secret, prefix, number] = orders[..] else { panic!("{orders:?}") };
    let options = S3Options::new(endpoint.parse().unwrap(), BUCKET, id, secret);
    let options = S3Options { prefix: prefix.to_owned(), lease: Duration::from_secs(3), ..options };
    Some((options, number.parse().unwrap()))
}

/// Publishes and deletes, and dies at the step.
async fn die_at_a_step(options: &S3Options, number: usize) {
    let store = open(options);
    let last = Step::ALL[number];
    store.watch_steps(move |step| {
        if step == last {
            kill_process(getpid(), Signal::KILL).unwrap();
            std::thread::park();
        }
    });
    publish(&*store, &key(number as u64), LENGTH, &[(0, noise(1, 20 << 20)), (29 << 20, noise(2, 5000))]).await;
    store.delete(&key(number as u64), 1).await.unwrap();
}

async fn check(store: &S3Store, number: usize) {
    let found = store.open(&key(number as u64)).await;
    if Step::ALL[number] != Step::Published {
        assert_eq!(found.map(|_| ()).unwrap_err().kind(), Kind::NotFound);
        return;
    }
    let content = read_all(&*found.unwrap()).await;
    let tail = 29 << 20;
    assert!((content.slice(..20 << 20), content.slice(tail..tail + 5000)) == (noise(1, 20 << 20), noise(2, 5000)));
}

/// Sweeps until nothing unpublished is left: signs of life count for some seconds. Returns what was swept.
async fn sweep_all(store: &S3Store) -> Vec<String> {
    let (start, mut swept) = (Instant::now(), Vec::new());
    loop {
        swept.extend(store.sweep(Duration::ZERO).await.unwrap());
        let left: Vec<_> = store.list().await.unwrap().into_iter().filter(|entry| !entry.published).collect();
        if left.is_empty() {
            return swept;
        }
        assert!(start.elapsed() < Duration::from_secs(120), "not swept: {left:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Sweeps until nothing at all is left: entries outlive what they speak of.
async fn forget_all(store: &S3Store, options: &S3Options) {
    let start = Instant::now();
    loop {
        store.sweep(Duration::ZERO).await.unwrap();
        let left = objects(options).await;
        if left.is_empty() {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(120), "not forgotten: {left:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_and_nothing_is_left_at_any_step() {
    if let Some((options, number)) = orders() {
        return die_at_a_step(&options, number).await;
    }
    let options = short_lived().await;
    let mut victims: Vec<_> = (0..Step::ALL.len()).map(|number| start_victim(&options, number)).collect();
    for (victim, step) in victims.iter_mut().zip(Step::ALL) {
        let status = victim.wait().unwrap();
        assert_eq!(status.signal(), Some(Signal::KILL.as_raw()), "{step:?} was never reached: {status}");
    }
    let store = open(&options);
    for number in 0..Step::ALL.len() {
        check(&store, number).await;
    }
    let swept = sweep_all(&store).await;
    // Everybody but who had published, and who had deleted and removed all of it.
    assert_eq!(swept.len(), Step::ALL.len() - 2, "{swept:?}");
    for number in 0..Step::ALL.len() {
        check(&store, number).await;
        if Step::ALL[number] != Step::Published {
            publish_with(&*store, &key(number as u64), 2, 5000, &[(0, noise(1, 5000))]).await;
        }
        store.delete(&key(number as u64), 2).await.unwrap();
    }
    forget_all(&store, &options).await;
    // Parts of an upload that was never completed are in no listing: that they are gone shows when they are listed.
    assert_eq!(super::publishing::unfinished_uploads(&options).await, 0);
}
