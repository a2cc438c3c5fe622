//! Files of two formats at once: refused where programs would disagree about them, and accepted where they are one thing.

use std::fs;

use vitrine_engine::model::{DiskFormat, Rule, Verdict};
use vitrine_harness::qemu::qemu_img;

use crate::{
    containers::{
        docker::image::Layer,
        package::{WAYS, imported, inspected},
    },
    support::{disk, stored},
};

const SIZE: usize = 4 << 20;

/// `content` in another format.
fn converted(content: &[u8], driver: &str, options: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("d.raw"), dir.path().join("d.image"));
    fs::write(&from, content).unwrap();
    let mut arguments = vec!["convert", "-f", "raw", "-O", driver];
    if !options.is_empty() {
        arguments.extend(["-o", options]);
    }
    arguments.extend([from.to_str().unwrap(), to.to_str().unwrap()]);
    qemu_img(&arguments).unwrap();
    fs::read(to).unwrap()
}

/// Every form with a header of its own.
const FORMS: [(&str, &str, DiskFormat); 6] = [
    ("qcow2", "", DiskFormat::Qcow2),
    ("vmdk", "subformat=monolithicSparse", DiskFormat::Vmdk),
    ("vdi", "", DiskFormat::Vdi),
    ("vpc", "subformat=dynamic,force_size=on", DiskFormat::Vhd),
    ("vhdx", "", DiskFormat::Vhdx),
    ("parallels", "", DiskFormat::Ploop),
];

fn footer() -> Vec<u8> {
    let file = converted(&disk(SIZE), "vpc", "subformat=fixed,force_size=on");
    file[SIZE..].to_vec()
}

/// A zip archive of one file.
fn zip() -> Vec<u8> {
    let (name, content) = (b"a".as_slice(), b"hello".as_slice());
    let mut crc = flate2::Crc::new();
    crc.update(content);
    let length = u32::try_from(content.len()).unwrap().to_le_bytes();
    let middle =
        [&[20, 0, 0, 0, 0, 0, 0, 0, 0, 0], &crc.sum().to_le_bytes()[..], &length, &length, &[1, 0, 0, 0]].concat();
    let local = [b"PK\x03\x04".as_slice(), &middle, name, content].concat();
    let central = [b"PK\x01\x02\x14\x00".as_slice(), &middle, &[0; 14], name].concat();
    let (at, size) = (u32::try_from(local.len()).unwrap(), u32::try_from(central.len()).unwrap());
    let end = [b"PK\x05\x06\0\0\0\0\x01\0\x01\0".as_slice(), &size.to_le_bytes(), &at.to_le_bytes(), &[0, 0]].concat();
    [local, central, end].concat()
}

/// A disc: the first descriptor of ISO 9660, and a few sectors.
fn iso() -> Vec<u8> {
    let mut bytes = vec![0; SIZE];
    bytes[32769..32774].copy_from_slice(b"CD001");
    bytes[34817..34822].copy_from_slice(b"CD001");
    bytes
}

/// A partition table with one partition, and GPT's header behind it.
fn partition(bytes: &mut [u8]) {
    bytes[450] = 0xee;
    bytes[454] = 1;
    bytes[458..462].copy_from_slice(&[0xff; 4]);
    bytes[510..512].copy_from_slice(b"\x55\xaa");
    bytes[512..520].copy_from_slice(b"EFI PART");
}

async fn assert_refused(bytes: &[u8], field: &str, value: &str) {
    for way in WAYS {
        let (result, _) = imported(bytes, way, |_| {}).await;
        let error = result.unwrap_err();
        let found = error.violation().unwrap_or_else(|| panic!("{value} {way:?}: {error}"));
        let expected = (Rule::AmbiguousFormat, field, value);
        assert_eq!((found.rule, found.field.as_str(), found.value.as_str()), expected, "{way:?}");
        let seen = inspected(bytes, way, |_| {}).await;
        assert_eq!(seen.verdict, Verdict::Refused, "{value} {way:?}");
        assert!(seen.reasons.contains(found), "{value} {way:?}: {:?}", seen.reasons);
    }
}

