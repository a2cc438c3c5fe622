//! Published objects as what a pass reads from, instead of a source.
//!
//! Several copies of one content are one input, however each is stored: when one cannot be read any more, the next goes on in its place,
//! at the same byte of the guest's disk. Whether what was read of them is that content is told by its digest, at the end. Knows stores
//! and the formats of what they hold; must not know why it is read.

use std::{
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::{
    Direct, Input, Progress, Transfer, Transferred,
    resume::Without,
    sparse::{Holes, Sparse},
    transfer::{Failed, transfer},
};
use crate::{
    error::{Error, Kind, Result},
    format::{self, DiskMap, Mapping, Order, Shape},
    io::ReadAt,
    model::{ChunkDigest, Digest, DiskFormat, Limits, ObjectKey, StoredImage},
    store::{ObjectReader, Store, answer_within},
};

/// One copy, open for reading.
#[derive(Clone)]
pub struct Opened {
    /// The store's name.
    pub store: String,
    /// The object.
    pub reader: Arc<dyn ObjectReader>,
}

/// Opens the copy of `key` in `store`, which must hold `content` by its own record.
///
/// # Errors
/// What the store says; of `Kind::Changed` if it is recorded to hold something else.
pub async fn open(
    store: &dyn Store,
    key: &ObjectKey,
    content: &Digest,
    patience: Duration,
    stop: &CancellationToken,
) -> Result<Opened> {
    let name = store.name();
    let reader = answer_within(patience, name, "opening an image", stop, store.open(key)).await?;
    let found = reader.image().manifest.root();
    if found != *content {
        let message = format!("store {name}: {key} is recorded to hold {found}, and {content} is expected");
        return Err(Error::new(Kind::Changed, message));
    }
    Ok(Opened { store: name.to_owned(), reader })
}

/// Copies that are read as one.
pub struct Copies {
    all: Vec<Opened>,
    /// Which is read.
    at: AtomicUsize,
    /// Of which the tables are known: where bytes lie in one copy says nothing of another.
    mapped: AtomicUsize,
    faults: Mutex<Vec<(String, Error)>>,
    handle: Handle,
    patience: Duration,
    stop: CancellationToken,
    progress: Arc<Progress>,
}

impl Copies {
    /// `all` copies, best first, at least one. Must be called within a runtime.
    pub fn new(all: Vec<Opened>, patience: Duration, stop: CancellationToken, progress: &Arc<Progress>) -> Arc<Self> {
        let (at, mapped, faults) = (AtomicUsize::new(0), AtomicUsize::new(0), Mutex::default());
        let (handle, progress) = (Handle::current(), progress.clone());
        Arc::new(Self { all, at, mapped, faults, handle, patience, stop, progress })
    }

    /// The copies that were read from, the last one of which may be sound.
    pub fn used(&self) -> &[Opened] {
        let end = self.at.load(Ordering::Relaxed).saturating_add(1).min(self.all.len());
        self.all.get(..end).unwrap_or_default()
    }

    /// Which copies could not be read, and why; each is told once.
    pub fn take_faults(&self) -> Vec<(String, Error)> {
        std::mem::take(&mut *self.faults.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn current(&self) -> Option<&Opened> {
        self.all.get(self.at.load(Ordering::Relaxed))
    }

    /// Whether another copy is to be read than the one of which the tables are known.
    fn has_moved(&self) -> bool {
        self.at.load(Ordering::Relaxed) != self.mapped.load(Ordering::Relaxed)
    }

    /// Asks the copy of which the tables are known. If it fails, it is the next one's turn, and that one's tables must be read first.
    fn ask<T, F>(&self, doing: &str, ask: impl Fn(Arc<dyn ObjectReader>) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let none = || Error::new(Kind::Unavailable, "no copy is left to read from");
        let Some(Opened { store, reader }) = self.current() else { return Err(none()) };
        if self.has_moved() {
            return Err(Error::new(Kind::Unavailable, "this copy cannot be read any more"));
        }
        let answer = answer_within(self.patience, store, doing, &self.stop, ask(reader.clone()));
        self.handle.block_on(answer).map_err(|error| self.fail(error))
    }

    /// Takes note of what went wrong with the copy that is read, unless that it was stopped: it is the next one's turn.
    fn fail(&self, error: Error) -> Error {
        let Some(Opened { store, .. }) = self.current().filter(|_| error.kind() != Kind::Cancelled) else {
            return error;
        };
        tracing::warn!(store, %error, "a copy cannot be read; going on with the next one, if there is one");
        let told = Error::new(error.kind(), error.to_string());
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).push((store.clone(), error));
        self.at.fetch_add(1, Ordering::Relaxed);
        told
    }

    /// The same of an error that may be one of `ask`, of which note was taken already.
    fn fail_once(&self, error: Error) -> Error {
        if self.has_moved() { error } else { self.fail(error) }
    }
}

/// The bytes of the copy that is read.
struct Bytestream(Arc<Copies>);

impl ReadAt for Bytestream {
    fn length(&self) -> Option<u64> {
        self.0.current().map(|opened| opened.reader.image().length)
    }

    fn read_up_to(&mut self, offset: u64, length: usize) -> Result<Bytes> {
        let left = self.length().unwrap_or(0).saturating_sub(offset);
        let wanted = length.min(usize::try_from(left).unwrap_or(usize::MAX));
        if wanted == 0 && !self.0.has_moved() {
            return Ok(Bytes::new());
        }
        let bytes = self.0.ask("reading an image", |reader| async move { reader.read_at(offset, wanted).await })?;
        self.0.progress.receive(bytes.len() as u64);
        Ok(bytes)
    }
}

impl Holes for Arc<Copies> {
    fn next_data(&mut self, offset: u64) -> Option<Range<u64>> {
        let length = self.current()?.reader.image().length;
        let found = self.ask("looking for data", |reader| async move { reader.next_data(offset).await }).ok()?;
        Some(found.map_or(length..length, |(start, end)| start..end))
    }
}

/// The map of the disk in the copy that is read.
struct Relay {
    copies: Arc<Copies>,
    limits: Limits,
    /// Of the copy whose number is `Copies::mapped`.
    map: Sparse<Arc<Copies>>,
}

impl Relay {
    fn open(copies: &Arc<Copies>, limits: &Limits) -> Result<Self> {
        let map = open_map(copies, limits)?;
        Ok(Self { copies: copies.clone(), limits: limits.clone(), map })
    }

    /// Reads the tables of the copy that is to be read now, if they are those of another one.
    fn turn(&mut self) -> Result<()> {
        if self.copies.has_moved() {
            self.map = open_map(&self.copies, &self.limits)?;
        }
        Ok(())
    }
}

impl DiskMap for Relay {
    fn format(&self) -> DiskFormat {
        self.map.format()
    }

    fn virtual_size(&self) -> Option<u64> {
        self.map.virtual_size()
    }

    fn may_read_twice(&self) -> bool {
        self.map.may_read_twice()
    }

    fn check_length(&self, length: u64) -> Result<()> {
        self.map.check_length(length)
    }

    fn finish(&mut self, input: &mut dyn ReadAt) -> Result<()> {
        self.turn()?;
        self.map.finish(input).map_err(|error| self.copies.fail_once(error))
    }

    fn resolve(&mut self, input: &mut dyn ReadAt, guest: u64, most: u64) -> Result<Mapping> {
        self.turn()?;
        self.map.resolve(input, guest, most).map_err(|error| self.copies.fail_once(error))
    }
}

/// The copies as the input of a transfer.
struct StoredInput {
    copies: Arc<Copies>,
    bytes: Direct<Bytestream>,
}

impl Input for StoredInput {
    fn resolve(&mut self, map: &mut dyn DiskMap, guest: u64, most: u64) -> Result<Mapping> {
        self.bytes.resolve(map, guest, most)
    }

    fn read(&mut self, offset: u64, length: usize) -> Result<Bytes> {
        self.bytes.read(offset, length)
    }

    fn read_pieces(&mut self, offset: u64, length: usize) -> Result<Vec<Bytes>> {
        self.bytes.read_pieces(offset, length)
    }

    fn close(&mut self, map: &mut dyn DiskMap) -> Result<()> {
        self.bytes.close(map)
    }

    fn finish(&mut self) -> Result<()> {
        self.bytes.finish()
    }

    fn goes_on(&self) -> bool {
        self.copies.has_moved() && self.copies.current().is_some() && !self.copies.stop.is_cancelled()
    }
}

/// Moves the disk that `copies` hold, without the chunks in `kept`, to the outputs of `job`, of which there may be none. Blocks; must be
/// called within a runtime, on a thread that may block.
///
/// # Errors
/// What the copies and the outputs say; the sinks come back with it.
pub fn move_stored(copies: &Arc<Copies>, mut job: Transfer, kept: &[ChunkDigest]) -> Result<Transferred, Failed> {
    job.limits = accepted(&job.limits);
    let mut map = match Relay::open(copies, &job.limits) {
        Ok(map) => map,
        Err(error) => return Err(Failed::before(error, job)),
    };
    let mut input = StoredInput { copies: copies.clone(), bytes: Direct(Bytestream(copies.clone())) };
    transfer(&mut Without::new(&mut map, kept), &mut input, job)
}

/// Reads the tables of the copy whose turn it is, and of the next one if they cannot be read.
fn open_map(copies: &Arc<Copies>, limits: &Limits) -> Result<Sparse<Arc<Copies>>> {
    let mut last = Error::new(Kind::Unavailable, "no copy is left to read from");
    while let Some(opened) = copies.current() {
        copies.mapped.store(copies.at.load(Ordering::Relaxed), Ordering::Relaxed);
        match open_one(&mut Bytestream(copies.clone()), opened.reader.image(), limits) {
            Ok(map) => return Ok(Sparse::new(map, copies.clone())),
            Err(error) => last = copies.fail_once(error),
        }
        if last.kind() == Kind::Cancelled {
            break;
        }
    }
    Err(last)
}

/// It was made here, and what is raw is not looked into: a guest's disk may begin like anything.
fn open_one(bytes: &mut Bytestream, image: &StoredImage, limits: &Limits) -> Result<Box<dyn DiskMap>> {
    let format = image.format.disk_format;
    let shape = if format == DiskFormat::Raw { Shape::Opaque } else { Shape::Whole };
    format::open_as(bytes, &shape, Some(format), limits, Order::Tables)
}

/// What was accepted once is not refused for its size now.
fn accepted(limits: &Limits) -> Limits {
    Limits { max_virtual_size: u64::MAX, max_size: u64::MAX, max_expansion: u64::MAX, ..limits.clone() }
}
