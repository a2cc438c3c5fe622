//! A process that is killed at any step of publishing or deleting.

use std::{
    collections::BTreeMap,
    os::unix::process::ExitStatusExt,
    process::{Child, Command},
    time::{Duration, Instant},
};

use rustix::process::{Signal, getpid, kill_process};
use vitrine_engine::store::{
    Store,
    rbd::{RbdCluster, RbdOptions, RbdStore, Step},
};

use super::{POOL, cluster, open, options};
use crate::conformance::{key, noise, publish, publish_with, read_all};

const VICTIM: &str = "VITRINE_TEST_RBD_VICTIM";
const LENGTH: u64 = 9 << 20;

/// Starts a victim that does what `test` has it do, and tells it what it needs to know.
fn start_victim(test: &str, options: &RbdOptions, number: usize) -> Child {
    let RbdCluster::Monitors(monitors) = &options.cluster else { panic!("the tests name monitors") };
    let namespace = options.namespace.as_deref().unwrap();
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("rbd::steps::{test}"), "--nocapture"])
        .env(VICTIM, [monitors, &options.user, &options.key, namespace, &number.to_string()].join("\n"))
        .spawn()
        .unwrap()
}

/// What `start_victim` told.
fn orders() -> Option<(RbdOptions, usize)> {
    let orders = std::env::var(VICTIM).ok()?;
    let orders: Vec<_> = orders.lines().collect();
    let [monitors, user, key_of_user, namespace, number] = orders[..] else { panic!("{orders:?}") };
    let mut options = RbdOptions::new(RbdCluster::Monitors(monitors.to_owned()), user, key_of_user, POOL);
    options.namespace = Some(namespace.to_owned());
    Some((options, number.parse().unwrap()))
}

/// Publishes and deletes, and dies at the step.
async fn die_at_a_step(options: &RbdOptions, number: usize) {
    let store = open(options).await;
    let last = Step::ALL[number];
    store.watch_steps(move |step| {
        if step == last {
            kill_process(getpid(), Signal::KILL).unwrap();
            std::thread::park();
        }
    });
    publish(&*store, &key(number as u64), LENGTH, &[(0, noise(1, 5000)), (8 << 20, noise(2, 5000))]).await;
    // Only an image that somebody reads is moved aside.
    let reader = if last == Step::MovedAside { Some(store.open(&key(number as u64)).await.unwrap()) } else { None };
    store.delete(&key(number as u64), 1).await.unwrap();
    drop(reader);
}

fn is_published_after(step: Step) -> bool {
    matches!(step, Step::Published | Step::Named | Step::Unprotected)
}

async fn check(store: &RbdStore, number: usize) {
    let found = store.open(&key(number as u64)).await;
    if !is_published_after(Step::ALL[number]) {
        assert_eq!(found.map(|_| ()).unwrap_err().kind(), vitrine_engine::error::Kind::NotFound);
        return;
    }
    let content = read_all(&*found.unwrap()).await;
    assert_eq!((content.slice(..5000), content.slice(8 << 20..(8 << 20) + 5000)), (noise(1, 5000), noise(2, 5000)));
}

/// Sweeps until nothing unpublished is left: Ceph takes some seconds to notice that a client is dead.
async fn sweep_all(store: &RbdStore) {
    let start = Instant::now();
    loop {
        store.sweep(Duration::ZERO).await.unwrap();
        let left: Vec<_> = store.list().await.unwrap().into_iter().filter(|entry| !entry.published).collect();
        if left.is_empty() {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(120), "not swept: {left:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// How many RADOS objects of each sort there are in the namespace, by the beginnings of their names.
async fn remains(namespace: &str) -> BTreeMap<String, usize> {
    let listed = cluster().await.rados(&["--pool", POOL, "--namespace", namespace, "ls"]).unwrap();
    let mut counts = BTreeMap::new();
    for name in listed.lines() {
        let sort = name.split('.').next().unwrap().to_owned();
        *counts.entry(sort).or_default() += 1;
    }
    counts
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_and_nothing_is_left_at_any_step() {
    if let Some((options, number)) = orders() {
        return die_at_a_step(&options, number).await;
    }
    let options = options().await;
    let start = |number| start_victim("nothing_is_lost_and_nothing_is_left_at_any_step", &options, number);
    let mut victims: Vec<_> = (0..Step::ALL.len()).map(start).collect();
    for (victim, step) in victims.iter_mut().zip(Step::ALL) {
        let status = victim.wait().unwrap();
        assert_eq!(status.signal(), Some(Signal::KILL.as_raw()), "{step:?} was never reached: {status}");
    }
    let store = open(&options).await;
    for number in 0..Step::ALL.len() {
        check(&store, number).await;
    }
    sweep_all(&store).await;
    // Whoever died before it had given an image its name: another one has done it.
    for entry in store.list().await.unwrap() {
        assert_eq!(Some(entry.name), entry.key.map(|key| key.to_string()));
    }
    let namespace = options.namespace.as_deref().unwrap();
    let published = Step::ALL.into_iter().filter(|step| is_published_after(*step)).count();
    let counts = remains(namespace).await;
    for sort in ["rbd_id", "rbd_header", "vitrine_record"] {
        assert_eq!(counts.get(sort), Some(&published), "{counts:?}");
    }
    for number in 0..Step::ALL.len() {
        check(&store, number).await;
        if !is_published_after(Step::ALL[number]) {
            publish_with(&*store, &key(number as u64), 2, 5000, &[(0, noise(1, 5000))]).await;
        }
        store.delete(&key(number as u64), 2).await.unwrap();
    }
    sweep_all(&store).await;
    let counts = remains(namespace).await;
    let known = ["rbd_children", "rbd_directory", "rbd_info", "rbd_trash", "vitrine_index"];
    assert!(counts.keys().all(|sort| known.contains(&sort.as_str())), "{counts:?}");
}

/// Deletes an image of many small objects, which takes a while.
async fn delete_slowly(options: &RbdOptions, number: usize) {
    let options = RbdOptions { object_order: Some(12), ..options.clone() };
    let store = open(&options).await;
    let objects: Vec<_> = (0..4).map(|i| (i << 22, noise(i, 4 << 20))).collect();
    publish(&*store, &key(number as u64), 4 << 22, &objects).await;
    store.delete(&key(number as u64), 1).await.unwrap();
}

/// librbd takes an image out of the list of images before it removes the first object.
#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_is_killed_halfway_is_finished() {
    if let Some((options, number)) = orders() {
        return delete_slowly(&options, number).await;
    }
    let options = options().await;
    let (store, namespace) = (open(&options).await, options.namespace.as_deref().unwrap());
    for number in 1..20 {
        let mut victim = start_victim("a_removal_that_is_killed_halfway_is_finished", &options, number);
        while victim.try_wait().unwrap().is_none() {
            let half = store.list().await.unwrap();
            if half.iter().any(|entry| !entry.published && entry.name == key(number as u64).to_string()) {
                victim.kill().unwrap();
            }
        }
        if remains(namespace).await.contains_key("rbd_data") {
            sweep_all(&store).await;
            assert_eq!(remains(namespace).await.get("rbd_data"), None);
            return;
        }
    }
    panic!("no kill hit a removal");
}
