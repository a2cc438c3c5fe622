//! The blocking part of an import: receives, unpacks, opens and transfers, and ends with the evidence.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::{Import, Progress, Transfer, Transferred, deliver::WrittenFile, transfer, transfer::Failed};
use crate::{
    error::{Error, Kind, Result},
    format::{self, Order},
    io::{Feed, Fetch, Keep, Peeked, Pump, ReadAt, Spill, Window, WindowLimits, feed_from},
    model::{ContainerFormat, Digest, DigestAlgorithm, DiskFormat, Evidence, Limits, Received, Rule, Violation},
    source::Opened,
    unpack::{self, UnpackLimits},
    verify::{DigestSet, DigestedFeed},
};

/// Bytes received and not yet digested, at most. The queue behind the digest and the kernel's own buffers hold as much again.
const READ_AHEAD: usize = 1 << 20;

/// Chunk buffers where the source is packed as a whole: the unpacker takes up to half of the memory of an import, and is one thread
/// that few others keep up with.
const BUFFERS_OF_PACKED: usize = 5;

/// What the blocking part of an import needs of its job.
pub struct Intake {
    disk_format: Option<DiskFormat>,
    container_format: Option<ContainerFormat>,
    declared: Vec<Digest>,
    limits: Limits,
    scratch: PathBuf,
    keep: Keep,
    progress: Arc<Progress>,
    stop: CancellationToken,
}

type Moved = (Vec<WrittenFile>, Evidence);

impl Intake {
    /// The part of `job` that is needed here. `keep` says what the window keeps of a format that may read twice, `stop` ends it early.
    pub fn new(job: &Import, keep: Keep, progress: &Arc<Progress>, stop: &CancellationToken) -> Self {
        Self {
            disk_format: job.disk_format,
            container_format: job.container_format,
            declared: job.checksums.clone(),
            limits: job.limits.clone(),
            scratch: job.scratch.clone(),
            keep,
            progress: progress.clone(),
            stop: stop.clone(),
        }
    }

    /// Receives, unpacks, opens and transfers; ends with the evidence.
    ///
    /// # Errors
    /// What any stage says; the sinks come back with it.
    pub fn run(self, opened: Opened, handle: &Handle, mut job: Transfer) -> Result<Moved, Failed> {
        let _runtime = handle.enter();
        let received = Arc::new(Mutex::new(None));
        let (mut window, container_format) = match self.open_window(opened, handle, &received) {
            Ok(window) => window,
            Err(error) => return Err(Failed::before(error, job)),
        };
        if container_format == ContainerFormat::Compressed {
            job.buffers = job.buffers.min(BUFFERS_OF_PACKED);
        }
        let map = format::open(&mut window.tables(), self.disk_format, &self.limits, self.order());
        let mut map = match map {
            Ok(map) => map,
            Err(error) => return Err(Failed::before(error, job)),
        };
        if !map.may_read_twice() {
            window.keep(Keep::Unread);
        }
        let Transferred { manifest, files } = transfer(map.as_mut(), &mut window, job)?;
        let evidence = window.finish().and_then(|()| {
            // Only now is the length of every stream known, and whether tables reach past it.
            map.check_length(window.length().unwrap_or(0))?;
            let received = received.lock().unwrap_or_else(PoisonError::into_inner).take();
            received.ok_or_else(|| Error::new(Kind::Internal, "the source's end was not seen"))
        });
        match evidence {
            Ok(received) => {
                let (source_format, declared) = (map.format(), self.declared);
                Ok((
                    files,
                    Evidence { received, declared, source_format, container_format, violations: Vec::new(), manifest },
                ))
            }
            Err(error) => Err(Failed::after(error, files)),
        }
    }

    /// With everything kept, the second time around, nothing has to be read in the stream's order any more.
    fn order(&self) -> Order {
        match self.keep {
            Keep::Unread => Order::Stream,
            Keep::All => Order::Tables,
        }
    }

    /// The stages in front of the format.
    fn open_window(
        &self,
        opened: Opened,
        handle: &Handle,
        received: &Arc<Mutex<Option<Received>>>,
    ) -> Result<(Window<Box<dyn Feed>>, ContainerFormat)> {
        let Opened { length, stream, ranges, .. } = opened;
        let slot = received.clone();
        let algorithms = self.declared.iter().map(Digest::algorithm).chain([DigestAlgorithm::Sha256]);
        let feed = feed_from(stream, handle, READ_AHEAD, self.stop.clone());
        let counted = Counted::new(feed, &self.progress, &self.limits);
        let digested = DigestedFeed::new(counted, DigestSet::new(algorithms), move |all| {
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(all);
        });
        let feed = Peeked::new(Pump::start("vitrine-digest", digested)?, unpack::HEAD)?;
        let packing = unpack::detect(feed.head());
        let container = self.container(packing.is_some())?;
        let (feed, length, fetch): (Box<dyn Feed>, _, Option<Fetch>) = match packing {
            None => {
                let (handle, stop) = (handle.clone(), self.stop.clone());
                let fetch = ranges.map(|ranges| -> Fetch {
                    Box::new(move |offset, length| {
                        let read = handle.block_on(stop.run_until_cancelled(ranges.read_range(offset, length)));
                        read.unwrap_or_else(|| Err(Error::new(Kind::Cancelled, "the import was cancelled")))
                    })
                });
                (Box::new(feed), length, fetch)
            }
            Some(packing) => {
                let unpacker = unpack::unpacker(packing, Box::new(feed), UnpackLimits::new(&self.limits));
                let inner = Peeked::new(Pump::start("vitrine-unpack", unpacker)?, unpack::HEAD)?;
                unpack::check_not_nested(packing, inner.head())?;
                (Box::new(inner), None, None)
            }
        };
        let limits = WindowLimits { memory: self.limits.window_memory, tables: self.limits.max_table_memory };
        let spill = Spill::new(&self.scratch, self.limits.max_spill);
        Ok((Window::new(feed, length, self.keep, spill, limits, fetch), container))
    }

    /// The container found, which must be the declared one.
    fn container(&self, packed: bool) -> Result<ContainerFormat> {
        let found = if packed { ContainerFormat::Compressed } else { ContainerFormat::Bare };
        match self.container_format {
            Some(declared) if declared != found => Err(Violation::new(
                Rule::FormatMismatch,
                "containerFormat",
                found,
                format!("declared {declared}: correct spec.containerFormat, or leave it out to take what is found"),
            )
            .into()),
            _ => Ok(found),
        }
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
    let message = format!("the source is larger than the {most} bytes allowed: raise maxSize if it is meant to be");
    Violation::new(Rule::SizeLimit, "size", length, message).into()
}
