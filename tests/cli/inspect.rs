//! `vitrine inspect`.

use serde_json::Value;
use vitrine_harness::{Fault, FaultServer, Route};

use crate::program::{bzip2_of_zeros, debian, hostile, run, run_with_input};

const DISK: u64 = 320 << 20;

fn inspect(image: &str) -> (i32, Value) {
    let ran = run(["inspect", image, "-o", "json"]);
    assert_ne!(ran.code, 1, "{}", ran.stderr);
    (ran.code, ran.json())
}

/// Every variant of the Debian disk and the ISO, by name, disk format and container format.
const GOOD: [(&str, &str, &str); 16] = [
    ("disk.raw", "raw", "bare"),
    ("plain.qcow2", "qcow2", "bare"),
    ("v2.qcow2", "qcow2", "bare"),
    ("cluster-512.qcow2", "qcow2", "bare"),
    ("extended-l2.qcow2", "qcow2", "bare"),
    ("snapshot.qcow2", "qcow2", "bare"),
    ("zlib.qcow2", "qcow2", "bare"),
    ("v2-zlib.qcow2", "qcow2", "bare"),
    ("zstd.qcow2", "qcow2", "bare"),
    ("cluster-2m-zlib.qcow2", "qcow2", "bare"),
    ("extended-l2-zlib.qcow2", "qcow2", "bare"),
    ("disk.raw.gz", "raw", "compressed"),
    ("disk.raw.xz", "raw", "compressed"),
    ("disk.raw.zst", "raw", "compressed"),
    ("disk.raw.bz2", "raw", "compressed"),
    ("grub-rescue.iso", "iso", "bare"),
];

#[test]
fn good_images_are_accepted_as_what_they_are() {
    for (name, disk, container) in GOOD {
        let path = debian(name);
        let (code, found) = inspect(path.to_str().unwrap());
        assert_eq!(code, 0, "{name}: {found}");
        assert_eq!((&found["verdict"], &found["diskFormat"]), (&"accepted".into(), &disk.into()), "{name}: {found}");
        assert_eq!(found["containerFormat"], container, "{name}");
        assert_eq!(found["size"], path.metadata().unwrap().len(), "{name}");
        assert_eq!(found["reasons"], Value::Array(vec![]), "{name}");
        let size = if disk == "iso" { path.metadata().unwrap().len() } else { DISK };
        assert_eq!(found["virtualSize"], size, "{name}");
    }
}