async fn assert_accepted(bytes: &[u8], format: DiskFormat, content: &[u8]) {
    for way in WAYS {
        let (result, store) = imported(bytes, way, |_| {}).await;
        assert_eq!(result.unwrap_or_else(|e| panic!("{format} {way:?}: {e}")).disk_format, format);
        assert!(stored(store.as_ref()).await == content, "{format} {way:?}");
        let seen = inspected(bytes, way, |_| {}).await;
        assert_eq!((seen.verdict, seen.disk_format), (Verdict::Accepted, Some(format)), "{way:?} {:?}", seen.reasons);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_ends_as_what_it_begins_as() {
    for (driver, options, format) in FORMS {
        let image = converted(&disk(SIZE), driver, options);
        // A dynamic one has a footer of its own at its end, and nothing may stand behind that.
        if format == DiskFormat::Vhd {
            continue;
        }
        let value = format!("{format} and vhd");
        assert_refused(&[image.as_slice(), &footer()].concat(), "footer", &value).await;
        let mut with_zip = image.clone();
        // Formats that count in sectors or blocks get whole ones.
        with_zip.resize(image.len() + (1 << 20) - zip().len(), 0);
        with_zip.extend(zip());
        let value = format!("{format} and zip");
        assert_refused(&with_zip, "end of central directory", &value).await;
    }
    for (bytes, name) in [(iso(), "iso"), (disk(SIZE), "raw")] {
        let value = format!("{name} and zip");
        assert_refused(&[bytes.as_slice(), &zip()].concat(), "end of central directory", &value).await;
        let trailer = [b"koly\0\0\0\x04\0\0\x02\0".as_slice(), &[0; 500]].concat();
        assert_refused(&[bytes.as_slice(), &trailer].concat(), "koly", &format!("{name} and dmg")).await;
    }
    assert_refused(&[iso(), footer()].concat(), "footer", "iso and vhd").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_is_of_one_format() {
    let marked = |image: &[u8], at: usize, mark: &[u8]| {
        let mut image = image.to_vec();
        image[at..at + mark.len()].copy_from_slice(mark);
        image
    };
    let qcow2 = converted(&disk(SIZE), "qcow2", "");
    assert_refused(&marked(&qcow2, 64, b"\x7f\x10\xda\xbe"), "magic", "qcow2 and vdi").await;
    for (driver, options, format) in FORMS {
        let image = converted(&disk(SIZE), driver, options);
        if matches!(format, DiskFormat::Qcow2 | DiskFormat::Vdi) {
            let mut both = image.clone();
            both[446..510].fill(0);
            partition(&mut both[..512 + 8]);
            both[512..520].copy_from_slice(&image[512..520]);
            assert_refused(&both, "magic", &format!("{format} and a partition table")).await;
        }
        if matches!(format, DiskFormat::Qcow2 | DiskFormat::Vmdk) {
            assert_refused(&marked(&image, 32769, b"CD001"), "magic", &format!("{format} and iso")).await;
        }
    }
    let vdi = converted(&disk(SIZE), "vdi", "");
    assert_refused(&marked(&vdi, 0, b"7z\xbc\xaf\x27\x1c"), "magic", "vdi and 7z").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_is_nothing_else() {
    let archive = |name: &[u8]| {
        let mut tar = Layer::new();
        tar.changed("", b'0', 0o644, "", &disk(SIZE), |block| block[..name.len()].copy_from_slice(name));
        tar.finish()
    };
    for (name, format) in
        [(b"QFI\xfb".as_slice(), "qcow2"), (b"conectix.raw", "vhd"), (b"KDMV", "vmdk"), (b"vhdxfile", "vhdx")]
    {
        assert_refused(&archive(name), "magic", &format!("tar and {format}")).await;
    }
    let mut optical = Layer::new();
    let mut content = disk(SIZE);
    content[32769 - 512..32774 - 512].copy_from_slice(b"CD001");
    optical.file("disk.raw", 0o644, &content);
    assert_refused(&optical.finish(), "magic", "tar and iso").await;
    // A member of gzip with room for something else in its header.
    let packed = crate::containers::docker::image::gzip(&disk(SIZE));
    let mut extra = vec![0; 40_000];
    extra[32769 - 12..32774 - 12].copy_from_slice(b"CD001");
    let length = u16::try_from(extra.len()).unwrap().to_le_bytes();
    let both = [&[0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255], length.as_slice(), &extra, &packed[10..]].concat();
    assert_refused(&both, "magic", "gzip and iso").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_one_thing_is_accepted() {
    // A hybrid disc boots from either, with the same content.
    let mut hybrid = iso();
    partition(&mut hybrid);
    assert_accepted(&hybrid, DiskFormat::Iso, &hybrid).await;
    // A disk with partitions and a footer behind it is what Azure takes.
    let mut gpt = disk(SIZE);
    partition(&mut gpt);
    assert_accepted(&converted(&gpt, "vpc", "subformat=fixed,force_size=on"), DiskFormat::Vhd, &gpt).await;
    // What a guest has on its disk is its own, wherever that lies in the file.
    for (driver, options, format) in FORMS {
        assert_accepted(&converted(&hybrid, driver, options), format, &hybrid).await;
    }
    for size in ["cluster_size=512", "cluster_size=4k", "cluster_size=2M"] {
        assert_accepted(&converted(&hybrid, "qcow2", size), DiskFormat::Qcow2, &hybrid).await;
    }
    let mut tar = Layer::new();
    tar.file("disc.iso", 0o644, &hybrid);
    assert_accepted(&tar.finish(), DiskFormat::Iso, &hybrid).await;
}
