//! What an archive holds, as far as it has been seen, and which member of it is the disk.

use bytes::Bytes;

use super::{
    certificate, manifest,
    ovf::{Descriptor, Disk, MAX_LENGTH},
    section::Section,
};
use crate::{
    error::Result,
    io::ReadAt,
    model::{ContainerFormat, Digest, Properties, Rule, Violation},
    unpack::tar::{Member, Scan, next_member},
};

/// The members seen so far.
#[derive(Debug, Default)]
pub struct Contents {
    pub(super) members: Vec<Stored>,
    /// Whether there are no others.
    pub(super) complete: bool,
}

/// A member.
#[derive(Debug)]
pub(super) struct Stored {
    pub member: Member,
    /// Its bytes, if it is one of those that describe the others.
    pub text: Option<Bytes>,
    /// Digests of its bytes, if they passed.
    pub digests: Vec<Digest>,
}

/// The member that is the disk.
#[derive(Debug)]
pub struct Chosen {
    pub(super) member: Member,
    pub(super) container_format: ContainerFormat,
    pub(super) described: Option<Described>,
    /// Whether no descriptor can come any more.
    pub(super) last: bool,
}

/// What the descriptor says of the disk.
#[derive(Debug)]
pub(super) struct Described {
    pub disk: Disk,
    pub properties: Properties,
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

/// Whether a member describes others and is read into memory.
pub(super) fn is_text(name: &str) -> bool {
    ["ovf", "mf", "cert"].iter().any(|extension| has_extension(name, extension))
}

/// Refuses a text that is larger than any.
pub(super) fn check_text(member: &Member) -> Result<(), Violation> {
    if member.size <= MAX_LENGTH {
        return Ok(());
    }
    let message = format!("{} may have up to {MAX_LENGTH} bytes", member.name);
    Err(Violation::new(Rule::SizeLimit, "size", member.size, message))
}

fn has_extension(name: &str, extension: &str) -> bool {
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
            match next_member(&mut scan, input)? {
                None => contents.complete = true,
                Some(member) => {
                    let mut stored = Stored { member, text: None, digests: Vec::new() };
                    if is_text(&stored.member.name) {
                        check_text(&stored.member)?;
                        let length = usize::try_from(stored.member.size).unwrap_or(usize::MAX);
                        stored.text = Some(input.read_up_to(stored.member.offset, length)?);
                    }
                    contents.add(stored)?;
                }
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

    /// Takes the next member.
    pub(super) fn add(&mut self, stored: Stored) -> Result<(), Violation> {
        let name = &stored.member.name;
        if !stored.member.folder && self.find(name).is_some() {
            let message = "two members of the archive have this name: which of them is meant cannot be told";
            return Err(Violation::new(Rule::InvalidField, "name", name, message));
        }
        self.members.push(stored);
        Ok(())
    }

    /// The member that is the disk called `wanted`, or the one that boots; `None` if that cannot be told yet.
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
        let (member, container_format) = (stored.member.clone(), ContainerFormat::Ova);
        Ok(Some(Chosen { member, container_format, described: Some(described), last: self.complete }))
    }

    /// Without a descriptor: the one file that is there, or the one named.
    fn undescribed(&self, wanted: Option<&str>) -> Result<Option<Chosen>, Violation> {
        let files = || self.members.iter().map(|stored| &stored.member).filter(|member| !member.folder);
        if let Some(member) = self.members.iter().map(|stored| &stored.member).find(|member| is_of_docker(&member.name))
        {
            let message = "a container image holds layers of files, not a disk: take the disk's file out of it";
            return Err(Violation::new(Rule::UnsupportedFormat, "containerFormat", &member.name, message));
        }
        let disks = || files().filter(|member| !is_text(&member.name) && member.name != "manifest.json");
        let found = match wanted {
            Some(name) => disks().find(|disk| disk.name == name || disk.name.rsplit('/').next() == Some(name)),
            None => disks().next(),
        };
        let count = disks().count();
        match found {
            Some(member) if wanted.is_some() || count == 1 => Ok(Some(Chosen {
                member: member.clone(),
                container_format: ContainerFormat::Compressed,
                described: None,
                last: self.complete,
            })),
            // Several may still turn out to be described.
            _ if !self.complete => Ok(None),
            _ => Err(undecided(wanted, count, &disks().take(8).map(|disk| disk.name.as_str()).collect::<Vec<_>>())),
        }
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
        let needed = descriptor.into_iter().chain([chosen.member.name.as_str()]);
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
        self.members.iter().find(|stored| !stored.member.folder && stored.member.name == name)
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
        Section::new(archive, self.member.offset, self.member.size)
    }
}

/// Whether a name is one that only archives of container images have, by `docker save` or in the OCI layout.
fn is_of_docker(name: &str) -> bool {
    name == "oci-layout"
        || name == "repositories"
        || name == "blobs"
        || name.starts_with("blobs/")
        || name.ends_with("/layer.tar")
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
