//! The bytes between two layers, and how each layer is taken off.

use bytes::Bytes;

use super::{
    ahead,
    audit::{Audit, Members, Slot},
    contents::{Chosen, Contents, Search},
    docker,
    layers::{Archive, Ranges, Wants, again},
    section::{Parts, SectionFeed},
};
use crate::{
    error::{Error, Kind, Result},
    format::LOOK,
    io::{Feed, Fetch, Keep, Peeked, Pump, ReadAt, Spill, Window, WindowLimits},
    model::{DigestAlgorithm, Limits},
    unpack::{
        self, Packing, UnpackLimits,
        tar::Scan,
        zip::{self, Listing},
    },
};

/// What every member of an archive is digested with while its manifest may still come, and cannot be looked up. Manifests after their
/// files are written by tools that use one of these; SHA-512 is computed as well the second time, when it turned out to be needed.
const ALGORITHMS: &[DigestAlgorithm] = &[DigestAlgorithm::Sha1, DigestAlgorithm::Sha256];
const ALL_ALGORITHMS: &[DigestAlgorithm] = &[DigestAlgorithm::Sha1, DigestAlgorithm::Sha256, DigestAlgorithm::Sha512];

/// Bytes between two layers.
pub(super) struct Stage {
    pub feed: Peeked<Box<dyn Feed>>,
    pub length: Option<u64>,
    pub ranges: Option<Ranges>,
    /// Where in the source they are, if it has ranges; `None` for all of it.
    pub parts: Option<Parts>,
}

impl Stage {
    /// What comes out of a compression.
    pub fn unpack(self, packing: Packing, limits: &Limits) -> Result<Self> {
        let unpacker = unpack::unpacker(packing, Box::new(self.feed), UnpackLimits::new(limits));
        let feed: Box<dyn Feed> = Box::new(Pump::start("vitrine-unpack", unpacker)?);
        Ok(Self { feed: Peeked::new(feed, LOOK)?, length: None, ranges: None, parts: None })
    }

    /// Looks at a root filesystem that is kept as it is.
    pub fn keep(self) -> Result<Self> {
        let feed = Audit::new(self.feed, docker::rootfs_scan(), docker::RootFs::new());
        let feed: Box<dyn Feed> = Box::new(Pump::start("vitrine-archive", feed)?);
        Ok(Self { feed: Peeked::new(feed, LOOK)?, ..self })
    }

    /// What comes out of a zip archive, which may turn out to hold more than that.
    pub fn unzip_one(self, limits: &Limits) -> Result<Self> {
        let unpacker = unpack::unpacker(Packing::Zip, Box::new(self.feed), UnpackLimits::new(limits));
        let feed: Box<dyn Feed> = Box::new(OneFile(Pump::start("vitrine-unpack", unpacker)?));
        Ok(Self { feed: Peeked::new(feed, LOOK)?, length: None, ranges: None, parts: None })
    }

    /// The files of a zip archive, as another archive.
    pub fn unzip(self, listing: Listing, limits: &Limits) -> Result<Self> {
        let unpacker = unpack::zip_files(listing, Box::new(self.feed), UnpackLimits::new(limits));
        let feed: Box<dyn Feed> = Box::new(Pump::start("vitrine-unpack", unpacker)?);
        Ok(Self { feed: Peeked::new(feed, LOOK)?, length: None, ranges: None, parts: None })
    }

    /// What stands at the end of a zip archive, where that can be had: by range, or by keeping all of it. Else there is taken to be one
    /// file in it, and a second one shows when it comes.
    pub fn list(self, wants: &Wants) -> Result<(Self, Option<Listing>)> {
        if let (Some(ranges), Some(length)) = (self.ranges.clone(), self.length) {
            let listing = zip::list(&mut Fetched { fetch: ranges.fetch(None), length });
            match listing {
                Err(error) if error.kind() == Kind::NeedsSpill && wants.keep == Keep::All => {}
                listing => return Ok((self, listing?)),
            }
        }
        if wants.keep == Keep::Unread {
            return Ok((self, None));
        }
        let limits = WindowLimits { memory: wants.limits.window_memory, tables: wants.limits.max_table_memory };
        let spill = Spill::new(&wants.scratch, wants.limits.max_spill);
        let mut window = Window::new(self.feed, None, Keep::All, spill, limits, None);
        // Only the end tells where it is.
        window.read_up_to(i64::MAX.unsigned_abs(), 1)?;
        let (listing, length) = (zip::list(&mut window)?, window.length());
        let feed: Box<dyn Feed> = Box::new(SectionFeed::new(window, Parts::whole(length.unwrap_or(0)), "the archive"));
        Ok((Self { feed: Peeked::new(feed, LOOK)?, length, ranges: None, parts: None }, listing))
    }

