//! Inspection of any source: by range where it can be asked for ranges, else by reading it to its end.
//!
//! What is refused here is what an import would refuse before it moves data; knows the stages, not the formats.

use std::{path::PathBuf, sync::Arc};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::{
    Progress,
    container::{Contents, Layer, Peeled, Ranges, Search, Wants, Wrapping, layer, nested, peel},
    expansion::{Expansion, nonzero},
    intake::{Counted, check_length},
};
use crate::{
    error::{Error, Kind, Result},
    format::{self, Order, Shape},
    io::{Feed, Keep, Peeked, ReadAt, Spill, feed_from},
    model::{ContainerFormat, DiskFormat, Inspection, Limits, Rule, Violation},
    source::{Opened, RangeReader, Source},
    unpack,
};

/// Bytes looked at to tell what a stream is: as much as formats look at.
const HEAD: usize = 64 << 10;
/// Bytes at the end of a flat disk that are kept to tell what it is.
const TAIL: usize = format::TAIL;
/// Least and most bytes fetched at once. Tables are 64 KiB in most images, and a round trip takes as long as a MiB on an
/// ordinary link, so more is fetched only where one read follows close behind another.
const FETCH: Range = Range { least: 64 << 10, most: 1 << 20 };
/// Bytes of a stream on their way.
const AHEAD: usize = 4 << 20;

struct Range {
    least: u64,
    most: u64,
}

/// An inspection to be done.
pub struct InspectJob {
    /// What to look at.
    pub source: Arc<dyn Source>,
    /// What the user says it is; `None` for whatever is found.
    pub disk_format: Option<DiskFormat>,
    /// What the user says is around it; `None` for whatever is found.
    pub container_format: Option<ContainerFormat>,
    /// The disk that is meant where the container holds several, by its file's name or its id; `None` for the one that boots.
    pub container_disk: Option<String>,
    /// Bounds.
    pub limits: Limits,
    /// Folder for what has to wait on disk.
    pub scratch: PathBuf,
}

impl InspectJob {
    fn wants(&self, keep: Keep) -> Wants {
        Wants {
            disk_format: self.disk_format,
            container_format: self.container_format,
            container_disk: self.container_disk.clone(),
            limits: self.limits.clone(),
            scratch: self.scratch.clone(),
            keep,
        }
    }
}

/// What the source holds, and every reason to refuse it that can be told without moving its data.
///
/// # Errors
/// If it could not be told.
pub async fn inspect(job: InspectJob, cancel: &CancellationToken) -> Result<Inspection> {
    // As in an import: what cannot be read twice has to be kept from the start.
    let job = Arc::new(job);
    let keep = if job.source.reopens() { Keep::Unread } else { Keep::All };
    match attempt(&job, keep, cancel).await {
        Err(error) if error.kind() == Kind::NeedsSpill && keep == Keep::Unread => {
            attempt(&job, Keep::All, cancel).await
        }
        result => result,
    }
}

async fn attempt(job: &Arc<InspectJob>, keep: Keep, cancel: &CancellationToken) -> Result<Inspection> {
    let stopped = || Error::new(Kind::Cancelled, "the inspection was interrupted");
    let opened = cancel.run_until_cancelled(job.source.open()).await.ok_or_else(stopped)??;
    if let Err(error) = check_length(opened.length, &job.limits) {
        return refused(None, ContainerFormat::Bare, opened.length, error);
    }
    let (handle, stop) = (Handle::current(), cancel.child_token());
    let _guard = stop.clone().drop_guard();
    let job = job.clone();
    let looking = tokio::task::spawn_blocking(move || look(&job, keep, opened, &handle, stop));
    match cancel.run_until_cancelled(looking).await {
        None => Err(stopped()),
        Some(done) => done.map_err(|e| Error::with_source(Kind::Internal, "the inspection's thread failed", e))?,
    }
}

fn look(job: &InspectJob, keep: Keep, opened: Opened, handle: &Handle, stop: CancellationToken) -> Result<Inspection> {
    let wants = job.wants(keep);
    let mut has_ranges = false;
    if let (Some(ranges), Some(length)) = (opened.ranges.clone(), opened.length) {
        let (handle, stop) = (handle.clone(), stop.clone());
        let held = (0, Bytes::new());
        let mut input = Ranged { ranges, length, handle, stop, held, fetch: FETCH.least, claimed: false };
        let inspection = by_ranges(&wants, &mut input);
        if !input.claimed
            && let Some(inspection) = inspection?
        {
            return Ok(inspection);
        }
        has_ranges = !input.claimed;
    }
    let ranges = opened.ranges.clone().filter(|_| has_ranges);
    let ranges = ranges.map(|reader| Ranges { reader, handle: handle.clone(), stop: stop.clone() });
    look_through(job, &wants, opened, ranges, handle, stop)
}

