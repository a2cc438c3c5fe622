//! `vitrine convert`.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use vitrine_harness::{Fault, FaultServer, Route, qemu};

use crate::program::{assert_same_disk, debian, hostile, names, run, run_with_input, vitrine};

/// Bytes a sparse copy of the Debian disk may take: it holds about 134 MiB of data.
const SPARSE: u64 = 160 << 20;

fn allocated(path: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(&path.metadata().unwrap()) * 512
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn every_variant_becomes_the_same_sparse_raw() {
    let folder = tempfile::tempdir().unwrap();
    let (raw, out) = (debian("disk.raw"), folder.path().join("out"));
    for name in [
        "disk.raw",
        "plain.qcow2",
        "v2.qcow2",
        "cluster-512.qcow2",
        "extended-l2.qcow2",
        "snapshot.qcow2",
        "zlib.qcow2",
        "v2-zlib.qcow2",
        "zstd.qcow2",
        "cluster-2m-zlib.qcow2",
        "extended-l2-zlib.qcow2",
        "disk.raw.gz",
        "disk.raw.xz",
        "disk.raw.zst",
        "disk.raw.bz2",
    ] {
        let outcome = run(["convert", text(&debian(name)), text(&out), "--force", "-o", "json"]).expect(0).json();
        assert_eq!(outcome["virtualSize"], 320_u64 << 20, "{name}: {outcome}");
        assert_same_disk(&raw, "raw", &out, "raw");
        assert!(allocated(&out) < SPARSE, "{name}: {} bytes are allocated", allocated(&out));
        assert_eq!(names(folder.path()), ["out"], "{name}");
    }
}

#[test]
fn every_form_of_qcow2_is_whole_and_equal() {
    let folder = tempfile::tempdir().unwrap();
    let (raw, out) = (debian("disk.raw"), folder.path().join("out.qcow2"));
    for (source, form) in [
        ("disk.raw", &["-c", "zlib"][..]),
        ("disk.raw", &["-c", "zstd"]),
        ("disk.raw", &["-c", "none"]),
        ("zstd.qcow2", &["-c", "zlib", "--cluster-size", "2097152"]),
        ("zlib.qcow2", &["-c", "zstd", "--cluster-size", "4096"]),
        ("disk.raw.xz", &["-c", "none", "--cluster-size", "512"]),
    ] {
        let source = debian(source);
        let arguments = ["convert", text(&source), text(&out), "-O", "qcow2", "--force", "--quiet"];
        run(arguments.iter().chain(form)).expect(0);
        qemu::qemu_img(&["check", "-q", "-f", "qcow2", text(&out)]).unwrap();
        assert_same_disk(&raw, "raw", &out, "qcow2");
        let compressed = form[1] != "none";
        assert!(allocated(&out) < if compressed { 80 << 20 } else { SPARSE }, "{form:?}: {} bytes", allocated(&out));
    }
}

#[test]
fn every_kind_of_image_comes_over_http_as_qemu_reads_it() {
    let folder = tempfile::tempdir().unwrap();
    let (out, theirs) = (folder.path().join("out"), folder.path().join("theirs"));
    let server = FaultServer::start().unwrap();
    for (name, format) in [
        ("plain.qcow2", "qcow2"),
        ("zlib.qcow2", "qcow2"),
        ("zstd.qcow2", "qcow2"),
        ("extended-l2.qcow2", "qcow2"),
        ("extended-l2-zlib.qcow2", "qcow2"),
        ("disk.raw.xz", "xz"),
        ("disk.raw.gz", "gzip"),
        ("grub-rescue.iso", "raw"),
    ] {
        let path = debian(name);
        let place = format!("/{name}");
        server.put(&place, Route::file(&path).unwrap());
        run(["convert", &server.url(&place), text(&out), "--force", "--quiet"]).expect(0);
        let unpacked = folder.path().join("unpacked");
        let (source, format) = match format {
            "xz" | "gzip" => {
                let to = std::fs::File::create(&unpacked).unwrap();
                assert!(Command::new(format).arg("-dc").arg(&path).stdout(to).status().unwrap().success());
                (&unpacked, "raw")
            }
            _ => (&path, format),
        };
        qemu::qemu_img(&["convert", "-f", format, "-O", "raw", text(source), text(&theirs)]).unwrap();
        assert_eq!(out.metadata().unwrap().len(), theirs.metadata().unwrap().len(), "{name}");
        let same = Command::new("cmp").args([&out, &theirs]).output().unwrap();
        assert!(same.status.success(), "{name}: {}", String::from_utf8_lossy(&same.stdout));
        // A second pass would make it twice as much. What is sent beyond that was under way to a reader who was slower than the source,
        // and asked for ranges from then on; and the last sector of a flat disk is asked for first.
        let (sent, length) = (server.sent(&place), path.metadata().unwrap().len());
        assert!((length..length * 2).contains(&sent), "{name}: {sent} of {length} bytes, in one pass");
    }
}

#[test]
fn urls_and_standard_input_are_converted_while_they_come() {
    let folder = tempfile::tempdir().unwrap();
    let (raw, out) = (debian("disk.raw"), folder.path().join("out"));
    let server = FaultServer::start().unwrap();
    server.put("/disk.xz", Route::file(&debian("disk.raw.xz")).unwrap());
    server.put("/disk.qcow2", Route::file(&debian("zlib.qcow2")).unwrap().only(2, Fault::CutAfter(3 << 20)));
    for path in ["/disk.xz", "/disk.qcow2"] {
        run(["convert", &server.url(path), text(&out), "--force", "--quiet"]).expect(0);
        assert_same_disk(&raw, "raw", &out, "raw");
    }
    let input = std::fs::read(debian("extended-l2-zlib.qcow2")).unwrap();
    run_with_input(&["convert", "-", text(&out), "--force", "--quiet"], &input).expect(0);
    assert_same_disk(&raw, "raw", &out, "raw");
}

#[test]
fn a_file_that_is_there_is_only_replaced_by_force() {
    let folder = tempfile::tempdir().unwrap();
    let (iso, out) = (debian("grub-rescue.iso"), folder.path().join("out"));
    std::fs::write(&out, "precious").unwrap();
    let ran = run(["convert", text(&iso), text(&out)]).expect(1);
    assert!(ran.stderr.contains("--force"), "{}", ran.stderr);
    assert_eq!(std::fs::read(&out).unwrap(), b"precious");
    run(["convert", text(&iso), text(&out), "--force"]).expect(0);
    assert_same_disk(&iso, "raw", &out, "raw");
    run(["convert", text(&iso), text(folder.path()), "--force"]).expect(1);
    assert_eq!(names(folder.path()), ["out"]);
}

#[test]
fn hostile_files_are_refused_and_odd_ones_read_right() {
    let (folder, cases) = hostile();
    let work = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for case in cases {
        let out = work.path().join("out");
        let source = folder.join(case["file"].as_str().unwrap());
        let ran = run(["convert", text(&source), text(&out), "--quiet"]);
        if case["expect"] == "refused" {
            if ran.code != 3 || !names(work.path()).is_empty() {
                wrong.push(format!("{case}: exit {}: {}; left: {:?}", ran.code, ran.stderr, names(work.path())));
            }
        } else if ran.code != 0 || case.get("contentSha256").is_some_and(|sum| *sum != sha256(&out)) {
            wrong.push(format!("{case}: exit {}: {}", ran.code, ran.stderr));
        }
        // Absent after a refusal.
        let _absent = std::fs::remove_file(&out);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn sha256(path: &Path) -> String {
    let line = Command::new("sha256sum").arg(path).output().unwrap().stdout;
    String::from_utf8(line).unwrap().split(' ').next().unwrap().to_owned()
}

#[test]
fn what_cannot_be_written_is_said_first() {
    let folder = tempfile::tempdir().unwrap();
    let (iso, out) = (debian("grub-rescue.iso"), folder.path().join("out"));
    run(["convert", text(&iso), text(&out), "-O", "iso"]).expect(1);
    run(["convert", text(&iso), text(&out), "-O", "vmdk", "--subformat", "fixed"]).expect(1);
    run(["convert", text(&iso), text(&out), "-O", "raw", "-c", "zlib"]).expect(1);
    run(["convert", text(&iso), text(&out), "-O", "qcow2", "--cluster-size", "1000"]).expect(1);
    run(["convert", text(&iso), "/nowhere/out"]).expect(1);
    let wrong = format!("sha256:{}", "0".repeat(64));
    run(["convert", text(&iso), text(&out), "--checksum", &wrong]).expect(3);
    assert_eq!(names(folder.path()), Vec::<String>::new());
}

#[test]
fn a_full_disk_is_named_and_left_empty() {
    let folder = tempfile::tempdir().unwrap();
    let script = r#"mount -t tmpfs -o size=32m tmpfs "$1" || exit 99
        "$2" convert "$3" "$1/out" --quiet; code=$?
        test -z "$(ls -A "$1")" || { echo "left behind: $(ls -A "$1")" >&2; exit 98; }
        exit $code"#;
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--", "sh", "-c", script, "full", text(folder.path())])
        .args([env!("CARGO_BIN_EXE_vitrine"), text(&debian("zlib.qcow2"))])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "this test needs root: {stderr}");
    assert!(stderr.contains("No space left"), "{stderr}");
}

#[test]
fn an_interrupted_conversion_leaves_nothing() {
    for signal in [Signal::INT, Signal::TERM] {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let server = FaultServer::start().unwrap();
        server.put("/slow", Route::file(&debian("plain.qcow2")).unwrap().always(Fault::Rate(4 << 20)));
        let mut command = vitrine(["convert", &server.url("/slow"), text(&out)]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let started = Instant::now();
        while names(folder.path()).is_empty() || server.sent("/slow") < 1 << 20 {
            assert!(started.elapsed() < Duration::from_secs(30), "nothing was begun");
            std::thread::sleep(Duration::from_millis(20));
        }
        kill_process(Pid::from_child(&child), signal).unwrap();
        let signalled = Instant::now();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(signalled.elapsed() < Duration::from_secs(10), "it took {:?}", signalled.elapsed());
        assert_eq!(names(folder.path()), Vec::<String>::new());
    }
}
