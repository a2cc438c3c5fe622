//! The right disk comes out of an archive, and what the archive says of the machine with it.

use std::{
    process::Command,
    sync::{Arc, atomic::Ordering},
};

use vitrine_engine::model::{ContainerFormat, DiskFormat, OutputFormat, Rule, Verdict};

use super::package::{Package, WAYS, Way, descriptor, imported, inspected, source};
use crate::support::{disk, job, memory, run, stored};

const SIZE: usize = (9 << 20) + 512;

/// Imports and inspects `bytes` every way and holds the result against `expected`.
pub async fn assert_disk(bytes: &[u8], container: ContainerFormat, name: Option<&str>, expected: &[u8]) {
    for way in WAYS {
        let wanted = name.map(str::to_owned);
        let (result, store) = imported(bytes, way, |job| job.container_disk.clone_from(&wanted)).await;
        let imported = result.unwrap_or_else(|e| panic!("{way:?}: {e}"));
        assert_eq!((imported.container_format, imported.virtual_size), (container, expected.len() as u64), "{way:?}");
        assert_eq!(imported.received.length, bytes.len() as u64, "{way:?}: all of the archive is digested");
        assert!(stored(store.as_ref()).await == expected, "{way:?}");
        let inspection = inspected(bytes, way, |job| job.container_disk = wanted).await;
        assert_eq!((inspection.verdict, &inspection.reasons), (Verdict::Accepted, &vec![]), "{way:?}");
        assert_eq!(inspection.container_format, container, "{way:?}");
        assert_eq!(inspection.disk_format, Some(imported.disk_format), "{way:?}");
        assert_eq!(inspection.virtual_size, Some(expected.len() as u64), "{way:?}");
        assert_eq!(inspection.size, Some(bytes.len() as u64), "{way:?}");
        assert_eq!(inspection.properties, imported.properties, "{way:?}");
    }
}

fn bytes_of(name: &str) -> Vec<u8> {
    disk(if name == "data" { SIZE - 512 } else { SIZE })
}

