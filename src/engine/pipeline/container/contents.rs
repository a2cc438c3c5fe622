//! What an archive holds, as far as it has been seen, and which member of it is the disk.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;

use super::{
    bundle::{self, Bundle},
    certificate, docker,
    files::{Described, Files, Named},
    manifest,
    ovf::Descriptor,
    section::{Parts, Section},
    xml::MAX_LENGTH,
};
use crate::{
    error::{Error, Kind, Result},
    format::{self, Shape},
    io::ReadAt,
    model::{ContainerFormat, Digest, Properties, Rule, Violation},
    unpack::tar::{Entry, Member, Scan, next_entry},
};

/// The members seen so far.
#[derive(Debug, Default)]
pub struct Contents {
    pub(super) members: Vec<Stored>,
    /// Whether there are no others.
    pub(super) complete: bool,
    /// Which of them has a name. Folders are none.
    by_name: HashMap<String, usize>,
    /// Layers that are the same as others: their names, and those of the others.
    links: HashMap<String, String>,
    /// Names of members that are part of a disk that another one describes.
    parts: HashSet<String>,
    /// Bytes of all texts.
    texts: u64,
}

/// A member.
#[derive(Debug)]
pub(super) struct Stored {
    pub member: Member,
    /// Its bytes, if it is one of those that describe the others.
    pub text: Option<Bytes>,
    /// What they say, if they are the descriptor of a disk whose bytes are in other files.
    pub named: Option<Result<Named, Violation>>,
    /// Digests of its bytes, if they passed.
    pub digests: Vec<Digest>,
}

impl Stored {
    /// A member of which nothing has been read.
    pub fn new(member: Member) -> Self {
        Self { member, text: None, named: None, digests: Vec::new() }
    }

    /// Takes the bytes of a text.
    pub fn read(&mut self, text: Bytes) {
        if is_disk_descriptor(&self.member.name) {
            self.named = format::named_extents(&text).map(|extents| extents.map(Named::Extents));
            if self.named.is_none() {
                return;
            }
        } else if base_name(&self.member.name) == bundle::NAME {
            self.named = Some(Bundle::parse(&text).map(Named::Image));
        }
        self.text = Some(text);
    }
}

/// What the disk is.
#[derive(Debug)]
pub struct Chosen {
    pub(super) files: Files,
    pub(super) container_format: ContainerFormat,
    pub(super) described: Option<Described>,
    /// Whether no descriptor can come any more.
    pub(super) last: bool,
    /// Whether it is what the layers of a container image come to.
    image: bool,
}

/// How long to look for the descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Search {
    /// A disk that stands before any descriptor is taken to be the one that is meant; whether it is shows at the end.
    First,
    /// Until the descriptor and the disk have been seen; without a descriptor, to the archive's end.
    Described,
    /// To the archive's end.
    Whole,
}

/// Bytes of all texts of an archive together. They stay in memory.
const MAX_TEXTS: u64 = 8 << 20;

/// Whether a member describes the whole archive.
fn is_text(name: &str) -> bool {
    ["ovf", "mf", "cert"].iter().any(|extension| has_extension(name, extension))
}

/// Whether a member may be the descriptor of a vmdk in several files, which have the name that disks have.
fn is_disk_descriptor(name: &str) -> bool {
    has_extension(name, "vmdk")
}

/// Whether a member may describe others, so that it is read into memory.
///
/// # Errors
/// A violation if it is one of those, and larger than any.
pub(super) fn is_read(member: &Member) -> Result<bool, Violation> {
    if is_disk_descriptor(&member.name) {
        return Ok(!member.folder && member.size <= MAX_LENGTH);
    }
    if member.folder || !(is_text(&member.name) || base_name(&member.name) == bundle::NAME) {
        return Ok(false);
    }
    if member.size <= MAX_LENGTH {
        return Ok(true);
    }
    let message = format!("{} may have up to {MAX_LENGTH} bytes", member.name);
    Err(Violation::new(Rule::SizeLimit, "size", member.size, message))
}

pub(super) fn has_extension(name: &str, extension: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(_, found)| found.eq_ignore_ascii_case(extension))
}

impl Contents {
    /// Reads headers, and the texts among the members, until the disk called `wanted` is found.
    ///
    /// # Errors
    /// A violation if the archive breaks a rule or holds no such disk, else what `input` says.
    pub fn gather(input: &mut dyn ReadAt, wanted: Option<&str>, search: Search) -> Result<(Self, Chosen)> {
        let (mut contents, mut scan) = (Self::default(), Scan::default());
        loop {
            match next_entry(&mut scan, input)? {
                None => contents.complete = true,
                Some(entry) => contents.gather_entry(entry, input)?,
            }
            if search == Search::First
                && contents.members.last().is_some_and(|last| docker::is_image_member(&last.member.name))
            {
                let message = "the layers of a container image are read twice";
                return Err(Error::new(Kind::NeedsSpill, message));
            }
            if search == Search::Whole && !contents.complete {
                continue;
            }
            match contents.choose(wanted)? {
                Some(chosen) if search != Search::Described || contents.complete || chosen.described.is_some() => {
                    return Ok((contents, chosen));
                }
                _ => {}
            }
        }
    }

