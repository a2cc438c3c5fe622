//! Sources that can be read only once: pipes in all their forms.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use vitrine_harness::qemu::{qemu_img, qemu_io};

use crate::program::{assert_same_disk, run_with_input, vitrine};

/// A qcow2 whose compressed clusters share sectors and lie so far out of order that a sector is wanted again long after it went by.
fn shuffled(folder: &Path) -> PathBuf {
    let path = folder.join("shuffled.qcow2");
    let (name, noise) = (path.to_str().unwrap(), folder.join("noise"));
    qemu_img(&["create", "-q", "-f", "qcow2", name, "64M"]).unwrap();
    let mut state = 1_u64;
    let noisy = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        u8::try_from(state >> 56).unwrap()
    });
    std::fs::write(&noise, noisy.take(60_000).chain([7; 5536]).collect::<Vec<_>>()).unwrap();
    let order = (0..1024_u32).map(|i| (i * 387) % 1024);
    let writes: Vec<String> = order.map(|i| format!("write -c -s {} {}k 64k", noise.display(), i * 64)).collect();
    for batch in writes.chunks(128) {
        let commands = batch.iter().flat_map(|command| ["-c", command]);
        qemu_io(&["-f", "qcow2"].into_iter().chain(commands).chain([name]).collect::<Vec<_>>()).unwrap();
    }
    path
}

#[test]
fn what_is_wanted_twice_of_a_pipe_was_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = shuffled(folder.path());
    let (out, fifo) = (folder.path().join("out"), folder.path().join("fifo"));
    let bytes = std::fs::read(&path).unwrap();
    assert!(bytes.len() > 48 << 20, "it must be larger than what waits in memory");
    let text = out.to_str().unwrap();
    for source in ["-", "/dev/stdin"] {
        run_with_input(&["convert", source, text, "--force", "--quiet"], &bytes).expect(0);
        assert_same_disk(&path, "qcow2", &out, "raw");
    }
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let mut command = vitrine(["convert", fifo.to_str().unwrap(), text, "--force", "--quiet"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut input = File::options().write(true).open(&fifo).unwrap();
    std::io::copy(&mut bytes.as_slice(), &mut input).unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_same_disk(&path, "qcow2", &out, "raw");
}
