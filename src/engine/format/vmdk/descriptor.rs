//! The descriptor: the text that says which files make up the disk.
//!
//! Knows text only; opens nothing it names. In an image by itself there must be one extent, the file; an archive may bring several.

use std::collections::BTreeMap;

use super::{ExtentKind, SECTOR, header::Header};
use crate::{
    format::{detect::HEAD_LENGTH, fields::printable},
    model::{Rule, Violation},
};

/// How every descriptor begins.
pub(super) const FIRST_LINE: &[u8] = b"# Disk DescriptorFile";
/// `parentCID` of a disk that has no parent.
const NO_PARENT: u32 = u32::MAX;
/// Character sets in which quotes, signs and letters are those of ASCII. Only names are written in them.
const ENCODINGS: &[&str] = &[
    "utf-8",
    "us-ascii",
    "windows-",
    "iso-8859-",
    "gbk",
    "gb2312",
    "gb18030",
    "big5",
    "shift_jis",
    "euc-jp",
    "euc-kr",
];
/// Keys that say nothing of where the disk's bytes are. Whatever begins with `ddb.` is geometry, hardware and comment. Two name files
/// with what a backup or a cache has remembered of the disk's blocks; those are as little read as by QEMU.
const HARMLESS: &[&str] =
    &["version", "encoding", "cid", "parentcid", "isnativesnapshot", "createtype", "changetrackpath", "digestfilename"];
/// Keys that name a parent.
const PARENT: &[&str] = &["parentfilenamehint", "ddb.nativeparenthint", "ddb.nativeparentcid"];
/// Values of `createType` of disks whose extents are files of their own, and whether those are sparse.
const IN_FILES: &[(&str, bool)] = &[
    ("monolithicflat", false),
    ("twogbmaxextentflat", false),
    ("twogbmaxextentsparse", true),
    ("vmfs", false),
    ("vmfspreallocated", false),
    ("vmfseagerzeroedthick", false),
    ("vmfsthin", false),
];
/// Values of `createType` that only ESXi reads and writes.
const ESXI: &[&str] = &["vmfssparse", "sesparse"];

const BACKING: &str = "the disk is a difference to another one: an image must be complete by itself; \
                       consolidate the snapshots and export it again";
const EXTERNAL: &str = "an image must hold its disk itself: convert the disk where all its files are, \
                        with `qemu-img convert -O qcow2` on this descriptor";

/// What a descriptor says.
#[derive(Debug, Default)]
struct Descriptor<'a> {
    /// By key in lower case.
    entries: BTreeMap<String, &'a [u8]>,
    extents: Vec<Extent<'a>>,
}

/// One line of the extent description.
#[derive(Debug)]
struct Extent<'a> {
    access: &'a [u8],
    sectors: &'a [u8],
    kind: &'a [u8],
    name: &'a [u8],
    rest: &'a [u8],
}

/// Judges the descriptor inside a file with this header. `bytes` is all of it, with what follows the text's
/// end, a zero.
///
/// # Errors
/// The first violation.
pub(super) fn check(bytes: &[u8], header: &Header) -> Result<(), Violation> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    // What stands behind it is left over from a longer text: QEMU writes shorter ones in place.
    let text = bytes.get(..end).unwrap_or(bytes);
    let descriptor = Descriptor::parse(text)?;
    descriptor.check_content()?;
    descriptor.check_type(if header.is_packed() { "streamOptimized" } else { "monolithicSparse" })?;
    descriptor.check_keys()?;
    descriptor.check_extent(header.fields.capacity)
}

/// An extent as a descriptor names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedExtent {
    /// Name of its file, beside the descriptor; empty where it is of zeros.
    pub name: String,
    /// Length in the guest's disk, in bytes.
    pub size: u64,
    /// How it lies in the file.
    pub kind: ExtentKind,
}

/// The extents that `text` names, if it is a descriptor; `None` if it is none. Each name is one of a file beside it.
///
/// # Errors
/// The first violation: a disk that needs a parent, or a device, or lies in a way that is not read.
pub fn named_extents(text: &[u8]) -> Option<Result<Vec<NamedExtent>, Violation>> {
    text.starts_with(FIRST_LINE).then(|| {
        let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
        let descriptor = Descriptor::parse(text.get(..end).unwrap_or(text))?;
        descriptor.check_content()?;
        let sparse = descriptor.extents_are_sparse()?;
        descriptor.check_keys()?;
        let extents: Vec<_> = descriptor.extents.iter().map(|extent| extent.named(sparse)).collect::<Result<_, _>>()?;
        let mut names: Vec<_> = extents.iter().map(|extent| &extent.name).filter(|name| !name.is_empty()).collect();
        names.sort_unstable();
        if let Some([twice, _]) = names.array_windows().find(|[one, other]| one == other) {
            return Err(invalid("extent", twice.as_bytes(), "two extents lie in this file: each has one of its own"));
        }
        if extents.is_empty() {
            return Err(invalid("extent", b"", "there is no extent line: the descriptor is damaged"));
        }
        Ok(extents)
    })
}

