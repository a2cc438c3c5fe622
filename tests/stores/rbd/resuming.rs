//! Going on with the image of a writer that is dead, and not with that of one that is not.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, getppid, kill_process};
use vitrine_engine::{
    model::OutputFormat,
    store::{
        Resumed, Store,
        rbd::{RbdCluster, RbdOptions},
    },
};

use super::{POOL, cluster, open, options};
use crate::{
    conformance::{key, noise, proof, publish_with, read_all, refused},
    leftovers::sweep_all,
};

const VICTIM: &str = "VITRINE_TEST_RBD_RESUMED";
const CHUNK: u64 = 4 << 20;
const LENGTH: u64 = 5 * CHUNK;

/// Writes two chunks and tells so; then waits for a line, writes one more, publishes, and tells what came of it.
async fn write(options: &RbdOptions) {
    let store = open(options).await;
    let mut sink = store.create(&key(1), 1, OutputFormat::RAW).await.unwrap();
    for index in 0..2 {
        sink.write_at(index * CHUNK, noise(index, CHUNK as usize)).await.unwrap();
    }
    // Ceph has it when a later write of the same bytes may begin.
    sink.write_at(0, noise(0, 1)).await.unwrap();
    sink.write_at(CHUNK, noise(1, 1)).await.unwrap();
    println!("written");
    let line = tokio::task::spawn_blocking(|| std::io::stdin().lines().next());
    if line.await.unwrap().is_none() || getppid().is_none() {
        return;
    }
    let mut failed = false;
    for at in [0, 3 * CHUNK] {
        failed |= sink.write_at(at, noise(66, CHUNK as usize)).await.is_err();
    }
    failed |= sink.commit(LENGTH, &proof(LENGTH)).await.is_err();
    println!("{}", if failed { "refused" } else { "published" });
}

