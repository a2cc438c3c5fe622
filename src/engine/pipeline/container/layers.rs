//! Takes off what is around a disk, while it comes in.

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError},
};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::{audit::Slot, contents::Chosen, docker, files::Described, section::Parts, stage::Stage};
use crate::{
    error::{Error, Kind, Result},
    format::{self, LOOK, Shape},
    io::{Feed, Fetch, Keep, Peeked},
    model::{ContainerFormat, DiskFormat, Limits, Properties, Rule, Violation},
    source::RangeReader,
    unpack::{self, Packing, tar},
};

/// Something around a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// A compression.
    Packed(Packing),
    /// A tar archive.
    Archive,
}

impl Layer {
    /// What messages call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Packed(packing) => packing.name(),
            Self::Archive => "tar",
        }
    }
}

/// What `head`, the first bytes of a stream, shows to be around what is inside; `None` if nothing is.
pub fn layer(head: &[u8]) -> Option<Layer> {
    match unpack::detect(head) {
        Some(packing) => Some(Layer::Packed(packing)),
        None => tar::is_tar(head).then_some(Layer::Archive),
    }
}

/// Refuses `inner` inside of the layers `outer`: there is no honest use for it, and each layer multiplies.
pub fn nested(outer: &[Layer], inner: Layer) -> Violation {
    let names: Vec<_> = std::iter::once(&inner).chain(outer.iter().rev()).map(|layer| layer.name()).collect();
    let message = "a disk may be in one compression and one archive: unpack it once and publish that";
    Violation::new(Rule::NestedCompression, "magic", names.join(" in "), message)
}

/// What the user says, and what may be used.
#[derive(Clone, Debug)]
pub struct Wants {
    /// What the disk must be.
    pub disk_format: Option<DiskFormat>,
    /// What must be around it.
    pub container_format: Option<ContainerFormat>,
    /// Which disk of several.
    pub container_disk: Option<String>,
    /// Bounds.
    pub limits: Limits,
    /// Folder for what has to wait on disk.
    pub scratch: PathBuf,
    /// `Keep::Unread` the first time. With `Keep::All` nothing is taken for granted that may need yet another time.
    pub keep: Keep,
}

impl Wants {
    /// The disk format declared; Amazon's container formats are disk formats at once.
    pub fn disk_format(&self) -> Option<DiskFormat> {
        self.disk_format.or(match self.container_format {
            Some(ContainerFormat::Ami) => Some(DiskFormat::Ami),
            Some(ContainerFormat::Ari) => Some(DiskFormat::Ari),
            Some(ContainerFormat::Aki) => Some(DiskFormat::Aki),
            _ => None,
        })
    }

    /// Whether a compression is part of the image: boot loaders take ramdisks and kernels as they are.
    pub fn keeps_layers(&self) -> bool {
        let container = matches!(self.container_format, Some(c) if is_amazon(c));
        container || matches!(self.disk_format, Some(DiskFormat::Ari | DiskFormat::Aki))
    }

    /// The container found, which must be the declared one.
    ///
    /// # Errors
    /// A violation if it is another one.
    pub fn container(&self, found: ContainerFormat) -> Result<ContainerFormat, Violation> {
        match (self.container_format, found) {
            (Some(declared), ContainerFormat::Bare) if is_amazon(declared) => Ok(declared),
            // An appliance is a package in an archive of its own.
            (Some(ContainerFormat::Ovf), ContainerFormat::Ova) => Ok(ContainerFormat::Ovf),
            (Some(declared), found) if declared != found => {
                let message =
                    format!("declared {declared}: correct spec.containerFormat, or leave it out to take what is found");
                Err(Violation::new(Rule::FormatMismatch, "containerFormat", found, message))
            }
            _ => Ok(found),
        }
    }
}

fn is_amazon(container: ContainerFormat) -> bool {
    matches!(container, ContainerFormat::Ami | ContainerFormat::Ari | ContainerFormat::Aki)
}

