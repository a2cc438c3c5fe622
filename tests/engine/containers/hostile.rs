//! Archives that break one rule each: refused by import and inspection, by the same rule.

use vitrine_engine::model::Rule;

use super::package::{Package, descriptor, refusal};
use crate::support::disk;

const SIZE: usize = 3 << 20;

fn package() -> Package {
    let mut package = Package::new();
    package.add("vm.ovf", descriptor(&[("disk.raw", "", SIZE)])).add("disk.raw", disk(SIZE));
    package
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_manifest_says_must_be_so() {
    for (algorithm, order) in
        [("SHA1", "omd"), ("SHA256", "omd"), ("SHA512", "omd"), ("SHA1", "odm"), ("SHA256", "odm"), ("SHA512", "odm")]
    {
        let mut package = package();
        package.add_manifest(algorithm);
        let name = |c| match c {
            'o' => "vm.ovf",
            'm' => "vm.mf",
            _ => "disk.raw",
        };
        package.members = order.chars().map(|c| name(c).to_owned()).collect();
        let mut changed = disk(SIZE);
        changed[SIZE / 2] ^= 1;
        std::fs::write(package.path("disk.raw"), changed).unwrap();
        assert_eq!(
            refusal(&package.tar(&[]), false).await,
            (Rule::ChecksumMismatch, "disk.raw".into()),
            "{algorithm} {order}"
        );
    }
    let mut package = package();
    package.add_manifest("SHA256");
    std::fs::write(package.path("vm.ovf"), descriptor(&[("disk.raw", "", SIZE)]).replace("Debian", "Windows")).unwrap();
    assert_eq!(refusal(&package.tar(&[]), true).await, (Rule::ChecksumMismatch, "vm.ovf".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_lists_what_matters_and_nothing_else() {
    let mut whole = package();
    whole.add_manifest("SHA256");
    let text = std::fs::read_to_string(whole.path("vm.mf")).unwrap();
    let lines: Vec<_> = text.lines().collect();
    for (manifest, expected) in [
        (lines[0].to_owned(), (Rule::ChecksumMismatch, "manifest")),
        (lines[1].to_owned(), (Rule::ChecksumMismatch, "manifest")),
        (format!("{text}{}", lines[0].replace("vm.ovf", "other")), (Rule::ChecksumMismatch, "manifest")),
        (format!("{text}MD5(vm.ovf)= 00"), (Rule::InvalidField, "manifest")),
        (format!("{text}SHA256(vm.ovf)= 00"), (Rule::InvalidField, "manifest")),
        (text.repeat(600), (Rule::SizeLimit, "manifest")),
    ] {
        std::fs::write(whole.path("vm.mf"), &manifest).unwrap();
        let (rule, field) = refusal(&whole.tar(&[]), true).await;
        assert_eq!((rule, field.as_str()), expected, "{manifest:.200}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_descriptor_must_fit_the_archive() {
    let text = descriptor(&[("disk.raw", "", SIZE)]);
    for (text, expected) in [
        (descriptor(&[("disk.raw", "", SIZE + 512)]), (Rule::InvalidField, "capacity")),
        (descriptor(&[("other.raw", "", SIZE)]), (Rule::ExternalDataFile, "href")),
        (descriptor(&[("disk.raw", r#"ovf:compression="gzip""#, SIZE)]), (Rule::InvalidField, "compression")),
        (descriptor(&[]), (Rule::InvalidField, "containerDisk")),
        (text.replace("Envelope", "Other"), (Rule::InvalidField, "ovf descriptor")),
        (format!("{text}{}", " ".repeat(1 << 20)), (Rule::SizeLimit, "size")),
    ] {
        for order in [["vm.ovf", "disk.raw"], ["disk.raw", "vm.ovf"]] {
            let mut package = package();
            std::fs::write(package.path("vm.ovf"), &text).unwrap();
            package.members = order.map(str::to_owned).to_vec();
            let (rule, field) = refusal(&package.tar(&[]), true).await;
            assert_eq!((rule, field.as_str()), expected, "{order:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_cannot_be_told_apart_are_refused() {
    let mut twice = package();
    twice.members.push("disk.raw".to_owned());
    assert_eq!(refusal(&twice.tar(&["--hard-dereference"]), true).await, (Rule::InvalidField, "name".into()));
    let mut two = package();
    two.add("other.ovf", "<Envelope/>");
    assert_eq!(refusal(&two.tar(&[]), true).await, (Rule::InvalidField, "name".into()));
    let mut several = Package::new();
    several.add("a.raw", disk(SIZE)).add("b.raw", disk(SIZE));
    assert_eq!(refusal(&several.tar(&[]), true).await, (Rule::UnsupportedFormat, "members".into()));
    let mut none = Package::new();
    none.add("vm.mf", "");
    assert_eq!(refusal(&none.tar(&[]), true).await, (Rule::NotADisk, "members".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn links_and_holes_are_refused_wherever_they_stand() {
    for first in [true, false] {
        let mut package = package();
        std::os::unix::fs::symlink("/etc/passwd", package.path("link")).unwrap();
        package.members.insert(if first { 0 } else { 2 }, "link".to_owned());
        assert_eq!(refusal(&package.tar(&[]), true).await, (Rule::ExternalDataFile, "typeflag".into()));
    }
    let mut package = Package::new();
    package.add("disk.raw", disk(SIZE));
    std::fs::File::options().write(true).open(package.path("disk.raw")).unwrap().set_len(64 << 20).unwrap();
    for format in ["--format=gnu", "--format=pax"] {
        assert_eq!(
            refusal(&package.tar(&[format, "--sparse"]), true).await,
            (Rule::UnsupportedFormat, "typeflag".into())
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cuts_tails_and_damage_are_noticed() {
    let archive = package().tar(&["--format=ustar"]);
    let end = 1024 + descriptor(&[("disk.raw", "", SIZE)]).len().div_ceil(512) * 512 + SIZE;
    for length in [end + 1000, end + 512, end, end - 600, SIZE, 1000] {
        assert_eq!(refusal(&archive[..length], true).await.0, Rule::Truncated, "{length} of {}", archive.len());
    }
    let mut tail = archive.clone();
    tail.extend([0; 512]);
    tail.push(1);
    // What stands behind the end is not looked at by range.
    assert_eq!(refusal(&tail, false).await, (Rule::InvalidField, "end of archive".into()));
    let mut damaged = archive.clone();
    damaged[0] ^= 1;
    assert_eq!(refusal(&damaged, true).await, (Rule::InvalidField, "checksum".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_have_an_end() {
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, bytes).unwrap();
        encoder.finish().unwrap()
    };
    let in_tar = |bytes: &[u8]| {
        let mut package = Package::new();
        package.add("inner", bytes);
        package.tar(&[])
    };
    let disk = disk(SIZE);
    for bytes in [
        gzip(&gzip(&disk)),
        in_tar(&in_tar(&disk)),
        gzip(&in_tar(&gzip(&disk))),
        in_tar(&gzip(&in_tar(&disk))),
        gzip(&gzip(&in_tar(&disk))),
    ] {
        assert_eq!(refusal(&bytes, true).await, (Rule::NestedCompression, "magic".into()));
    }
}

/// Random changes to a good package: an answer comes, whatever they hit, and import never takes what inspection of the same bytes
/// refuses.
#[tokio::test(flavor = "multi_thread")]
async fn changed_packages_get_an_answer() {
    use super::package::{WAYS, imported, inspected};
    let mut package = Package::new();
    package.add("vm.ovf", descriptor(&[("disk.qcow2", "", 1 << 20)])).add_qcow2("disk.qcow2", &disk(1 << 20));
    let archive = package.tar(&["--format=pax"]);
    let interesting = 8 << 10;
    let mut state = 7_u64;
    for round in 0..200 {
        let mut changed = archive.clone();
        for _ in 0..=round % 3 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let place = usize::try_from(state >> 33).unwrap() % interesting.min(changed.len());
            changed[place] = u8::try_from((state >> 20) & 0xff).unwrap();
        }
        let way = WAYS[round % 3];
        let (result, _) = imported(&changed, way, |_| {}).await;
        let inspection = inspected(&changed, way, |_| {}).await;
        if inspection.verdict == vitrine_engine::model::Verdict::Refused {
            let error = result.unwrap_err();
            assert!(error.violation().is_some(), "{round}: {error}, {:?}", inspection.reasons);
        }
    }
}
