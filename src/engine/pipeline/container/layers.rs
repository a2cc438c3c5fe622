//! Takes off what is around a disk, while it comes in.

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError},
};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::{
    audit::{Audit, Members, Slot},
    contents::{Chosen, Contents, Search},
    docker,
    files::Described,
    section::{Parts, SectionFeed},
};
use crate::{
    error::{Error, Kind, Result},
    format::Shape,
    io::{Feed, Fetch, Keep, Peeked, Pump, Spill, Window, WindowLimits},
    model::{ContainerFormat, DigestAlgorithm, DiskFormat, Limits, Properties, Rule, Violation},
    source::RangeReader,
    unpack::{
        self, HEAD, Packing, UnpackLimits,
        tar::{self, Scan},
    },
};

/// What every member of an archive is digested with while its manifest may still come. Manifests after their files are written by
/// tools that use one of these; SHA-512 is computed as well the second time, when it turned out to be needed.
const ALGORITHMS: &[DigestAlgorithm] = &[DigestAlgorithm::Sha1, DigestAlgorithm::Sha256];
const ALL_ALGORITHMS: &[DigestAlgorithm] = &[DigestAlgorithm::Sha1, DigestAlgorithm::Sha256, DigestAlgorithm::Sha512];

/// Something around a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// A compression.
    Packed(Packing),
    /// A tar archive.
    Archive,
}

impl Layer {
    fn name(self) -> &'static str {
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
    fn fetch(self, parts: Option<Parts>) -> Fetch {
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
    /// How the disk lies in its bytes.
    shape: Shape,
    /// What was taken of an archive.
    parts: Vec<String>,
    archive: Option<Archive>,
}

struct Archive {
    chosen: Chosen,
    shape: Shape,
    parts: Vec<String>,
    passed: Slot,
    /// What the disk's file turned out to be packed with.
    packing: Option<Packing>,
    wants: Wants,
}

/// Takes off what is around the disk in `feed`, which has `length` bytes if that is known.
///
/// # Errors
/// A violation if there are more layers than there may be, or an archive holds no disk; else what `feed` says.
pub fn peel(wants: &Wants, feed: impl Feed + 'static, length: Option<u64>, ranges: Option<Ranges>) -> Result<Peeled> {
    let feed: Box<dyn Feed> = Box::new(feed);
    let mut stage = Stage { feed: Peeked::new(feed, HEAD)?, length, ranges, parts: None };
    let (mut layers, mut archive) = (Vec::new(), None::<Archive>);
    let mut keeps_archive = false;
    while let Some(found) = stage.layer(archive.as_ref()).filter(|_| !wants.keeps_layers()) {
        let again = layers.iter().any(|layer| std::mem::discriminant(layer) == std::mem::discriminant(&found));
        if again {
            return Err(doubt(archive.as_ref(), nested(&layers, found).into()));
        }
        layers.push(found);
        match found {
            Layer::Packed(packing) => {
                if let Some(archive) = &mut archive {
                    archive.packing = Some(packing);
                }
                stage = stage.unpack(packing, &wants.limits)?;
            }
            Layer::Archive if wants.container_format == Some(ContainerFormat::Docker) => {
                stage.feed = Peeked::new(Box::new(stage.feed) as Box<dyn Feed>, docker::HEAD)?;
                if docker::is_image(stage.feed.head()) {
                    let (inner, found) = stage.enter(wants)?;
                    stage = inner;
                    archive = Some(found);
                } else {
                    stage = stage.keep()?;
                    keeps_archive = true;
                    break;
                }
            }
            Layer::Archive => {
                let (inner, found) = stage.enter(wants)?;
                stage = inner;
                archive = Some(found);
            }
        }
    }
    let container_format = match &archive {
        _ if keeps_archive => ContainerFormat::Docker,
        Some(archive) => archive.container()?,
        None if layers.is_empty() => wants.container(ContainerFormat::Bare)?,
        None => wants.container(ContainerFormat::Compressed)?,
    };
    let packed = layers.iter().any(|layer| matches!(layer, Layer::Packed(_)));
    let shape = match &archive {
        _ if keeps_archive => Shape::Opaque,
        Some(archive) => archive.shape.clone(),
        None => Shape::Whole,
    };
    let parts = archive.as_ref().map(|archive| archive.parts.clone()).unwrap_or_default();
    let wrapping = Wrapping { container_format, packed, shape, parts, archive };
    let Stage { feed, length, ranges, parts } = stage;
    Ok(Peeled { feed: Box::new(feed), length, fetch: ranges.map(|ranges| ranges.fetch(parts)), wrapping })
}

/// Bytes between two layers.
struct Stage {
    feed: Peeked<Box<dyn Feed>>,
    length: Option<u64>,
    ranges: Option<Ranges>,
    /// Where in the source they are, if it has ranges; `None` for all of it.
    parts: Option<Parts>,
}

impl Stage {
    /// What is around what comes next. The files of extents are in nothing, and what is kept is not looked into.
    fn layer(&self, archive: Option<&Archive>) -> Option<Layer> {
        let whole = archive.is_none_or(|archive| archive.shape == Shape::Whole);
        layer(self.feed.head()).filter(|_| whole)
    }

