//! What a file is, by its first bytes.
//!
//! Knows the magic numbers of disk formats, archives and pages, and whether a declared format fits the found one.
//! Must not read more than the head it is given, nor judge anything behind it.

use crate::{
    format::fields::be_u32,
    model::{DiskFormat, Rule, Violation},
};

/// Length of the head that detection looks at, in bytes. The volume recognition sequence of ISO 9660 and UDF (ECMA-167,
/// part 2) begins at 32 KiB and ends well before 64 KiB.
pub(super) const HEAD_LENGTH: usize = 64 << 10;

/// The least that a guest can read or write, in bytes.
const SECTOR: usize = 512;

/// What the head shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A disk format with a name of its own.
    Disk(DiskFormat),
    /// Something that is recognised and can be no image here.
    Other {
        /// What a person calls it.
        name: &'static str,
        /// The rule it breaks.
        rule: Rule,
        /// What to do instead.
        advice: &'static str,
    },
}

const PACKED: &str =
    "it is a compressed file or an archive, not a disk: unpack it first, or name the format of what is inside";
const CONVERT: &str = "convert it with `qemu-img convert -O qcow2`";
const PAGE: &str = "a text came where the image should be, often an error or login page: open the URL in a browser";
const SHORT: &str = "a disk has at least one sector of 512 bytes: the source was cut off, or is something else";
const EMPTY: &str = "the input has no bytes: check the URL or the file";

const fn packed(name: &'static str) -> Found {
    Found::Other { name, rule: Rule::NotADisk, advice: PACKED }
}

const fn unsupported(name: &'static str) -> Found {
    Found::Other { name, rule: Rule::UnsupportedFormat, advice: CONVERT }
}

/// Offset, magic bytes and meaning. The first that matches wins.
pub(super) const SIGNATURES: &[(usize, &[u8], Found)] = &[
    (0, b"QFI\xfb", Found::Disk(DiskFormat::Qcow2)),
    (0, b"QED\0", unsupported("qed")),
    (
        0,
        b"LUKS\xba\xbe",
        Found::Other {
            name: "luks",
            rule: Rule::Encrypted,
            advice: "encrypted content cannot be checked: decrypt it, and let the storage encrypt it again",
        },
    ),
    (0, b"KDMV", Found::Disk(DiskFormat::Vmdk)),
    (0, b"COWD", unsupported("vmdk COWD (vmfsSparse)")),
    (0, b"\xbe\xba\xfe\xca\0\0\0\0", unsupported("vmdk seSparse")),
    (0, b"# Disk DescriptorFile", Found::Disk(DiskFormat::Vmdk)),
    (0, b"vhdxfile", Found::Disk(DiskFormat::Vhdx)),
    (0, b"conectix", Found::Disk(DiskFormat::Vhd)),
    (64, b"\x7f\x10\xda\xbe", Found::Disk(DiskFormat::Vdi)),
    (0, b"WithoutFreeSpace", Found::Disk(DiskFormat::Ploop)),
    (0, b"WithouFreSpacExt", Found::Disk(DiskFormat::Ploop)),
    (0, b"Bochs Virtual HD Image", unsupported("bochs")),
    (0, b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop", unsupported("cloop")),
    (0, b"EVF\x09\x0d\x0a\xff\0", unsupported("ewf")),
    (0, b"\x1f\x8b\x08", packed("gzip")),
    (0, b"\xfd7zXZ\0", packed("xz")),
    (0, b"\x28\xb5\x2f\xfd", packed("zstd")),
    (0, b"\x04\x22\x4d\x18", packed("lz4")),
    (0, b"LZIP\x01", packed("lzip")),
    (0, b"PK\x03\x04", packed("zip")),
    (0, b"PK\x05\x06", packed("zip")),
    (0, b"7z\xbc\xaf\x27\x1c", packed("7z")),
    (0, b"Rar!\x1a\x07", packed("rar")),
    (257, b"ustar", packed("tar")),
];

/// What `head`, the first `HEAD_LENGTH` bytes or all there are, shows.
pub(super) fn detect(head: &[u8]) -> Found {
    if head.is_empty() {
        return Found::Other { name: "nothing", rule: Rule::NotADisk, advice: EMPTY };
    }
    if is_bzip2(head) {
        return packed("bzip2");
    }
    let signature = SIGNATURES
        .iter()
        .find(|(offset, magic, _)| head.get(*offset..).is_some_and(|rest| rest.starts_with(magic)))
        .map(|(_, _, found)| *found);
    match signature {
        Some(Found::Disk(DiskFormat::Qcow2)) if be_u32(head, 4) == Some(1) => {
            Found::Other { name: "qcow version 1", rule: Rule::Version, advice: CONVERT }
        }
        Some(found) => found,
        None if is_optical(head) => Found::Disk(DiskFormat::Iso),
        None if is_text(head) => Found::Other { name: "a text", rule: Rule::NotADisk, advice: PAGE },
        None if head.len() < SECTOR => Found::Other { name: "less than a sector", rule: Rule::NotADisk, advice: SHORT },
        None => Found::Disk(DiskFormat::Raw),
    }
}

/// bzip2: a level digit after the magic, then the block or end magic, both of which are digits of pi or its root.
fn is_bzip2(head: &[u8]) -> bool {
    head.starts_with(b"BZh")
        && head.get(3).is_some_and(|level| (b'1'..=b'9').contains(level))
        && head.get(4..10).is_some_and(|magic| magic == b"1AY&SY" || magic == b"\x17\x72\x45\x38\x50\x90")
}

/// ISO 9660 or UDF: one of their identifiers in the volume recognition sequence (ECMA-119 8.1, ECMA-167 2/9.1).
fn is_optical(head: &[u8]) -> bool {
    const FIRST_SECTOR: usize = 32 << 10;
    const SECTOR: usize = 2 << 10;
    let mut sectors = head.get(FIRST_SECTOR..).unwrap_or_default().chunks(SECTOR);
    sectors.any(|sector| sector.get(1..6).is_some_and(|name| matches!(name, b"CD001" | b"NSR02" | b"NSR03")))
}

/// Whether the head is a page or another text: nothing but text, and it looks like markup or has lines. Disks of one
/// repeated letter exist in tests and are no text by this rule.
fn is_text(head: &[u8]) -> bool {
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        // The head may end inside a character.
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(head.get(..error.valid_up_to()).unwrap_or_default()).unwrap_or_default()
        }
        Err(_) => return false,
    };
    let text = text.trim_start_matches('\u{feff}');
    let printable = text.chars().all(|c| !c.is_control() || matches!(c, '\t' | '\n' | '\r' | '\u{c}' | '\u{1b}'));
    let begins_as_markup = text.trim_start().starts_with(['<', '{', '[']);
    printable && !text.is_empty() && (begins_as_markup || text.contains('\n'))
}

