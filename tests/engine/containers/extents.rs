//! vmdk in several files, where the archive brings them all.

use std::fs;

use vitrine_engine::model::{ContainerFormat, DiskFormat, Rule, Verdict};
use vitrine_harness::qemu::qemu_img;

use super::{
    package::{Package, WAYS, descriptor as ovf, imported, inspected, refusal},
    truth::assert_disk,
};
use crate::support::disk;

const SIZE: usize = 9 << 20;

fn text(kind: &str, encoding: &str, extents: &[&str]) -> String {
    format!(
        "# Disk DescriptorFile\nversion=1\n{encoding}CID=7c1f0e2a\nparentCID=ffffffff\ncreateType=\"{kind}\"\n\n\
         # Extent description\n{}\n\n# The Disk Data Base\n#DDB\nddb.adapterType = \"lsilogic\"\n",
        extents.join("\n")
    )
}

/// A disk by qemu-img in this subformat: the names of all its files, the descriptor first.
fn by_qemu(package: &Package, stem: &str, subformat: &str, content: &[u8]) -> Vec<String> {
    let raw = package.path("raw.tmp");
    fs::write(&raw, content).unwrap();
    let target = package.path(&format!("{stem}.vmdk"));
    let options = format!("subformat={subformat}");
    qemu_img(&["convert", "-f", "raw", "-O", "vmdk", "-o", &options, raw.to_str().unwrap(), target.to_str().unwrap()])
        .unwrap();
    let names = fs::read_dir(package.path("")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.starts_with(&format!("{stem}-"))).collect();
    names.sort();
    names.insert(0, format!("{stem}.vmdk"));
    names
}

/// Two sparse extents of a disk of which each half was written by qemu-img.
fn two_sparse(package: &mut Package) -> Vec<u8> {
    let content = disk(SIZE);
    let (first, second) = content.split_at(4 << 20);
    let one = by_qemu(package, "one", "twoGbMaxExtentSparse", first).pop().unwrap();
    let two = by_qemu(package, "two", "twoGbMaxExtentSparse", second).pop().unwrap();
    let lines = [format!("RW 8192 SPARSE \"{one}\""), "RW 2048 ZERO".into(), format!("RW 10240 SPARSE \"{two}\"")];
    let lines: Vec<_> = lines.iter().map(String::as_str).collect();
    fs::write(package.path("disk.vmdk"), text("twoGbMaxExtentSparse", "", &lines)).unwrap();
    package.members = vec!["disk.vmdk".into(), one, two];
    [first, &vec![0; 1 << 20], second].concat()
}

/// What makes a file wrong.
type Change = Box<dyn Fn(&mut Vec<u8>)>;

/// Two flat extents, the second of them behind a sector of something else.
fn two_flat(package: &mut Package) -> Vec<u8> {
    let content = disk(SIZE);
    let (first, second) = content.split_at(SIZE - 512);
    package.add("disk-f001.vmdk", first).add("disk-f002.vmdk", [&[7; 512], second].concat());
    let lines = ["RW 18431 FLAT \"disk-f001.vmdk\" 0", "RW 1 FLAT \"disk-f002.vmdk\" 1"];
    fs::write(package.path("disk.vmdk"), text("twoGbMaxExtentFlat", "", &lines)).unwrap();
    package.members.insert(0, "disk.vmdk".into());
    content
}