/// Reads tables only; `None` if there is a compression around the disk that has to be taken off first.
fn by_ranges(wants: &Wants, input: &mut Ranged) -> Result<Option<Inspection>> {
    let head = input.read_up_to(0, HEAD)?;
    if let Some(found) = layer(&head).filter(|_| !wants.keeps_layers())
        && let Err(violation) = format::check_layer(&head, found.name())
    {
        return refused(None, ContainerFormat::Bare, input.length(), violation.into()).map(Some);
    }
    match layer(&head).filter(|_| !wants.keeps_layers()) {
        None => {
            let mut inspection = format::inspect(input, wants.disk_format(), &wants.limits)?;
            match wants.container(ContainerFormat::Bare) {
                Ok(found) => inspection.container_format = found,
                Err(violation) => inspection.refuse(violation),
            }
            Ok(Some(inspection))
        }
        Some(Layer::Packed(_)) => Ok(None),
        // Its layers are packed, or there are more files than can be asked for one by one.
        Some(Layer::Archive) if wants.container_format == Some(ContainerFormat::Docker) => Ok(None),
        Some(Layer::Archive) => {
            let length = input.length();
            in_archive(wants, input).or_else(|error| refused(None, ContainerFormat::Bare, length, error).map(Some))
        }
    }
}

/// The disk of an archive; `None` if it is compressed.
fn in_archive(wants: &Wants, input: &mut Ranged) -> Result<Option<Inspection>> {
    let (contents, chosen) = Contents::gather(input, wants.container_disk.as_deref(), Search::Whole)?;
    if chosen.is_image() {
        return Ok(None);
    }
    let (length, mut disk) = (input.length(), chosen.section(input));
    let head = disk.read_up_to(0, unpack::HEAD)?;
    chosen.check_head(&head)?;
    match layer(&head).filter(|_| *chosen.shape() == Shape::Whole) {
        Some(Layer::Packed(_)) => return Ok(None),
        Some(inner) => return Err(nested(&[Layer::Archive], inner).into()),
        None => chosen.check_packing(None)?,
    }
    let mut inspection = format::inspect_as(&mut disk, chosen.shape(), wants.disk_format(), &wants.limits)?;
    (inspection.size, inspection.parts) = (length, chosen.names());
    match wants.container(chosen.container_format()) {
        Ok(found) => inspection.container_format = found,
        Err(violation) => inspection.refuse(violation),
    }
    let checked = inspection.virtual_size.map_or(Ok(()), |size| chosen.check_size(size));
    match checked.and_then(|()| contents.check_texts(&chosen)) {
        Ok(properties) => inspection.properties = properties,
        Err(violation) => inspection.refuse(violation),
    }
    Ok(Some(inspection))
}

/// Reads the stream to its end.
fn look_through(
    job: &InspectJob,
    wants: &Wants,
    opened: Opened,
    ranges: Option<Ranges>,
    handle: &Handle,
    stop: CancellationToken,
) -> Result<Inspection> {
    let (progress, told) = (Arc::new(Progress::default()), opened.length);
    let counted = Counted::new(feed_from(opened.stream, handle, AHEAD, stop), &progress, &job.limits);
    let peeled = match peel(wants, counted, told, ranges) {
        Ok(peeled) => peeled,
        Err(error) => return refused(None, ContainerFormat::Bare, told, error),
    };
    let Peeled { feed, wrapping, .. } = peeled;
    let look = || {
        let feed = Peeked::new(feed, HEAD)?;
        let mut inspection = Stream { job, wants, shape: wrapping.shape(), feed, progress: &progress }.inspect()?;
        inspection.container_format = wrapping.container_format;
        (inspection.parts, inspection.opaque) = (wrapping.parts().to_vec(), *wrapping.shape() == Shape::Opaque);
        // A size that stands there is of what came out, and says that all of it was read.
        if inspection.size.take().is_some() {
            inspection.size = told.or_else(|| Some(progress.snapshot().received));
            conclude(&wrapping, &mut inspection)?;
        }
        inspection.size = inspection.size.or(told);
        match inspection.reasons.first() {
            Some(reason) => Err(wrapping.doubt(reason.clone().into())).or_else(|error| match error.kind() {
                Kind::NeedsSpill => Err(error),
                _ => Ok(inspection),
            }),
            None => Ok(inspection),
        }
    };
    look().or_else(|error| refused(None, wrapping.container_format, told, wrapping.doubt(error)))
}