/// How an accepted file is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    /// As it is, under this name: raw or iso by its first bytes. What was declared has to fit its last ones as well.
    Flat(DiskFormat, Option<DiskFormat>),
    /// Through the tables of a dynamic vhd.
    Vhd,
    /// Through the block map of vdi.
    Vdi,
    /// Through the tables of qcow2.
    Qcow2,
    /// Through the BAT of vhdx.
    Vhdx,
    /// Through the BAT of ploop.
    Ploop,
    /// Through the tables or the markers of vmdk.
    Vmdk,
}

/// How to read what was found, given what the user declared.
///
/// # Errors
/// The violation, if the declared format is not the found one, or what was found cannot be an image here.
pub(super) fn settle(found: Found, declared: Option<DiskFormat>) -> Result<Reader, Violation> {
    let format = match found {
        Found::Disk(format) => format,
        Found::Other { name, rule, advice } => return Err(Violation::new(rule, "magic", name, advice)),
    };
    match declared {
        // A raw copy of an optical disc is a raw disk as well; its user decides what it is.
        Some(DiskFormat::Raw) if format == DiskFormat::Iso => return Ok(Reader::Flat(DiskFormat::Raw, declared)),
        // A fixed vhd has its footer at the end only, where the reader looks for it.
        Some(DiskFormat::Vhd) if matches!(format, DiskFormat::Raw | DiskFormat::Iso) => {
            return Ok(Reader::Flat(format, declared));
        }
        Some(declared) if declared != format => {
            let message = format!("{declared} was declared, and the file is {format}: declare what it is, or `auto`");
            return Err(Violation::new(Rule::FormatMismatch, "diskFormat", format, message));
        }
        Some(_) | None => {}
    }
    match format {
        // Amazon's are found only where they are declared.
        DiskFormat::Raw | DiskFormat::Iso | DiskFormat::Ami | DiskFormat::Ari | DiskFormat::Aki => {
            Ok(Reader::Flat(format, declared))
        }
        DiskFormat::Qcow2 => Ok(Reader::Qcow2),
        DiskFormat::Vmdk => Ok(Reader::Vmdk),
        DiskFormat::Vhd => Ok(Reader::Vhd),
        DiskFormat::Vhdx => Ok(Reader::Vhdx),
        DiskFormat::Vdi => Ok(Reader::Vdi),
        DiskFormat::Ploop => Ok(Reader::Ploop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(head: &[u8], declared: Option<DiskFormat>) -> Result<Reader, Rule> {
        settle(detect(head), declared).map_err(|v| v.rule)
    }

    fn padded(offset: usize, magic: &[u8]) -> Vec<u8> {
        let mut head = vec![0; offset];
        head.extend_from_slice(magic);
        head.resize(HEAD_LENGTH, 0);
        head
    }

    #[test]
    fn disks_are_told_from_what_is_none() {
        let raw = Some(DiskFormat::Raw);
        assert_eq!(rule(&padded(510, b"\x55\xaa"), None), Ok(Reader::Flat(DiskFormat::Raw, None)));
        assert_eq!(rule(&[b'a'; 512], raw), Ok(Reader::Flat(DiskFormat::Raw, raw)));
        assert_eq!(rule(&padded(0, b"QFI\xfb\0\0\0\x03"), None), Ok(Reader::Qcow2));
        assert_eq!(rule(&padded(0, b"QFI\xfb\0\0\0\x01"), None), Err(Rule::Version));
        for (head, expected) in [
            (padded(0, b"QED\0"), Rule::UnsupportedFormat),
            (padded(0, b"LUKS\xba\xbe\0\x02"), Rule::Encrypted),
            (padded(0, b"BZh91AY&SY"), Rule::NotADisk),
            (padded(257, b"ustar\0"), Rule::NotADisk),
            (padded(0, b"\x1f\x8b\x08"), Rule::NotADisk),
            (b"\n<!DOCTYPE html><p>404</p>".to_vec(), Rule::NotADisk),
            (b"{\"error\": \"gone\"}".to_vec(), Rule::NotADisk),
            ("Grüße\nzwei Zeilen".repeat(4000).into_bytes(), Rule::NotADisk),
            (vec![], Rule::NotADisk),
            (vec![7; 511], Rule::NotADisk),
        ] {
            assert_eq!(rule(&head, None), Err(expected));
            assert_eq!(rule(&head, raw), Err(expected));
        }
    }

    #[test]
    fn declared_must_be_found() {
        let iso = padded(32769, b"CD001");
        let (raw, vhd) = (Some(DiskFormat::Raw), Some(DiskFormat::Vhd));
        assert_eq!(rule(&iso, None), Ok(Reader::Flat(DiskFormat::Iso, None)));
        assert_eq!(rule(&iso, raw), Ok(Reader::Flat(DiskFormat::Raw, raw)));
        assert_eq!(rule(&iso, vhd), Ok(Reader::Flat(DiskFormat::Iso, vhd)));
        assert_eq!(rule(&padded(34817, b"NSR03"), None), Ok(Reader::Flat(DiskFormat::Iso, None)));
        assert_eq!(rule(&padded(0, b"\xeb\x3c\x90"), Some(DiskFormat::Iso)), Err(Rule::FormatMismatch));
        assert_eq!(rule(&padded(0, b"QFI\xfb\0\0\0\x03"), Some(DiskFormat::Raw)), Err(Rule::FormatMismatch));
        assert_eq!(rule(&padded(0, b"KDMV"), Some(DiskFormat::Raw)), Err(Rule::FormatMismatch));
        assert_eq!(rule(&padded(0, b"KDMV"), Some(DiskFormat::Vmdk)), Ok(Reader::Vmdk));
        assert_eq!(rule(&padded(0, b"COWD"), Some(DiskFormat::Vmdk)), Err(Rule::UnsupportedFormat));
        assert_eq!(rule(&padded(0, b"\xbe\xba\xfe\xca\0\0\0\0"), None), Err(Rule::UnsupportedFormat));
        assert_eq!(rule(&padded(64, b"\x7f\x10\xda\xbe"), None), Ok(Reader::Vdi));
        assert_eq!(rule(&padded(0, b"conectix"), None), Ok(Reader::Vhd));
        assert_eq!(rule(&padded(0, b"conectix"), raw), Err(Rule::FormatMismatch));
        assert_eq!(rule(&padded(0, b"QFI\xfb\0\0\0\x03"), vhd), Err(Rule::FormatMismatch));
    }
}