#[tokio::test(flavor = "multi_thread")]
async fn members_may_stand_in_any_order() {
    let boot = bytes_of("boot");
    for (order, algorithm) in
        [("omd", "SHA256"), ("odm", "SHA1"), ("dom", "SHA256"), ("dmo", "SHA512"), ("odm", "SHA512"), ("od", "")]
    {
        let mut whole = Package::new();
        whole.add("vm.ovf", descriptor(&[("disk1.qcow2", "", SIZE)])).add_qcow2("disk1.qcow2", &boot);
        whole.add_manifest(if algorithm.is_empty() { "SHA1" } else { algorithm });
        let name = |c| match c {
            'o' => "vm.ovf",
            'm' => "vm.mf",
            _ => "disk1.qcow2",
        };
        whole.members = order.chars().map(|c| name(c).to_owned()).collect();
        println!("{order} {algorithm}");
        assert_disk(&whole.tar(&["--format=ustar"]), ContainerFormat::Ova, None, &boot).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_disk_that_boots_or_the_one_that_is_named() {
    let (boot, data) = (bytes_of("boot"), bytes_of("data"));
    // The descriptor's helper puts the last disk at the lowest address.
    let text = descriptor(&[("data.qcow2", "", SIZE - 512), ("boot.raw", "", SIZE)]);
    for order in [
        ["vm.ovf", "boot.raw", "data.qcow2"],
        ["vm.ovf", "data.qcow2", "boot.raw"],
        ["data.qcow2", "boot.raw", "vm.ovf"],
    ] {
        let mut package = Package::new();
        package.add("vm.ovf", &text).add("boot.raw", &boot).add_qcow2("data.qcow2", &data);
        package.members = order.map(str::to_owned).to_vec();
        for format in ["--format=gnu", "--format=pax"] {
            let archive = package.tar(&[format]);
            assert_disk(&archive, ContainerFormat::Ova, None, &boot).await;
            for name in ["data.qcow2", "disk0"] {
                assert_disk(&archive, ContainerFormat::Ova, Some(name), &data).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compression_and_an_archive_in_either_order() {
    let boot = bytes_of("boot");
    let mut package = Package::new();
    package.add("disk.raw", &boot);
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, bytes).unwrap();
        encoder.finish().unwrap()
    };
    let plain = package.tar(&["--format=ustar"]);
    assert_disk(&plain, ContainerFormat::Compressed, None, &boot).await;
    assert_disk(&gzip(&plain), ContainerFormat::Compressed, None, &boot).await;
    let mut package = Package::new();
    let text = descriptor(&[("disk.raw.gz", r#"ovf:compression="gzip""#, SIZE)]);
    package.add("vm.ovf", &text).add("disk.raw.gz", gzip(&boot)).add_manifest("SHA256");
    assert_disk(&package.tar(&[]), ContainerFormat::Ova, None, &boot).await;
    let mut package = Package::new();
    package.add("vm.ovf", descriptor(&[("disk.raw", "", SIZE)])).add("disk.raw", &boot).add_manifest("SHA256");
    assert_disk(&gzip(&package.tar(&[])), ContainerFormat::Ova, None, &boot).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_package_says_what_was_checked() {
    let boot = disk(1 << 20);
    let mut package = Package::new();
    package.add("vm.ovf", descriptor(&[("disk.raw", "", 1 << 20)])).add("disk.raw", &boot).add_manifest("SHA256");
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl").current_dir(package.path("")).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    openssl(&[
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        "key",
        "-out",
        "pem",
        "-subj",
        "/CN=publisher",
    ]);
    let signature = hex::encode(openssl(&["dgst", "-sha256", "-sign", "key", "vm.mf"]));
    let pem = std::fs::read_to_string(package.path("pem")).unwrap();
    package.add("vm.cert", format!("SHA256(vm.mf)= {signature}\n{pem}"));
    let (result, _) = imported(&package.tar(&[]), WAYS[0], |_| {}).await;
    let said = result.unwrap().properties["ovf_certificate"].clone();
    assert!(said.starts_with("the signature is right"), "{said}");
    let inspection = inspected(&package.tar(&[]), WAYS[0], |_| {}).await;
    assert_eq!(inspection.properties["ovf_certificate"], said);
    // A signature of something else.
    package.members.pop();
    let mut command = Command::new("openssl");
    command.current_dir(package.path("")).args(["dgst", "-sha256", "-sign", "key", "vm.ovf"]);
    let other = hex::encode(command.output().unwrap().stdout);
    package.add("vm.cert", format!("SHA256(vm.mf)= {other}\n{pem}"));
    let refusal = super::package::refusal(&package.tar(&[]), true).await;
    assert_eq!(refusal, (vitrine_engine::model::Rule::ChecksumMismatch, "certificate".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn properties_are_kept_with_the_object() {
    let mut package = Package::new();
    package.add("vm.ovf", descriptor(&[("disk.raw", "", 1 << 20)])).add("disk.raw", disk(1 << 20));
    let folder = tempfile::tempdir().unwrap();
    let options = vitrine_engine::store::filesystem::FilesystemOptions::default();
    let store = vitrine_engine::store::filesystem::FilesystemStore::open("f", folder.path(), &options).unwrap();
    let targets = vec![(std::sync::Arc::new(store) as _, vitrine_engine::model::OutputFormat::RAW)];
    let job = crate::support::job(source(&package.tar(&[]), WAYS[1]), targets);
    let expected = [
        ("hw_disk_bus", "scsi"),
        ("hw_scsi_model", "lsilogic"),
        ("os_type", "linux"),
        ("ovf_cpus", "2"),
        ("ovf_os_id", "96"),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    assert_eq!(crate::support::run(&job).await.unwrap().properties, expected);
    // Read back from the store, as another attempt would.
    assert_eq!(crate::support::run(&job).await.unwrap().properties, expected);
    let stat = vitrine_engine::store::Store::stat(job.targets[0].store.as_ref(), &job.key).await.unwrap();
    assert_eq!(stat.image.properties, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_declared_of_a_package_must_be_found() {
    let mut package = Package::new();
    package.add("vm.ovf", descriptor(&[("disk.raw", "", 1 << 20)])).add("disk.raw", disk(1 << 20));
    for (order, declared, good) in [
        (["vm.ovf", "disk.raw"], ContainerFormat::Ova, true),
        (["vm.ovf", "disk.raw"], ContainerFormat::Ovf, true),
        (["disk.raw", "vm.ovf"], ContainerFormat::Ova, true),
        (["disk.raw", "vm.ovf"], ContainerFormat::Compressed, false),
        (["vm.ovf", "disk.raw"], ContainerFormat::Bare, false),
        (["vm.ovf", "disk.raw"], ContainerFormat::Docker, false),
    ] {
        package.members = order.map(str::to_owned).to_vec();
        for way in WAYS {
            let (result, _) = imported(&package.tar(&[]), way, |job| job.container_format = Some(declared)).await;
            match result {
                Ok(imported) => assert!(good && imported.container_format == declared, "{order:?} {declared} {way:?}"),
                Err(error) => assert!(!good && error.violation().is_some(), "{order:?} {declared} {way:?}: {error}"),
            }
        }
    }
    let (result, _) = imported(&disk(1 << 20), WAYS[0], |job| job.container_format = Some(ContainerFormat::Ova)).await;
    assert_eq!(result.unwrap_err().violation().unwrap().field, "containerFormat");
    let (result, _) = imported(&package.tar(&[]), WAYS[0], |job| job.disk_format = Some(DiskFormat::Qcow2)).await;
    assert_eq!(result.unwrap_err().violation().unwrap().field, "diskFormat");
}

/// Where the manifest can be looked up, its digests are computed as the files pass: nothing has to be read again. Where the ranges tell
/// of another archive than the one that comes, that one counts.
#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_is_looked_up_where_that_can_be_and_held_as_it_comes() {
    let boot = disk(2 << 20);
    let mut package = Package::new();
    package.add("vm.ovf", descriptor(&[("disk.raw", "", 2 << 20)])).add("disk.raw", &boot).add_manifest("SHA512");
    for (way, times) in [(Way::Ranges, 1), (Way::Sized, 2)] {
        let archive = Arc::new(source(&package.tar(&["--format=ustar"]), way));
        let store = memory();
        let mut job = job(source(&[], way), vec![(store.clone(), OutputFormat::RAW)]);
        job.source = archive.clone();
        run(&job).await.unwrap();
        assert!(stored(store.as_ref()).await == boot);
        assert_eq!(archive.opened.load(Ordering::SeqCst), times, "{way:?}");
    }
    let honest = package.tar(&["--format=ustar"]);
    std::fs::write(package.path("disk.raw"), disk(2 << 20).iter().map(|b| b ^ 1).collect::<Vec<_>>()).unwrap();
    let mut lying = source(&package.tar(&["--format=ustar"]), Way::Ranges);
    // Without a manifest, by its name; the header's checksum stays right.
    let mut ranges = honest;
    let shown = ranges.windows(5).rposition(|name| name == b"vm.mf").unwrap();
    ranges[shown + 3..shown + 5].copy_from_slice(b"fm");
    lying.ranges = Some(ranges.into());
    let error = run(&job(lying, vec![(memory(), OutputFormat::RAW)])).await.unwrap_err();
    assert_eq!(error.violation().map(|violation| violation.rule), Some(Rule::ChecksumMismatch), "{error}");
}
