//! `vitrine import`.

use std::process::Command;

use vitrine_harness::{Fault, FaultServer, Route};

use crate::program::{assert_same_disk, debian, names, run};

#[test]
fn a_url_becomes_a_verified_object() {
    let store = tempfile::tempdir().unwrap();
    let folder = store.path().to_str().unwrap();
    let path = debian("zlib.qcow2");
    let sum = Command::new("sha256sum").arg(&path).output().unwrap();
    let checksum = format!("sha256:{}", std::str::from_utf8(&sum.stdout).unwrap().split(' ').next().unwrap());
    let server = FaultServer::start().unwrap();
    server.put("/disk", Route::file(&path).unwrap().only(1, Fault::CutAfter(1 << 20)));
    let url = server.url("/disk");
    let ran =
        run(["import", &url, "--store", folder, "--name", "debian", "--checksum", &checksum, "-o", "json"]).expect(0);
    let outcome = ran.json();
    assert_eq!((&outcome["diskFormat"], &outcome["virtualSize"]), (&"qcow2".into(), &(320_u64 << 20).into()));
    assert_eq!(outcome["digests"][0], checksum.as_str());
    assert!(outcome["allocatedSize"].as_u64().unwrap() < 160 << 20, "{outcome}");
    assert_same_disk(&store.path().join("debian-r1/data"), "raw", &debian("disk.raw"), "raw");
    let again = run(["import", "/nowhere/other", "--store", folder, "--name", "debian"]).expect(1);
    assert!(again.stderr.contains("debian-r1") && again.stderr.contains("another --name"), "{}", again.stderr);
}

#[test]
fn a_local_file_is_imported_without_a_digest_of_its_bytes_if_that_is_asked_for() {
    let store = tempfile::tempdir().unwrap();
    let folder = store.path().to_str().unwrap();
    let path = debian("zlib.qcow2");
    let import = |source: &str, more: &[&str]| {
        run(["import", source, "--store", folder, "--content-digest-only", "-o", "json"].iter().chain(more))
    };
    let outcome = import(path.to_str().unwrap(), &["--name", "debian"]).expect(0).json();
    let content = run(["checksum", "--content", path.to_str().unwrap()]).expect(0).stdout;
    assert_eq!(outcome["digests"].as_array().map(Vec::len), Some(0), "{outcome}");
    assert!(
        content.contains(outcome["contentDigest"].as_str().unwrap().rsplit(':').next().unwrap()),
        "{content}: {outcome}"
    );
    assert_same_disk(&store.path().join("debian-r1/data"), "raw", &path, "qcow2");

    let server = FaultServer::start().unwrap();
    server.put("/disk", Route::file(&path).unwrap());
    for source in [server.url("/disk"), debian("disk.raw.gz").to_str().unwrap().to_owned()] {
        let refused = import(&source, &[]).expect(1);
        assert!(refused.stderr.contains(&source) && refused.stderr.contains("from end to end"), "{}", refused.stderr);
    }
    assert_eq!(
        names(store.path()).iter().filter(|name| !name.starts_with('.')).count(),
        1,
        "{:?}",
        names(store.path())
    );
}

#[test]
fn an_unmarked_end_needs_a_checksum_and_a_cut_is_no_refusal() {
    let store = tempfile::tempdir().unwrap();
    let folder = store.path().to_str().unwrap();
    let path = debian("grub-rescue.iso");
    let sum = Command::new("sha256sum").arg(&path).output().unwrap();
    let checksum = format!("sha256:{}", std::str::from_utf8(&sum.stdout).unwrap().split(' ').next().unwrap());
    let server = FaultServer::start().unwrap();
    let unmarked = || Route::file(&path).unwrap().always(Fault::UntilClose);
    server.put("/iso", unmarked());
    let url = server.url("/iso");
    let ran = run(["import", &url, "--store", folder, "--quiet"]).expect(1);
    assert!(ran.stderr.contains("declare a checksum"), "{}", ran.stderr);
    run(["import", &url, "--store", folder, "--quiet", "--checksum", &checksum]).expect(0);
    let out = store.path().join("out.iso");
    run(["convert", &url, out.to_str().unwrap(), "--quiet", "--checksum", &checksum]).expect(0);
    assert_same_disk(&out, "raw", &path, "raw");
    server.put("/iso", unmarked().always(Fault::CutAfter(1 << 20)));
    let ran = run(["import", &url, "--store", folder, "--quiet", "--checksum", &checksum]).expect(1);
    assert!(ran.stderr.contains("may have been cut off"), "{}", ran.stderr);
}

#[test]
fn a_wrong_checksum_leaves_nothing() {
    let store = tempfile::tempdir().unwrap();
    let path = debian("grub-rescue.iso");
    let wrong = format!("sha256:{}", "0".repeat(64));
    let store_argument = store.path().to_str().unwrap();
    let ran = run(["import", path.to_str().unwrap(), "--store", store_argument, "--name", "iso", "--checksum", &wrong]);
    let ran = ran.expect(3);
    assert!(ran.stderr.contains("checksum-mismatch"), "{}", ran.stderr);
    let left: Vec<_> = names(store.path()).into_iter().filter(|name| !name.starts_with('.')).collect();
    assert_eq!(left, Vec::<String>::new());
}