    fn gather_entry(&mut self, entry: Entry, input: &mut dyn ReadAt) -> Result<()> {
        if let Some((name, target)) = docker::link(&entry) {
            return Ok(self.add_link(&name, &target)?);
        }
        let mut stored = Stored::new(entry.into_member()?);
        if is_read(&stored.member)? {
            let length = usize::try_from(stored.member.size).unwrap_or(usize::MAX);
            // A disk of this size may have the name that descriptors have.
            stored.read(input.peek(stored.member.offset, length)?);
        }
        Ok(self.add(stored)?)
    }

    /// Takes a layer that is the same as another one.
    pub(super) fn add_link(&mut self, name: &str, target: &str) -> Result<(), Violation> {
        match self.links.insert(name.to_owned(), target.to_owned()) {
            Some(_) => Err(twice(name)),
            None => Ok(()),
        }
    }

    /// The layer of this name, or the one that it is the same as.
    pub(super) fn find_layer(&self, name: &str) -> Option<&Stored> {
        self.find(name).or_else(|| self.find(self.links.get(name)?))
    }

    /// Takes the next member.
    pub(super) fn add(&mut self, stored: Stored) -> Result<(), Violation> {
        let name = &stored.member.name;
        if !stored.member.folder && self.by_name.insert(name.clone(), self.members.len()).is_some() {
            return Err(twice(name));
        }
        self.texts = self.texts.saturating_add(stored.text.as_ref().map_or(0, |text| text.len() as u64));
        if self.texts > MAX_TEXTS {
            let message = format!("the descriptions in an archive may have {MAX_TEXTS} bytes together");
            return Err(Violation::new(Rule::SizeLimit, "texts", self.texts, message));
        }
        self.parts.extend(stored.parts());
        self.members.push(stored);
        Ok(())
    }

    /// The disk called `wanted`, or the one that boots; `None` if it cannot be told yet.
    ///
    /// # Errors
    /// A violation if there is none, or it cannot be told which.
    pub(super) fn choose(&self, wanted: Option<&str>) -> Result<Option<Chosen>, Violation> {
        match self.text("ovf")? {
            Some(descriptor) => self.described(&Descriptor::parse(descriptor.1)?, wanted),
            None => self.undescribed(wanted),
        }
    }

    fn described(&self, descriptor: &Descriptor, wanted: Option<&str>) -> Result<Option<Chosen>, Violation> {
        let disk = descriptor.choose(wanted)?;
        let Some(stored) = self.find(&disk.href) else {
            if !self.complete {
                return Ok(None);
            }
            let message = "the descriptor names a file that the archive does not hold: nothing outside of it is read";
            return Err(Violation::new(Rule::ExternalDataFile, "href", &disk.href, message));
        };
        let described = Described { disk: disk.clone(), properties: descriptor.properties(disk) };
        self.chosen(stored, ContainerFormat::Ova, Some(described))
    }

    /// Without a descriptor: the one file that is there, or the one named. Files that another one is made of are part of that.
    fn undescribed(&self, wanted: Option<&str>) -> Result<Option<Chosen>, Violation> {
        if self.members.iter().any(|stored| docker::is_image_member(&stored.member.name)) {
            return Ok(self.complete.then(|| self.image()));
        }
        let broken = self.members.iter().find_map(|stored| stored.named.as_ref()?.as_ref().err());
        if let Some(violation) = broken.filter(|_| wanted.is_none()) {
            return Err(violation.clone());
        }
        let is_disk = |stored: &&Stored| {
            let name = stored.member.name.as_str();
            !stored.member.folder && !is_text(name) && name != "manifest.json" && !self.parts.contains(name)
        };
        let disks = || self.members.iter().filter(is_disk);
        let found = match wanted {
            Some(name) => disks().find(|disk| disk.member.name == name || base_name(&disk.member.name) == name),
            None => disks().next(),
        };
        let count = disks().count();
        match found {
            Some(stored) if wanted.is_some() || count == 1 => self.chosen(stored, ContainerFormat::Compressed, None),
            // Several may still turn out to be described.
            _ if !self.complete => Ok(None),
            _ => {
                // A descriptor whose files are not there says more than that there are others.
                for stored in self.members.iter().filter(|stored| wanted.is_none() && stored.named.is_some()) {
                    Files::of(self, stored)?;
                }
                let names: Vec<_> = disks().take(8).map(|disk| disk.member.name.as_str()).collect();
                Err(undecided(wanted, count, &names))
            }
        }
    }

