//! The container image of a pod's first process, which only waits: made here, of Debian's busybox-static, for want of a registry.

use std::fs;
use std::path::Path;
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::error::{Context, Error, Result};

/// Its name on a node.
pub const NAME: &str = "localhost/pause:1";
const BUSYBOX: &str = "/usr/bin/busybox";

/// Writes the image as an archive that `ctr images import` takes.
///
/// # Errors
/// When busybox-static is not installed, or the archive cannot be written.
pub fn write_archive(archive: &Path) -> Result<()> {
    let work = tempfile::tempdir_in(archive.parent().unwrap_or(Path::new("/"))).context(|| "make a folder")?;
    let root = work.path().join("root");
    fs::create_dir(&root).context(|| "make a folder")?;
    fs::copy(BUSYBOX, root.join("busybox")).context(|| format!("copy {BUSYBOX} (Debian: busybox-static)"))?;
    tar(&root, &work.path().join("layer.tar"), &["."])?;
    let layer = fs::read(work.path().join("layer.tar")).context(|| "read layer.tar")?;
    let digest: String = Sha256::digest(layer).iter().map(|byte| format!("{byte:02x}")).collect();
    let write = |name: &str, text: &str| fs::write(work.path().join(name), text).context(|| format!("write {name}"));
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    write(
        "config.json",
        &format!(
            r#"{{"architecture":"{arch}","os":"linux","config":{{"Entrypoint":["/busybox","sleep","2147483647"]}},"rootfs":{{"type":"layers","diff_ids":["sha256:{digest}"]}}}}"#
        ),
    )?;
    write("manifest.json", &format!(r#"[{{"Config":"config.json","RepoTags":["{NAME}"],"Layers":["layer.tar"]}}]"#))?;
    tar(work.path(), archive, &["manifest.json", "config.json", "layer.tar"])
}

fn tar(folder: &Path, archive: &Path, names: &[&str]) -> Result<()> {
    let mut command = Command::new("tar");
    command.args(["--owner=0", "--group=0", "-C"]).arg(folder).arg("-cf").arg(archive).args(names);
    match command.status().context(|| "run tar")? {
        status if status.success() => Ok(()),
        status => Err(Error::new(format!("tar of {} failed ({status})", folder.display()))),
    }
}