/// Why a file that is a descriptor and nothing else is refused. `head` may be cut.
pub(super) fn refuse_alone(head: &[u8]) -> Violation {
    let text = match head.iter().rposition(|byte| *byte == b'\n') {
        Some(last) if head.len() >= HEAD_LENGTH => head.get(..last).unwrap_or(head),
        _ => head,
    };
    let text = text.split(|byte| *byte == 0).next().unwrap_or(text);
    let descriptor = match Descriptor::parse(text) {
        Ok(descriptor) => descriptor,
        Err(violation) => return violation,
    };
    if let Err(violation) = descriptor.check_content() {
        return violation;
    }
    let kind = descriptor.value("createtype").unwrap_or_default();
    if ESXI.iter().any(|name| kind.eq_ignore_ascii_case(name.as_bytes())) {
        return foreign(kind);
    }
    match descriptor.extents.first() {
        Some(extent) => external("extent", extent.name),
        None => external("createType", kind),
    }
}

fn external(field: &str, name: &[u8]) -> Violation {
    Violation::new(Rule::ExternalDataFile, field, printable(name), EXTERNAL)
}

fn foreign(kind: &[u8]) -> Violation {
    let message = "a form of disk that only ESXi reads: export the machine as OVF, or convert it with `qemu-img convert -O qcow2`";
    Violation::new(Rule::UnsupportedFormat, "createType", printable(kind), message)
}

fn invalid(field: &str, value: &[u8], message: &str) -> Violation {
    Violation::new(Rule::InvalidField, field, printable(value), message)
}

impl<'a> Descriptor<'a> {
    fn parse(text: &'a [u8]) -> Result<Self, Violation> {
        let mut lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        let first = lines.next().unwrap_or_default();
        if !first.eq_ignore_ascii_case(FIRST_LINE) {
            return Err(invalid(
                "descriptor",
                first,
                "its first line is `# Disk DescriptorFile`: the image is damaged",
            ));
        }
        let mut descriptor = Self::default();
        for line in lines.filter(|line| !line.is_empty() && !line.starts_with(b"#")) {
            descriptor.add(line)?;
        }
        Ok(descriptor)
    }

