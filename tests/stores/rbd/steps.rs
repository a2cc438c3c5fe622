//! A process that is killed at any step of publishing or deleting.

use std::{
    collections::BTreeMap,
    os::unix::process::ExitStatusExt,
    process::{Child, Command},
    time::Duration,
};

use rustix::process::{Signal, getpid, kill_process};
use vitrine_engine::store::{
    Store,
    rbd::{RbdCluster, RbdOptions, RbdStore, Step},
};

use super::{POOL, cluster, open, options};
use crate::{
    conformance::{key, noise, publish, publish_with, read_all},
    leftovers::sweep_all,
};

const VICTIM: &str = "VITRINE_TEST_RBD_VICTIM";
const LENGTH: u64 = 9 << 20;

/// Starts a victim and tells it what it needs to know.
fn start_victim(options: &RbdOptions, number: usize) -> Child {
    let RbdCluster::Monitors(monitors) = &options.cluster else { panic!("the tests name monitors") };
    let namespace = options.namespace.as_deref().unwrap();
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "rbd::steps::nothing_is_lost_and_nothing_is_left_at_any_step", "--nocapture"])
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
    let mut victims: Vec<_> = (0..Step::ALL.len()).map(|number| start_victim(&options, number)).collect();
    for (victim, step) in victims.iter_mut().zip(Step::ALL) {
        let status = victim.wait().unwrap();
        assert_eq!(status.signal(), Some(Signal::KILL.as_raw()), "{step:?} was never reached: {status}");
    }
    let store = open(&options).await;
    for number in 0..Step::ALL.len() {
        check(&store, number).await;
    }
    sweep_all(&*store).await;
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
    sweep_all(&*store).await;
    let counts = remains(namespace).await;
    let known = ["rbd_children", "rbd_directory", "rbd_info", "rbd_trash", "vitrine_index"];
    assert!(counts.keys().all(|sort| known.contains(&sort.as_str())), "{counts:?}");
}

/// Moves an image to the trash, marked as librbd marks what it is removing. It does so before it removes the first object.
async fn begin_removal(namespace: &str, name: &str) -> String {
    let (cluster, pool) = (cluster().await, ["--pool", POOL, "--namespace", namespace]);
    let rados = |args: &[&str]| cluster.rados(&[&pool[..], args].concat()).unwrap();
    let image = format!("{POOL}/{namespace}/{name}");
    let info: serde_json::Value =
        serde_json::from_str(&cluster.rbd(&["info", "--format", "json", &image]).unwrap()).unwrap();
    let id = info["id"].as_str().unwrap().to_owned();
    let entry = format!("id_{id}");
    cluster.rbd(&["trash", "mv", &image]).unwrap();
    let file = cluster.scope().dir().join(&entry);
    let path = file.to_str().unwrap();
    rados(&["getomapval", "rbd_trash", &entry, path]);
    let mut value = std::fs::read(path).unwrap();
    // cls_rbd_types.h, TrashImageSpec: two versions and a length, then the source; 0 is a user, 3 a removal.
    assert_eq!(value[6], 0);
    value[6] = 3;
    std::fs::write(path, value).unwrap();
    rados(&["setomapval", "rbd_trash", &entry, "--input-file", path]);
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn removals_that_stopped_halfway_are_finished() {
    let options = options().await;
    let (store, namespace) = (open(&options).await, options.namespace.as_deref().unwrap());
    let ours = |nonce| format!(".vitrine-removed-{}-a1-{nonce:016x}", key(1));
    let names = [ours(1), ours(2), "volume-1".to_owned(), ours(3)];
    for name in &names {
        let image = format!("{POOL}/{namespace}/{name}");
        cluster().await.rbd(&["create", "--size", "64M", &image]).unwrap();
        cluster().await.rbd(&["bench", "--io-type", "write", "--io-size", "1M", "--io-total", "8M", &image]).unwrap();
    }
    // Just begun, and just before the end; and what is none of ours, or a person has put into the trash.
    begin_removal(namespace, &names[0]).await;
    let header = format!("rbd_header.{}", begin_removal(namespace, &names[1]).await);
    cluster().await.rados(&["--pool", POOL, "--namespace", namespace, "rm", &header]).unwrap();
    begin_removal(namespace, &names[2]).await;
    cluster().await.rbd(&["trash", "mv", &format!("{POOL}/{namespace}/{}", names[3])]).unwrap();
    let mut swept = store.sweep(Duration::ZERO).await.unwrap();
    swept.sort();
    assert_eq!(swept, names[..2]);
    let left = store.list().await.unwrap();
    assert_eq!(left.iter().map(|entry| &entry.name).collect::<Vec<_>>(), [&names[2]]);
    let trash = cluster().await.rbd(&["trash", "ls", "--all", &format!("{POOL}/{namespace}")]).unwrap();
    assert!(trash.lines().count() == 1 && trash.contains(&names[3]), "{trash}");
}
