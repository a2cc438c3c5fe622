//! The daemons: making their data and starting them. They run in the scope's folder.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::error::{Context, Error, Result};
use crate::process::Process;
use crate::scope::Scope;

/// What must be installed.
const PROGRAMS: [&str; 6] = ["ceph-mon", "ceph-osd", "ceph-mgr", "monmaptool", "osdmaptool", "rbd"];
/// How long making a daemon's data may take: under a second on an idle machine.
const MKFS_DEADLINE: Duration = Duration::from_secs(120);

/// Makes sure that Ceph's programs are there.
pub fn check_installed() -> Result<()> {
    let folders: Vec<_> = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    let missing: Vec<_> =
        PROGRAMS.into_iter().filter(|name| !folders.iter().any(|folder| folder.join(name).is_file())).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let missing = missing.join(", ");
    Err(Error::new(format!(
        "{missing} not found in PATH: run tests/ceph/install.sh, as `make test` does, to install Ceph"
    )))
}

/// A command of Ceph's with the cluster's configuration.
pub fn command(scope: &Scope, program: &str) -> Command {
    let mut command = scope.command(program);
    command.arg("--conf").arg(scope.dir().join("ceph.conf"));
    // It would add options that are not in the file.
    command.env_remove("CEPH_ARGS").env_remove("CEPH_CONF");
    command
}

/// Makes the data of the monitor and of the OSD, both at once.
pub async fn make_data(scope: &Scope, fsid: &str, port: u16) -> Result<()> {
    for folder in ["mon", "osd", "mgr"] {
        fs::create_dir(scope.dir().join(folder)).context(|| format!("make the folder {folder}"))?;
    }
    let mut monmap = scope.command("monmaptool");
    monmap.args(["--create", "--clobber", "--fsid", fsid, "--addv", "a", &format!("[v2:127.0.0.1:{port}]"), "monmap"]);
    // One OSD is in the map from the first epoch, so it need not be made known. A pool must not be: its placement groups would stay
    // unknown for ever.
    let mut osdmap = command(scope, "osdmaptool");
    osdmap.args(["osdmap", "--createsimple", "1", "--clobber"]);
    let (monmap, osdmap) = (scope.spawn("monmaptool", monmap)?, scope.spawn("osdmaptool", osdmap)?);
    succeed(&monmap).await?;
    succeed(&osdmap).await?;
    let mut mon = command(scope, "ceph-mon");
    mon.args(["--mkfs", "-i", "a", "--monmap", "monmap", "--osdmap", "osdmap", "--keyring", "keyring"]);
    // Without --no-mon-config it waits five minutes for the monitor that is not there yet.
    let mut osd = command(scope, "ceph-osd");
    osd.args(["--no-mon-config", "-i", "0", "--mkfs", "--osd-uuid", &super::config::uuid()?, "--monmap", "monmap"]);
    let (mon, osd) = (scope.spawn("ceph-mon-mkfs", mon)?, scope.spawn("ceph-osd-mkfs", osd)?);
    succeed(&mon).await?;
    succeed(&osd).await
}

async fn succeed(process: &Process) -> Result<()> {
    let status = process.wait(MKFS_DEADLINE).await?;
    if status.success() { Ok(()) } else { Err(process.complaint(&format!("failed ({status})"))) }
}

/// Starts the daemon `program` with the id `id`. It is not ready yet when this returns.
pub fn start(scope: &Scope, program: &str, id: &str) -> Result<Process> {
    let mut command = command(scope, program);
    command.args(["-i", id, "-f"]);
    scope.spawn(program, command)
}

/// Runs a client program of Ceph's to its end, as the administrator.
pub fn run(scope: &Scope, program: &str, args: &[&str]) -> Result<String> {
    let output = command(scope, program).args(args).output().context(|| format!("start {program}"))?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() {
        return Ok(out.into_owned());
    }
    Err(Error::new(format!("{program} {args:?} failed ({}): {err}{out}", output.status)))
}

/// Whether a daemon has ended by itself.
pub fn check_running(process: &Process, config: &Path) -> Result<()> {
    match process.ended() {
        None => Ok(()),
        Some(status) => Err(process.complaint(&format!("ended ({status}); it was started with {}", config.display()))),
    }
}
