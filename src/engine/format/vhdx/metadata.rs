//! The metadata: sizes of the disk, its blocks and its sectors.
//!
//! Knows the metadata region; must not read the BAT.

use super::{
    ENTRY_LENGTH, FILE_PARAMETERS, Guid, LOGICAL_SECTOR_SIZE, MAX_ENTRIES, MAX_VIRTUAL_SIZE, METADATA_SIGNATURE, MIB,
    PARENT_LOCATOR, PHYSICAL_SECTOR_SIZE, TABLE_LENGTH, VIRTUAL_DISK_ID, VIRTUAL_DISK_SIZE, log::Patches, print_guid,
    region::Region,
};
use crate::{
    error::Result,
    format::{
        fields::{le_u16, le_u32, le_u64, printable},
        oversized,
    },
    io::ReadAt,
    model::{Limits, Rule, Violation},
};

/// Largest block, in bytes.
const MAX_BLOCK: u64 = 256 << 20;
/// `IsRequired`: whoever does not know the item must not read the file.
const IS_REQUIRED: u32 = 1 << 2;
/// `IsUser`: the item is an application's, not the format's.
const IS_USER: u32 = 1 << 0;
/// `HasParent`, beside the block size.
const HAS_PARENT: u32 = 1 << 1;

/// The items of a disk that is whole: name, identifier, length in bytes. All must be there.
const ITEMS: [(&str, Guid, u32); 5] = [
    ("FileParameters", FILE_PARAMETERS, 8),
    ("VirtualDiskSize", VIRTUAL_DISK_SIZE, 8),
    ("VirtualDiskId", VIRTUAL_DISK_ID, 16),
    ("LogicalSectorSize", LOGICAL_SECTOR_SIZE, 4),
    ("PhysicalSectorSize", PHYSICAL_SECTOR_SIZE, 4),
];

/// What the metadata says, all in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Metadata {
    pub(super) block_size: u64,
    pub(super) virtual_size: u64,
    pub(super) logical_sector: u64,
}

impl Metadata {
    /// Reads the metadata in `region`, as it is once `patches` are applied.
    ///
    /// # Errors
    /// A violation, or what `input` says.
    pub(super) fn read(input: &mut dyn ReadAt, region: &Region, patches: &Patches, limits: &Limits) -> Result<Self> {
        let table = patches.read(input, "metadata_table", region.offset, TABLE_LENGTH as u64)?;
        let places = find_items(&table, region)?;
        let mut items = Vec::with_capacity(ITEMS.len());
        for ((name, _, length), place) in ITEMS.iter().zip(places) {
            items.push(patches.read(input, &format!("metadata.{name}"), place, u64::from(*length))?);
        }
        let item = |number: usize| items.get(number).map(Vec::as_slice).unwrap_or_default();
        let (block_size, flags) = (le_u32(item(0), 0).unwrap_or(0), le_u32(item(0), 4).unwrap_or(0));
        check_flags(flags)?;
        let metadata = Self {
            block_size: check_block_size(block_size)?,
            virtual_size: le_u64(item(1), 0).unwrap_or(0),
            logical_sector: check_sector("metadata.LogicalSectorSize", item(3))?,
        };
        check_sector("metadata.PhysicalSectorSize", item(4))?;
        metadata.check_virtual_size(limits)?;
        Ok(metadata)
    }

    fn check_virtual_size(self, limits: &Limits) -> Result<(), Violation> {
        let (size, most) = (self.virtual_size, limits.max_virtual_size.min(MAX_VIRTUAL_SIZE));
        if size > most {
            return Err(oversized("metadata.VirtualDiskSize", size, most));
        }
        if !size.is_multiple_of(self.logical_sector) {
            let message = format!("the disk's size is no multiple of its sectors of {} bytes", self.logical_sector);
            return Err(Violation::new(Rule::InvalidField, "metadata.VirtualDiskSize", size, message));
        }
        Ok(())
    }
}

fn check_flags(flags: u32) -> Result<(), Violation> {
    if flags & HAS_PARENT != 0 {
        let message = "the disk is the difference to another file, which is not here: \
                       merge it into its parent, or convert it with `qemu-img convert -O vhdx` where the parent is";
        return Err(Violation::new(Rule::BackingFile, "metadata.FileParameters.HasParent", 1, message));
    }
    if flags & !3 != 0 {
        let message = "reserved bits are set";
        return Err(Violation::new(Rule::InvalidField, "metadata.FileParameters", format!("{flags:#x}"), message));
    }
    Ok(())
}

fn check_block_size(size: u32) -> Result<u64, Violation> {
    if size.is_power_of_two() && (MIB..=MAX_BLOCK).contains(&u64::from(size)) {
        return Ok(u64::from(size));
    }
    let message = "blocks have a power of two of bytes, from 1 MiB to 256 MiB";
    Err(Violation::new(Rule::ClusterSize, "metadata.FileParameters.BlockSize", size, message))
}