    /// Finds the disk in an archive: one of an `image`, or another; a zip archive before it was unpacked, or not.
    pub fn enter(self, wants: &Wants, image: bool, zipped: bool) -> Result<(Self, Archive)> {
        let Self { feed, length, ranges, .. } = self;
        let passed = Slot::default();
        let algorithms = algorithms(wants, image, ranges.as_ref(), length);
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
            return Self::of_image(&contents, chosen, window, passed, wants, zipped);
        }
        let parts = Parts::of(&chosen.files.parts);
        let feed: Box<dyn Feed> = Box::new(SectionFeed::new(window, parts.clone(), &chosen.files.name));
        let feed = Peeked::new(feed, LOOK)?;
        chosen.check_head(feed.head()).map_err(|violation| chosen.doubt(violation.into()))?;
        let stage = Self { feed, length: Some(parts.length()), ranges, parts: Some(parts) };
        let (shape, parts) = (chosen.files.shape.clone(), chosen.names());
        Ok((stage, Archive { chosen, shape, parts, zipped, passed, packing: None, wants: wants.clone() }))
    }

    /// What the layers of a container image come to.
    fn of_image(
        contents: &Contents,
        chosen: Chosen,
        window: Window<Box<dyn Feed>>,
        passed: Slot,
        wants: &Wants,
        zipped: bool,
    ) -> Result<(Self, Archive)> {
        let wanted = wants.container_disk.as_deref();
        let image = docker::unwrap(contents, window, wanted, wants.container_format, &wants.limits)?;
        let stage = Self { feed: Peeked::new(image.feed, LOOK)?, length: image.length, ranges: None, parts: None };
        let (shape, parts) = (image.shape, image.parts);
        Ok((stage, Archive { chosen, shape, parts, zipped, passed, packing: None, wants: wants.clone() }))
    }
}

/// What the members of an archive are to be digested with: those of an `image` that is read once are digested with its layers.
fn algorithms(wants: &Wants, image: bool, ranges: Option<&Ranges>, length: Option<u64>) -> Vec<DigestAlgorithm> {
    if wants.keep == Keep::All {
        return ALL_ALGORITHMS.to_vec();
    }
    let known = ranges.zip(length).filter(|_| !image).and_then(|(ranges, length)| {
        // What is wrong shows when it passes.
        ahead::algorithms(&mut Fetched { fetch: ranges.clone().fetch(None), length }).ok().flatten()
    });
    known.unwrap_or_else(|| ALGORITHMS.to_vec())
}

/// A zip archive that is taken to have one file.
struct OneFile<F>(F);

impl<F: Feed> Feed for OneFile<F> {
    fn next(&mut self) -> Result<Option<Bytes>> {
        self.0.next().map_err(|error| match error.violation() {
            Some(violation) if violation.value == zip::SEVERAL => Error::with_source(
                Kind::NeedsSpill,
                "what a zip archive of several files holds stands at its end",
                error,
            ),
            _ => error,
        })
    }
}

/// A source by range.
struct Fetched {
    fetch: Fetch,
    length: u64,
}

impl ReadAt for Fetched {
    fn length(&self) -> Option<u64> {
        Some(self.length)
    }

    fn read_up_to(&mut self, offset: u64, length: usize) -> Result<Bytes> {
        let length = (length as u64).min(self.length.saturating_sub(offset));
        if length == 0 {
            return Ok(Bytes::new());
        }
        let claimed = || Error::new(Kind::NeedsSpill, "the source only claims to have ranges");
        (self.fetch)(offset, length)?.ok_or_else(claimed)
    }
}
