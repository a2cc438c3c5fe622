//! Container images: as `docker save` and the OCI layout have them, and as `docker export` writes them.

mod hostile;
pub mod image;
mod layers;

use std::{fs, path::Path, process::Command};

use vitrine_engine::model::{ContainerFormat, DiskFormat, Rule, Verdict};

use self::image::{Form, Image, Layer};
use super::package::{WAYS, imported, inspected};
use crate::support::{disk, stored};

/// A containerDisk as KubeVirt's are made: one layer with the disk, below `/disk`.
fn container_disk(content: &[u8]) -> Image {
    let mut layer = Layer::new();
    layer.folder("disk", 0o555).file("disk/fedora.qcow2", 0o440, content);
    let mut other = Layer::new();
    other.folder("etc", 0o755).file("etc/motd", 0o644, b"hello");
    Image::new([other, layer])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_disk_gives_its_disk_in_every_form() {
    let (raw, dir) = (disk(9 << 20), tempfile::tempdir().unwrap());
    let (from, to) = (dir.path().join("raw"), dir.path().join("qcow2"));
    fs::write(&from, &raw).unwrap();
    let arguments = ["convert", "-f", "raw", "-O", "qcow2", from.to_str().unwrap(), to.to_str().unwrap()];
    vitrine_harness::qemu::qemu_img(&arguments).unwrap();
    let image = container_disk(&fs::read(to).unwrap());
    for form in [Form::Oci, Form::OciGzip, Form::OciZstd, Form::Saved, Form::Podman, Form::Both] {
        let archive = image.archive(form);
        for way in WAYS {
            for declared in [None, Some(ContainerFormat::Docker)] {
                let (result, store) = imported(&archive, way, |job| job.container_format = declared).await;
                let done = result.unwrap_or_else(|e| panic!("{form:?} {way:?}: {e}"));
                assert_eq!((done.container_format, done.disk_format), (ContainerFormat::Docker, DiskFormat::Qcow2));
                assert_eq!(done.received.length, archive.len() as u64);
                assert!(stored(store.as_ref()).await == raw, "{form:?} {way:?}");
            }
            let seen = inspected(&archive, way, |_| {}).await;
            assert_eq!((seen.verdict, &seen.reasons), (Verdict::Accepted, &vec![]), "{form:?} {way:?}");
            assert_eq!((seen.container_format, seen.disk_format), (ContainerFormat::Docker, Some(DiskFormat::Qcow2)));
            assert_eq!((seen.virtual_size, seen.size), (Some(9 << 20), Some(archive.len() as u64)));
            assert_eq!((seen.opaque, seen.parts.len(), seen.parts[2].as_str()), (false, 3, "disk/fedora.qcow2"));
        }
    }
}

/// Docker before version 25 saves a layer once, and links where it comes again.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_comes_twice_is_read_twice() {
    let raw = disk(3 << 20);
    let mut image = container_disk(&raw);
    let (first, mut moved) = (image.layers[0].clone(), Layer::new());
    moved.file("etc/motd", 0o644, b"something else");
    image.layers.extend([moved.finish(), first]);
    for form in [Form::Saved, Form::Oci, Form::OciGzip, Form::Podman] {
        let archive = image.archive(form);
        for way in WAYS {
            let (result, store) = imported(&archive, way, |_| {}).await;
            assert_eq!(result.unwrap_or_else(|e| panic!("{form:?} {way:?}: {e}")).virtual_size, 3 << 20);
            assert!(stored(store.as_ref()).await == raw, "{form:?} {way:?}");
            let seen = inspected(&archive, way, |_| {}).await;
            assert_eq!((seen.verdict, &seen.reasons), (Verdict::Accepted, &vec![]), "{form:?} {way:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_filesystem_is_kept_only_where_that_is_declared() {
    let mut base = Layer::new();
    base.folder("etc", 0o755).file("etc/motd", 0o644, b"hello");
    let archive = Image::new([base]).archive(Form::Oci);
    for way in WAYS {
        let (result, _) = imported(&archive, way, |_| {}).await;
        let error = result.unwrap_err();
        let found = error.violation().unwrap();
        let expected = (Rule::UnsupportedFormat, "containerFormat", "docker");
        assert_eq!((found.rule, found.field.as_str(), found.value.as_str()), expected);
        let seen = inspected(&archive, way, |_| {}).await;
        assert_eq!(&seen.reasons, std::slice::from_ref(found));
        let seen = inspected(&archive, way, |job| job.container_format = Some(ContainerFormat::Docker)).await;
        assert_eq!((seen.verdict, seen.opaque, seen.disk_format), (Verdict::Accepted, true, Some(DiskFormat::Raw)));
        // It is no disk, and nothing else is made of it.
        let (result, _) = imported(&archive, way, |job| {
            job.container_format = Some(ContainerFormat::Docker);
            job.targets[0].output = crate::support::QCOW2_ZSTD;
        })
        .await;
        let error = result.unwrap_err();
        assert_eq!(
            error.violation().map(|found| (found.rule, found.field.as_str())),
            Some((Rule::UnsupportedFormat, "convertTo"))
        );
        let (result, _) = imported(&archive, way, |job| {
            (job.container_format, job.disk_format) = (Some(ContainerFormat::Docker), Some(DiskFormat::Qcow2));
        })
        .await;
        assert_eq!(result.unwrap_err().violation().unwrap().rule, Rule::FormatMismatch);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_for_several_platforms() {
    let image = |name: &str, platform: &str| {
        let mut layer = Layer::new();
        layer.folder("disk", 0o755).file("disk/a.img", 0o644, &disk(1 << 20)).file(name, 0o644, b"");
        Image::new([layer]).of(platform)
    };
    let (amd, arm, other) =
        (image("amd", "linux/amd64"), image("arm", "linux/arm64/v8"), image("s390x", "linux/s390x"));
    for (images, wanted, good) in [
        (vec![&amd, &arm], None, true),
        (vec![&arm], None, true),
        (vec![&arm, &other], None, false),
        (vec![&arm, &other], Some("linux/s390x"), true),
        (vec![&amd, &arm], Some("linux/arm64/v8"), true),
        (vec![&amd, &arm], Some("linux/riscv64"), false),
    ] {
        let archive = image::index(&images, 1);
        for way in WAYS {
            let wanted = wanted.map(str::to_owned);
            let (result, _) = imported(&archive, way, |job| job.container_disk.clone_from(&wanted)).await;
            let seen = inspected(&archive, way, |job| job.container_disk.clone_from(&wanted)).await;
            assert_eq!(seen.verdict == Verdict::Accepted, good, "{wanted:?} {:?}", seen.reasons);
            if good {
                drop(result.unwrap_or_else(|e| panic!("{wanted:?} {way:?}: {e}")));
                continue;
            }
            let error = result.unwrap_err();
            let found = error.violation().unwrap();
            let field = if wanted.is_some() { "containerDisk" } else { "platform" };
            assert_eq!((found.rule, found.field.as_str()), (Rule::InvalidField, field));
            assert!(found.value.contains("linux/") && seen.reasons.contains(found), "{found}");
        }
    }
}

/// What can be asked again is read twice and waits nowhere; a stream waits on disk, as far as it may.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_bounded() {
    let (content, mut base) = (disk(9 << 20), Layer::new());
    base.folder("etc", 0o755).file("etc/large", 0o644, &disk(12 << 20));
    let mut image = container_disk(&content);
    image.layers.push(base.finish());
    for form in [Form::Saved, Form::OciGzip] {
        let archive = image.archive(form);
        for way in WAYS {
            let (result, store) = imported(&archive, way, |job| {
                (job.limits.window_memory, job.limits.max_spill) = (1 << 20, 1 << 20);
            })
            .await;
            if matches!(way, super::package::Way::Ranges) {
                assert_eq!(result.unwrap().virtual_size, 9 << 20);
                assert!(stored(store.as_ref()).await == content);
            } else {
                let error = result.unwrap_err().to_string();
                assert!(error.contains("max-spill"), "{error}");
            }
        }
    }
}

/// Runs GNU tar on a folder.
pub fn extract(archive: &[u8], folder: &Path) {
    let file = folder.with_extension("tar");
    fs::write(&file, archive).unwrap();
    fs::create_dir_all(folder).unwrap();
    let output = Command::new("tar")
        .args(["--extract", "--same-permissions", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--file"])
        .arg(&file)
        .arg("--directory")
        .arg(folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::remove_file(file).unwrap();
}