struct Victim {
    child: Child,
    input: ChildStdin,
    output: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Victim {
    fn start(options: &RbdOptions, test: &str) -> Self {
        let RbdCluster::Monitors(monitors) = &options.cluster else { panic!("the tests name monitors") };
        let namespace = options.namespace.as_deref().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("rbd::resuming::{test}"), "--nocapture"])
            .env(VICTIM, [monitors, &options.user, &options.key, namespace].join("\n"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut victim = Self { input: child.stdin.take().unwrap(), child, output };
        victim.hear(&["written"]);
        victim
    }

    /// Waits for one of these words.
    fn hear(&mut self, words: &[&str]) -> String {
        let mut lines = self.output.by_ref().map_while(Result::ok);
        lines.find_map(|line| words.iter().find(|word| line.ends_with(**word)).map(|w| (*w).to_owned())).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn orders() -> Option<RbdOptions> {
    let orders = std::env::var(VICTIM).ok()?;
    let orders: Vec<_> = orders.lines().collect();
    let [monitors, user, key_of_user, namespace] = orders[..] else { panic!("{orders:?}") };
    let mut options = RbdOptions::new(RbdCluster::Monitors(monitors.to_owned()), user, key_of_user, POOL);
    options.namespace = Some(namespace.to_owned());
    Some(options)
}

/// Waits until Ceph has given up on everybody who had the one image open.
async fn forgotten(namespace: &str) {
    let (spec, start) = (format!("{POOL}/{namespace}"), Instant::now());
    let listed = cluster().await.rbd(&["ls", &spec]).unwrap();
    let image = format!("{spec}/{}", listed.lines().next().unwrap());
    loop {
        let text = cluster().await.rbd(&["status", "--format", "json", &image]).unwrap();
        let status: serde_json::Value = serde_json::from_str(&text).unwrap();
        if status["watchers"].as_array().is_some_and(Vec::is_empty) {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(120), "{text}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Goes on with attempt 2: what is left is right, and is published with two more chunks.
async fn go_on(store: &dyn Store, meanwhile: impl FnOnce()) {
    let Resumed { mut sink, left } = store.resume(&key(1), 2, OutputFormat::RAW).await.unwrap();
    let Some(left) = left else { panic!("the image of a dead writer is not gone on with") };
    assert_eq!(left.next_data(0).await.unwrap(), Some((0, 2 * CHUNK)));
    for index in 0..2 {
        assert_eq!(left.read_at(index * CHUNK, CHUNK as usize).await.unwrap(), noise(index, CHUNK as usize));
    }
    left.clear(CHUNK, 2 * CHUNK).await.unwrap();
    assert!(left.read_at(CHUNK, CHUNK as usize).await.unwrap().iter().all(|byte| *byte == 0));
    drop(left);
    meanwhile();
    sink.write_at(2 * CHUNK, noise(2, CHUNK as usize)).await.unwrap();
    let stat = sink.commit(LENGTH, &proof(LENGTH)).await.unwrap();
    assert_eq!(stat.allocated_size, 2 * CHUNK);
}

async fn check(store: &dyn Store) {
    let content = read_all(&*store.open(&key(1)).await.unwrap()).await;
    let chunk = |index: u64| content.slice((index * CHUNK) as usize..((index + 1) * CHUNK) as usize);
    assert_eq!((chunk(0), chunk(2)), (noise(0, CHUNK as usize), noise(2, CHUNK as usize)));
    assert!([1, 3, 4].into_iter().all(|index| chunk(index).iter().all(|byte| *byte == 0)));
}

/// Only what is published is left, and nothing once that is deleted.
async fn clean_end(store: &dyn Store, namespace: &str) {
    sweep_all(store).await;
    check(store).await;
    let records = || async {
        let listed = cluster().await.rados(&["--pool", POOL, "--namespace", namespace, "ls"]).unwrap();
        listed.lines().filter(|name| name.starts_with("vitrine_record")).count()
    };
    assert_eq!(records().await, 1);
    store.delete(&key(1), 2).await.unwrap();
    sweep_all(store).await;
    assert_eq!(records().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_image_of_a_killed_writer_is_gone_on_with() {
    const TEST: &str = "the_image_of_a_killed_writer_is_gone_on_with";
    if let Some(options) = orders() {
        return write(&options).await;
    }
    let options = options().await;
    let namespace = options.namespace.clone().unwrap();
    let store = open(&options).await;
    let victim = Victim::start(&options, TEST);
    victim.signal(Signal::KILL);
    forgotten(&namespace).await;
    go_on(&*store, || ()).await;
    clean_end(&*store, &namespace).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_was_thought_dead_changes_nothing_any_more() {
    const TEST: &str = "a_writer_that_was_thought_dead_changes_nothing_any_more";
    if let Some(options) = orders() {
        return write(&options).await;
    }
    let options = options().await;
    let namespace = options.namespace.clone().unwrap();
    let store = open(&options).await;
    let mut victim = Victim::start(&options, TEST);
    victim.signal(Signal::STOP);
    forgotten(&namespace).await;
    go_on(&*store, || {
        victim.signal(Signal::CONT);
        victim.input.write_all(b"go on\n").unwrap();
        assert_eq!(victim.hear(&["refused", "published"]), "refused");
    })
    .await;
    check(&*store).await;
    drop(victim);
    clean_end(&*store, &namespace).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_image_of_a_writer_that_may_live_is_left_alone() {
    const TEST: &str = "the_image_of_a_writer_that_may_live_is_left_alone";
    if let Some(options) = orders() {
        return write(&options).await;
    }
    let options = options().await;
    let store = open(&options).await;
    let mut victim = Victim::start(&options, TEST);
    // Too little is there for it to be waited for.
    victim.signal(Signal::STOP);
    let Resumed { sink, left } = store.resume(&key(1), 2, OutputFormat::RAW).await.unwrap();
    assert!(left.is_none());
    victim.signal(Signal::CONT);
    victim.input.write_all(b"go on\n").unwrap();
    assert_eq!(victim.hear(&["refused", "published"]), "refused");
    sink.abort().await.unwrap();
    drop(victim);
    // An earlier attempt comes too late.
    assert_eq!(
        refused(store.resume(&key(1), 1, OutputFormat::RAW).await.map(|_| ())),
        vitrine_engine::error::Kind::Conflict
    );
    publish_with(&*store, &key(1), 3, 5000, &[(0, noise(1, 5000))]).await;
    store.delete(&key(1), 3).await.unwrap();
    sweep_all(&*store).await;
}