/// Random access to a source.
#[derive(Clone)]
pub struct Ranges {
    /// Who reads.
    pub reader: Arc<dyn RangeReader>,
    /// Where that runs.
    pub handle: Handle,
    /// Ends a read that waits.
    pub stop: CancellationToken,
}

impl Ranges {
    /// Reads from those parts of the source, or from all of it.
    pub(super) fn fetch(self, parts: Option<Parts>) -> Fetch {
        Box::new(move |offset, length| {
            let Some(parts) = &parts else { return self.read(offset, length) };
            match parts.locate(offset) {
                Some((start, left)) if length <= left => self.read(start, length),
                // What lies in two files comes with the stream.
                _ => Ok(None),
            }
        })
    }

    fn read(&self, offset: u64, length: u64) -> Result<Option<Bytes>> {
        let read = self.handle.block_on(self.stop.run_until_cancelled(self.reader.read_range(offset, length)));
        read.unwrap_or_else(|| Err(Error::new(Kind::Cancelled, "reading the source was cancelled")))
    }
}

/// The disk's bytes.
pub struct Peeled {
    /// In order.
    pub feed: Box<dyn Feed>,
    /// How many there are, if that is known.
    pub length: Option<u64>,
    /// The same out of turn, where the source can.
    pub fetch: Option<Fetch>,
    /// What was around them.
    pub wrapping: Wrapping,
}

/// What was around a disk.
pub struct Wrapping {
    /// Its name.
    pub container_format: ContainerFormat,
    /// Whether a compression was.
    pub packed: bool,
    around: Around,
}

/// Which archive was around a disk.
enum Around {
    Nothing,
    /// None, if there is one file in the zip archive. Until its end has been seen, that is a guess.
    OneFile(Box<Wants>),
    Archive(Box<Archive>),
    /// It is kept as it is.
    Kept,
}

impl Around {
    /// How the disk lies in its bytes.
    fn shape(&self) -> &Shape {
        match self {
            Self::Nothing | Self::OneFile(_) => &Shape::Whole,
            Self::Archive(archive) => &archive.shape,
            Self::Kept => &Shape::Opaque,
        }
    }

    /// What `error`, met in the disk, is worth: another disk may turn out to be meant, and that may be good.
    fn doubt(&self, error: Error) -> Error {
        match self {
            Self::Archive(archive) => archive.chosen.doubt(error),
            Self::OneFile(_) if error.violation().is_some() => {
                Error::with_source(Kind::NeedsSpill, "what is refused may be one of several files", error)
            }
            _ => error,
        }
    }
}

pub(super) struct Archive {
    pub chosen: Chosen,
    pub shape: Shape,
    /// What was taken of it.
    pub parts: Vec<String>,
    /// Whether it is a zip archive.
    pub zipped: bool,
    pub passed: Slot,
    /// What the disk's file turned out to be packed with.
    pub packing: Option<Packing>,
    pub wants: Wants,
}

/// Takes off what is around the disk in `feed`, which has `length` bytes if that is known.
///
/// # Errors
/// A violation if there are more layers than there may be, or an archive holds no disk; else what `feed` says.
pub fn peel(wants: &Wants, feed: impl Feed + 'static, length: Option<u64>, ranges: Option<Ranges>) -> Result<Peeled> {
    let feed: Box<dyn Feed> = Box::new(feed);
    let stage = Stage { feed: Peeked::new(feed, LOOK)?, length, ranges, parts: None };
    let mut peeling = Peeling { stage, layers: Vec::new(), zipped: false, around: Around::Nothing };
    while let Some(found) = peeling.next().filter(|_| !wants.keeps_layers()) {
        let again = peeling.layers.iter().any(|layer| std::mem::discriminant(layer) == std::mem::discriminant(&found));
        if again {
            return Err(peeling.around.doubt(nested(&peeling.layers, found).into()));
        }
        if let Err(violation) = format::check_layer(peeling.stage.feed.head(), found.name()) {
            return Err(peeling.around.doubt(violation.into()));
        }
        peeling = peeling.take(found, wants)?;
    }
    let packed = peeling.layers.iter().any(|layer| matches!(layer, Layer::Packed(_)));
    let container_format = match &peeling.around {
        Around::Archive(archive) => archive.container()?,
        Around::Kept => ContainerFormat::Docker,
        Around::OneFile(_) => ContainerFormat::Compressed,
        Around::Nothing if peeling.layers.is_empty() => wants.container(ContainerFormat::Bare)?,
        Around::Nothing => wants.container(ContainerFormat::Compressed)?,
    };
    let wrapping = Wrapping { container_format, packed, around: peeling.around };
    let Stage { feed, length, ranges, parts } = peeling.stage;
    Ok(Peeled { feed: Box::new(feed), length, fetch: ranges.map(|ranges| ranges.fetch(parts)), wrapping })
}

