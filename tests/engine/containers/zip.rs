//! OVF packages in a zip archive, as `zip` and Python write them.

use std::{fs, process::Command};

use vitrine_engine::model::{ContainerFormat, Rule, Verdict};

use super::{
    package::{Package, WAYS, descriptor, imported, inspected, refusal},
    truth::assert_disk,
};
use crate::support::disk;

const SIZE: usize = (9 << 20) + 512;

/// The package's members in a zip archive; `-` among the options writes it as a stream, lengths behind the files.
fn zip(package: &Package, options: &[&str]) -> Vec<u8> {
    let streamed = options.contains(&"-");
    let target = package.path("archive.zip");
    let _ = fs::remove_file(&target);
    let mut command = Command::new("zip");
    command.current_dir(package.path("")).arg("-q").args(options);
    if !streamed {
        command.arg("archive.zip");
    }
    let output = command.args(&package.members).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    if streamed { output.stdout } else { fs::read(target).unwrap() }
}

/// The same by Python, to something that it cannot seek in: lengths stand behind the files.
fn zip_by_python(package: &Package) -> Vec<u8> {
    let script = "import sys, zipfile
class Out:
    def write(self, data): return sys.stdout.buffer.write(data)
    def flush(self): pass
with zipfile.ZipFile(Out(), 'w', zipfile.ZIP_DEFLATED) as archive:
    for name in sys.argv[1:]: archive.write(name)";
    let mut command = Command::new("python3");
    let output = command.current_dir(package.path("")).args(["-c", script]).args(&package.members).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[tokio::test(flavor = "multi_thread")]
async fn a_package_in_a_zip_is_read_in_any_order() {
    let boot = disk(SIZE);
    for order in [[0, 1, 2], [1, 0, 2], [2, 1, 0]] {
        let mut package = Package::new();
        package.add("vm.ovf", descriptor(&[("disk.qcow2", "", SIZE)])).add_qcow2("disk.qcow2", &boot);
        package.add_manifest("SHA256");
        let members = package.members.clone();
        package.members = order.map(|number: usize| members[number].clone()).to_vec();
        for archive in [
            zip(&package, &[]),
            zip(&package, &["-0"]),
            zip(&package, &["-fz"]),
            zip(&package, &["-"]),
            zip_by_python(&package),
        ] {
            assert_disk(&archive, ContainerFormat::Ovf, None, &boot).await;
        }
        let archive = zip(&package, &[]);
        for (declared, good) in
            [(ContainerFormat::Ovf, true), (ContainerFormat::Ova, false), (ContainerFormat::Compressed, false)]
        {
            for way in WAYS {
                let (result, _) = imported(&archive, way, |job| job.container_format = Some(declared)).await;
                let seen = inspected(&archive, way, |job| job.container_format = Some(declared)).await;
                assert_eq!((result.is_ok(), seen.verdict == Verdict::Accepted), (good, good), "{declared} {way:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn folders_and_several_disks() {
    let (boot, data) = (disk(SIZE), disk(SIZE / 2));
    let mut package = Package::new();
    fs::create_dir(package.path("vm")).unwrap();
    package.members.push("vm".into());
    let text = descriptor(&[("vm/data.raw", "", SIZE / 2), ("vm/boot.raw", "", SIZE)]);
    package.add("vm.ovf", text).add("vm/data.raw", &data).add("vm/boot.raw", &boot);
    let archive = zip(&package, &[]);
    assert_disk(&archive, ContainerFormat::Ovf, None, &boot).await;
    assert_disk(&archive, ContainerFormat::Ovf, Some("data.raw"), &data).await;
    // Without a descriptor, a name is enough; and the extents of a vmdk may be in a zip as well.
    let mut package = Package::new();
    package.add("a.raw", &boot).add("b.raw", &data);
    assert_disk(&zip(&package, &[]), ContainerFormat::Compressed, Some("b.raw"), &data).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_in_a_zip() {
    let package = || {
        let mut package = Package::new();
        package.add("vm.ovf", descriptor(&[("disk.raw", "", SIZE)])).add("disk.raw", disk(SIZE));
        package
    };
    let mut several = Package::new();
    several.add("a.raw", disk(SIZE)).add("b.raw", disk(SIZE));
    assert_eq!(refusal(&zip(&several, &[]), true).await, (Rule::UnsupportedFormat, "members".into()));
    let mut changed = package();
    changed.add_manifest("SHA256");
    fs::write(changed.path("disk.raw"), disk(SIZE / 2).repeat(2)).unwrap();
    assert_eq!(refusal(&zip(&changed, &[]), true).await, (Rule::ChecksumMismatch, "disk.raw".into()));
    let mut missing = package();
    fs::write(missing.path("vm.ovf"), descriptor(&[("other.raw", "", SIZE)])).unwrap();
    missing.add("third", "x");
    assert_eq!(refusal(&zip(&missing, &[]), true).await, (Rule::ExternalDataFile, "href".into()));
    let outside = package();
    let archive = zip(&outside, &["-0"]);
    let replace = |from: &[u8], to: &[u8]| {
        let mut archive = archive.clone();
        let places: Vec<_> = (0..archive.len() - from.len()).filter(|at| archive[*at..].starts_with(from)).collect();
        places.iter().for_each(|at| archive[*at..*at + to.len()].copy_from_slice(to));
        archive
    };
    assert_eq!(refusal(&replace(b"vm.ovf", b"../ovf"), true).await, (Rule::InvalidField, "name".into()));
    assert_eq!(refusal(&replace(b"vm.ovf", b"/a.ovf"), true).await, (Rule::InvalidField, "name".into()));
    // The directory at the end says another thing than what stands before the files.
    let at = archive.windows(4).rposition(|bytes| bytes == b"PK\x01\x02").unwrap();
    for (place, value) in [(20, 1), (24, 1), (42, 1), (16, 1)] {
        let mut lies = archive.clone();
        lies[at + place] ^= value;
        let (rule, field) = refusal(&lies, true).await;
        assert_eq!((rule, field.as_str()), (Rule::InvalidField, "central directory"), "{place}");
    }
    let mut damaged = archive.clone();
    damaged[5 << 20] ^= 1;
    assert_eq!(refusal(&damaged, true).await.0, Rule::CompressedStream);
    // Without its end, only that there are several can be told.
    assert_eq!(refusal(&archive[..archive.len() - 30], true).await, (Rule::UnsupportedFormat, "members".into()));
}

/// A stream of several files waits on disk, as far as it may.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_bounded() {
    let mut package = Package::new();
    package.add("vm.ovf", descriptor(&[("disk.raw", "", SIZE)])).add("disk.raw", disk(SIZE));
    let archive = zip(&package, &["-0"]);
    for way in WAYS {
        let (result, _) = imported(&archive, way, |job| {
            (job.limits.window_memory, job.limits.max_spill) = (1 << 20, 1 << 20);
        })
        .await;
        match way {
            super::package::Way::Ranges => assert_eq!(result.unwrap().virtual_size, SIZE as u64),
            _ => assert!(result.unwrap_err().to_string().contains("maxSpill")),
        }
    }
}

/// Random changes: an answer comes, whatever they hit.
#[tokio::test(flavor = "multi_thread")]
async fn changed_archives_get_an_answer() {
    let mut package = Package::new();
    package.add("vm.ovf", descriptor(&[("disk.qcow2", "", 1 << 20)])).add_qcow2("disk.qcow2", &disk(1 << 20));
    let archive = zip(&package, &["-"]);
    let mut state = 5_u64;
    for round in 0..120 {
        let mut changed = archive.clone();
        for _ in 0..=round % 3 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let random = usize::try_from(state >> 33).unwrap();
            let end = changed.len() - 1 - random % 400;
            let place = if random % 2 == 0 { end } else { random % 2048 };
            changed[place] = u8::try_from((state >> 20) & 0xff).unwrap();
        }
        let way = WAYS[round % 3];
        let (result, _) = imported(&changed, way, |_| {}).await;
        let seen = inspected(&changed, way, |_| {}).await;
        if seen.verdict == Verdict::Refused {
            let error = result.unwrap_err();
            assert!(error.violation().is_some(), "{round}: {error}, {:?}", seen.reasons);
        }
    }
}
