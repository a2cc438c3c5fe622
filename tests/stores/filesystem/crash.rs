//! kill -9 and power cuts.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use vitrine_engine::{
    error::Kind,
    model::{ObjectKey, OutputFormat},
    store::{
        Store,
        filesystem::{FilesystemOptions, FilesystemStore},
    },
};

use super::{
    objects, open,
    private::{make_ext4, mount_ext4, with_mounts},
};
use crate::conformance::{key, noise, publish, refused};

const VICTIM: &str = "VITRINE_TEST_VICTIM_FOLDER";
const KILLER: &str = "VITRINE_TEST_VICTIM_KILLER_PID";
const FIRST: &str = "VITRINE_TEST_VICTIM_FIRST_REVISION";
const LENGTH: u64 = 3 << 20;
const PIECE: usize = 100_000;

/// How often the writer is killed: with a pause that differs each time, some fall before, in and after publishing and deleting.
const ROUNDS: u64 = 30;

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap().block_on(work)
}

/// What the victim does until it is killed: publishes one object after the other and deletes every third again. It ends, too, when
/// `killer` is not its parent any more: nobody else would keep it from filling the disk.
async fn write_until_killed(folder: &Path, first: u64, killer: i32) {
    let store = open(folder);
    println!("ready");
    for revision in first.. {
        if rustix::process::getppid().is_none_or(|parent| parent.as_raw_nonzero().get() != killer) {
            return;
        }
        let pieces: Vec<_> = (0..8).map(|i| (i * LENGTH / 8, noise(revision * 8 + i, PIECE))).collect();
        publish(&store, &key(revision), LENGTH, &pieces).await;
        if revision % 3 == 0 {
            store.delete(&key(revision), 1).await.unwrap();
        }
    }
}

async fn check_content(store: &dyn Store, revision: u64) {
    let reader = store.open(&key(revision)).await.unwrap();
    assert_eq!(reader.image().length, LENGTH);
    for i in 0..8 {
        let at = i * LENGTH / 8;
        assert_eq!(reader.read_at(at, PIECE).await.unwrap(), noise(revision * 8 + i, PIECE), "r{revision} at {at}");
        assert!(reader.read_at(at + PIECE as u64, 1000).await.unwrap().iter().all(|byte| *byte == 0));
    }
}

fn start_victim(folder: &Path, first: u64, killer: u32) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "filesystem::crash::killed_writers_leave_whole_objects_or_leftovers", "--nocapture"])
        .env(VICTIM, folder)
        .env(FIRST, first.to_string())
        .env(KILLER, killer.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Kills the victim after `pause` and looks at what it left; returns how many leftovers there were.
fn kill_once(folder: &Path, round: u64) -> usize {
    let mut victim = start_victim(folder, round * 1000 + 1, std::process::id());
    let lines = BufReader::new(victim.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line.ends_with("ready")), "the victim never began");
    std::thread::sleep(Duration::from_micros(round * 7919 % 40_000));
    victim.kill().unwrap();
    victim.wait().unwrap();
    block_on(async {
        let store = open(folder);
        let mut entries = store.list().await.unwrap();
        entries.sort_by_key(|entry| entry.key.as_ref().map(ObjectKey::revision));
        let (whole, leftovers): (Vec<_>, Vec<_>) = entries.into_iter().partition(|entry| entry.published);
        for entry in whole.iter().rev().take(3) {
            check_content(&store, entry.key.as_ref().unwrap().revision()).await;
        }
        assert!(leftovers.len() <= 1, "{leftovers:?}");
        clean_up(&store, &leftovers, round.is_multiple_of(2)).await;
        let left: Vec<_> = store.list().await.unwrap().into_iter().filter(|entry| !entry.published).collect();
        assert!(left.is_empty(), "{left:?}");
        leftovers.len()
    })
}

/// Two ways to get rid of a leftover: the next attempt at its key, or a sweep.
async fn clean_up(store: &FilesystemStore, leftovers: &[vitrine_engine::store::ObjectEntry], by_attempt: bool) {
    match leftovers.first().and_then(|entry| entry.key.clone()) {
        Some(key) if by_attempt => store.create(&key, 2, OutputFormat::RAW).await.unwrap().abort().await.unwrap(),
        _ => assert_eq!(store.sweep(Duration::ZERO).await.unwrap().len(), leftovers.len()),
    }
}

