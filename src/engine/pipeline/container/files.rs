//! The files of an archive that one disk is made of.
//!
//! A descriptor names files beside itself, and a name means a member of the same archive or nothing.

use std::collections::HashSet;

use super::{
    bundle::Bundle,
    contents::{Contents, Stored},
    ovf::Disk,
};
use crate::{
    format::{Extent, ExtentKind, NamedExtent, Shape},
    model::{Properties, Rule, Violation},
    unpack::tar::Member,
};

/// The files that a descriptor names.
#[derive(Clone, Debug)]
pub(super) enum Named {
    /// The extents of a vmdk.
    Extents(Vec<NamedExtent>),
    /// The image of a ploop bundle.
    Image(Bundle),
}

/// What an OVF descriptor says of a disk.
#[derive(Debug)]
pub(super) struct Described {
    pub disk: Disk,
    pub properties: Properties,
}

/// The files that a disk is made of.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Files {
    /// The file that the disk is called by.
    pub name: String,
    /// Those with its bytes, in the disk's order.
    pub parts: Vec<Member>,
    /// How the disk lies in them.
    pub shape: Shape,
    /// What describes it.
    pub bundle: Option<Bundle>,
}

impl Files {
    /// Those of `stored`: itself, or what it names. `None` while some of them may still come.
    ///
    /// # Errors
    /// A violation if it names what the archive does not hold, or what is not as it says.
    pub fn of(contents: &Contents, stored: &Stored) -> Result<Option<Self>, Violation> {
        let name = stored.member.name.clone();
        match stored.named.clone().transpose()? {
            None => {
                let parts = vec![stored.member.clone()];
                Ok(Some(Self { name, parts, shape: Shape::Whole, bundle: None }))
            }
            Some(Named::Image(bundle)) => {
                let Some(member) = beside(contents, &name, &bundle.image, "File")? else { return Ok(None) };
                Ok(Some(Self { name, parts: vec![member], shape: Shape::Whole, bundle: Some(bundle) }))
            }
            Some(Named::Extents(named)) => {
                let (mut parts, mut extents) = (Vec::new(), Vec::new());
                for extent in named {
                    let mut length = 0;
                    if extent.kind != ExtentKind::Zero {
                        let Some(member) = beside(contents, &name, &extent.name, "extent")? else { return Ok(None) };
                        length = member.size;
                        check_length(&extent, length)?;
                        parts.push(member);
                    }
                    extents.push(Extent { size: extent.size, kind: extent.kind, length });
                }
                Ok(Some(Self { name, parts, shape: Shape::Extents(extents), bundle: None }))
            }
        }
    }

    /// Names of all of them.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let parts = self.parts.iter().map(|part| part.name.as_str()).filter(|part| *part != self.name);
        std::iter::once(self.name.as_str()).chain(parts)
    }
}

impl Contents {
    /// Names of members that are part of another one.
    pub(super) fn parts(&self) -> HashSet<String> {
        let mut names = HashSet::new();
        for stored in &self.members {
            match &stored.named {
                Some(Ok(Named::Image(bundle))) => {
                    names.insert(name_beside(&stored.member.name, &bundle.image));
                }
                Some(Ok(Named::Extents(extents))) => {
                    names.extend(extents.iter().map(|extent| name_beside(&stored.member.name, &extent.name)));
                }
                _ => {}
            }
        }
        names
    }
}

/// The member called `name` in the folder of the one called `descriptor`. `None` while it may still come.
fn beside(contents: &Contents, descriptor: &str, name: &str, field: &str) -> Result<Option<Member>, Violation> {
    match contents.find(&name_beside(descriptor, name)) {
        Some(stored) => Ok(Some(stored.member.clone())),
        None if !contents.complete => Ok(None),
        None => {
            let message = format!(
                "{descriptor} names a file that the archive does not hold beside it: nothing outside of it is read"
            );
            let shown: String = name.chars().take(80).flat_map(char::escape_debug).collect();
            Err(Violation::new(Rule::ExternalDataFile, field, shown, message))
        }
    }
}

fn name_beside(descriptor: &str, name: &str) -> String {
    match descriptor.rsplit_once('/') {
        Some((folder, _)) => format!("{folder}/{name}"),
        None => name.to_owned(),
    }
}

fn check_length(extent: &NamedExtent, length: u64) -> Result<(), Violation> {
    let ExtentKind::Flat(skip) = extent.kind else { return Ok(()) };
    if skip.checked_add(extent.size) == Some(length) {
        return Ok(());
    }
    let message = format!("the file {} has {length} bytes: one of them is of another disk, or it was cut", extent.name);
    Err(Violation::new(Rule::InvalidField, "extent size", extent.size / 512, message))
}
