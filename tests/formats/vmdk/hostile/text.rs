//! The rules of the descriptor, inside a file and alone.

use vitrine_engine::{
    format::{self, Order},
    model::{DiskFormat, Limits, Rule},
};

use super::{
    super::{
        bytes,
        made::{Stream, descriptor},
    },
    Case, Seen, assert_refused, case,
};
use crate::disk::Memory;

/// A stream with the usual descriptor in which `from` is replaced by `to`.
fn described(name: &str, from: &str, to: &str, rule: Rule, says: (&'static str, &str)) -> Case {
    let text = descriptor("streamOptimized", 1 << 11);
    assert!(text.contains(from));
    let mut stream = Stream::with_descriptor(1 << 11, &text.replace(from, to));
    stream.grain(0, &bytes(1, 65_536, false)).table(0).end();
    case(name, stream.bytes, rule, says, Seen::Tables)
}

#[test]
fn every_rule_of_keys() {
    let (cid, add, no) = ("parentCID=ffffffff\n", "version=1\n", "isNativeSnapshot=\"no\"");
    assert_refused(&[
        described("a parent", cid, "parentCID=7a5ee3b0\n", Rule::BackingFile, ("parentCID", "7a5ee3b0")),
        described(
            "a parent's name",
            cid,
            "parentCID=ffffffff\nparentFileNameHint=\"/etc/passwd\"\n",
            Rule::BackingFile,
            ("parentFileNameHint", "/etc/passwd"),
        ),
        described(
            "a parent in capitals",
            cid,
            "PARENTFILENAMEHINT = \"x\"\n",
            Rule::BackingFile,
            ("parentFileNameHint", "x"),
        ),
        described("a parent that is none", cid, "parentCID=+fffffff\n", Rule::InvalidField, ("parentCID", "+fffffff")),
        described(
            "a parent in the array",
            no,
            "isNativeSnapshot=\"yes\"",
            Rule::BackingFile,
            ("isNativeSnapshot", "yes"),
        ),
        described(
            "encrypted",
            add,
            "version=1\nencryption.keySafe = \"vmware:key/list\"\n",
            Rule::Encrypted,
            ("encryption.keysafe", "vmware"),
        ),
        described("an unknown key", add, "version=1\nsidecars=\"x\"\n", Rule::InvalidField, ("descriptor", "sidecars")),
        described(
            "a key twice",
            cid,
            "parentCID=ffffffff\nparentcid=7a5ee3b0\n",
            Rule::InvalidField,
            ("descriptor", "parentcid"),
        ),
        described("an unknown encoding", "windows-1252", "UTF-16", Rule::InvalidField, ("encoding", "utf-16")),
        described("another version", add, "version=9\n", Rule::Version, ("descriptor version", "9")),
        described("no identifier", "CID=7a5ee3b0", "CID=xyz", Rule::InvalidField, ("CID", "xyz")),
        described("a line that is none", add, "version=1\nhello\n", Rule::InvalidField, ("descriptor", "hello")),
        described("control characters", add, "version=1\n\u{1b}[2J=1\n", Rule::InvalidField, ("descriptor", "\\u{1b}")),
        described(
            "no first line",
            "# Disk DescriptorFile",
            "# Disk Descriptor",
            Rule::InvalidField,
            ("descriptor", "# Disk Descriptor"),
        ),
    ]);
}

#[test]
fn every_rule_of_extents() {
    let (kind, extent) = ("streamOptimized", "SPARSE \"generated-stream.vmdk\"");
    assert_refused(&[
        described(
            "another type of its own",
            kind,
            "monolithicSparse",
            Rule::InvalidField,
            ("createType", "monolithicSparse"),
        ),
        described("a flat disk", kind, "monolithicFlat", Rule::ExternalDataFile, ("extent", "generated-stream.vmdk")),
        described("a disk of ESXi", kind, "seSparse", Rule::UnsupportedFormat, ("createType", "seSparse")),
        described("a flat extent", extent, "FLAT \"/etc/shadow\" 0", Rule::ExternalDataFile, ("extent", "/etc/shadow")),
        described(
            "an extent elsewhere",
            extent,
            "SPARSE \"../other.vmdk\"",
            Rule::ExternalDataFile,
            ("extent", "../other.vmdk"),
        ),
        described(
            "two extents",
            "# The Disk",
            "RW 2048 SPARSE \"b.vmdk\"\n# The Disk",
            Rule::ExternalDataFile,
            ("extent", "b.vmdk"),
        ),
        described("no extent", "RDONLY 2048", "#", Rule::InvalidField, ("extent", "")),
        described("an extent without access", "RDONLY", "NOACCESS", Rule::InvalidField, ("extent", "NOACCESS")),
        described("an extent of another size", "RDONLY 2048", "RW 4096", Rule::InvalidField, ("extent size", "4096")),
        described("an extent with an offset", extent, "SPARSE \"a.vmdk\" 7", Rule::InvalidField, ("extent", "7")),
    ]);
}

#[test]
fn descriptors_alone_and_disks_of_esxi_are_refused_by_name() {
    let text = |kind: &str, extents: &str| {
        format!("# Disk DescriptorFile\r\nversion=1\r\nparentCID=ffffffff\r\ncreateType=\"{kind}\"\r\n{extents}")
    };
    let flat = "RW 2048 FLAT \"a-flat.vmdk\" 0\r\n";
    let delta = text("twoGbMaxExtentSparse", flat).replace("ffffffff", "12345678");
    for (bytes, rule, field, value) in [
        (text("monolithicFlat", flat).into_bytes(), Rule::ExternalDataFile, "extent", "a-flat.vmdk"),
        (text("vmfs", "RW 2048 VMFS \"b-flat.vmdk\"").into_bytes(), Rule::ExternalDataFile, "extent", "b-flat.vmdk"),
        (text("twoGbMaxExtentFlat", "").into_bytes(), Rule::ExternalDataFile, "createType", "twoGbMaxExtentFlat"),
        (text("vmfsSparse", flat).into_bytes(), Rule::UnsupportedFormat, "createType", "vmfsSparse"),
        (delta.into_bytes(), Rule::BackingFile, "parentCID", "12345678"),
        ([b"COWD\x01\0\0\0".as_slice(), &[0; 1000]].concat(), Rule::UnsupportedFormat, "magic", "COWD"),
        ([b"\xbe\xba\xfe\xca\0\0\0\0".as_slice(), &[0; 1000]].concat(), Rule::UnsupportedFormat, "magic", "seSparse"),
    ] {
        for declared in [None, Some(DiskFormat::Vmdk)] {
            let mut input = Memory::new(bytes.clone());
            let reasons = format::inspect(&mut input, declared, &Limits::default()).unwrap().reasons;
            assert_eq!((reasons[0].rule, reasons[0].field.as_str()), (rule, field));
            assert!(reasons[0].value.contains(value), "{reasons:?}");
            let error = format::open(&mut input, declared, &Limits::default(), Order::Stream).err().unwrap();
            assert_eq!(error.violation().unwrap().rule, rule);
        }
    }
}
