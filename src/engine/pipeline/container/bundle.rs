//! The descriptor of a ploop bundle, `DiskDescriptor.xml` (QEMU, docs/interop/prl-xml.rst; names of elements are that document's).
//!
//! Knows one text and the first bytes of the image that it names; opens nothing.

use super::xml::{self, Element};
use crate::{
    format,
    model::{Rule, Violation},
};

/// What the descriptor is called in every bundle.
pub(super) const NAME: &str = "DiskDescriptor.xml";

/// The unit of sizes, in bytes.
const SECTOR: u64 = 512;

/// No snapshot, and no encryption.
const NOTHING: &str = "00000000-0000-0000-0000-000000000000";

const SNAPSHOTS: &str = "the disk is put together of several images, each a difference to the one before: \
                         merge its snapshots and export it again";

/// A bundle of one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bundle {
    /// Name of the image's file, beside the descriptor.
    pub image: String,
    /// Size of the guest's disk in bytes.
    pub size: u64,
    /// Length of a cluster in bytes.
    block: u64,
    /// Whether the image is the guest's bytes as they are.
    plain: bool,
}

impl Bundle {
    /// Reads a descriptor.
    ///
    /// # Errors
    /// A violation if it is none, or its disk is more than one whole image.
    pub fn parse(bytes: &[u8]) -> Result<Self, Violation> {
        let root = xml::parse(bytes, NAME)?;
        if root.name != "Parallels_disk_image" {
            return Err(invalid(NAME, &root.name, "its root element is Parallels_disk_image: this is none"));
        }
        let parameters = part(&root, "Disk_Parameters")?;
        check_parameters(parameters)?;
        let sectors = number(parameters, "Disk_size")?;
        let storage = one(part(&root, "StorageData")?, "Storage", Rule::UnsupportedFormat, "export it in one piece")?;
        if (number(storage, "Start")?, number(storage, "End")?) != (0, sectors) {
            let found = storage.text_of("End").unwrap_or_default();
            return Err(invalid("End", found, &format!("Disk_size says that the disk has {sectors} sectors")));
        }
        let image = one(storage, "Image", Rule::BackingFile, SNAPSHOTS)?;
        check_snapshots(&root, image)?;
        let plain = match image.text_of("Type").unwrap_or_default() {
            "Plain" => true,
            "Compressed" => false,
            other => {
                let message = "images are Compressed or Plain";
                return Err(Violation::new(Rule::UnsupportedFormat, "Type", shown(other), message));
            }
        };
        let name = image.text_of("File").unwrap_or_default();
        let block = number(storage, "Blocksize")?.saturating_mul(SECTOR);
        Ok(Self { image: plain_name(name)?, size: sectors.saturating_mul(SECTOR), block, plain })
    }

    /// Holds the first bytes of the image against the descriptor.
    ///
    /// # Errors
    /// A violation if they differ.
    pub fn check_head(&self, head: &[u8]) -> Result<(), Violation> {
        match format::ploop_block(head) {
            Some(_) if self.plain => Err(invalid("Type", "Plain", "the image has the header of a Compressed one")),
            Some(found) if found != self.block => {
                let message = format!("in sectors; the image's header says {}: one is of another disk", found / SECTOR);
                Err(invalid("Blocksize", &(self.block / SECTOR).to_string(), &message))
            }
            None if !self.plain => Err(invalid("Type", "Compressed", "the image has no header of a ploop")),
            _ => Ok(()),
        }
    }

    /// Holds the size of the guest's disk against the descriptor.
    ///
    /// # Errors
    /// A violation if they differ.
    pub fn check_size(&self, virtual_size: u64) -> Result<(), Violation> {
        if self.size == virtual_size {
            return Ok(());
        }
        let message = format!("in sectors; the image's disk has {virtual_size} bytes: one of them is of another disk");
        Err(invalid("Disk_size", &(self.size / SECTOR).to_string(), &message))
    }
}

fn check_parameters(parameters: &Element) -> Result<(), Violation> {
    if let Some(size) = parameters.text_of("LogicSectorSize").filter(|size| *size != "512") {
        let message = "disks with sectors of 512 bytes are read";
        return Err(Violation::new(Rule::UnsupportedFormat, "LogicSectorSize", shown(size), message));
    }
    let engine = parameters.first("Encryption").and_then(|encryption| encryption.text_of("Engine"));
    match engine.filter(|engine| guid(engine) != NOTHING) {
        None => Ok(()),
        Some(engine) => {
            let message = "encrypted content cannot be checked: decrypt the disk, and let the storage encrypt it again";
            Err(Violation::new(Rule::Encrypted, "Engine", shown(engine), message))
        }
    }
}

/// There is at most one snapshot, without a parent, and the image is of it.
fn check_snapshots(root: &Element, image: &Element) -> Result<(), Violation> {
    let Some(snapshots) = root.first("Snapshots") else { return Ok(()) };
    let own = guid(image.text_of("GUID").unwrap_or_default());
    let shots: Vec<_> = snapshots.all("Shot").collect();
    if shots.len() > 1 {
        return Err(Violation::new(Rule::BackingFile, "Shot", shots.len(), SNAPSHOTS));
    }
    for shot in shots {
        let parent = shot.text_of("ParentGUID").unwrap_or_default();
        if !parent.is_empty() && guid(parent) != NOTHING {
            return Err(Violation::new(Rule::BackingFile, "ParentGUID", shown(parent), SNAPSHOTS));
        }
        let found = shot.text_of("GUID").unwrap_or_default();
        if guid(found) != own {
            return Err(invalid("GUID", found, "the descriptor has no image of this snapshot"));
        }
    }
    match snapshots.text_of("TopGUID") {
        Some(top) if guid(top) != own => Err(invalid("TopGUID", top, "the descriptor has no image of this snapshot")),
        _ => Ok(()),
    }
}

fn part<'a>(parent: &'a Element, name: &'static str) -> Result<&'a Element, Violation> {
    one(parent, name, Rule::InvalidField, "it stands there once in every descriptor")
}

fn one<'a>(parent: &'a Element, name: &'static str, rule: Rule, message: &str) -> Result<&'a Element, Violation> {
    let count = parent.all(name).count();
    match parent.first(name).filter(|_| count == 1) {
        Some(element) => Ok(element),
        None if count == 0 => Err(invalid(name, "none", "it is missing: the descriptor is damaged")),
        None => Err(Violation::new(rule, name, count, message)),
    }
}

fn number(parent: &Element, name: &'static str) -> Result<u64, Violation> {
    let text = parent.text_of(name).unwrap_or_default();
    // What is multiplied by a sector's length must still be a number.
    let number = text.parse().ok().filter(|number: &u64| *number <= u64::MAX / SECTOR);
    number.ok_or_else(|| invalid(name, text, "a number of sectors belongs there"))
}

/// A name beside the descriptor, and no way to anywhere else.
fn plain_name(name: &str) -> Result<String, Violation> {
    if !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\']) {
        return Ok(name.to_owned());
    }
    let message = "the image must lie beside its descriptor, and nothing outside of the archive is read";
    Err(Violation::new(Rule::ExternalDataFile, "File", shown(name), message))
}

fn guid(text: &str) -> String {
    text.trim_matches(['{', '}']).to_ascii_lowercase()
}

fn shown(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_debug).collect()
}

fn invalid(field: &str, value: &str, message: &str) -> Violation {
    Violation::new(Rule::InvalidField, field, shown(value), message)
}