#[test]
fn killed_writers_leave_whole_objects_or_leftovers() {
    if let Some(folder) = std::env::var_os(VICTIM) {
        let number = |name| std::env::var(name).unwrap();
        let (first, killer) = (number(FIRST).parse().unwrap(), number(KILLER).parse().unwrap());
        return block_on(write_until_killed(Path::new(&folder), first, killer));
    }
    let folder = tempfile::tempdir().unwrap();
    let leftovers: usize = (0..ROUNDS).map(|round| kill_once(folder.path(), round)).sum();
    assert!(leftovers > 0, "no kill hit a write: make the pauses longer");
    assert!(!objects(folder.path()).is_empty(), "no kill came after a publication: make the pauses longer");
}

#[test]
fn a_writer_whose_killer_is_gone_ends_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    // As if it had been started by another process, which has ended: its parent is a different one.
    let mut victim = start_victim(folder.path(), 1, std::process::id() + 1);
    let started = Instant::now();
    while victim.try_wait().unwrap().is_none() {
        if started.elapsed() > Duration::from_secs(60) {
            victim.kill().unwrap();
            panic!("it still writes after 60 s");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(objects(folder.path()).is_empty(), "it wrote although nobody would have ended it");
}

/// Publishes, then looks at the disk as a power cut at that moment would leave it: the device's content without anything that
/// is only in the file system's memory.
#[test]
fn what_was_committed_survives_a_power_cut() {
    with_mounts("filesystem::crash::what_was_committed_survives_a_power_cut", || {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let (root, after) = (path("root"), path("after"));
        fs::create_dir(&root).unwrap();
        fs::create_dir(&after).unwrap();
        make_ext4(&path("disk"), 64);
        mount_ext4(&path("disk"), &root);
        let id = block_on(async {
            let store = open(&root);
            let pieces: Vec<_> = (0..8).map(|i| (i * LENGTH / 8, noise(8 + i, PIECE))).collect();
            publish(&store, &key(1), LENGTH, &pieces).await;
            fs::copy(path("disk"), path("after-publication")).unwrap();
            let sink = store.create(&key(2), 7, OutputFormat::RAW).await.unwrap();
            fs::copy(path("disk"), path("after-creation")).unwrap();
            sink.abort().await.unwrap();
            store.delete(&key(1), 1).await.unwrap();
            fs::copy(path("disk"), path("after-deletion")).unwrap();
            store.id().clone()
        });
        let reopen = |disk: &str, check: &dyn Fn(FilesystemStore)| {
            mount_ext4(&path(disk), &after);
            let options = FilesystemOptions { expected: Some(id.clone()), ..FilesystemOptions::default() };
            check(FilesystemStore::open("files", &after, &options).unwrap());
            super::private::run("umount", &[after.to_str().unwrap()]);
        };
        reopen("after-publication", &|store| block_on(check_content(&store, 1)));
        reopen("after-creation", &|store| {
            let late = block_on(store.create(&key(2), 6, OutputFormat::RAW));
            assert_eq!(refused(late.map(|_| ())), Kind::Conflict);
        });
        reopen("after-deletion", &|store| assert_eq!(refused(block_on(store.stat(&key(1)))), Kind::NotFound));
    });
}

#[test]
fn a_new_store_survives_a_power_cut() {
    with_mounts("filesystem::crash::a_new_store_survives_a_power_cut", || {
        let folder = tempfile::tempdir().unwrap();
        let (disk, root) = (folder.path().join("disk"), folder.path().join("root"));
        fs::create_dir(&root).unwrap();
        make_ext4(&disk, 16);
        mount_ext4(&disk, &root);
        let id = open(&root).id().clone();
        let copy = folder.path().join("copy");
        fs::copy(&disk, &copy).unwrap();
        super::private::run("umount", &[root.to_str().unwrap()]);
        mount_ext4(&copy, &root);
        let options = FilesystemOptions { expected: Some(id), ..FilesystemOptions::default() };
        FilesystemStore::open("files", &root, &options).unwrap();
    });
}
