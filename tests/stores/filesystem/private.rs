//! Mounts that nobody else sees and that nothing can leak: a test starts itself again in a mount namespace of its own, and the
//! kernel takes the mounts and their loop devices down with its last process, however that ends.

use std::{path::Path, process::Command};

const INSIDE: &str = "VITRINE_TEST_PRIVATE_MOUNTS";

/// Runs `body` in a private mount namespace. `test` is the full name of the calling test. Needs root.
pub fn with_mounts(test: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some_and(|inside| inside == test) {
        return body();
    }
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, test)
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "in a mount namespace of its own (this test needs root): {said}");
    assert!(said.contains("1 passed"), "no test is called {test}: {said}");
}

/// Runs a program that must succeed.
pub fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Mounts a file system in memory with room for `size`, as mount(8) writes it.
pub fn mount_tmpfs(on: &Path, size: &str) {
    run("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs", on.to_str().unwrap()]);
}

/// Makes an ext4 file system of `megabytes` in the file `image`.
pub fn make_ext4(image: &Path, megabytes: u64) {
    std::fs::File::create(image).unwrap().set_len(megabytes << 20).unwrap();
    run("mkfs.ext4", &["-q", "-F", image.to_str().unwrap()]);
}

/// Mounts it. Without a sync, the journal is written only after five minutes: longer than any test.
pub fn mount_ext4(image: &Path, on: &Path) {
    run("mount", &["-o", "loop,commit=300", image.to_str().unwrap(), on.to_str().unwrap()]);
}
