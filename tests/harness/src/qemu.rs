//! qemu's own programs, the judges of every format, and the disks they judge on.
//!
//! All come from the scripts in `tests/images`; nothing here is skipped when something is missing.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use crate::{
    error::{Context as _, Error, Result},
    tools::cache_dir,
};

/// Runs `qemu-img` and gives what it printed.
///
/// # Errors
/// If it is not installed or fails; the message holds what it said.
pub fn qemu_img(arguments: &[&str]) -> Result<String> {
    run("qemu-img", arguments)
}

/// Runs `qemu-io` and gives what it printed.
///
/// # Errors
/// As for `qemu_img`.
pub fn qemu_io(arguments: &[&str]) -> Result<String> {
    run("qemu-io", arguments)
}

fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let path = cache_dir()?.join("bin").join(program);
    let output = Command::new(&path)
        .args(arguments)
        .output()
        .context(|| format!("{} (tests/images/install.sh puts it there)", path.display()))?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        return Ok(said(&output.stdout));
    }
    let words = arguments.join(" ");
    Err(Error::new(format!("{program} {words}: {}: {}{}", output.status, said(&output.stdout), said(&output.stderr))))
}

/// The folder of the Debian test disk in all its variants, made if it is not there yet.
///
/// # Errors
/// If the script that makes it fails.
pub fn debian_disk() -> Result<&'static Path> {
    static FOLDER: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    FOLDER.get_or_init(make_debian_disk).as_deref().map_err(|message| Error::new(message.clone()))
}

fn make_debian_disk() -> Result<PathBuf, String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("images").join("debian-disk.sh");
    let output = Command::new(&script).output().map_err(|e| format!("{}: {e}", script.display()))?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    match (output.status.success(), stdout.trim().lines().last()) {
        (true, Some(folder)) => Ok(PathBuf::from(folder)),
        _ => Err(format!("{}: {}: {}", script.display(), output.status, String::from_utf8_lossy(&output.stderr))),
    }
}