    fn image(&self) -> Chosen {
        let members = self.members.iter().map(|stored| &stored.member).filter(|member| !member.folder);
        let name = "the image".to_owned();
        let files = Files { name, parts: members.cloned().collect(), shape: Shape::Whole, bundle: None };
        let container_format = ContainerFormat::Docker;
        Chosen { files, container_format, described: None, last: true, image: true }
    }

    /// The disk of `stored`: its bytes, or those of the files that it names. `None` while some of them may still come.
    fn chosen(
        &self,
        stored: &Stored,
        container_format: ContainerFormat,
        described: Option<Described>,
    ) -> Result<Option<Chosen>, Violation> {
        let files = Files::of(self, stored)?;
        Ok(files.map(|files| Chosen { files, container_format, described, last: self.complete, image: false }))
    }

    /// Holds what the descriptions say against the members. `by_range` says that only texts were read, so that the digests of others
    /// are not known. `None` if a digest is needed that was not computed.
    ///
    /// # Errors
    /// A violation if something is not as it is described.
    pub(super) fn check(&self, chosen: &Chosen, by_range: bool) -> Result<Option<Properties>, Violation> {
        let mut properties =
            chosen.described.as_ref().map(|described| described.properties.clone()).unwrap_or_default();
        let Some((stored, text)) = self.text("mf")? else { return Ok(Some(properties)) };
        let descriptor = self.text("ovf")?.map(|(stored, _)| stored.member.name.as_str());
        let needed = descriptor.into_iter().chain(chosen.files.names());
        if !manifest::check(text, self, needed, by_range)? {
            return Ok(None);
        }
        if let Some((_, certificate)) = self.text("cert")? {
            let verdict = certificate::check(certificate, &stored.member.name, text)?;
            properties.insert("ovf_certificate".to_owned(), verdict);
        }
        Ok(Some(properties))
    }

    /// `check` where only the texts were read.
    ///
    /// # Errors
    /// A violation if something is not as it is described.
    pub fn check_texts(&self, chosen: &Chosen) -> Result<Properties, Violation> {
        Ok(self.check(chosen, true)?.unwrap_or_default())
    }

    pub(super) fn find(&self, name: &str) -> Option<&Stored> {
        self.by_name.get(name).and_then(|number| self.members.get(*number))
    }

    /// The one text with this extension.
    fn text(&self, extension: &str) -> Result<Option<(&Stored, &[u8])>, Violation> {
        let mut texts = self.members.iter().filter(|stored| has_extension(&stored.member.name, extension));
        let first = texts.next();
        if let Some(second) = texts.next() {
            let message = "the archive holds two files of this kind: which of them is meant cannot be told";
            return Err(Violation::new(Rule::InvalidField, "name", &second.member.name, message));
        }
        Ok(first.and_then(|stored| Some((stored, stored.text.as_deref()?))))
    }
}

impl Chosen {
    /// What the archive is.
    pub fn container_format(&self) -> ContainerFormat {
        self.container_format
    }

    /// The disk's bytes in `archive`.
    pub fn section<'a>(&self, archive: &'a mut dyn ReadAt) -> Section<'a> {
        Section::new(archive, Parts::of(&self.files.parts))
    }

    /// Names of the files that the disk is made of.
    pub fn names(&self) -> Vec<String> {
        self.files.names().map(str::to_owned).collect()
    }

    /// Whether it is what the layers of a container image come to, and so no stretch of the archive.
    pub fn is_image(&self) -> bool {
        self.image
    }

    /// How the disk lies in them.
    pub fn shape(&self) -> &Shape {
        &self.files.shape
    }
}

pub(super) fn base_name(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

fn twice(name: &str) -> Violation {
    let message = "two members of the archive have this name: which of them is meant cannot be told";
    Violation::new(Rule::InvalidField, "name", name, message)
}

fn undecided(wanted: Option<&str>, count: usize, names: &[&str]) -> Violation {
    let names = names.join(", ");
    match (wanted, count) {
        (Some(wanted), _) => {
            let message = format!("the archive holds no such file; there are: {names}");
            Violation::new(Rule::InvalidField, "containerDisk", wanted, message)
        }
        (None, 0) => Violation::new(Rule::NotADisk, "members", 0, "the archive holds no file that could be a disk"),
        (None, _) => {
            let message =
                format!("the archive holds several files and no OVF descriptor: name the disk; there are: {names}");
            Violation::new(Rule::UnsupportedFormat, "members", count, message)
        }
    }
}
