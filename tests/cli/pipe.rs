//! `vitrine convert` with standard input and standard output, as in `curl … | vitrine convert - - | ssh …`.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use vitrine_harness::{Scope, qemu::qemu_img};

use crate::program::{assert_same_disk, debian, run, run_with_input, vitrine};

/// A folder that is not there: whoever wants to keep something on disk fails.
const NOWHERE: &str = "/nowhere/at/all";
/// What a conversion in one pass may take, in bytes.
const MOST: u64 = 128 << 20;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs it with this source, and what it writes to standard output through a pipe into `out`.
fn through_a_pipe(source: &Path, form: &[&str], out: &Path) {
    let script = r#"out=$1; shift; ("$@"; echo $? >"$out.code") | cat >"$out""#;
    let mut command = Command::new("sh");
    command.args(["-c", script, "pipe", text(out), env!("CARGO_BIN_EXE_vitrine"), "convert", text(source), "-"]);
    let output = command.args(form).env("TMPDIR", NOWHERE).output().unwrap();
    let code = std::fs::read_to_string(out.with_extension("code")).unwrap();
    assert_eq!(code, "0\n", "{form:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn an_image_goes_into_a_pipe_as_it_does_into_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let (raw, out) = (debian("disk.raw"), folder.path().join("out"));
    for (source, form, format) in [
        ("disk.raw", &[][..], "raw"),
        ("zlib.qcow2", &["-O", "raw"], "raw"),
        ("disk.raw.xz", &[], "raw"),
        ("zstd.qcow2", &["-O", "vmdk"], "vmdk"),
        ("disk.raw", &["-O", "vmdk", "--subformat", "streamOptimized"], "vmdk"),
        ("plain.qcow2", &["-O", "vhd", "--subformat", "fixed"], "vpc"),
        ("disk.raw.gz", &["-O", "vhd", "--subformat", "fixed"], "vpc"),
    ] {
        through_a_pipe(&debian(source), form, &out);
        assert_same_disk(&raw, "raw", &out, format);
        if format == "raw" {
            assert_eq!(
                out.metadata().unwrap().len(),
                raw.metadata().unwrap().len(),
                "{source}: zeros belong to a disk"
            );
        }
    }
}

#[test]
fn the_result_is_told_beside_the_image() {
    let disk = vec![7; 1 << 20];
    let ran = run_with_input(&["convert", "-", "-", "-o", "json"], &disk).expect(0);
    assert!(ran.stdout.as_bytes() == disk);
    let told: serde_json::Value = serde_json::from_str(&ran.stderr).unwrap();
    assert_eq!((&told["virtualSize"], &told["url"]), (&(1 << 20).into(), &"standard output".into()));
    let ran = run_with_input(&["convert", "-", "-", "--quiet"], &disk).expect(0);
    assert_eq!((ran.stdout.len(), ran.stderr.as_str()), (1 << 20, ""));
}

#[test]
fn what_cannot_be_written_in_one_go_is_refused_before_anything_is_written() {
    let source = debian("zlib.qcow2");
    for form in [
        &["-O", "qcow2"][..],
        &["-O", "vmdk", "--subformat", "monolithicSparse"],
        &["-O", "vhd"],
        &["-O", "vhdx"],
        &["-O", "vdi"],
        &["-O", "ploop"],
    ] {
        let ran = run(["convert", text(&source), "-"].iter().chain(form)).expect(1);
        assert_eq!(ran.stdout, "", "{form:?}");
        assert!(ran.stderr.contains("`vmdk --subformat streamOptimized`"), "it must say what to do: {}", ran.stderr);
    }
    // Only its end tells how large a packed disk is, and the header of a vmdk is in front.
    let ran = run(["convert", text(&debian("disk.raw.xz")), "-", "-O", "vmdk"]).expect(1);
    assert_eq!(ran.stdout, "");
    assert!(ran.stderr.contains("known only at the source's end"), "{}", ran.stderr);
}

#[test]
fn a_terminal_gets_no_image() {
    let mut command = Command::new("script");
    let line = format!("{} convert {} -", env!("CARGO_BIN_EXE_vitrine"), text(&debian("zlib.qcow2")));
    let output = command.args(["-qec", &line, "/dev/null"]).stdin(Stdio::null()).output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.code() == Some(1) && shown.contains("is a terminal"), "{:?}: {shown}", output.status);
}

