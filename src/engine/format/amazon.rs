//! Machine, kernel and ramdisk images in Amazon's three-part form: raw content that is recognised, and only where it is declared.
//!
//! A kernel or a ramdisk is no disk; that it is stored as it is, is what its user declares. Must not unpack anything.

use super::detect::{Found, detect};
use crate::model::{DiskFormat, Rule};

/// Boot protocol of Linux on x86 (Documentation/arch/x86/boot.rst): the mark of the header.
const BZIMAGE: (usize, &[u8]) = (0x202, b"HdrS");
const ELF: (usize, &[u8]) = (0, b"\x7fELF");

/// What a kernel unpacks at boot: cpio in the formats newc and crc, and what it may be packed with, lz4 by its legacy frames too.
const RAMDISKS: &[(usize, &[u8])] = &[
    (0, b"070701"),
    (0, b"070702"),
    (0, b"\x1f\x8b\x08"),
    (0, b"\xfd7zXZ\0"),
    (0, b"\x28\xb5\x2f\xfd"),
    (0, b"\x04\x22\x4d\x18"),
    (0, b"\x02\x21\x4c\x18"),
];

/// Partition tables (MBR, GPT) and file systems (ext2 to 4, XFS, squashfs).
const MACHINES: &[(usize, &[u8])] =
    &[(510, b"\x55\xaa"), (512, b"EFI PART"), (1080, b"\x53\xef"), (0, b"XFSB"), (0, b"hsqs")];

const NO_KERNEL: &str = "an aki is a Linux kernel, as bzImage or ELF: declare what it is, or `auto`";
const NO_RAMDISK: &str = "an ari is a cpio archive, packed or not: declare what it is, or `auto`";
const NO_MACHINE: &str = "an ami is a disk with a partition table or a file system: declare what it is, or `auto`";

/// What `head` is, given that `declared` was: one of Amazon's formats if its content is recognised as such, else as ever.
pub(super) fn detect_as(head: &[u8], declared: Option<DiskFormat>) -> Found {
    let has = |(at, magic): &(usize, &[u8])| head.get(*at..).is_some_and(|rest| rest.starts_with(magic));
    let (fits, advice) = match declared {
        Some(DiskFormat::Aki) => (has(&BZIMAGE) || has(&ELF), NO_KERNEL),
        Some(DiskFormat::Ari) => (RAMDISKS.iter().any(has), NO_RAMDISK),
        Some(DiskFormat::Ami) => {
            let disk = detect(head) == Found::Disk(DiskFormat::Raw) && !has(&BZIMAGE);
            (disk && MACHINES.iter().any(has), NO_MACHINE)
        }
        _ => return detect(head),
    };
    match declared {
        Some(format) if fits => Found::Disk(format),
        _ => Found::Other { name: "unknown", rule: Rule::FormatMismatch, advice },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn padded(at: usize, magic: &[u8]) -> Vec<u8> {
        let mut head = vec![0; at];
        head.extend_from_slice(magic);
        head.resize(4096, 0);
        head
    }

    #[test]
    fn content_is_recognised_only_where_it_is_declared() {
        let (kernel, ramdisk) = (padded(0x202, b"HdrS"), padded(0, b"070701"));
        let machine = padded(510, b"\x55\xaa");
        for (head, format) in [
            (&kernel, DiskFormat::Aki),
            (&ramdisk, DiskFormat::Ari),
            (&machine, DiskFormat::Ami),
            (&padded(1080, b"\x53\xef"), DiskFormat::Ami),
        ] {
            assert_eq!(detect_as(head, Some(format)), Found::Disk(format));
            assert_eq!(detect_as(head, None), Found::Disk(DiskFormat::Raw));
        }
        let mut both = kernel.clone();
        both[510..512].copy_from_slice(b"\x55\xaa");
        let others = [
            (&machine, DiskFormat::Aki),
            (&kernel, DiskFormat::Ari),
            (&both, DiskFormat::Ami),
            (&padded(0, b"QFI\xfb"), DiskFormat::Ami),
            (&padded(0, b""), DiskFormat::Ami),
        ];
        for (head, format) in others {
            let found = detect_as(head, Some(format));
            assert!(matches!(found, Found::Other { rule: Rule::FormatMismatch, .. }), "{format}: {found:?}");
        }
    }
}
