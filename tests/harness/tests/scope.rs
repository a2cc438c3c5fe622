//! Scopes end what was started in them, however their owner ends.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use vitrine_harness::Scope;

/// Processes that work in `dir`, even if it is gone, found apart from how a scope finds them.
fn processes_in(dir: &Path) -> Vec<PathBuf> {
    let gone = PathBuf::from(format!("{} (deleted)", dir.display()));
    let works_there = |process: &PathBuf| fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == dir || cwd == gone);
    fs::read_dir("/proc").expect("/proc").flatten().map(|entry| entry.path()).filter(works_there).collect()
}

fn wait_until(what: &str, mut true_now: impl FnMut() -> bool) {
    let start = Instant::now();
    while !true_now() {
        assert!(start.elapsed() < Duration::from_secs(30), "not so after 30 s: {what}");
        sleep(Duration::from_millis(20));
    }
}

fn sleeper(scope: &Scope) -> Command {
    let mut command = scope.command("sh");
    command.args(["-c", "sleep 300 & sleep 300"]);
    command
}

#[test]
fn dropping_a_scope_ends_its_processes_and_theirs_and_removes_its_folder() {
    let scope = Scope::open("drop").expect("open");
    let dir = scope.dir().to_owned();
    let process = scope.spawn("sleeper", sleeper(&scope)).expect("spawn");
    // A shell in the folder, and its two sleepers.
    wait_until("three processes work there", || processes_in(&dir).len() == 3);
    drop(scope);
    assert_eq!(processes_in(&dir), Vec::<PathBuf>::new());
    assert!(!dir.exists());
    assert!(process.ended().is_some());
}

#[test]
fn killing_the_owner_leaves_nothing() {
    let lab = env!("CARGO_BIN_EXE_vitrine-lab");
    let mut owner = Command::new(lab).arg("up").stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("start");
    let mut line = String::new();
    BufReader::new(owner.stdout.take().expect("stdout")).read_line(&mut line).expect("read");
    let kubeconfig = line.trim().strip_prefix("export KUBECONFIG=").expect("a kubeconfig");
    let dir = Path::new(kubeconfig).parent().expect("a folder").to_owned();
    assert_eq!(processes_in(&dir).len(), 3, "etcd, the API server and the controllers work there");
    owner.kill().expect("kill -9");
    owner.wait().expect("wait");
    wait_until("no process works there and the folder is gone", || processes_in(&dir).is_empty() && !dir.exists());
}

#[test]
fn what_a_killed_keeper_left_is_swept_up_by_the_next_scope() {
    let dir = tempfile::Builder::new().prefix("vitrine-lab-stale-").tempdir().expect("make").keep();
    let owner = fs::File::create(dir.join("owner")).expect("create");
    let name = dir.file_name().expect("a name").to_owned();
    let mut command = Command::new("sleep");
    // Not the test's output: who reads that would wait for the sleeper, should it not be ended.
    command.arg("300").stdout(Stdio::null()).stderr(Stdio::null());
    let mut sleeper = command.env("VITRINE_LAB_SCOPE", name).current_dir(&dir).spawn().expect("start");
    let an_hour_ago = SystemTime::now() - Duration::from_secs(3600);
    fs::File::open(&dir).expect("open").set_modified(an_hour_ago).expect("make it old");

    owner.lock().expect("lock");
    drop(Scope::open("sweep").expect("open"));
    assert!(dir.exists(), "its owner lives");

    drop(owner);
    drop(Scope::open("sweep").expect("open"));
    wait_until("the folder is gone", || !dir.exists());
    assert!(!sleeper.wait().expect("wait").success(), "it was killed");
}

#[tokio::test]
async fn a_process_is_measured_and_its_failure_explained() {
    let scope = Scope::open("measure").expect("open");
    let deadline = Duration::from_secs(60);
    let mut command = scope.command("sh");
    command.args(["-c", "dd if=/dev/zero of=/dev/null bs=64M count=20 2>/dev/null; echo done; exec sleep 0.3"]);
    let process = scope.spawn("busy", command).expect("spawn");
    process.wait_for_log("done", deadline).await.expect("it says so");
    let usage = process.measure(deadline).await.expect("it ends");
    assert!(
        usage.status.success() && usage.peak_rss > 100_000 && usage.wall >= Duration::from_millis(300),
        "{usage:?}"
    );

    let mut command = scope.command("sh");
    command.args(["-c", "echo the disk is on fire >&2; exit 7"]);
    let process = scope.spawn("busy", command).expect("spawn");
    let error = process.wait_for_log("done", deadline).await.expect_err("the word is an earlier process's").to_string();
    assert!(
        error.contains("exit status: 7") && error.contains("the disk is on fire") && error.contains("busy.log"),
        "{error}"
    );
}
