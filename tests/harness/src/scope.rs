//! A scope: a private folder, and every process that was started in it. Both are gone when the scope is, however its owner ends.
//!
//! A small shell process, the keeper, holds the read end of a pipe whose write end only the owner has. The kernel closes that end when
//! the owner ends, by whatever signal; the keeper then kills every process that carries the scope's mark in its environment and
//! removes the folder. The mark also finds processes that were being started at that very moment, and the children of children,
//! which a list of pids would miss. Should the keeper be killed too, the next scope of the same user sweeps up what it left.
//!
//! A scope may have a network of its own, which is gone with its processes, and control groups named like its folder.
//!
//! Knows nothing of what runs in the scope.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::error::{Context, Result};
use crate::network::{self, Network};
use crate::process::Process;

/// Every scope's folder begins with this, in the system's folder for temporary files.
const PREFIX: &str = "vitrine-lab-";
/// The environment variable that marks a process as belonging to a scope.
const MARK: &str = "VITRINE_LAB_SCOPE";
/// In the scope's folder; its owner holds a lock on it.
const OWNER: &str = "owner";
/// A younger folder may be one whose owner has not taken its lock yet.
const SWEEP_AGE: Duration = Duration::from_secs(10);

/// `$1` is the mark (`NAME=value`), `$2` the folder, whose name control groups may have, too. Two searches in a row must find nothing, because a process that was being
/// started shows its environment only after exec. 600 rounds are at least 30 s: a process stuck in the kernel cannot be waited for.
const KEEPER: &str = r#"
trap '' INT TERM HUP
cat >/dev/null
calm=0 round=0
while [ $calm -lt 2 ] && [ $round -lt 600 ]; do
    round=$((round + 1))
    found=$(grep -lzsxF -e "$1" /proc/[0-9]*/environ)
    if [ -z "$found" ]; then calm=$((calm + 1)); else calm=0; fi
    for file in $found; do pid=${file#/proc/}; kill -9 "${pid%/environ}" 2>/dev/null; done
    [ $calm -ge 2 ] || sleep 0.05
done
for groups in /sys/fs/cgroup/"${2##*/}" /sys/fs/cgroup/*/"${2##*/}"; do
    # A group is empty some moments after its last process has ended.
    for round in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        [ -d "$groups" ] || break
        find "$groups" -depth -type d -exec rmdir {} + 2>/dev/null || sleep 0.1
    done
done
rm -rf -- "$2"
"#;

/// A private folder and everything started in it. Dropping it ends and removes all of that, and waits until it is done.
#[derive(Debug)]
pub struct Scope {
    dir: PathBuf,
    mark: String,
    keeper: Child,
    network: Option<(Network, Process)>,
    _owner: File,
}

impl Scope {
    /// Opens a scope; `purpose` becomes a part of its folder's name.
    ///
    /// # Errors
    /// When the folder cannot be made or no shell can be started.
    pub fn open(purpose: &str) -> Result<Self> {
        let parent = std::env::temp_dir();
        sweep(&parent);
        let dir = tempfile::Builder::new()
            .prefix(&format!("{PREFIX}{purpose}-"))
            .tempdir_in(&parent)
            .context(|| format!("make a folder in {}", parent.display()))?
            .keep();
        let owner = File::create(dir.join(OWNER)).context(|| format!("write in {}", dir.display()))?;
        owner.lock().context(|| format!("lock {}/{OWNER}", dir.display()))?;
        let mark = mark_of(&dir);
        let keeper = start_keeper(&dir, Stdio::piped())?;
        Ok(Self { dir, mark, keeper, network: None, _owner: owner })
    }

    /// Opens a scope with a network of its own, in which all of its commands run: what they listen on is not seen outside, and they
    /// reach nothing outside. Needs root.
    ///
    /// # Errors
    /// As [`Scope::open`], or when the network cannot be made.
    pub async fn open_apart(purpose: &str) -> Result<Self> {
        let mut scope = Self::open(purpose)?;
        scope.network = Some(network::open(&scope).await?);
        Ok(scope)
    }

    /// The network of the scope's own, if it has one.
    pub fn network(&self) -> Option<&Network> {
        self.network.as_ref().map(|(network, _)| network)
    }

    /// What tells this scope's processes and control groups from all others.
    pub fn mark(&self) -> &str {
        &self.mark
    }

    /// The scope's folder. Its path holds for as long as the scope lives.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A command whose process will end with the scope, whoever starts it. Its input is empty, and it works in the scope's folder.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = self.network().map_or_else(|| Command::new(&program), |network| network.command(&program));
        command.env(MARK, &self.mark).current_dir(&self.dir).stdin(Stdio::null());
        command
    }

    /// Starts `command` (made by [`Scope::command`]) with its output in `<scope>/<name>.log`, which grows over restarts.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn spawn(&self, name: &str, mut command: Command) -> Result<Process> {
        // Set again here, so that a command made elsewhere cannot outlive the scope. Its own process group keeps a Ctrl-C in the
        // terminal from ending servers before the test that uses them.
        command.env(MARK, &self.mark).process_group(0);
        Process::spawn(name, command, self.dir.join(format!("{name}.log")))
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        if let Err(error) = self.keeper.wait() {
            eprintln!("the keeper of {} cannot be waited for: {error}", self.dir.display());
        }
    }
}

fn mark_of(dir: &Path) -> String {
    dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn start_keeper(dir: &Path, pipe: Stdio) -> Result<Child> {
    Command::new("/bin/sh")
        .args(["-c", KEEPER, "vitrine-lab-keeper", &format!("{MARK}={}", mark_of(dir))])
        .arg(dir)
        // A scope inside a scope: the outer one must not kill this keeper before it has done its work.
        .env_remove(MARK)
        .current_dir("/")
        .process_group(0)
        .stdin(pipe)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context(|| "start /bin/sh")
}

/// Ends and removes what is left of scopes whose owner and keeper are both dead. Never an error: it is a courtesy to the machine.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    for dir in entries.flatten().map(|entry| entry.path()).filter(|path| is_stale(path)) {
        if let Ok(mut keeper) = start_keeper(&dir, Stdio::null()) {
            // Waited for elsewhere, so that a stuck process of a dead run delays nobody.
            std::thread::spawn(move || keeper.wait());
        }
    }
}

fn is_stale(dir: &Path) -> bool {
    let named = dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
    named && is_ours_and_old(dir) && File::open(dir.join(OWNER)).is_ok_and(|owner| owner.try_lock().is_ok())
}

fn is_ours_and_old(dir: &Path) -> bool {
    let Ok(metadata) = fs::symlink_metadata(dir) else {
        return false;
    };
    let age = metadata.modified().ok().and_then(|time| time.elapsed().ok());
    metadata.is_dir() && metadata.uid() == rustix::process::getuid().as_raw() && age.is_some_and(|age| age > SWEEP_AGE)
}