/// Holds what the container says against the disk.
fn conclude(wrapping: &Wrapping, inspection: &mut Inspection) -> Result<()> {
    // Without a size there is a reason already.
    let Some(virtual_size) = inspection.virtual_size else { return Ok(()) };
    match wrapping.conclude(virtual_size) {
        Ok((container_format, properties)) => {
            (inspection.container_format, inspection.properties) = (container_format, properties);
            Ok(())
        }
        Err(error) => match error.violation() {
            Some(violation) => {
                inspection.refuse(violation.clone());
                Ok(())
            }
            None => Err(error),
        },
    }
}

/// A refusal, if `error` is one.
fn refused(
    disk_format: Option<DiskFormat>,
    container_format: ContainerFormat,
    size: Option<u64>,
    error: Error,
) -> Result<Inspection> {
    let Some(violation) = error.violation().cloned() else { return Err(error) };
    let mut inspection = Inspection::new(disk_format);
    (inspection.container_format, inspection.size) = (container_format, size);
    inspection.refuse(violation);
    Ok(inspection)
}

/// A stream without ranges.
struct Stream<'a, F> {
    job: &'a InspectJob,
    wants: &'a Wants,
    shape: &'a Shape,
    feed: Peeked<F>,
    progress: &'a Progress,
}

impl<F: Feed> Stream<'_, F> {
    fn inspect(self) -> Result<Inspection> {
        let mut head = Head(Bytes::copy_from_slice(self.feed.head()));
        // A flat disk has no tables: its length and its end are all that is to be learned from the rest.
        match format::open_as(&mut head, self.shape, self.wants.disk_format(), &self.job.limits, Order::Stream) {
            Ok(map) if map.virtual_size().is_none() => self.measure(map.format()),
            Ok(_) | Err(_) => self.spool(),
        }
    }

    /// Reads to the end for the length, and looks at the first and the last bytes then.
    fn measure(mut self, disk_format: DiskFormat) -> Result<Inspection> {
        let most = self.job.limits.max_virtual_size.saturating_add(TAIL as u64);
        let mut ends = Ends { head: Bytes::copy_from_slice(self.feed.head()), tail: Vec::new(), length: 0 };
        let mut expansion = Expansion::new(&self.job.limits, self.progress);
        while let Some(piece) = self.feed.next()? {
            ends.add(&piece);
            if ends.length > most {
                let most = self.job.limits.max_virtual_size;
                let message = format!("the disk is larger than the {most} bytes allowed");
                let violation =
                    Violation::new(Rule::VirtualSizeLimit, "virtual size", format!("more than {most}"), message);
                return refused(Some(disk_format), ContainerFormat::Bare, None, violation.into());
            }
            let bomb = expansion.add(nonzero(&piece)).err();
            if let Some(error) = bomb {
                return refused(Some(disk_format), ContainerFormat::Bare, None, error);
            }
        }
        format::inspect_as(&mut ends, self.shape, self.wants.disk_format(), &self.job.limits)
    }

    /// Writes all of it to a file that has no name, and inspects that.
    fn spool(mut self) -> Result<Inspection> {
        let most = self.job.limits.max_spill;
        let mut spool = Spool { spill: Spill::new(&self.job.scratch, most), length: 0 };
        while let Some(piece) = self.feed.next()? {
            let length = spool.length.saturating_add(piece.len() as u64);
            if length > most {
                return Err(no_room(most));
            }
            spool.spill.keep(spool.length, &piece)?;
            spool.length = length;
        }
        format::inspect_as(&mut spool, self.shape, self.wants.disk_format(), &self.job.limits)
    }
}

/// Says nothing of the image: an import keeps only a little of it.
fn no_room(most: u64) -> Error {
    let message = format!(
        "it could not be told: what has tables and comes as a stream is kept on disk to be inspected, and more than {most} bytes came; \
         save it as an unpacked file and inspect that"
    );
    Error::new(Kind::NoSpace, message)
}

/// The first bytes of a stream whose length is not known.
struct Head(Bytes);

impl ReadAt for Head {
    fn length(&self) -> Option<u64> {
        None
    }

