//! The two headers, of which the newer sound one counts.
//!
//! Knows where the log lies and whether it holds anything; must not read it.

use super::{Guid, HEADER_LENGTH, HEADER_SECTION, HEADER_SIGNATURE, HEADERS, MIB, is_sound};
use crate::{
    error::Result,
    format::{
        blocks::read_exact,
        fields::{le_u16, le_u32, le_u64},
    },
    io::ReadAt,
    model::{Rule, Violation},
};

/// What is wanted of the header: where the log lies, in bytes, and whether it holds anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LogPlace {
    /// Names the entries of the log that count; `None` if the log is empty.
    pub(super) guid: Option<Guid>,
    pub(super) offset: u64,
    pub(super) length: u64,
}

impl LogPlace {
    /// Reads the header that counts.
    ///
    /// # Errors
    /// A violation, or what `input` says.
    pub(super) fn read(input: &mut dyn ReadAt) -> Result<Self> {
        let [first, second] = HEADERS;
        let apart = usize::try_from(second.saturating_sub(first)).unwrap_or(0);
        let bytes = read_exact(input, "header", first, (apart.saturating_add(HEADER_LENGTH)) as u64)?;
        let one = bytes.get(..HEADER_LENGTH).unwrap_or_default();
        let two = bytes.get(apart..).unwrap_or_default();
        let sound = |bytes| is_sound(bytes, HEADER_SIGNATURE);
        let counts = match (sound(one), sound(two)) {
            (false, false) => {
                let message = "neither of the two headers holds to its checksum: \
                               the file was damaged; fetch or make it again";
                return Err(Violation::new(Rule::Corrupt, "header.Checksum", "both wrong", message).into());
            }
            (true, false) => one,
            (false, true) => two,
            (true, true) => match le_u64(one, 8).cmp(&le_u64(two, 8)) {
                std::cmp::Ordering::Greater => one,
                std::cmp::Ordering::Less => two,
                std::cmp::Ordering::Equal if one == two => one,
                std::cmp::Ordering::Equal => {
                    let value = le_u64(one, 8).unwrap_or(0);
                    let message = "two different headers have the same number, so neither is the newer one";
                    return Err(Violation::new(Rule::Corrupt, "header.SequenceNumber", value, message).into());
                }
            },
        };
        Self::parse(counts)?.check()
    }

    fn parse(bytes: &[u8]) -> Result<Self, Violation> {
        let version = le_u16(bytes, 66).unwrap_or(0);
        if version != 1 {
            let message = "vhdx has version 1 only: convert the image with `qemu-img convert -O vhdx`";
            return Err(Violation::new(Rule::Version, "header.Version", version, message));
        }
        let guid = bytes.get(48..).and_then(|rest| rest.first_chunk()).copied().filter(|guid| *guid != [0; 16]);
        let log_version = le_u16(bytes, 64).unwrap_or(0);
        if guid.is_some() && log_version != 0 {
            let message =
                "the log holds changes in a form that is not known: open and close the file where it was made";
            return Err(Violation::new(Rule::Version, "header.LogVersion", log_version, message));
        }
        Ok(Self { guid, offset: le_u64(bytes, 72).unwrap_or(0), length: u64::from(le_u32(bytes, 68).unwrap_or(0)) })
    }

    fn check(self) -> Result<Self> {
        let fits = |number: u64| number.is_multiple_of(MIB);
        if !fits(self.length) {
            let message = "the log's length is no multiple of 1 MiB";
            return Err(Violation::new(Rule::TableOutOfRange, "header.LogLength", self.length, message).into());
        }
        if self.length > 0 && (!fits(self.offset) || self.offset < HEADER_SECTION) {
            let value = format!("{:#x}", self.offset);
            let message = "the log does not begin at a multiple of 1 MiB behind the headers";
            return Err(Violation::new(Rule::TableOutOfRange, "header.LogOffset", value, message).into());
        }
        Ok(self)
    }
}
