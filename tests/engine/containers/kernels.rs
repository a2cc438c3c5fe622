//! Kernels, ramdisks and machine images in Amazon's form, by declaration.

use std::{fs, process::Command};

use vitrine_engine::model::{ContainerFormat, DiskFormat, Rule, Verdict};

use super::package::{WAYS, imported, inspected};
use crate::support::{disk, stored};

/// A cpio archive in every packing that a kernel takes, and one that none does.
fn ramdisks() -> Vec<(String, Vec<u8>)> {
    let folder = tempfile::tempdir().unwrap();
    let script = "echo hello > init; printf 'init' | cpio --quiet -o -H newc > r.cpio 2> /dev/null || \
                  python3 -c \"
n=b'init\\0'; d=open('init','rb').read()
h=lambda n,d: b'070701'+b''.join(b'%08x'%v for v in (1,0o100755,0,0,1,0,len(d),0,0,0,0,len(n),0))
pad=lambda b: b+b'\\0'*(-len(b)%4)
t=b'TRAILER!!!\\0'
open('r.cpio','wb').write(pad(h(n,d)+n)+pad(d)+pad(h(t,b'')+t))\"
        gzip -k r.cpio; xz -k --check=crc32 r.cpio; zstd -q r.cpio; lz4 -q -l r.cpio r.cpio.legacy; lz4 -q r.cpio r.cpio.lz4";
    let status = Command::new("sh").current_dir(folder.path()).args(["-ec", script]).status().unwrap();
    assert!(status.success());
    let names = ["", ".gz", ".xz", ".zst", ".legacy", ".lz4"].map(|end| format!("r.cpio{end}"));
    names.map(|name| (name.clone(), fs::read(folder.path().join(name)).unwrap())).into()
}

#[tokio::test(flavor = "multi_thread")]
async fn ramdisks_are_kept_as_they_are() {
    for (name, bytes) in ramdisks() {
        for way in WAYS {
            let (result, store) = imported(&bytes, way, |job| job.disk_format = Some(DiskFormat::Ari)).await;
            let imported_ = result.unwrap_or_else(|e| panic!("{name} {way:?}: {e}"));
            assert_eq!((imported_.disk_format, imported_.container_format), (DiskFormat::Ari, ContainerFormat::Bare));
            assert!(stored(store.as_ref()).await == bytes, "{name} {way:?}");
            let (result, _) = imported(&bytes, way, |job| job.container_format = Some(ContainerFormat::Ari)).await;
            let imported_ = result.unwrap();
            assert_eq!((imported_.disk_format, imported_.container_format), (DiskFormat::Ari, ContainerFormat::Ari));
            let inspection = inspected(&bytes, way, |job| job.disk_format = Some(DiskFormat::Ari)).await;
            assert_eq!((inspection.verdict, inspection.disk_format), (Verdict::Accepted, Some(DiskFormat::Ari)));
            assert_eq!(inspection.virtual_size, Some(bytes.len() as u64));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kernels_and_machines_are_recognised_where_they_are_declared() {
    let mut kernel = vec![0x90; 70_001];
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    let machine = disk(3 << 20);
    for (bytes, format) in [(&kernel, DiskFormat::Aki), (&machine, DiskFormat::Ami)] {
        for declared in [DiskFormat::Aki, DiskFormat::Ari, DiskFormat::Ami] {
            for way in WAYS {
                let (result, store) = imported(bytes, way, |job| job.disk_format = Some(declared)).await;
                let inspection = inspected(bytes, way, |job| job.disk_format = Some(declared)).await;
                if declared == format {
                    assert_eq!(result.unwrap().disk_format, format);
                    assert!(stored(store.as_ref()).await == *bytes);
                    assert_eq!((inspection.verdict, inspection.disk_format), (Verdict::Accepted, Some(format)));
                } else {
                    assert_eq!(result.unwrap_err().violation().unwrap().rule, Rule::FormatMismatch);
                    assert_eq!(inspection.reasons[0].rule, Rule::FormatMismatch);
                }
            }
        }
        // Nothing is one of them by itself.
        let (result, _) = imported(bytes, WAYS[0], |_| {}).await;
        assert_eq!(result.unwrap().disk_format, DiskFormat::Raw);
    }
}