#[test]
fn a_reader_that_has_seen_enough_ends_it_quietly() {
    for (form, verbosity) in [("raw", "--quiet"), ("vmdk", "--output=table")] {
        let mut command = vitrine(["convert", text(&debian("disk.raw")), "-", "-O", form, verbosity]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut reader = child.stdout.take().unwrap();
        reader.read_exact(&mut [0; 1000]).unwrap();
        drop(reader);
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(1), ""), "{form}");
    }
}

#[test]
fn a_conversion_whose_reader_sleeps_can_be_interrupted() {
    let mut command = vitrine(["convert", text(&debian("disk.raw")), "-", "--quiet"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut reader = child.stdout.take().unwrap();
    reader.read_exact(&mut [0; 1000]).unwrap();
    let signalled = Instant::now();
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    assert!(signalled.elapsed() < Duration::from_secs(10), "it took {:?}", signalled.elapsed());
}

/// The Debian disk in every format whose data stands in the guest's order, as qemu-img writes it.
fn in_order(folder: &Path) -> Vec<PathBuf> {
    let raw = debian("disk.raw");
    let written = [
        ("vmdk", "subformat=streamOptimized"),
        ("vmdk", "subformat=monolithicSparse"),
        ("vpc", "subformat=dynamic,force_size=on"),
        ("vpc", "subformat=fixed,force_size=on"),
        ("vhdx", "subformat=dynamic"),
        ("vdi", "static=off"),
        ("parallels", ""),
    ];
    let mut paths = vec![raw.clone(), debian("disk.raw.xz")];
    for (number, (format, options)) in written.iter().enumerate() {
        let path = folder.join(format!("{number}.{format}"));
        let options = if options.is_empty() { vec![] } else { vec!["-o", options] };
        let arguments = [vec!["convert", "-f", "raw", "-O", format], options, vec![text(&raw), text(&path)]].concat();
        qemu_img(&arguments).unwrap();
        paths.push(path);
    }
    paths
}

/// Little is kept in memory. How little on disk is held by the engine's tests.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_in_order_through_a_pipe_is_converted_while_it_comes() {
    let scope = Scope::open("pipe").unwrap();
    let (raw, out) = (debian("disk.raw"), scope.dir().join("out"));
    for path in in_order(scope.dir()) {
        let script = r#"exec "$1" convert - - --quiet <"$2" >"$3""#;
        let mut command = Command::new("sh");
        command.args(["-c", script, "once", env!("CARGO_BIN_EXE_vitrine"), text(&path), text(&out)]);
        let process = scope.spawn("vitrine", command).unwrap();
        let usage = process.measure(Duration::from_mins(2)).await.unwrap();
        assert!(usage.status.success(), "{}: {}", path.display(), process.log_tail());
        assert!(usage.peak_rss < MOST, "{}: {} MiB", path.display(), usage.peak_rss >> 20);
        assert_same_disk(&raw, "raw", &out, "raw");
    }
}

/// A stream whose tables stand behind its data, and the data in another order, has to be read from its beginning once more.
#[test]
fn what_comes_out_of_order_through_a_pipe_was_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.vmdk");
    let source = folder.path().join("disk");
    std::fs::write(&source, [vec![1; 65536], vec![2; 65536]].concat()).unwrap();
    run(["convert", text(&source), text(&path), "-O", "vmdk", "--quiet"]).expect(0);
    let mut bytes = std::fs::read(&path).unwrap();
    // The two grains change places: each is a sector long, and the table's first two entries name them.
    let (first, table) = (65536, 65536 + 2 * 512 + 512);
    let grains = bytes[first..first + 1024].to_vec();
    bytes[first..first + 512].copy_from_slice(&grains[512..]);
    bytes[first + 512..first + 1024].copy_from_slice(&grains[..512]);
    let entries = bytes[table..table + 8].to_vec();
    bytes[table..table + 4].copy_from_slice(&entries[4..]);
    bytes[table + 4..table + 8].copy_from_slice(&entries[..4]);
    std::fs::write(&path, &bytes).unwrap();
    let out = folder.path().join("out");
    run(["convert", text(&path), text(&out), "--quiet"]).expect(0);
    assert_same_disk(&source, "raw", &out, "raw");
    std::fs::remove_file(&out).unwrap();
    run_with_input(&["convert", "-", text(&out), "--quiet"], &bytes).expect(0);
    assert_same_disk(&source, "raw", &out, "raw");
    let ran = run_with_input(&["inspect", "-"], &bytes).expect(0);
    assert!(ran.stdout.contains("vmdk"), "{}", ran.stdout);
}
