//! Files of two formats at once: what one program takes for a disk, another takes for something else, and only one of them was checked.
//!
//! Knows the places where formats put their marks (QEMU's probes, glance's inspectors, and what readers of archives look for), never what
//! stands behind them. A disc that is also a disk with partitions is one thing: that is how hybrid images boot.

use crate::{
    format::{
        detect::{Found, SIGNATURES},
        fields::{le_u16, le_u32},
        vhd::{FOOTER_LENGTH, Tail},
    },
    model::{DiskFormat, Rule, Violation},
};

/// Bytes at the beginning of a file that are looked at: up to the first descriptor of an optical disc.
pub const LOOK: usize = OPTICAL + 2048;
/// Where that stands (ECMA-119, 6.2.1).
const OPTICAL: usize = 32 << 10;
/// Bytes at the end of a file that are looked at: the last record of a zip archive and its longest comment.
pub const TAIL: usize = ZIP_END + 65_535;
const ZIP_END: usize = 22;

const MESSAGE: &str = "programs would read the file as one or as the other, and only one of them was checked: \
                       convert it with the program that made it, or remove what does not belong to it";

fn refuse(field: &str, one: &str, other: &str) -> Violation {
    Violation::new(Rule::AmbiguousFormat, field, format!("{one} and {other}"), MESSAGE)
}

/// Refuses a disk of `format`, which its first bytes say, if they say something else as well.
///
/// # Errors
/// The violation.
pub(super) fn check_head(head: &[u8], format: DiskFormat) -> Result<(), Violation> {
    use DiskFormat as F;
    if matches!(format, F::Raw | F::Iso | F::Ami | F::Ari | F::Aki) {
        return Ok(());
    }
    let other = marks(head).find(|name| *name != format.name());
    let other = other.or_else(|| has_partitions(head).then_some("a partition table"));
    other.map_or(Ok(()), |other| Err(refuse("magic", format.name(), other)))
}

/// Refuses what is in a compression or an archive called `layer` if it looks like something else as well.
///
/// # Errors
/// The violation.
pub fn check_layer(head: &[u8], layer: &str) -> Result<(), Violation> {
    let other = marks(head).find(|name| *name != layer);
    other.map_or(Ok(()), |other| Err(refuse("magic", layer, other)))
}

/// Everything that `head` has the mark of, where it does not matter what the rest of it is.
fn marks(head: &[u8]) -> impl Iterator<Item = &'static str> {
    let found = SIGNATURES.iter().filter(|(offset, magic, _)| starts_with(head, *offset, magic));
    let names = found.map(|(_, _, found)| match found {
        Found::Disk(format) => format.name(),
        Found::Other { name, .. } => name,
    });
    let optical = [b"CD001".as_slice(), b"BEA01", b"NSR02", b"NSR03"];
    let optical = optical.iter().any(|name| starts_with(head, OPTICAL.saturating_add(1), name));
    names.chain(optical.then_some("iso"))
}

fn starts_with(bytes: &[u8], at: usize, magic: &[u8]) -> bool {
    bytes.get(at..).is_some_and(|rest| rest.starts_with(magic))
}

/// Whether the first sector ends as one with partitions does: the mark, four entries that may be, and one of them used.
fn has_partitions(head: &[u8]) -> bool {
    let entries = head.get(446..510).unwrap_or_default().chunks_exact(16);
    let may_be = |entry: &[u8]| matches!(entry.first(), Some(0 | 0x80));
    let used = |entry: &[u8]| entry.get(4).is_some_and(|kind| *kind != 0) && le_u32(entry, 12) != Some(0);
    starts_with(head, 510, b"\x55\xaa") && entries.clone().all(may_be) && entries.clone().any(used)
}

/// Refuses a disk of `format` if its last bytes, `tail`, are the end of something else: up to `TAIL` of them are looked at.
///
/// # Errors
/// The violation.
pub fn check_tail(tail: &[u8], format: DiskFormat) -> Result<(), Violation> {
    use DiskFormat as F;
    if matches!(format, F::Ami | F::Ari | F::Aki) {
        return Ok(());
    }
    let footer = usize::try_from(FOOTER_LENGTH).ok().and_then(|length| tail.len().checked_sub(length));
    let last = footer.and_then(|at| tail.get(at..)).unwrap_or_default();
    // That of a disk without a header is its own.
    if !matches!(format, F::Raw | F::Vhd) && Tail::of(last) == Tail::Footer {
        return Err(refuse("footer", format.name(), "vhd"));
    }
    if last.starts_with(b"koly\0\0\0\x04\0\0\x02\0") {
        return Err(refuse("koly", format.name(), "dmg"));
    }
    if ends_as_zip(tail) {
        return Err(refuse("end of central directory", format.name(), "zip"));
    }
    Ok(())
}

/// Whether the last record of a zip archive stands there, with the archive's directory before it.
fn ends_as_zip(tail: &[u8]) -> bool {
    (0..=tail.len().saturating_sub(ZIP_END)).rev().any(|at| {
        let record = tail.get(at..).unwrap_or_default();
        let comment = le_u16(record, 20).map(usize::from);
        let whole = comment.is_some_and(|comment| comment.saturating_add(ZIP_END) == record.len());
        whole && record.starts_with(b"PK\x05\x06") && has_directory(tail, at, record)
    })
}

fn has_directory(tail: &[u8], at: usize, record: &[u8]) -> bool {
    let (entries, length) = (le_u16(record, 10).unwrap_or(0), le_u32(record, 12).unwrap_or(0));
    let start = usize::try_from(length).ok().and_then(|length| at.checked_sub(length));
    // Records of larger archives stand between; and what is further away is not looked at.
    entries > 0 && start.is_none_or(|start| entries == u16::MAX || starts_with(tail, start, b"PK\x01\x02"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_a_zip_must_have_a_directory() {
        let end = |entries: u16, length: u32| {
            let mut bytes = vec![0; 100];
            bytes.extend_from_slice(b"PK\x01\x02");
            bytes.resize(146, 0);
            bytes.extend_from_slice(b"PK\x05\x06\0\0\0\0\0\0");
            bytes.extend_from_slice(&entries.to_le_bytes());
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.extend_from_slice(&[0, 0, 0, 0, 0, 0]);
            bytes
        };
        assert!(ends_as_zip(&end(1, 46)));
        assert!(
            !ends_as_zip(&end(0, 46)) && !ends_as_zip(&end(1, 45)) && !ends_as_zip(&[end(1, 46), vec![0]].concat())
        );
        assert!(!ends_as_zip(b"") && !ends_as_zip(&[0; 21]));
    }

    #[test]
    fn one_mark_is_not_two() {
        let mut head = vec![0; LOOK];
        head[..4].copy_from_slice(b"QFI\xfb");
        assert!(check_head(&head, DiskFormat::Qcow2).is_ok());
        for (at, magic) in [(64, b"\x7f\x10\xda\xbe".as_slice()), (257, b"ustar"), (OPTICAL + 1, b"CD001")] {
            let mut both = head.clone();
            both[at..at + magic.len()].copy_from_slice(magic);
            let violation = check_head(&both, DiskFormat::Qcow2).unwrap_err();
            assert_eq!((violation.rule, violation.field.as_str()), (Rule::AmbiguousFormat, "magic"));
        }
        head[510..512].copy_from_slice(b"\x55\xaa");
        assert!(check_head(&head, DiskFormat::Qcow2).is_ok());
        head[450] = 0x83;
        head[458] = 1;
        assert_eq!(check_head(&head, DiskFormat::Qcow2).unwrap_err().value, "qcow2 and a partition table");
    }
}