/// A disk with some layers taken off.
struct Peeling {
    stage: Stage,
    layers: Vec<Layer>,
    /// Whether the archive that comes next is a zip archive.
    zipped: bool,
    around: Around,
}

impl Peeling {
    /// What is around what comes next. The files of extents are in nothing, and what is kept is not looked into.
    fn next(&self) -> Option<Layer> {
        layer(self.stage.feed.head()).filter(|_| *self.around.shape() == Shape::Whole)
    }

    /// Takes off what is `found` next.
    fn take(mut self, found: Layer, wants: &Wants) -> Result<Self> {
        match found {
            Layer::Packed(Packing::Zip) if matches!(self.around, Around::Nothing) => {
                let (stage, listing) = self.stage.list(wants)?;
                let known = listing.is_some() || wants.keep == Keep::All;
                if let Some(listing) = listing.filter(|listing| listing.files() > 1) {
                    return Ok(Self { stage: stage.unzip(listing, &wants.limits)?, zipped: true, ..self });
                }
                let limits = &wants.limits;
                self.stage = if known { stage.unpack(Packing::Zip, limits)? } else { stage.unzip_one(limits)? };
                if !known {
                    self.around = Around::OneFile(Box::new(wants.clone()));
                }
            }
            Layer::Packed(packing) => {
                if let Around::Archive(archive) = &mut self.around {
                    archive.packing = Some(packing);
                }
                self.stage = self.stage.unpack(packing, &wants.limits)?;
            }
            Layer::Archive => {
                let feed: Box<dyn Feed> = Box::new(self.stage.feed);
                self.stage.feed = Peeked::new(feed, docker::HEAD)?;
                let image = docker::is_image(self.stage.feed.head());
                if wants.container_format == Some(ContainerFormat::Docker) && !image {
                    (self.stage, self.around) = (self.stage.keep()?, Around::Kept);
                } else {
                    let (stage, archive) = self.stage.enter(wants, image, self.zipped)?;
                    (self.stage, self.around) = (stage, Around::Archive(Box::new(archive)));
                }
            }
        }
        self.layers.push(found);
        Ok(self)
    }
}

impl Archive {
    /// What the archive is, which must be what was declared. One whose descriptor may still come is nothing for certain.
    fn container(&self) -> Result<ContainerFormat, Violation> {
        self.chosen.check_packing(self.packing)?;
        let found = self.name(self.chosen.container_format);
        if self.chosen.described.is_none() && !self.chosen.last { Ok(found) } else { self.wants.container(found) }
    }

    /// A package is an appliance only as a tar archive.
    fn name(&self, found: ContainerFormat) -> ContainerFormat {
        if self.zipped && found == ContainerFormat::Ova { ContainerFormat::Ovf } else { found }
    }
}

impl Chosen {
    pub(super) fn doubt(&self, error: Error) -> Error {
        if error.violation().is_none() || self.last || self.described.is_some() {
            return error;
        }
        let message = format!("{} is refused, and may not be the disk", self.files.name);
        Error::with_source(Kind::NeedsSpill, message, error)
    }

    /// Holds the first bytes of the disk's file against what its descriptor says.
    ///
    /// # Errors
    /// A violation if they differ.
    pub fn check_head(&self, head: &[u8]) -> Result<(), Violation> {
        self.files.bundle.as_ref().map_or(Ok(()), |bundle| bundle.check_head(head))
    }

