//! The container image, built as `config/image/build.py` does: the program runs in it as nobody in particular, on a file system that
//! cannot be written, and finds Ceph's libraries.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use vitrine_harness::CephCluster;

use crate::program::{Ran, debian};

fn build(folder: &Path, name: &str) -> (PathBuf, String) {
    let output = folder.join(name);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/config/image/build.py");
    let binary = format!("amd64={}", env!("CARGO_BIN_EXE_vitrine"));
    let built = Command::new("python3").args([script, "--binary", &binary, "--output"]).arg(&output).output().unwrap();
    let ran = Ran::from(built).expect(0);
    (output, ran.stdout.trim().to_owned())
}

/// Unpacks the archive's layers as a root file system; gives it, with the image's configuration.
fn unpack(archive: &Path, folder: &Path) -> (PathBuf, Value) {
    let (layout, root) = (folder.join("layout"), folder.join("root"));
    for made in [&layout, &root] {
        fs::create_dir(made).unwrap();
    }
    let tar = |archive: &Path, flag: &str, target: &Path| {
        let done = Command::new("tar").arg(flag).arg(archive).arg("-C").arg(target).status().unwrap();
        assert!(done.success(), "{}", archive.display());
    };
    tar(archive, "-xf", &layout);
    let blob = |descriptor: &Value| {
        layout.join("blobs/sha256").join(descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap())
    };
    let read = |path: PathBuf| serde_json::from_slice::<Value>(&fs::read(path).unwrap()).unwrap();
    let manifest = read(blob(&read(layout.join("index.json"))["manifests"][0]));
    for layer in manifest["layers"].as_array().unwrap() {
        tar(&blob(layer), "-xzf", &root);
    }
    let config = read(blob(&manifest["config"]));
    (root, config)
}

/// Runs the image's program as a container does: as the image's user, on a root that cannot be written.
fn run_inside(root: &Path, folder: &Path, arguments: &[&str]) -> Ran {
    let script = r#"root=$1 work=$2; shift 2
        mount --bind "$root" "$root" && mount -t proc proc "$root/proc" && mount --bind /dev "$root/dev" &&
        mount --bind "$work" "$root/var/lib/vitrine" && mount -o remount,bind,ro "$root" &&
        exec chroot --userspec=65532:65532 --groups= "$root" "$@""#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script, "inside"]).arg(root).arg(folder);
    command.arg("/usr/bin/vitrine").args(arguments).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    command.env("TMPDIR", "/var/lib/vitrine");
    command.output().unwrap().into()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_image_is_the_same_each_time_and_has_all_that_is_needed() {
    let folder = tempfile::tempdir().unwrap();
    let (archive, digest) = build(folder.path(), "vitrine.tar");
    assert_eq!(build(folder.path(), "again.tar").1, digest);
    let bill = fs::read_to_string(folder.path().join("vitrine.amd64.spdx.json")).unwrap();
    assert!(bill.contains("pkg:deb/debian/librbd1@") && bill.contains("pkg:cargo/kube@"));
    let (root, config) = unpack(&archive, folder.path());
    assert_eq!((&config["config"]["User"], &config["architecture"]), (&"65532:65532".into(), &"amd64".into()));
    let found = Command::new("find")
        .arg(&root)
        .args(["-perm", "/6000", "-o", "-name", "*sh", "-path", "*/bin/*"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "", "nothing setuid, and no shell");

    let ceph = CephCluster::start().await.unwrap();
    ceph.create_pool("images").await.unwrap();
    let work = folder.path().join("work");
    for made in [&work, &root.join("proc"), &root.join("dev")] {
        fs::create_dir(made).unwrap();
    }
    fs::copy(ceph.config(), work.join("ceph.conf")).unwrap();
    fs::set_permissions(&work, fs::Permissions::from_mode(0o777)).unwrap();
    // As a mounted Secret has it: the image's user may read it.
    fs::write(work.join("keyring"), fs::read(ceph.config().with_file_name("keyring")).unwrap()).unwrap();
    fs::copy(debian("zlib.qcow2"), work.join("disk")).unwrap();
    let given = |name: &str| format!("/var/lib/vitrine/{name}");
    let (disk, conf, keyring) = (given("disk"), given("ceph.conf"), given("keyring"));
    let import =
        ["import", &disk, "--store", "rbd:images", "--ceph-conf", &conf, "--ceph-keyring", &keyring, "-o", "json"];
    let told = run_inside(&root, &work, &import).expect(0).json();
    assert!(told["url"].as_str().unwrap().starts_with("rbd://"), "{told}");
    let refused = run_inside(&root, &work, &["convert", &disk, "/tmp/disk.raw"]).expect(1);
    assert!(refused.stderr.contains("ead-only file system"), "{}", refused.stderr);
}