#[test]
fn hostile_files_are_refused_by_their_rule() {
    let (folder, cases) = hostile();
    let mut wrong = Vec::new();
    for case in cases {
        let name = case["file"].as_str().unwrap();
        let (code, found) = inspect(folder.join(name).to_str().unwrap());
        // What only the data shows is found by an import, and may be found here.
        let tables = case["found"] == "tables";
        let refused = code == 3;
        let rule = &found["reasons"][0]["rule"];
        let rules: Vec<_> = case["also"].as_array().unwrap().iter().chain([&case["rule"]]).collect();
        let right = match case["expect"].as_str().unwrap() {
            "accepted" => code == 0 && found["virtualSize"] == case["virtualSize"],
            _ => (refused && rules.contains(&rule)) || (code == 0 && !tables),
        };
        if !right || refused != (found["verdict"] == "refused") {
            wrong.push(format!("{case}\n  exit {code}: {found}"));
        }
    }
    assert!(cases.len() > 50, "{} cases", cases.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn reasons_tell_rule_field_value_and_what_to_do() {
    let (folder, cases) = hostile();
    let case = cases.iter().find(|case| case["rule"] == "backing-file").unwrap();
    let path = folder.join(case["file"].as_str().unwrap());
    let (_, found) = inspect(path.to_str().unwrap());
    for field in ["rule", "field", "value", "message"] {
        assert!(found["reasons"][0][field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {found}");
    }
    let yaml = run(["inspect", path.to_str().unwrap(), "-o", "yaml"]).expect(3);
    let read: Value = serde_yaml::from_str(&yaml.stdout).unwrap();
    assert_eq!(read, found);
    let table = run(["inspect", path.to_str().unwrap()]).expect(3);
    assert!(table.stdout.contains("verdict           refused\n"), "{}", table.stdout);
    assert!(table.stdout.contains("backing-file"), "{}", table.stdout);
}

#[test]
fn what_a_refused_header_says_of_the_size_is_told() {
    let (folder, cases) = hostile();
    let large = cases.iter().find(|case| case["file"] == "virtual-size-63-tib.qcow2").unwrap();
    let (_, found) = inspect(folder.join(large["file"].as_str().unwrap()).to_str().unwrap());
    assert_eq!((&found["virtualSize"], &found["verdict"]), (&(63_u64 << 40).into(), &"refused".into()), "{found}");
}

#[test]
fn bounds_can_be_chosen_and_are_named_by_the_refusal() {
    let disk = debian("zlib.qcow2");
    let refusal = |option: &str, value: &str| {
        let found = run(["inspect", disk.to_str().unwrap(), option, value, "-o", "json"]).expect(3).json();
        found["reasons"][0]["message"].as_str().unwrap().to_owned()
    };
    assert!(refusal("--max-virtual-size", "1048576").contains("raise max-virtual-size"));
    assert!(refusal("--max-size", "1048576").contains("raise max-size"));
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 17 << 3];
    // Two blocks of one repeated byte: 64 KiB, and as many again as the last one.
    frame.extend([2, 0, 8, 0, 3, 0, 8, 0]);
    let folder = tempfile::tempdir().unwrap();
    let wide = folder.path().join("window-of-128-mib.zst");
    std::fs::write(&wide, frame).unwrap();
    let wide = wide.to_str().unwrap();
    let found = run(["inspect", wide, "-o", "json"]).expect(3).json();
    assert_eq!(found["reasons"][0]["rule"], "compressed-stream", "{found}");
    let found = run(["inspect", wide, "--unpack-memory", "268435456", "-o", "json"]).expect(0).json();
    assert_eq!(found["virtualSize"], 128 << 10, "{found}");
}

#[test]
fn the_declared_format_must_be_the_found_one() {
    let zlib = debian("zlib.qcow2");
    let found = run(["inspect", zlib.to_str().unwrap(), "-f", "raw", "-o", "json"]).expect(3).json();
    assert_eq!(found["reasons"][0]["rule"], "format-mismatch");
    run(["inspect", zlib.to_str().unwrap(), "-f", "qcow2"]).expect(0);
}

#[test]
fn what_cannot_be_told_is_no_verdict() {
    let ran = run(["inspect", "/nowhere/x.qcow2", "-o", "json"]).expect(1);
    assert!(ran.stdout.is_empty(), "{}", ran.stdout);
    assert!(ran.stderr.contains("/nowhere/x.qcow2"), "{}", ran.stderr);
    run(["inspect", "/"]).expect(1);
    run(["inspect", "ftp://127.0.0.1/x"]).expect(1);
    run(["inspect"]).expect(2);
    let server = FaultServer::start().unwrap();
    server.put("/gone", Route::status(404));
    run(["inspect", &server.url("/gone")]).expect(1);
}

#[test]
fn a_url_is_read_by_ranges() {
    let path = debian("plain.qcow2");
    let server = FaultServer::start().unwrap();
    server.put("/disk", Route::file(&path).unwrap());
    let (code, found) = inspect(&server.url("/disk"));
    assert_eq!((code, &found["virtualSize"]), (0, &DISK.into()), "{found}");
    let sent = server.sent("/disk");
    let length = path.metadata().unwrap().len();
    assert!(sent < length / 4, "{sent} bytes of {length} were sent to read the tables");
}

#[test]
fn a_server_without_ranges_and_standard_input_do_as_well() {
    let server = FaultServer::start().unwrap();
    server.put("/disk", Route::file(&debian("zlib.qcow2")).unwrap().always(Fault::IgnoreRange));
    let (code, found) = inspect(&server.url("/disk"));
    assert_eq!((code, &found["diskFormat"], &found["virtualSize"]), (0, &"qcow2".into(), &DISK.into()), "{found}");
    let zstd = std::fs::read(debian("zstd.qcow2")).unwrap();
    let found = run_with_input(&["inspect", "-", "-o", "json"], &zstd).expect(0).json();
    assert_eq!((&found["diskFormat"], &found["virtualSize"]), (&"qcow2".into(), &DISK.into()), "{found}");
    let cut = run_with_input(&["inspect", "-", "-o", "json"], &zstd[..zstd.len() / 2]).expect(3).json();
    assert_eq!(cut["verdict"], "refused", "{cut}");
}

#[test]
fn the_size_is_what_came_however_it_came() {
    let server = FaultServer::start().unwrap();
    for name in ["disk.raw.gz", "zlib.qcow2", "grub-rescue.iso"] {
        let bytes = std::fs::read(debian(name)).unwrap();
        let found = run_with_input(&["inspect", "-", "-o", "json"], &bytes).expect(0).json();
        assert_eq!(found["size"], bytes.len(), "{name} on standard input: {found}");
        server.put("/chunked", Route::bytes(bytes.clone()).always(Fault::Chunked));
        let (code, found) = inspect(&server.url("/chunked"));
        assert_eq!((code, &found["size"]), (0, &bytes.len().into()), "{name} in chunks: {found}");
    }
}

#[test]
fn ranges_that_are_only_claimed_are_done_without() {
    let server = FaultServer::start().unwrap();
    let route = Route::file(&debian("plain.qcow2")).unwrap().header("Accept-Ranges", "bytes");
    server.put("/disk", route.always(Fault::IgnoreRange));
    let (code, found) = inspect(&server.url("/disk"));
    assert_eq!((code, &found["virtualSize"]), (0, &DISK.into()), "{found}");
    assert!(server.requests_for("/disk").iter().any(|request| request.range().is_some()), "ranges were tried");
}

#[test]
fn bombs_are_refused_as_by_an_import() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::create_dir(path("store")).unwrap();
    std::fs::write(path("zeros.bz2"), bzip2_of_zeros(folder.path(), 2 << 30)).unwrap();
    // 128 MiB of one letter in about 12 KiB.
    let letters = "head -c 134217728 /dev/zero | tr '\\0' a | bzip2 -9 > \"$0\"";
    assert!(std::process::Command::new("sh").args(["-c", letters, &path("letters.bz2")]).status().unwrap().success());
    for bomb in [path("zeros.bz2"), path("letters.bz2")] {
        let (code, found) = inspect(&bomb);
        assert_eq!((code, &found["reasons"][0]["rule"]), (3, &"bomb".into()), "{bomb}: {found}");
        let ran = run(["import", &bomb, "--store", &path("store"), "--quiet"]).expect(3);
        assert!(ran.stderr.contains("bomb"), "{}", ran.stderr);
    }
}

#[test]
fn a_disk_of_a_package_can_be_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut disk = vec![0_u8; 1 << 20];
    disk[510..512].copy_from_slice(b"\x55\xaa");
    std::fs::write(folder.path().join("a.raw"), &disk).unwrap();
    std::fs::write(folder.path().join("b.raw"), &disk[..1 << 19]).unwrap();
    let tar = ["--create", "--file", "disks.tar", "a.raw", "b.raw"];
    assert!(std::process::Command::new("tar").current_dir(folder.path()).args(tar).status().unwrap().success());
    let archive = folder.path().join("disks.tar");
    let archive = archive.to_str().unwrap();
    let ran = run(["inspect", archive, "--container-disk", "b.raw", "-o", "json"]);
    let found = ran.json();
    assert_eq!((&found["virtualSize"], &found["verdict"]), (&(1 << 19).into(), &"accepted".into()), "{found}");
    assert_eq!(inspect(archive).1["reasons"][0]["field"], "members");
}

/// What is around a disk is shown, and what is declared of it must be so, for every verb that takes it.
#[test]
fn containers_are_shown_and_may_be_declared() {
    let folder = tempfile::tempdir().unwrap();
    let script = "mkdir -p etc disk && echo hello > etc/motd && tar -cf root.tar etc && head -c 1048576 /dev/urandom > a-flat.vmdk \
        && printf '# Disk DescriptorFile\\nversion=1\\nCID=1\\nparentCID=ffffffff\\ncreateType=\"vmfs\"\\nRW 2048 VMFS \"a-flat.vmdk\"\\n' > a.vmdk \
        && tar -cf vmdk.tar a-flat.vmdk a.vmdk";
    let made = std::process::Command::new("sh").current_dir(folder.path()).args(["-ec", script]).status().unwrap();
    assert!(made.success());
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (code, found) = inspect(&path("vmdk.tar"));
    assert_eq!(
        (code, &found["diskFormat"], found["virtualSize"].as_u64()),
        (0, &"vmdk".into(), Some(1 << 20)),
        "{found}"
    );
    assert_eq!((&found["parts"], &found["opaque"]), (&serde_json::json!(["a.vmdk", "a-flat.vmdk"]), &Value::Null));
    let root = path("root.tar");
    for (format, code) in [("docker", 0), ("ova", 3), ("bare", 3)] {
        let ran = run(["inspect", &root, "--container-format", format, "-o", "json"]);
        assert_eq!(
            (ran.code, ran.json()["opaque"].as_bool()),
            (code, (code == 0).then_some(true)),
            "{format}: {}",
            ran.stdout
        );
        let target = path(&format!("{format}.out"));
        let ran = run(["convert", &root, &target, "--container-format", format, "--quiet"]);
        assert_eq!(ran.code, code, "{}", ran.stderr);
    }
    assert!(std::fs::read(path("docker.out")).unwrap() == std::fs::read(&root).unwrap(), "kept as it is");
    let table = run(["inspect", &root, "--container-format", "docker"]).stdout;
    assert!(table.contains("opaque to a guest"), "{table}");
    let disk = debian("plain.qcow2");
    for (format, code) in [("bare", 0), ("ova", 3), ("docker", 3)] {
        let ran = run(["inspect", disk.to_str().unwrap(), "--container-format", format]);
        assert_eq!(ran.code, code, "{format}: {}", ran.stdout);
        let ran =
            run(["convert", disk.to_str().unwrap(), &path("x"), "--container-format", format, "--quiet", "--force"]);
        assert_eq!(ran.code, code, "{format}: {}", ran.stderr);
    }
}