    fn add(&mut self, line: &'a [u8]) -> Result<(), Violation> {
        if line.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
            return Err(invalid("descriptor", line, "a line with control characters: the image is damaged"));
        }
        if let Some(extent) = Extent::parse(line) {
            self.extents.push(extent);
            return Ok(());
        }
        let Some((key, value)) = split_at_byte(line, b'=') else {
            return Err(invalid("descriptor", line, "neither `key=value` nor an extent: the image is damaged"));
        };
        let key = String::from_utf8_lossy(key.trim_ascii()).to_ascii_lowercase();
        let value = unquote(value.trim_ascii());
        if key.starts_with("encryption.") {
            let message =
                "encrypted content cannot be checked: remove the encryption, and let the storage encrypt it again";
            return Err(Violation::new(Rule::Encrypted, key, printable(value), message));
        }
        if self.entries.insert(key, value).is_some() {
            return Err(invalid("descriptor", line, "the key stands there twice, so readers may disagree about it"));
        }
        Ok(())
    }

    fn value(&self, key: &str) -> Option<&'a [u8]> {
        self.entries.get(key).copied()
    }

    /// What holds whether the descriptor is alone or not: the disk needs no parent.
    fn check_content(&self) -> Result<(), Violation> {
        let hint = PARENT.iter().find_map(|key| Some((*key, self.value(key)?)));
        if let Some((key, name)) = hint {
            let name_of_key = if key == "parentfilenamehint" { "parentFileNameHint" } else { key };
            return Err(Violation::new(Rule::BackingFile, name_of_key, printable(name), BACKING));
        }
        if let Some(value) = self.value("parentcid") {
            match hexadecimal(value) {
                Some(NO_PARENT) => {}
                Some(_) => return Err(Violation::new(Rule::BackingFile, "parentCID", printable(value), BACKING)),
                None => return Err(invalid("parentCID", value, "eight hexadecimal digits belong there")),
            }
        }
        match self.value("isnativesnapshot") {
            Some(value) if !value.eq_ignore_ascii_case(b"no") => {
                Err(Violation::new(Rule::BackingFile, "isNativeSnapshot", printable(value), BACKING))
            }
            _ => Ok(()),
        }
    }

    fn check_type(&self, expected: &str) -> Result<(), Violation> {
        let kind = self.value("createtype").unwrap_or_default();
        if kind.eq_ignore_ascii_case(expected.as_bytes()) {
            return Ok(());
        }
        if ESXI.iter().any(|name| kind.eq_ignore_ascii_case(name.as_bytes())) {
            return Err(foreign(kind));
        }
        let own = ["monolithicSparse", "streamOptimized"].iter().any(|name| kind.eq_ignore_ascii_case(name.as_bytes()));
        if kind.is_empty() || own {
            let message = format!("the header is that of a {expected} disk: the image is damaged");
            return Err(invalid("createType", kind, &message));
        }
        // Every other type has its data in files or devices of their own.
        Err(self.extents.first().map_or_else(|| external("createType", kind), |extent| external("extent", extent.name)))
    }

    /// Whether the extents, which are files, are sparse.
    fn extents_are_sparse(&self) -> Result<bool, Violation> {
        let kind = self.value("createtype").unwrap_or_default();
        let known = IN_FILES.iter().find(|(name, _)| kind.eq_ignore_ascii_case(name.as_bytes()));
        if let Some((_, sparse)) = known {
            return Ok(*sparse);
        }
        if ESXI.iter().any(|name| kind.eq_ignore_ascii_case(name.as_bytes())) {
            return Err(foreign(kind));
        }
        Err(self.extents.first().map_or_else(|| external("createType", kind), |extent| external("extent", extent.name)))
    }

    fn check_keys(&self) -> Result<(), Violation> {
        for key in self.entries.keys() {
            let key = key.as_str();
            if !HARMLESS.contains(&key) && !key.starts_with("ddb.") {
                let message = "a key that is not known and may change what the disk is: export the machine again";
                return Err(invalid("descriptor", key.as_bytes(), message));
            }
        }
        let encoding = self.value("encoding").map(|value| String::from_utf8_lossy(value).to_ascii_lowercase());
        if let Some(encoding) = encoding.filter(|found| !ENCODINGS.iter().any(|known| found.starts_with(known))) {
            return Err(invalid("encoding", encoding.as_bytes(), "a character set that is not known"));
        }
        if let Some(cid) = self.value("cid").filter(|cid| hexadecimal(cid).is_none()) {
            return Err(invalid("CID", cid, "eight hexadecimal digits belong there"));
        }
        match self.value("version") {
            Some(b"1" | b"2" | b"3" | b"4") => Ok(()),
            found => {
                let found = printable(found.unwrap_or_default());
                Err(Violation::new(Rule::Version, "descriptor version", found, "descriptors have versions 1 to 4"))
            }
        }
    }

    /// There must be one extent, sparse, as long as the disk, whose name is no way to anywhere else.
    fn check_extent(&self, capacity: u64) -> Result<(), Violation> {
        let Some(extent) = self.extents.first() else {
            return Err(invalid("extent", b"", "there is no extent line: the image is damaged"));
        };
        if let Some(second) = self.extents.get(1) {
            return Err(external("extent", second.name));
        }
        if !extent.kind.eq_ignore_ascii_case(b"SPARSE") || extent.name.iter().any(|byte| matches!(byte, b'/' | b'\\')) {
            return Err(external("extent", extent.name));
        }
        if extent.access.eq_ignore_ascii_case(b"NOACCESS") || !extent.rest.is_empty() {
            let message = "an extent in one file is `RW` or `RDONLY` and has nothing behind its name";
            return Err(invalid("extent", if extent.rest.is_empty() { extent.access } else { extent.rest }, message));
        }
        let sectors = std::str::from_utf8(extent.sectors).ok().and_then(|text| text.parse::<u64>().ok());
        if sectors != Some(capacity) {
            let bytes = capacity.saturating_mul(SECTOR);
            let message =
                format!("the header says that the disk has {capacity} sectors ({bytes} bytes): one of them lies");
            return Err(invalid("extent size", extent.sectors, &message));
        }
        Ok(())
    }
}

impl<'a> Extent<'a> {
    /// `access sectors type "name" rest`; `None` if the line does not begin as one.
    fn parse(line: &'a [u8]) -> Option<Self> {
        let (access, rest) = word(line);
        if !["RW", "RDONLY", "NOACCESS"].iter().any(|known| access.eq_ignore_ascii_case(known.as_bytes())) {
            return None;
        }
        let (sectors, rest) = word(rest);
        let (kind, rest) = word(rest);
        let (name, rest) = match rest.strip_prefix(b"\"").and_then(|rest| split_at_byte(rest, b'"')) {
            Some((name, rest)) => (name, rest.trim_ascii()),
            None => (rest, [].as_slice()),
        };
        Some(Self { access, sectors, kind, name, rest })
    }
}