#[tokio::test(flavor = "multi_thread")]
async fn what_qemu_writes_in_several_files_is_read_in_any_order() {
    let content = disk(SIZE);
    for subformat in ["monolithicFlat", "twoGbMaxExtentFlat", "twoGbMaxExtentSparse"] {
        let mut package = Package::new();
        package.members = by_qemu(&package, "disk", subformat, &content);
        assert_eq!(package.members.len(), 2, "{subformat}");
        for _ in 0..2 {
            let archive = package.tar(&[]);
            assert_disk(&archive, ContainerFormat::Compressed, None, &content).await;
            let (result, _) = imported(&archive, WAYS[1], |job| job.disk_format = Some(DiskFormat::Vmdk)).await;
            assert_eq!(result.unwrap().disk_format, DiskFormat::Vmdk);
            package.members.reverse();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn extents_follow_the_descriptor_not_the_archive() {
    for make in [two_sparse, two_flat] {
        let mut package = Package::new();
        let content = make(&mut package);
        let members = package.members.clone();
        for order in [[0, 1, 2], [0, 2, 1], [1, 2, 0], [2, 1, 0]] {
            package.members = order.map(|number: usize| members[number].clone()).to_vec();
            assert_disk(&package.tar(&[]), ContainerFormat::Compressed, None, &content).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_appliance_may_bring_extents() {
    let content = disk(SIZE);
    for encoding in ["", "encoding=\"UTF-8\"\n", "encoding=\"windows-1252\"\n", "encoding=\"GBK\"\n"] {
        let mut package = Package::new();
        package.add("vm.ovf", ovf(&[("disk.vmdk", "", SIZE)]));
        package.add("disk.vmdk", text("vmfs", encoding, &["RW 18432 VMFS \"disk-flat.vmdk\""]));
        package.add("disk-flat.vmdk", &content).add_manifest("SHA256");
        assert_disk(&package.tar(&[]), ContainerFormat::Ova, None, &content).await;
        package.members.reverse();
        assert_disk(&package.tar(&[]), ContainerFormat::Ova, None, &content).await;
    }
    // The manifest must list the extent too.
    let mut package = Package::new();
    package.add("vm.ovf", ovf(&[("disk.vmdk", "", SIZE)]));
    package.add("disk.vmdk", text("vmfs", "", &["RW 18432 VMFS \"disk-flat.vmdk\""])).add_manifest("SHA256");
    package.add("disk-flat.vmdk", &content);
    assert_eq!(refusal(&package.tar(&[]), true).await, (Rule::ChecksumMismatch, "manifest".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_descriptor_in_an_archive_may_not_name() {
    let line = "RW 18432 FLAT \"disk-flat.vmdk\" 0";
    let flat = |line: &str| text("monolithicFlat", "", &[line]);
    let named = |name: &str| flat(&line.replace("disk-flat.vmdk", name));
    for (text, rule, field, value) in [
        (named("/etc/passwd"), Rule::ExternalDataFile, "extent", "/etc/passwd"),
        (named("../disk-flat.vmdk"), Rule::ExternalDataFile, "extent", "../disk-flat.vmdk"),
        (named("a/disk-flat.vmdk"), Rule::ExternalDataFile, "extent", "a/disk-flat.vmdk"),
        (named("\\\\.\\PhysicalDrive0"), Rule::ExternalDataFile, "extent", "\\\\\\\\.\\\\PhysicalDrive0"),
        (named("nbd:host:10809"), Rule::ExternalDataFile, "extent", "nbd:host:10809"),
        (named("other.vmdk"), Rule::ExternalDataFile, "extent", "other.vmdk"),
        (named(".."), Rule::ExternalDataFile, "extent", ".."),
        (flat(&line.replace("18432", "18431")), Rule::InvalidField, "extent size", "18431"),
        (flat(&line.replace("18432", "18433")), Rule::InvalidField, "extent size", "18433"),
        (flat(&line.replace("18432", "0")), Rule::InvalidField, "extent size", "0"),
        (flat(&line.replace("\" 0", "\" 1")), Rule::InvalidField, "extent size", "18432"),
        (flat(&line.replace("\" 0", "\" x")), Rule::InvalidField, "extent offset", "x"),
        (flat(&line.replace("RW", "NOACCESS")), Rule::InvalidField, "extent", "NOACCESS"),
        (flat(&line.replace("FLAT", "VMFSRDM")), Rule::ExternalDataFile, "extent", "disk-flat.vmdk"),
        (flat(&format!("{line}\n{line}")), Rule::InvalidField, "extent", "disk-flat.vmdk"),
        (flat(""), Rule::InvalidField, "extent", ""),
        (text("fullDevice", "", &[line]), Rule::ExternalDataFile, "extent", "disk-flat.vmdk"),
        (text("vmfsSparse", "", &[line]), Rule::UnsupportedFormat, "createType", "vmfsSparse"),
        (text("twoGbMaxExtentSparse", "", &[line]), Rule::ExternalDataFile, "extent", "disk-flat.vmdk"),
        (flat(line).replace("ffffffff", "7c1f0e2a"), Rule::BackingFile, "parentCID", "7c1f0e2a"),
        (
            flat(line).replace("version", "parentFileNameHint=\"base.vmdk\"\nversion"),
            Rule::BackingFile,
            "parentFileNameHint",
            "base.vmdk",
        ),
    ] {
        let mut package = Package::new();
        package.add("disk.vmdk", &text).add("disk-flat.vmdk", disk(SIZE));
        let archive = package.tar(&[]);
        for way in WAYS {
            let (result, _) = imported(&archive, way, |job| job.container_disk = Some("disk.vmdk".into())).await;
            let error = result.unwrap_err();
            let found = error.violation().unwrap_or_else(|| panic!("{way:?} {error}"));
            assert_eq!(
                (found.rule, found.field.as_str(), found.value.as_str()),
                (rule, field, value),
                "{way:?} {text}"
            );
            let inspection = inspected(&archive, way, |job| job.container_disk = Some("disk.vmdk".into())).await;
            assert_eq!(inspection.verdict, Verdict::Refused);
            assert!(inspection.reasons.iter().any(|reason| reason == found), "{way:?} {:?}", inspection.reasons);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sparse_extents_say_what_the_descriptor_says() {
    let field = |at: usize, value: u8| move |bytes: &mut Vec<u8>| bytes[at] = value;
    let changes: [(&str, Rule, Change); 5] = [
        ("capacity", Rule::InvalidField, Box::new(field(12, 1))),
        ("uncleanShutdown", Rule::Dirty, Box::new(field(72, 1))),
        ("descriptor", Rule::InvalidField, Box::new(|bytes| bytes[512..533].copy_from_slice(b"# Disk DescriptorFile"))),
        ("header", Rule::Truncated, Box::new(field(0, 0))),
        ("overHead", Rule::Truncated, Box::new(|bytes| bytes.truncate(60 << 10))),
    ];
    for (expected, rule, change) in changes {
        for number in [1, 2] {
            let mut package = Package::new();
            two_sparse(&mut package);
            let path = package.path(&package.members[number]);
            let mut bytes = fs::read(&path).unwrap();
            change(&mut bytes);
            fs::write(&path, bytes).unwrap();
            assert_eq!(refusal(&package.tar(&[]), true).await, (rule, expected.to_owned()), "{number}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn alone_a_descriptor_is_refused() {
    let package = Package::new();
    let bytes = text("monolithicFlat", "", &["RW 18432 FLAT \"disk-flat.vmdk\" 0"]);
    fs::write(package.path("disk-flat.vmdk"), disk(SIZE)).unwrap();
    assert_eq!(refusal(bytes.as_bytes(), true).await, (Rule::ExternalDataFile, "extent".into()));
}

/// What waits for its turn waits on disk, and there is a bound on that.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_bounded() {
    let mut package = Package::new();
    let content = two_flat(&mut package);
    package.members.swap(1, 2);
    let archive = package.tar(&[]);
    let small = |job: &mut vitrine_engine::pipeline::Import| {
        (job.limits.window_memory, job.limits.max_spill) = (1 << 20, 2 << 20);
    };
    package.members.swap(1, 2);
    let (result, _) = imported(&package.tar(&[]), WAYS[0], small).await;
    assert_eq!(result.unwrap().virtual_size, content.len() as u64);
    package.members.rotate_left(1);
    let (result, _) = imported(&package.tar(&[]), WAYS[2], small).await;
    let error = result.unwrap_err().to_string();
    assert!(error.contains("maxSpill"), "{error}");
    let (result, _) = imported(&archive, WAYS[0], small).await;
    drop(result.unwrap());
}
