//! The footer: what kind of disk it is, and how large.
//!
//! Knows its 512 bytes ("Hard Disk Footer Format"); must not know where they came from, except to say it.

use super::{
    FOOTER_COOKIE, FOOTER_LENGTH, MAX_GEOMETRY, MAX_SECTORS, SECTOR, TYPE_DIFFERENCING, TYPE_DYNAMIC, TYPE_FIXED,
    VERSION, checksum,
};
use crate::{
    format::fields::{be_u16, be_u32, be_u64, printable},
    model::{Rule, Violation},
};

/// Bytes of the largest cylinder. A disk that goes by its geometry is cut to whole cylinders, so it is less than this shorter than
/// the data of its file.
pub(in crate::format) const CYLINDER: u64 = 16 * 255 * SECTOR;

/// Where the checksum stands.
const CHECKSUM: usize = 64;

/// Creators whose disks are as large as their geometry says; see `Footer::size`.
const BY_GEOMETRY: [&[u8; 4]; 2] = [b"vpc ", b"qemu"];

/// The fields by name and offset; each goes as far as the next.
const FIELDS: [(usize, &str); 17] = [
    (0, "cookie"),
    (8, "features"),
    (12, "file_format_version"),
    (16, "data_offset"),
    (24, "time_stamp"),
    (28, "creator_application"),
    (32, "creator_version"),
    (36, "creator_host_os"),
    (40, "original_size"),
    (48, "current_size"),
    (56, "disk_geometry"),
    (60, "disk_type"),
    (64, "checksum"),
    (68, "unique_id"),
    (84, "saved_state"),
    (85, "reserved"),
    (512, "end"),
];

/// What the last bytes of a file look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::format) enum Tail {
    /// A footer, whatever it says.
    Footer,
    /// Something that begins as a footer and does not add up.
    Broken,
    /// Anything else.
    Other,
}

impl Tail {
    /// Looks at `tail`, the last 512 bytes of a file, or what there is.
    pub(in crate::format) fn of(tail: &[u8]) -> Self {
        if old_footer(tail).is_some() {
            return Self::Footer;
        }
        if !tail.starts_with(&FOOTER_COOKIE) {
            return Self::Other;
        }
        if be_u32(tail, CHECKSUM) == Some(checksum(tail, CHECKSUM)) { Self::Footer } else { Self::Broken }
    }
}

/// The 511 bytes that Virtual PC wrote before 2004, if `tail` ends in them.
fn old_footer(tail: &[u8]) -> Option<&[u8]> {
    let old = tail.get(1..).filter(|old| old.starts_with(&FOOTER_COOKIE))?;
    // The byte that they lack was always zero.
    (be_u32(old, CHECKSUM) == Some(checksum(old, CHECKSUM))).then_some(old)
}

/// What kind of disk it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::format) enum Kind {
    /// All of the disk, as it is, and the footer behind it.
    Fixed,
    /// Blocks, found by a table.
    Dynamic,
    /// The same, and a parent holds what is not in them.
    Differencing,
}

/// A footer that holds to every rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::format) struct Footer {
    pub(super) kind: Kind,
    /// Of the disk, in bytes: a multiple of 512.
    pub(super) size: u64,
    /// Where the header of a dynamic disk stands, in bytes.
    pub(super) data_offset: u64,
}

impl Footer {
    /// Reads a footer.
    ///
    /// # Errors
    /// The first violation.
    pub(in crate::format) fn parse(bytes: &[u8]) -> Result<Self, Violation> {
        if old_footer(bytes).is_some() {
            let message =
                "the footer has 511 bytes, as before Virtual PC 2004: convert the disk with a program of its time";
            return Err(Violation::new(Rule::Version, "footer", "511 bytes", message));
        }
        if !bytes.starts_with(&FOOTER_COOKIE) {
            let found = printable(bytes.get(..8).unwrap_or(bytes));
            return Err(Violation::new(Rule::InvalidField, "cookie", found, "a vhd footer begins with `conectix`"));
        }
        let cut = || {
            let message = "the file ends inside its footer: the download was cut short";
            Violation::new(Rule::Truncated, "footer", format!("{} bytes", bytes.len()), message)
        };
        let number = |at| be_u32(bytes, at).ok_or_else(cut);
        let computed = checksum(bytes.get(..512).ok_or_else(cut)?, CHECKSUM);
        check_number("checksum", number(CHECKSUM)?, computed)?;
        check_version("file_format_version", number(12)?)?;
        let kind = match number(60)? {
            TYPE_FIXED => Kind::Fixed,
            TYPE_DYNAMIC => Kind::Dynamic,
            TYPE_DIFFERENCING => Kind::Differencing,
            other => {
                let message = "a disk is fixed (2), dynamic (3) or differencing (4): other types were never used";
                return Err(Violation::new(Rule::InvalidField, "disk_type", other, message));
            }
        };
        if let Some(state @ 1..) = bytes.get(84) {
            let message =
                "a machine was saved while it used this disk: start it and shut it down, then export the disk again";
            return Err(Violation::new(Rule::Dirty, "saved_state", state, message));
        }
        let size = Self::size(bytes).ok_or_else(cut)?;
        if size / SECTOR > MAX_SECTORS {
            let message = "a vhd has at most 2040 GiB: the field is wrong";
            return Err(Violation::new(Rule::VirtualSizeLimit, "current_size", size, message));
        }
        Ok(Self { kind, size, data_offset: be_u64(bytes, 16).ok_or_else(cut)? })
    }