impl Extent<'_> {
    /// What the line says, if it is of a file beside the descriptor.
    fn named(&self, sparse: bool) -> Result<NamedExtent, Violation> {
        if self.access.eq_ignore_ascii_case(b"NOACCESS") {
            return Err(invalid("extent", self.access, "an extent of an image is `RW` or `RDONLY`"));
        }
        let sectors = std::str::from_utf8(self.sectors).ok().and_then(|text| text.parse::<u64>().ok());
        let size = sectors.and_then(|sectors| sectors.checked_mul(SECTOR)).filter(|size| *size > 0);
        let size = size.ok_or_else(|| invalid("extent size", self.sectors, "a number of sectors belongs there"))?;
        if self.kind.eq_ignore_ascii_case(b"ZERO") && self.name.is_empty() {
            return Ok(NamedExtent { name: String::new(), size, kind: ExtentKind::Zero });
        }
        let kind = match self.kind.to_ascii_uppercase().as_slice() {
            b"SPARSE" if sparse && self.rest.is_empty() => ExtentKind::Sparse,
            b"VMFS" if !sparse && self.rest.is_empty() => ExtentKind::Flat(0),
            b"FLAT" | b"VMFS" if !sparse => ExtentKind::Flat(self.offset()?),
            // Devices and mappings of them among others.
            _ => return Err(external("extent", if self.name.is_empty() { self.kind } else { self.name })),
        };
        Ok(NamedExtent { name: self.plain_name()?, size, kind })
    }

    /// Where in its file the extent begins, in bytes.
    fn offset(&self) -> Result<u64, Violation> {
        let sectors = std::str::from_utf8(self.rest).ok().and_then(|text| text.parse::<u64>().ok());
        let offset = sectors.and_then(|sectors| sectors.checked_mul(SECTOR));
        offset.ok_or_else(|| invalid("extent offset", self.rest, "a number of sectors belongs there"))
    }

    /// The name, which leads nowhere else.
    fn plain_name(&self) -> Result<String, Violation> {
        let Ok(name) = std::str::from_utf8(self.name) else {
            return Err(invalid("extent", self.name, "the name is not UTF-8: rename the files and the line"));
        };
        if name.is_empty() || matches!(name, "." | "..") || name.contains(['/', '\\', ':']) {
            return Err(external("extent", self.name));
        }
        Ok(name.to_owned())
    }
}

/// The first word and what follows it.
fn word(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(u8::is_ascii_whitespace).unwrap_or(text.len());
    let (word, rest) = text.split_at_checked(end).unwrap_or((text, &[]));
    (word, rest.trim_ascii_start())
}

/// What stands before the first `byte` and what behind it.
fn split_at_byte(text: &[u8], byte: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|found| *found == byte)?;
    let (before, rest) = text.split_at_checked(at)?;
    Some((before, rest.get(1..)?))
}

fn unquote(value: &[u8]) -> &[u8] {
    value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(value)
}

/// One to eight hexadecimal digits.
fn hexadecimal(value: &[u8]) -> Option<u32> {
    let digits = value.iter().all(u8::is_ascii_hexdigit);
    std::str::from_utf8(value).ok().filter(|_| digits).and_then(|text| u32::from_str_radix(text, 16).ok())
}

/// The descriptor of a disk of `capacity` sectors that we write.
pub(super) fn write(kind: &str, capacity: u64) -> String {
    // How VMware lays out SCSI disks, by size in GiB.
    let (heads, sectors) = match capacity.saturating_mul(SECTOR) >> 30 {
        0 => (64_u64, 32_u64),
        1 => (128, 32),
        _ => (255, 63),
    };
    let cylinders = capacity.checked_div(heads.saturating_mul(sectors)).unwrap_or(0).clamp(1, 65535);
    // This content identifier is the one of a disk that no snapshot was taken of; two files of one disk are alike.
    format!(
        "# Disk DescriptorFile\nversion=1\nencoding=\"UTF-8\"\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"{kind}\"\n\n\
         # Extent description\nRW {capacity} SPARSE \"disk.vmdk\"\n\n\
         # The Disk Data Base\n#DDB\n\n\
         ddb.adapterType = \"lsilogic\"\nddb.geometry.cylinders = \"{cylinders}\"\nddb.geometry.heads = \"{heads}\"\n\
         ddb.geometry.sectors = \"{sectors}\"\nddb.virtualHWVersion = \"4\"\n"
    )
}
