//! The descriptor of an OVF package (DMTF DSP0243): which files there are, which disks they hold, and the machine they are for.
//!
//! Knows names, never opens anything; that a name means a member of the same archive is for the caller to hold.

mod hardware;
mod units;

use hardware::Hardware;

use super::xml::{self, Element};
use crate::model::{Properties, Rule, Violation};

/// What a descriptor says.
#[derive(Debug)]
pub struct Descriptor {
    disks: Vec<Disk>,
    hardware: Hardware,
}

/// A disk with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// `ovf:diskId`.
    id: String,
    /// Name of the file, `ovf:href`.
    pub href: String,
    /// Whether the file is compressed (`ovf:compression="gzip"`).
    pub gzip: bool,
    /// Size of the guest's disk, in bytes.
    pub capacity: u64,
}

impl Descriptor {
    /// Reads a descriptor.
    ///
    /// # Errors
    /// A violation if it is none, or a disk of it lies in a way that is not read.
    pub fn parse(bytes: &[u8]) -> Result<Self, Violation> {
        let root = xml::parse(bytes, "ovf descriptor")?;
        if root.name != "Envelope" {
            let message = "the OVF descriptor has another root element than Envelope: it is none";
            return Err(Violation::new(Rule::InvalidField, "ovf descriptor", root.name, message));
        }
        let files: Vec<&Element> = root.first("References").into_iter().flat_map(|refs| refs.all("File")).collect();
        // Version 0.9 calls every section `Section`, with its type as an attribute.
        let disks = root.first("DiskSection").into_iter().flat_map(|section| section.all("Disk"));
        let disks = disks.filter_map(|disk| read_disk(disk, &files).transpose()).collect::<Result<_, _>>()?;
        let hardware = root.find("VirtualSystem").map(Hardware::read).unwrap_or_default();
        Ok(Self { disks, hardware })
    }

    /// The disk called `wanted`: by its id, its file's name, or the last part of that. Without a name, the one that boots.
    ///
    /// # Errors
    /// A violation that names those there are.
    pub fn choose(&self, wanted: Option<&str>) -> Result<&Disk, Violation> {
        let found = match wanted {
            Some(name) => self
                .disks
                .iter()
                .find(|disk| disk.id == name || disk.href == name || disk.href.rsplit('/').next() == Some(name)),
            None => self.boot_disk(),
        };
        found.ok_or_else(|| {
            let names: Vec<_> = self.disks.iter().map(|disk| format!("{} ({})", disk.id, disk.href)).collect();
            let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            let message = format!("the descriptor has no such disk with a file; there are: {there}");
            Violation::new(Rule::InvalidField, "containerDisk", wanted.unwrap_or("the first"), message)
        })
    }

    /// What the descriptor says of the machine.
    pub fn properties(&self, disk: &Disk) -> Properties {
        self.hardware.properties(&disk.id)
    }

    /// The disk at the lowest address of the lowest controller, among those that have a file.
    fn boot_disk(&self) -> Option<&Disk> {
        let attached = self.hardware.disks().find_map(|id| self.disks.iter().find(|disk| disk.id == id));
        attached.or_else(|| self.disks.first())
    }
}

/// `None` for a disk without a file: it is empty.
fn read_disk(disk: &Element, files: &[&Element]) -> Result<Option<Disk>, Violation> {
    let id = disk.attribute("diskId").unwrap_or_default().to_owned();
    if let Some(parent) = disk.attribute("parentRef") {
        let message = format!("disk {id} is a difference to another one: export the machine without snapshots");
        return Err(Violation::new(Rule::BackingFile, "parentRef", parent, message));
    }
    let Some(reference) = disk.attribute("fileRef") else { return Ok(None) };
    let file = files.iter().find(|file| file.attribute("id") == Some(reference)).ok_or_else(|| {
        let message = format!("disk {id} lies in a file that the descriptor's References do not have");
        Violation::new(Rule::InvalidField, "fileRef", reference, message)
    })?;
    if let Some(size) = file.attribute("chunkSize") {
        let message = format!("the file of disk {id} is cut into parts, which are not put together: export it in one");
        return Err(Violation::new(Rule::UnsupportedFormat, "chunkSize", size, message));
    }
    let gzip = match file.attribute("compression").map(str::to_ascii_lowercase).as_deref() {
        None | Some("" | "identity") => false,
        Some("gzip") => true,
        Some(other) => {
            let message = format!("the file of disk {id} is compressed in a way that is not read: use gzip or none");
            return Err(Violation::new(Rule::UnsupportedFormat, "compression", other, message));
        }
    };
    let href = local_name(file.attribute("href").unwrap_or_default())?;
    Ok(Some(Disk { capacity: capacity(disk, &id)?, id, href, gzip }))
}

fn capacity(disk: &Element, id: &str) -> Result<u64, Violation> {
    let text = disk.attribute("capacity").unwrap_or_default();
    let units = disk.attribute("capacityAllocationUnits");
    text.trim().parse().ok().and_then(|amount| units::bytes(amount, units)).ok_or_else(|| {
        let found = format!("{text:?} of {}", units.unwrap_or("byte"));
        Violation::new(Rule::InvalidField, "capacity", found, format!("disk {id} does not tell how large it is"))
    })
}

/// The name of a member. What names another place is refused.
fn local_name(href: &str) -> Result<String, Violation> {
    let name = percent_encoding::percent_decode_str(href).decode_utf8_lossy().into_owned();
    let name = name.trim_start_matches("./").to_owned();
    let outside = name.contains("://") || name.starts_with('/') || name.split('/').any(|part| part == "..");
    if outside || name.is_empty() {
        let message = "a disk must lie in the archive itself, and nothing outside of it is read: name a member of it";
        return Err(Violation::new(Rule::ExternalDataFile, "href", href.escape_debug(), message));
    }
    Ok(name)
}

#[cfg(test)]
mod tests;
