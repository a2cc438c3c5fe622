//! What a killed `make test` left is ended and removed by the next one.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

/// Calls `sweep` of tests/run.py for the runs' folders in `$1`.
const SWEEP: &str = "import sys
sys.dont_write_bytecode = True
sys.path.insert(0, sys.argv[1])
import run
run.sweep(sys.argv[2])";

/// A run's folder as an hour-old run has it, with the file that its owner locks.
fn run_folder(parent: &Path, name: &str) -> (PathBuf, File) {
    let folder = parent.join(format!("vitrine-test-{name}"));
    fs::create_dir_all(folder.join("t-1/vitrine-lab-cluster")).expect("make");
    let owner = File::create(folder.join("owner")).expect("create");
    let an_hour_ago = SystemTime::now() - Duration::from_secs(3600);
    File::open(&folder).expect("open").set_modified(an_hour_ago).expect("make it old");
    (folder, owner)
}

#[test]
fn what_a_killed_run_left_is_swept_up_by_the_next_and_a_living_one_left_alone() {
    let parent = tempfile::tempdir().expect("make");
    let (dead, _) = run_folder(parent.path(), "dead");
    let (living, owner) = run_folder(parent.path(), "living");
    owner.lock().expect("lock");
    let sleeper = |folder: &Path| {
        let mut command = Command::new("sleep");
        command.arg("300").stdout(Stdio::null()).stderr(Stdio::null());
        command.env("TMPDIR", folder.join("t-1")).spawn().expect("start")
    };
    let (mut of_dead, mut of_living) = (sleeper(&dead), sleeper(&living));
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests' folder");
    let swept = Command::new("python3").args(["-c", SWEEP]).args([tests, parent.path()]).status().expect("python3");
    assert!(swept.success());
    let ended = of_dead.try_wait().expect("wait");
    let lives = of_living.try_wait().expect("wait").is_none();
    for mut process in [of_dead, of_living] {
        process.kill().expect("kill");
        process.wait().expect("wait");
    }
    assert!(ended.is_some() && !dead.exists(), "{ended:?}");
    assert!(lives && living.join("t-1/vitrine-lab-cluster").exists(), "its owner lives");
}