fn check_sector(name: &str, item: &[u8]) -> Result<u64, Violation> {
    match le_u32(item, 0) {
        Some(size @ (512 | 4096)) => Ok(u64::from(size)),
        size => {
            let message = "sectors have 512 or 4096 bytes";
            Err(Violation::new(Rule::InvalidField, name, size.unwrap_or(0), message))
        }
    }
}

/// Where in the file the items lie, in the order of `ITEMS`.
fn find_items(table: &[u8], region: &Region) -> Result<Vec<u64>, Violation> {
    if !table.starts_with(&METADATA_SIGNATURE) {
        let value = printable(table.get(..8).unwrap_or_default());
        let message = "the metadata region does not begin with a metadata table";
        return Err(Violation::new(Rule::InvalidField, "metadata_table.Signature", value, message));
    }
    let count = le_u16(table, 10).unwrap_or(0);
    if u32::from(count) > MAX_ENTRIES {
        let message = format!("a metadata table has at most {MAX_ENTRIES} entries");
        return Err(Violation::new(Rule::InvalidField, "metadata_table.EntryCount", count, message));
    }
    let mut found = [None; ITEMS.len()];
    let mut places = Vec::new();
    for entry in table.get(32..).unwrap_or_default().chunks_exact(ENTRY_LENGTH).take(usize::from(count)) {
        let item = ITEMS.iter().zip(&mut found).find(|((_, guid, _), _)| entry.starts_with(guid));
        let Some(((name, _, length), slot)) = item else {
            check_unknown(entry)?;
            continue;
        };
        let place = locate(entry, name, *length)?;
        places.push((place, *length, *name));
        if slot.replace(region.offset.saturating_add(u64::from(place))).is_some() {
            let message = "the metadata table has this item twice";
            return Err(Violation::new(Rule::InvalidField, "metadata_table", name, message));
        }
        if u64::from(place).saturating_add(u64::from(*length)) > region.length {
            let message = format!("the item does not lie in the metadata region of {} bytes", region.length);
            return Err(Violation::new(
                Rule::TableOutOfRange,
                format!("metadata.{name}"),
                format!("{place:#x}"),
                message,
            ));
        }
    }
    check_apart(places)?;
    ITEMS.iter().zip(found).map(|((name, _, _), place)| place.ok_or_else(|| absent(name))).collect()
}

fn absent(name: &str) -> Violation {
    let message = format!("every disk needs a {name}, and the metadata table has none");
    Violation::new(Rule::InvalidField, format!("metadata.{name}"), "absent", message)
}

/// The item's offset in the region.
fn locate(entry: &[u8], name: &str, expected: u32) -> Result<u32, Violation> {
    let (offset, length) = (le_u32(entry, 16).unwrap_or(0), le_u32(entry, 20).unwrap_or(0));
    if length != expected {
        let message = format!("the item has {expected} bytes by the specification");
        return Err(Violation::new(Rule::InvalidField, format!("metadata.{name}.Length"), length, message));
    }
    if (offset as usize) < TABLE_LENGTH {
        let message = "the item lies in the metadata table itself";
        return Err(Violation::new(Rule::TableOverlap, format!("metadata.{name}"), format!("{offset:#x}"), message));
    }
    Ok(offset)
}

/// No two items may be the same bytes.
fn check_apart(mut places: Vec<(u32, u32, &str)>) -> Result<(), Violation> {
    places.sort_unstable();
    let mut neighbours = places.iter().zip(places.iter().skip(1));
    match neighbours.find(|((offset, length, _), (next, ..))| next.saturating_sub(*offset) < *length) {
        None => Ok(()),
        Some((_, (offset, _, name))) => {
            let message = "two items of the metadata claim the same bytes";
            Err(Violation::new(Rule::TableOverlap, format!("metadata.{name}"), format!("{offset:#x}"), message))
        }
    }
}

/// An item whose meaning is not known, which its entry must allow. A parent locator is known and has no meaning without a parent.
fn check_unknown(entry: &[u8]) -> Result<(), Violation> {
    let guid = entry.get(..16).unwrap_or_default();
    let flags = le_u32(entry, 24).unwrap_or(0);
    if guid == PARENT_LOCATOR {
        let message = "the disk names a parent, which is not here: merge it into its parent first";
        return Err(Violation::new(Rule::BackingFile, "metadata.ParentLocator", "present", message));
    }
    if flags & IS_REQUIRED != 0 {
        let whose = if flags & IS_USER != 0 { "an application's" } else { "the format's" };
        let message = format!("the file says that this item, {whose}, must be understood, and it is not known");
        return Err(Violation::new(
            Rule::UnknownIncompatibleFeature,
            "metadata_table.IsRequired",
            print_guid(guid),
            message,
        ));
    }
    Ok(())
}