    fn unpack(self, packing: Packing, limits: &Limits) -> Result<Self> {
        let unpacker = unpack::unpacker(packing, Box::new(self.feed), UnpackLimits::new(limits));
        let feed: Box<dyn Feed> = Box::new(Pump::start("vitrine-unpack", unpacker)?);
        Ok(Self { feed: Peeked::new(feed, HEAD)?, length: None, ranges: None, parts: None })
    }

    /// Looks at a root filesystem that is kept as it is.
    fn keep(self) -> Result<Self> {
        let feed = Audit::new(self.feed, docker::rootfs_scan(), docker::RootFs::new());
        let feed: Box<dyn Feed> = Box::new(Pump::start("vitrine-archive", feed)?);
        Ok(Self { feed: Peeked::new(feed, HEAD)?, ..self })
    }

    /// Finds the disk in an archive.
    fn enter(self, wants: &Wants) -> Result<(Self, Archive)> {
        let Self { feed, length, ranges, .. } = self;
        let feed = Peeked::new(Box::new(feed) as Box<dyn Feed>, docker::HEAD)?;
        let image = docker::is_image(feed.head());
        let passed = Slot::default();
        let algorithms = if wants.keep == Keep::All { ALL_ALGORITHMS } else { ALGORITHMS };
        let audit = Audit::new(feed, Scan::default(), Members::new(algorithms, passed.clone()));
        let audit: Box<dyn Feed> = Box::new(Pump::start("vitrine-archive", audit)?);
        let limits = WindowLimits { memory: wants.limits.window_memory, tables: wants.limits.max_table_memory };
        let fetch = || ranges.clone().map(|ranges| ranges.fetch(None));
        let spill = Spill::new(&wants.scratch, wants.limits.max_spill);
        let mut window = Window::new(audit, length, Keep::Unread, spill, limits, fetch());
        let twice = fetch().filter(|_| image && wants.keep == Keep::Unread);
        let recalls = twice.is_some();
        if let Some(fetch) = twice {
            window.recall(fetch);
        }
        // Without ranges, what stands before the descriptor would have to wait for it, and mostly there is none.
        let search = if ranges.is_some() || wants.keep == Keep::All { Search::Described } else { Search::First };
        let wanted = wants.container_disk.as_deref();
        let (contents, chosen) = Contents::gather(&mut window.tables(), wanted, search)?;
        if chosen.is_image() {
            if !recalls && wants.keep == Keep::Unread {
                return Err(again(wants.keep, "the layers of a container image are read twice"));
            }
            window.keep(wants.keep);
            return Self::of_image(&contents, chosen, window, passed, wants);
        }
        let parts = Parts::of(&chosen.files.parts);
        let feed: Box<dyn Feed> = Box::new(SectionFeed::new(window, parts.clone(), &chosen.files.name));
        let feed = Peeked::new(feed, HEAD)?;
        chosen.check_head(feed.head()).map_err(|violation| chosen.doubt(violation.into()))?;
        let stage = Self { feed, length: Some(parts.length()), ranges, parts: Some(parts) };
        let (shape, parts) = (chosen.files.shape.clone(), chosen.names());
        Ok((stage, Archive { chosen, shape, parts, passed, packing: None, wants: wants.clone() }))
    }

