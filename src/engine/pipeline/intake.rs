//! The blocking part of an import: receives, unpacks, opens and transfers, and ends with the evidence.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::{
    Import, Progress, Transfer, Transferred,
    container::{Peeled, Ranges, Wants, Wrapping, peel},
    deliver::WrittenFile,
    transfer,
    transfer::Failed,
};
use crate::{
    error::{Error, Kind, Result},
    format::{self, DiskMap, Order, Shape},
    io::{Feed, Keep, LastBytes, Pump, ReadAt as _, Spill, Tailed, Window, WindowLimits, feed_from},
    model::{ContentManifest, Digest, DigestAlgorithm, DiskFormat, Evidence, Limits, Received, Rule, Violation},
    source::Opened,
    verify::{DigestSet, DigestedFeed},
};

/// Bytes received and not yet digested, at most. The queue behind the digest and the kernel's own buffers hold as much again.
const READ_AHEAD: usize = 1 << 20;

/// Chunk buffers where the source is packed as a whole: the unpacker takes up to half of the memory of an import, and is one thread
/// that few others keep up with.
const BUFFERS_OF_PACKED: usize = 5;

/// What the blocking part of an import needs of its job.
pub struct Intake {
    wants: Wants,
    order: Order,
    declared: Vec<Digest>,
    request: Option<String>,
    progress: Arc<Progress>,
    stop: CancellationToken,
}

type Moved = (Vec<WrittenFile>, Evidence);

/// A stream that is under way: the disk's bytes, what was around them, and the last of them once they have passed.
pub struct Stream {
    intake: Intake,
    window: Window<Box<dyn Feed>>,
    wrapping: Wrapping,
    last: LastBytes,
    received: Arc<Mutex<Option<Received>>>,
}

/// A failure, with the sinks that wait to be told, and the stream if all of it can be read again by its tables.
pub struct Stopped {
    /// What went wrong.
    pub failed: Failed,
    /// Where to go on.
    pub again: Option<Box<Stream>>,
}

impl Intake {
    /// The part of `job` that is needed here. `keep` says what the window keeps of a format that may read twice, `stop` ends it early.
    pub fn new(job: &Import, keep: Keep, progress: &Arc<Progress>, stop: &CancellationToken) -> Self {
        // The second time around, with everything kept, nothing has to be read in the stream's order any more. What cannot be read a
        // second time is tried in that order all the same: to keep all of it would cost a copy on disk, for hardly any file.
        let order = if keep == Keep::All && job.source.reopens() { Order::Tables } else { Order::Stream };
        Self {
            order,
            wants: Wants {
                disk_format: job.disk_format,
                container_format: job.container_format,
                container_disk: job.container_disk.clone(),
                limits: job.limits.clone(),
                scratch: job.scratch.clone(),
                keep,
            },
            declared: job.checksums.clone(),
            request: job.request.clone(),
            progress: progress.clone(),
            stop: stop.clone(),
        }
    }

    /// Receives, unpacks, opens and transfers; ends with the evidence.
    ///
    /// # Errors
    /// What any stage says; the sinks come back with it.
    pub fn run(self, opened: Opened, handle: &Handle, job: Transfer) -> Result<Moved, Stopped> {
        let _runtime = handle.enter();
        match self.open_stream(opened, handle) {
            Ok(stream) => Box::new(stream).run(job),
            Err(error) => Err(Stopped { failed: Failed::before(error, job), again: None }),
        }
    }

    /// The stages in front of the format.
    fn open_stream(self, opened: Opened, handle: &Handle) -> Result<Stream> {
        let Opened { length, stream, ranges, .. } = opened;
        let received = Arc::new(Mutex::new(None));
        let slot = received.clone();
        let algorithms = self.declared.iter().map(Digest::algorithm).chain([DigestAlgorithm::Sha256]);
        let feed = feed_from(stream, handle, READ_AHEAD, self.stop.clone());
        let counted = Counted::new(feed, &self.progress, &self.wants.limits);
        let digested = DigestedFeed::new(counted, DigestSet::new(algorithms), move |all| {
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(all);
        });
        let feed = Pump::start("vitrine-digest", digested)?;
        let ranges = ranges.map(|reader| Ranges { reader, handle: handle.clone(), stop: self.stop.clone() });
        let Peeled { feed, length, fetch, wrapping } = peel(&self.wants, feed, length, ranges)?;
        let limits =
            WindowLimits { memory: self.wants.limits.window_memory, tables: self.wants.limits.max_table_memory };
        let spill = Spill::new(&self.wants.scratch, self.wants.limits.max_spill);
        let (feed, last) = Tailed::new(feed, format::TAIL);
        let window = Window::new(Box::new(feed) as Box<dyn Feed>, length, self.wants.keep, spill, limits, fetch);
        Ok(Stream { intake: self, window, wrapping, last, received })
    }

    /// What the window is to keep of a disk that was opened.
    fn keep(&self, map: &dyn DiskMap) -> Keep {
        match self.wants.keep {
            Keep::All if map.may_read_twice() => Keep::All,
            // Nobody else has these bytes, should they be needed once more.
            Keep::All if map.may_need_tables() => Keep::WhileRoom,
            _ => Keep::Unread,
        }
    }
}