    fn read_up_to(&mut self, offset: u64, length: usize) -> Result<Bytes> {
        Ok(part(&self.0, offset, length))
    }

    fn can_skip(&self) -> bool {
        false
    }
}

/// The first and the last bytes of a stream that has been read: what a flat disk is told by.
struct Ends {
    head: Bytes,
    /// At most `TAIL` bytes.
    tail: Vec<u8>,
    length: u64,
}

impl Ends {
    fn add(&mut self, piece: &[u8]) {
        self.length = self.length.saturating_add(piece.len() as u64);
        self.tail.extend_from_slice(piece.get(piece.len().saturating_sub(TAIL)..).unwrap_or_default());
        self.tail.drain(..self.tail.len().saturating_sub(TAIL));
    }
}

impl ReadAt for Ends {
    fn length(&self) -> Option<u64> {
        Some(self.length)
    }

    fn read_up_to(&mut self, offset: u64, length: usize) -> Result<Bytes> {
        let end = offset.saturating_add(length as u64).min(self.length);
        if end <= self.head.len() as u64 {
            return Ok(part(&self.head, offset, length));
        }
        match offset.checked_sub(self.length.saturating_sub(self.tail.len() as u64)) {
            Some(within) => Ok(part(&Bytes::copy_from_slice(&self.tail), within, length)),
            None => Err(Error::new(Kind::Internal, format!("a flat disk was read at byte {offset} to be inspected"))),
        }
    }
}

/// Up to `length` of `bytes` at `offset`.
fn part(bytes: &Bytes, offset: u64, length: usize) -> Bytes {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
    bytes.slice(start..start.saturating_add(length).min(bytes.len()))
}

/// A whole stream on disk.
struct Spool {
    spill: Spill,
    length: u64,
}

impl ReadAt for Spool {
    fn is_near(&self) -> bool {
        true
    }

    fn length(&self) -> Option<u64> {
        Some(self.length)
    }

    fn read_up_to(&mut self, offset: u64, length: usize) -> Result<Bytes> {
        let available = usize::try_from(self.length.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut buffer = vec![0; length.min(available)];
        if !buffer.is_empty() {
            self.spill.read(offset, &mut buffer)?;
        }
        Ok(buffer.into())
    }
}

/// A source that is read by range, with a little read ahead.
struct Ranged {
    ranges: Arc<dyn RangeReader>,
    length: u64,
    handle: Handle,
    stop: CancellationToken,
    /// Whether ranges turned out to be only claimed. Nothing can be read here then.
    claimed: bool,
    /// What was fetched last, and where it stands.
    held: (u64, Bytes),
    /// How much to fetch next.
    fetch: u64,
}

impl Ranged {
    fn held(&self, offset: u64, length: u64) -> Option<Bytes> {
        let (start, bytes) = &self.held;
        let skip = offset.checked_sub(*start)?;
        let whole = skip.checked_add(length)? <= bytes.len() as u64;
        whole.then(|| part(bytes, skip, usize::try_from(length).unwrap_or(usize::MAX)))
    }
}

impl ReadAt for Ranged {
    fn is_near(&self) -> bool {
        self.ranges.is_near()
    }

    fn length(&self) -> Option<u64> {
        Some(self.length)
    }

    fn read_up_to(&mut self, offset: u64, length: usize) -> Result<Bytes> {
        let wanted = (length as u64).min(self.length.saturating_sub(offset));
        if wanted == 0 {
            return Ok(Bytes::new());
        }
        if let Some(bytes) = self.held(offset, wanted) {
            return Ok(bytes);
        }
        let end = self.held.0.saturating_add(self.held.1.len() as u64);
        let close = offset >= self.held.0 && offset <= end.saturating_add(FETCH.most);
        self.fetch = if close { self.fetch.saturating_mul(2).min(FETCH.most) } else { FETCH.least };
        let ask = wanted.max(self.fetch).min(self.length.saturating_sub(offset));
        let read = self.handle.block_on(self.stop.run_until_cancelled(self.ranges.read_range(offset, ask)));
        let bytes = read.unwrap_or_else(|| Err(Error::new(Kind::Cancelled, "the inspection was interrupted")))?;
        let Some(bytes) = bytes else {
            self.claimed = true;
            return Err(Error::new(Kind::Unavailable, "the server only claims to have ranges"));
        };
        self.held = (offset, bytes);
        Ok(part(&self.held.1, 0, usize::try_from(wanted).unwrap_or(usize::MAX)))
    }
}