    /// What the layers of a container image come to.
    fn of_image(
        contents: &Contents,
        chosen: Chosen,
        window: Window<Box<dyn Feed>>,
        passed: Slot,
        wants: &Wants,
    ) -> Result<(Self, Archive)> {
        let wanted = wants.container_disk.as_deref();
        let image = docker::unwrap(contents, window, wanted, wants.container_format, &wants.limits)?;
        let stage = Self { feed: Peeked::new(image.feed, HEAD)?, length: image.length, ranges: None, parts: None };
        let (shape, parts) = (image.shape, image.parts);
        Ok((stage, Archive { chosen, shape, parts, passed, packing: None, wants: wants.clone() }))
    }
}

impl Archive {
    /// What the archive is, which must be what was declared. One whose descriptor may still come is nothing for certain.
    fn container(&self) -> Result<ContainerFormat, Violation> {
        self.chosen.check_packing(self.packing)?;
        let found = self.chosen.container_format;
        if self.chosen.described.is_none() && !self.chosen.last { Ok(found) } else { self.wants.container(found) }
    }
}

impl Chosen {
    fn doubt(&self, error: Error) -> Error {
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
        &self.shape
    }

    /// What was taken of an archive.
    pub fn parts(&self) -> &[String] {
        &self.parts
    }

    /// What `error`, met in the disk, is worth: another disk may turn out to be meant, and that may be good.
    pub fn doubt(&self, error: Error) -> Error {
        doubt(self.archive.as_ref(), error)
    }

    /// Holds the size of the guest's disk, once it is known, against what the container says.
    ///
    /// # Errors
    /// A violation if they differ.
    pub fn check_size(&self, virtual_size: u64) -> Result<()> {
        self.archive.as_ref().map_or(Ok(()), |archive| Ok(archive.chosen.check_size(virtual_size)?))
    }

    /// To be called when all bytes have passed: holds what the whole archive says against what was done.
    ///
    /// # Errors
    /// A violation if a member is not as it is described; `NeedsSpill` if another disk turns out to be meant.
    pub fn conclude(&self, virtual_size: u64) -> Result<(ContainerFormat, Properties)> {
        self.check_size(virtual_size)?;
        let Some(archive) = &self.archive else { return Ok((self.container_format, Properties::new())) };
        let Archive { chosen, passed, packing, wants, .. } = archive;
        let contents = passed.lock().unwrap_or_else(PoisonError::into_inner).take();
        let contents = contents.ok_or_else(|| Error::new(Kind::Internal, "the archive's end was not seen"))?;
        let meant = contents.choose(wants.container_disk.as_deref())?;
        let meant = meant.ok_or_else(|| Error::new(Kind::Internal, "a whole archive that is not known"))?;
        if meant.files != chosen.files {
            return Err(again(wants.keep, &format!("the disk is {}, not {}", meant.files.name, chosen.files.name)));
        }
        meant.check_packing(*packing)?;
        meant.check_size(virtual_size)?;
        let container_format = wants.container(meant.container_format)?;
        let properties = contents.check(&meant, false)?;
        let properties = properties
            .ok_or_else(|| again(wants.keep, "the manifest after its files has other digests than expected"))?;
        Ok((container_format, properties))
    }
}

fn doubt(archive: Option<&Archive>, error: Error) -> Error {
    match archive {
        Some(archive) => archive.chosen.doubt(error),
        None => error,
    }
}

/// What needs the archive a second time. That it is not needed a third time is held by how it is read then.
fn again(keep: Keep, why: &str) -> Error {
    let kind = if keep == Keep::All { Kind::Internal } else { Kind::NeedsSpill };
    Error::new(kind, format!("{why}, and that stands behind it in the archive"))
}
