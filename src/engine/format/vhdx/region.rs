//! The region tables: where the BAT and the metadata lie.
//!
//! Knows both copies of the table; must not read what it points to.

use super::{
    BAT_REGION, ENTRY_LENGTH, HEADER_SECTION, MAX_ENTRIES, METADATA_REGION, MIB, REGION_SIGNATURE, REGION_TABLES,
    TABLE_LENGTH, is_sound, log::Patches, print_guid,
};
use crate::{
    error::Result,
    format::fields::{le_u32, le_u64},
    io::ReadAt,
    model::{Rule, Violation},
};

/// A stretch of the file that a structure has for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Region {
    /// The field that names it.
    pub(super) name: String,
    /// In bytes.
    pub(super) offset: u64,
    /// In bytes.
    pub(super) length: u64,
}

impl Region {
    /// First byte behind it.
    pub(super) fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }
}

/// All regions.
#[derive(Clone, Debug)]
pub(super) struct Regions {
    pub(super) bat: Region,
    pub(super) metadata: Region,
    /// Those that are not known, and need not be.
    pub(super) others: Vec<Region>,
}

impl Regions {
    /// Reads the tables, as they are once `patches` are applied.
    ///
    /// # Errors
    /// A violation, or what `input` says.
    pub(super) fn read(input: &mut dyn ReadAt, patches: &Patches) -> Result<Self> {
        let [first, second] = REGION_TABLES;
        let one = patches.read(input, "region_table", first, TABLE_LENGTH as u64)?;
        let two = patches.read(input, "region_table", second, TABLE_LENGTH as u64)?;
        let sound = |bytes: &Vec<u8>| is_sound(bytes, REGION_SIGNATURE);
        let counts = match (sound(&one), sound(&two)) {
            (false, false) => {
                let message = "neither of the two region tables holds to its checksum: \
                               the file was damaged; fetch or make it again";
                return Err(Violation::new(Rule::Corrupt, "region_table.Checksum", "both wrong", message).into());
            }
            (true, true) if one != two => {
                let message = "the two region tables are sound and differ: they must be copies, \
                               and one program would see another disk here than the next";
                return Err(Violation::new(Rule::InvalidField, "region_table", "two tables", message).into());
            }
            (true, _) => one,
            (false, true) => two,
        };
        Ok(Self::parse(&counts)?)
    }

    fn parse(table: &[u8]) -> Result<Self, Violation> {
        let count = le_u32(table, 8).unwrap_or(0);
        if count > MAX_ENTRIES {
            let message = format!("a region table has at most {MAX_ENTRIES} entries");
            return Err(Violation::new(Rule::InvalidField, "region_table.EntryCount", count, message));
        }
        let (mut bat, mut metadata, mut others) = (None, None, Vec::new());
        let entries = table.get(16..).unwrap_or_default().chunks_exact(ENTRY_LENGTH);
        for entry in entries.take(usize::try_from(count).unwrap_or(0)) {
            let guid = entry.get(..16).unwrap_or_default();
            let (slot, name) = match guid {
                _ if guid == BAT_REGION => (&mut bat, "BAT"),
                _ if guid == METADATA_REGION => (&mut metadata, "Metadata"),
                _ => {
                    others.push(unknown(entry)?);
                    continue;
                }
            };
            let region = parse_entry(entry, format!("region_table.{name}"))?;
            if slot.replace(region).is_some() {
                let message = "the region table has this region twice";
                return Err(Violation::new(Rule::InvalidField, "region_table", name, message));
            }
        }
        match (bat, metadata) {
            (Some(bat), Some(metadata)) => Ok(Self { bat, metadata, others }),
            (None, _) => Err(absent("BAT")),
            (_, None) => Err(absent("Metadata")),
        }
    }
}

fn absent(name: &str) -> Violation {
    Violation::new(Rule::InvalidField, "region_table", "absent", format!("there is no {name} region in the table"))
}

/// A region whose meaning is not known, which its entry must allow.
fn unknown(entry: &[u8]) -> Result<Region, Violation> {
    let guid = print_guid(entry.get(..16).unwrap_or_default());
    if le_u32(entry, 28).unwrap_or(0) & 1 == 1 {
        let message = "the file says that this region must be understood, and it is not known: \
                       convert the image with `qemu-img convert -O vhdx` where it was made";
        return Err(Violation::new(Rule::UnknownIncompatibleFeature, "region_table.Required", guid, message));
    }
    parse_entry(entry, format!("region_table.{guid}"))
}

fn parse_entry(entry: &[u8], name: String) -> Result<Region, Violation> {
    let offset = le_u64(entry, 16).unwrap_or(0);
    let length = u64::from(le_u32(entry, 24).unwrap_or(0));
    if !offset.is_multiple_of(MIB) || offset < HEADER_SECTION {
        let message = "a region does not begin at a multiple of 1 MiB behind the headers";
        return Err(Violation::new(Rule::TableOutOfRange, name, format!("{offset:#x}"), message));
    }
    if length == 0 || !length.is_multiple_of(MIB) {
        let message = "the length of a region is no multiple of 1 MiB";
        return Err(Violation::new(Rule::TableOutOfRange, name, length, message));
    }
    Ok(Region { name, offset, length })
}
