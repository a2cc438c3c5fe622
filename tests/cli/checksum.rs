//! `vitrine checksum`, held against coreutils.

use std::process::Command;

use vitrine_harness::{FaultServer, Route};

use crate::program::{debian, run, run_with_input};

#[test]
fn the_lines_are_those_of_coreutils() {
    let path = debian("grub-rescue.iso");
    let path = path.to_str().unwrap();
    for (algorithm, tool) in [("md5", "md5sum"), ("sha1", "sha1sum"), ("sha256", "sha256sum"), ("sha512", "sha512sum")]
    {
        let theirs = Command::new(tool).arg(path).output().unwrap();
        assert_eq!(
            run(["checksum", "-a", algorithm, path]).expect(0).stdout,
            String::from_utf8(theirs.stdout).unwrap()
        );
    }
    let both = run(["checksum", "-a", "sha256,md5", path]).expect(0).stdout;
    let theirs = Command::new("sha256sum").args(["--tag", path]).output().unwrap();
    assert!(both.contains(std::str::from_utf8(&theirs.stdout).unwrap()), "{both}");
    assert!(both.contains(&format!("MD5 ({path}) = ")), "{both}");
}

#[test]
fn urls_and_standard_input_are_read() {
    let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    assert_eq!(run_with_input(&["checksum", "-"], b"").expect(0).stdout, format!("{empty}  -\n"));
    let server = FaultServer::start().unwrap();
    server.put("/abc", Route::bytes(*b"abc").require_header("X-Token", "t"));
    let url = server.url("/abc");
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let ran = run(["checksum", "--header", "X-Token: t", &url]).expect(0);
    assert_eq!(ran.stdout, format!("{abc}  {url}\n"));
    run(["checksum", &url]).expect(1);
}

#[test]
fn the_content_digest_is_that_of_the_disk_whatever_its_dress() {
    let digest = |name: &str| {
        let path = debian(name);
        let line = run(["checksum", "--content", path.to_str().unwrap()]).expect(0).stdout;
        line.split("  ").next().unwrap().to_owned()
    };
    let raw = digest("disk.raw");
    assert!(raw.starts_with("blake3:"), "{raw}");
    for name in ["plain.qcow2", "zlib.qcow2", "zstd.qcow2", "extended-l2-zlib.qcow2", "disk.raw.gz", "disk.raw.xz"] {
        assert_eq!(digest(name), raw, "{name}");
    }
    assert_ne!(digest("grub-rescue.iso"), raw);
}