    /// The size of the guest's disk in bytes: `Current Size` or what the geometry says, as qemu 10 decides it (block/vpc.c, and
    /// `qemu-img info -f vpc` on every case in tests/formats).
    ///
    /// Virtual PC shows its guests whole cylinders and rounds `Current Size` up, and qemu did the same until 2.5: so for the creators
    /// `vpc ` and `qemu` the geometry counts. Everybody else means `Current Size`: Hyper-V (`win `), Disk2vhd (`d2v `), XenServer
    /// (`tap`), XenConverter (`CTXS`), Azure (`wa`), VirtualBox (`vbox`), qemu since (`qem2`). A geometry that has as many sectors as
    /// the largest, 65535 × 16 × 255, says nothing; `Current Size` counts then whoever wrote it. Bytes after the last whole sector do not
    /// count.
    fn size(bytes: &[u8]) -> Option<u64> {
        let creator: &[u8; 4] = bytes.get(28..)?.first_chunk()?;
        let (cylinders, heads, sectors) = (be_u16(bytes, 56)?, *bytes.get(58)?, *bytes.get(59)?);
        let product = |(c, h, s): (u16, u8, u8)| u64::from(c).saturating_mul(u64::from(h)).saturating_mul(u64::from(s));
        let geometry = product((cylinders, heads, sectors));
        let sectors = if BY_GEOMETRY.contains(&creator) && geometry != product(MAX_GEOMETRY) {
            geometry
        } else {
            be_u64(bytes, 48)? / SECTOR
        };
        Some(sectors.saturating_mul(SECTOR))
    }

    /// Size in bytes of the fixed disk in a file of `length` bytes that this footer ends.
    ///
    /// # Errors
    /// The violation, if it is no fixed disk's footer or does not fit the file.
    pub(in crate::format) fn fixed_size(self, length: u64) -> Result<u64, Violation> {
        let data = length.saturating_sub(FOOTER_LENGTH);
        if self.kind != Kind::Fixed {
            let message = "the footer at the file's end is of a disk with a table, and the copy that begins such a file is missing: \
                           the beginning is lost, or it was overwritten";
            return Err(Violation::new(Rule::InvalidField, "disk_type", self.kind.number(), message));
        }
        if self.size > data {
            let message = format!(
                "the disk has {} bytes and the file holds {data} of them: it was cut, or put together",
                self.size
            );
            return Err(Violation::new(Rule::Truncated, "current_size", self.size, message));
        }
        if self.size == 0 || data.saturating_sub(self.size) >= CYLINDER {
            let message = format!("the file holds {data} bytes of data: size and geometry are not of this disk");
            return Err(Violation::new(Rule::InvalidField, "current_size", self.size, message));
        }
        Ok(self.size)
    }
}

impl Kind {
    fn number(self) -> u32 {
        match self {
            Self::Fixed => TYPE_FIXED,
            Self::Dynamic => TYPE_DYNAMIC,
            Self::Differencing => TYPE_DIFFERENCING,
        }
    }
}

/// The first field in which two footers differ, and what it is in the second. The checksum only if it is the one field that does.
pub(super) fn difference(copy: &[u8], footer: &[u8]) -> Option<(&'static str, String)> {
    let differs = |at: &usize| copy.get(*at) != footer.get(*at);
    let at = (0..CHECKSUM)
        .chain(CHECKSUM.saturating_add(4)..512)
        .chain(CHECKSUM..CHECKSUM.saturating_add(4))
        .find(differs)?;
    let next = FIELDS.iter().position(|(offset, _)| *offset > at)?;
    let (end, _) = FIELDS.get(next)?;
    let (start, name) = FIELDS.get(next.checked_sub(1)?)?;
    Some((name, hex::encode(footer.get(*start..(*end).min(start.saturating_add(16)))?)))
}

/// # Errors
/// The violation, if what stands there is not what the other bytes add up to.
pub(super) fn check_number(field: &str, found: u32, computed: u32) -> Result<(), Violation> {
    if found == computed {
        return Ok(());
    }
    let message = format!("its bytes add up to {computed:#x}: they were damaged on the way, or edited");
    Err(Violation::new(Rule::InvalidField, field, format!("{found:#x}"), message))
}

/// # Errors
/// The violation, if it is not the version that exists.
pub(super) fn check_version(field: &str, found: u32) -> Result<(), Violation> {
    if found == VERSION {
        return Ok(());
    }
    let message = "only version 1.0 was ever specified: what this file means is not known";
    Err(Violation::new(Rule::Version, field, format!("{found:#x}"), message))
}
