//! A disk in every format that is written, as a machine sees it: one that boots from it.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
    thread,
};

use crate::program::{debian, run};

/// Format, subformat or compression, and the format's name in qemu.
const FORMS: [(&str, &[&str], &str); 10] = [
    ("raw", &[], "raw"),
    ("qcow2", &["-c", "zstd"], "qcow2"),
    ("vmdk", &["--subformat", "monolithicSparse"], "vmdk"),
    ("vmdk", &["--subformat", "streamOptimized"], "vmdk"),
    ("vhd", &["--subformat", "dynamic"], "vpc"),
    ("vhd", &["--subformat", "fixed"], "vpc"),
    ("vhdx", &["--subformat", "dynamic"], "vhdx"),
    ("vdi", &["--subformat", "dynamic"], "vdi"),
    ("vdi", &["--subformat", "static"], "vdi"),
    ("ploop", &[], "parallels"),
];

/// Machines at once. One of them takes about one core.
const SIDE_BY_SIDE: usize = 2;

/// Converts what was packed as a whole, boots the outcome, and says what went wrong.
fn boot(folder: &Path, number: usize) -> Option<String> {
    let (format, options, qemu) = FORMS[number];
    let out: PathBuf = folder.join(format!("{number}.{format}"));
    let (source, target) = (debian("disk.raw.xz"), out.to_str().unwrap());
    let mut arguments = vec!["convert", source.to_str().unwrap(), target, "-O", format, "--quiet"];
    arguments.extend(options);
    run(arguments).expect(0);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/images/boot.sh");
    let output = Command::new(script).args([target, qemu]).output().unwrap();
    std::fs::remove_file(out).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    (!output.status.success()).then(|| format!("{format} {options:?}: {said}"))
}

#[test]
fn a_disk_boots_in_every_format() {
    let folder = tempfile::tempdir().unwrap();
    let (waiting, wrong) = (Mutex::new((0..FORMS.len()).collect::<Vec<_>>()), Mutex::new(Vec::new()));
    let next = || waiting.lock().unwrap().pop();
    thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE {
            scope.spawn(|| {
                while let Some(number) = next() {
                    let complaint = boot(folder.path(), number);
                    wrong.lock().unwrap().extend(complaint);
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