    /// Holds the packing found against what the descriptor says.
    ///
    /// # Errors
    /// A violation if they differ.
    pub fn check_packing(&self, found: Option<Packing>) -> Result<(), Violation> {
        let Some(described) = &self.described else { return Ok(()) };
        let expected = described.disk.gzip.then_some(Packing::Gzip);
        if found == expected {
            return Ok(());
        }
        let name = |packing: Option<Packing>| packing.map_or("identity", Packing::name);
        let message = format!("the descriptor says {}: the package was put together wrongly", name(expected));
        Err(Violation::new(Rule::InvalidField, "compression", name(found), message))
    }

    /// Holds the size of the guest's disk against what the descriptor says.
    ///
    /// # Errors
    /// A violation if they differ.
    pub fn check_size(&self, virtual_size: u64) -> Result<(), Violation> {
        if let Some(bundle) = &self.files.bundle {
            bundle.check_size(virtual_size)?;
        }
        match &self.described {
            Some(Described { disk, .. }) if disk.capacity != virtual_size => {
                let message = format!(
                    "the descriptor says that the disk has so many bytes, and it has {virtual_size}: one of them is of another machine"
                );
                Err(Violation::new(Rule::InvalidField, "capacity", disk.capacity, message))
            }
            _ => Ok(()),
        }
    }
}

impl Wrapping {
    /// How the disk lies in its bytes.
    pub fn shape(&self) -> &Shape {
        self.around.shape()
    }

    /// What was taken of an archive.
    pub fn parts(&self) -> &[String] {
        match &self.around {
            Around::Archive(archive) => &archive.parts,
            _ => &[],
        }
    }

    /// What `error`, met in the disk, is worth: another disk may turn out to be meant, and that may be good.
    pub fn doubt(&self, error: Error) -> Error {
        self.around.doubt(error)
    }

    /// Holds the size of the guest's disk, once it is known, against what the container says.
    ///
    /// # Errors
    /// A violation if they differ.
    pub fn check_size(&self, virtual_size: u64) -> Result<()> {
        match &self.around {
            Around::Archive(archive) => Ok(archive.chosen.check_size(virtual_size)?),
            _ => Ok(()),
        }
    }

    /// To be called when all bytes have passed: holds what the whole archive says against what was done.
    ///
    /// # Errors
    /// A violation if a member is not as it is described; `NeedsSpill` if another disk turns out to be meant.
    pub fn conclude(&self, virtual_size: u64) -> Result<(ContainerFormat, Properties)> {
        self.check_size(virtual_size)?;
        let archive = match &self.around {
            Around::Archive(archive) => archive,
            Around::OneFile(wants) => return Ok((wants.container(self.container_format)?, Properties::new())),
            Around::Nothing | Around::Kept => return Ok((self.container_format, Properties::new())),
        };
        let Archive { chosen, passed, packing, wants, .. } = archive.as_ref();
        let contents = passed.lock().unwrap_or_else(PoisonError::into_inner).take();
        let contents = contents.ok_or_else(|| Error::new(Kind::Internal, "the archive's end was not seen"))?;
        let meant = contents.choose(wants.container_disk.as_deref())?;
        let meant = meant.ok_or_else(|| Error::new(Kind::Internal, "a whole archive that is not known"))?;
        if meant.files != chosen.files {
            return Err(again(wants.keep, &format!("the disk is {}, not {}", meant.files.name, chosen.files.name)));
        }
        meant.check_packing(*packing)?;
        meant.check_size(virtual_size)?;
        let container_format = wants.container(archive.name(meant.container_format))?;
        let properties = contents.check(&meant, false)?;
        let properties = properties
            .ok_or_else(|| again(wants.keep, "the manifest after its files has other digests than expected"))?;
        Ok((container_format, properties))
    }
}

/// What needs the archive a second time. That it is not needed a third time is held by how it is read then.
pub(super) fn again(keep: Keep, why: &str) -> Error {
    let kind = if keep == Keep::All { Kind::Internal } else { Kind::NeedsSpill };
    Error::new(kind, format!("{why}, and that stands behind it in the archive"))
}