impl Stream {
    /// Begins anew with what was kept of the stream and goes on with the rest of it, the tables first.
    ///
    /// # Errors
    /// What any stage says; the sinks come back with it.
    pub fn run_by_tables(mut self: Box<Self>, handle: &Handle, job: Transfer) -> Result<Moved, Stopped> {
        let _runtime = handle.enter();
        self.intake.order = Order::Tables;
        self.window.keep(Keep::All);
        self.run(job)
    }

    fn run(mut self: Box<Self>, job: Transfer) -> Result<Moved, Stopped> {
        let failed = match self.move_disk(job) {
            Ok(moved) => return Ok(moved),
            Err(failed) => failed.map(|error| self.wrapping.doubt(error)),
        };
        let may_go_on = self.intake.order == Order::Stream && self.window.has_all() && failed.needs_spill();
        Err(Stopped { failed, again: may_go_on.then_some(self) })
    }

    /// Opens and transfers what the stages in front give.
    fn move_disk(&mut self, mut job: Transfer) -> Result<Moved, Failed> {
        let (intake, wrapping) = (&self.intake, &self.wrapping);
        if wrapping.packed {
            job.buffers = job.buffers.min(BUFFERS_OF_PACKED);
        }
        if let Err(error) = check_outputs(wrapping, &job) {
            return Err(Failed::before(error, job));
        }
        let (declared, limits) = (intake.wants.disk_format(), &intake.wants.limits);
        let map = format::open_as(&mut self.window.tables(), wrapping.shape(), declared, limits, intake.order);
        let map = map.and_then(|map| map.virtual_size().map_or(Ok(()), |size| wrapping.check_size(size)).map(|()| map));
        let mut map = match map {
            Ok(map) => map,
            Err(error) => return Err(Failed::before(error, job)),
        };
        self.window.keep(intake.keep(map.as_ref()));
        let Transferred { manifest, files } = transfer(map.as_mut(), &mut self.window, job)?;
        match self.conclude(map.as_ref(), manifest) {
            Ok(evidence) => Ok((files, evidence)),
            Err(error) => Err(Failed::after(error, files)),
        }
    }

    /// What is known once all of the stream has come.
    fn conclude(&mut self, map: &dyn DiskMap, manifest: ContentManifest) -> Result<Evidence> {
        self.window.finish()?;
        // Only now is the length of every stream known, and whether tables reach past it.
        map.check_length(self.window.length().unwrap_or(0))?;
        if *self.wrapping.shape() == Shape::Whole {
            format::check_tail(&self.last.lock().unwrap_or_else(PoisonError::into_inner), map.format())?;
        }
        let received = self.received.lock().unwrap_or_else(PoisonError::into_inner).take();
        let received = received.ok_or_else(|| Error::new(Kind::Internal, "the source's end was not seen"))?;
        let (container_format, properties) = self.wrapping.conclude(manifest.virtual_size)?;
        Ok(Evidence {
            received,
            declared: self.intake.declared.clone(),
            source_format: map.format(),
            container_format,
            properties,
            request: self.intake.request.clone(),
            violations: Vec::new(),
            manifest,
        })
    }
}

/// Refuses to make a disk of what is kept as an archive.
fn check_outputs(wrapping: &Wrapping, job: &Transfer) -> Result<()> {
    let formats = job.outputs.iter().map(|output| output.encoder.output().disk_format);
    match formats.into_iter().find(|format| *format != DiskFormat::Raw) {
        Some(format) if *wrapping.shape() == Shape::Opaque => {
            let message = "the files of a container image are kept as an archive, which is no disk: keep it raw";
            Err(Violation::new(Rule::UnsupportedFormat, "convertTo", format, message).into())
        }
        _ => Ok(()),
    }
}

/// Counts what comes and stops past the limit.
pub struct Counted<F> {
    feed: F,
    progress: Arc<Progress>,
    most: u64,
    length: u64,
}

impl<F> Counted<F> {
    /// Counts what `feed` brings.
    pub fn new(feed: F, progress: &Arc<Progress>, limits: &Limits) -> Self {
        Self { feed, progress: progress.clone(), most: limits.max_size, length: 0 }
    }
}

impl<F: Feed> Feed for Counted<F> {
    fn next(&mut self) -> Result<Option<Bytes>> {
        let piece = self.feed.next()?;
        if let Some(bytes) = &piece {
            self.length = self.length.saturating_add(bytes.len() as u64);
            self.progress.receive(bytes.len() as u64);
            if self.length > self.most {
                return Err(too_large(self.length, self.most));
            }
        }
        Ok(piece)
    }
}

/// Refuses a source that says it is larger than allowed.
///
/// # Errors
/// The violation.
pub fn check_length(length: Option<u64>, limits: &Limits) -> Result<()> {
    match length {
        Some(length) if length > limits.max_size => Err(too_large(length, limits.max_size)),
        _ => Ok(()),
    }
}

fn too_large(length: u64, most: u64) -> Error {
    let message = format!("the source is larger than the {most} bytes allowed: raise max-size if it is meant to be");
    Violation::new(Rule::SizeLimit, "size", length, message).into()
}
