//! A machine starts from what was converted: the proof that is left when every comparison says the same.

use std::{path::Path, process::Command, sync::Mutex, thread};

use crate::program::{debian, run};

/// A conversion of the Debian disk: the source, its form, and what qemu calls it.
type Dress = (&'static str, &'static [&'static str], &'static str);

const DRESSES: [Dress; 9] = [
    ("disk.raw.xz", &["-O", "qcow2", "-c", "zstd"], "qcow2"),
    ("zlib.qcow2", &["-O", "raw"], "raw"),
    ("zstd.qcow2", &["-O", "vmdk", "--subformat", "streamOptimized"], "vmdk"),
    ("disk.raw", &["-O", "vmdk", "--subformat", "monolithicSparse"], "vmdk"),
    ("plain.qcow2", &["-O", "vhd", "--subformat", "dynamic"], "vpc"),
    ("disk.raw.gz", &["-O", "vhd", "--subformat", "fixed"], "vpc"),
    ("extended-l2.qcow2", &["-O", "vhdx"], "vhdx"),
    ("snapshot.qcow2", &["-O", "vdi"], "vdi"),
    ("v2.qcow2", &["-O", "ploop"], "parallels"),
];

/// Machines at once: each has one processor and 256 MiB.
const MACHINES: usize = 2;

/// Converts the disk and has a machine start from it: Debian runs, and finds 4 MiB of noise on its root file system to be right.
fn assert_boots(folder: &Path, number: usize, (source, form, format): Dress) {
    let out = folder.join(number.to_string());
    let (from, to) = (debian(source), out.to_str().unwrap());
    run(["convert", from.to_str().unwrap(), to, "--quiet"].iter().chain(form)).expect(0);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/images/boot.sh");
    let output = Command::new(script).args([to, format]).output().unwrap();
    assert!(output.status.success(), "{source} {form:?}: {}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("VITRINE-GUEST-BOOTED content=good"), "{source} {form:?}: {said}");
    std::fs::remove_file(out).unwrap();
}

#[test]
fn a_machine_boots_from_every_format_that_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let left = Mutex::new(DRESSES.into_iter().enumerate());
    thread::scope(|scope| {
        for _ in 0..MACHINES {
            scope.spawn(|| {
                loop {
                    let next = left.lock().unwrap().next();
                    let Some((number, dress)) = next else { return };
                    assert_boots(folder.path(), number, dress);
                }
            });
        }
    });
}
