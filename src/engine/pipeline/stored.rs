//! Published objects as what a pass reads from, instead of a source.
//!
//! Several copies of one content, stored byte for byte the same way, are one input: when one cannot be read any more, the next goes on
//! in its place. Knows stores and the format of what they hold; must not know why it is read.

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
    Direct, Progress, Transfer, Transferred,
    sparse::{Holes, Sparse},
    transfer::{Failed, transfer},
};
use crate::{
    error::{Error, Kind, Result},
    format::{self, DiskMap, Order, Shape},
    io::ReadAt,
    model::{Digest, DiskFormat, Limits, ObjectKey, StoredImage},
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

/// Whether one can go on where the other breaks off: only of raw disks is it certain that every byte lies in the same place.
pub fn are_alike(a: &StoredImage, b: &StoredImage) -> bool {
    let raw = |image: &StoredImage| image.format.disk_format == DiskFormat::Raw;
    raw(a) && raw(b) && a.length == b.length
}

/// Copies that are read as one.
pub struct Copies {
    all: Vec<Opened>,
    at: AtomicUsize,
    faults: Mutex<Vec<(String, Error)>>,
    handle: Handle,
    patience: Duration,
    stop: CancellationToken,
    progress: Arc<Progress>,
}

impl Copies {
    /// `all` copies, best first, all alike and at least one. Must be called within a runtime.
    pub fn new(all: Vec<Opened>, patience: Duration, stop: CancellationToken, progress: &Arc<Progress>) -> Arc<Self> {
        let (at, faults, handle) = (AtomicUsize::new(0), Mutex::default(), Handle::current());
        Arc::new(Self { all, at, faults, handle, patience, stop, progress: progress.clone() })
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

    fn image(&self) -> Option<&StoredImage> {
        self.all.first().map(|first| first.reader.image())
    }

    fn current(&self) -> Option<&Opened> {
        self.all.get(self.at.load(Ordering::Relaxed))
    }

    /// Asks the current copy, and if it fails the next.
    fn ask<T, F>(&self, doing: &str, ask: impl Fn(Arc<dyn ObjectReader>) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let mut last = None;
        while let Some(Opened { store, reader }) = self.current() {
            let answer = answer_within(self.patience, store, doing, &self.stop, ask(reader.clone()));
            match self.handle.block_on(answer) {
                Err(error) if error.kind() != Kind::Cancelled => {
                    tracing::warn!(store, %error, "a copy cannot be read; going on with the next one, if there is one");
                    last = Some(Error::new(error.kind(), error.to_string()));
                    self.faults.lock().unwrap_or_else(PoisonError::into_inner).push((store.clone(), error));
                    self.at.fetch_add(1, Ordering::Relaxed);
                }
                answer => return answer,
            }
        }
        Err(last.unwrap_or_else(|| Error::new(Kind::Unavailable, "no copy is left to read from")))
    }
}

/// The bytes of copies.
struct Bytestream(Arc<Copies>);

impl ReadAt for Bytestream {
    fn length(&self) -> Option<u64> {
        self.0.image().map(|image| image.length)
    }

    fn read_up_to(&mut self, offset: u64, length: usize) -> Result<Bytes> {
        let left = self.length().unwrap_or(0).saturating_sub(offset);
        let wanted = length.min(usize::try_from(left).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(Bytes::new());
        }
        let bytes = self.0.ask("reading an image", |reader| async move { reader.read_at(offset, wanted).await })?;
        self.0.progress.receive(bytes.len() as u64);
        Ok(bytes)
    }
}

impl Holes for Arc<Copies> {
    fn next_data(&mut self, offset: u64) -> Option<Range<u64>> {
        let length = self.image()?.length;
        let found = self.ask("looking for data", |reader| async move { reader.next_data(offset).await }).ok()?;
        Some(found.map_or(length..length, |(start, end)| start..end))
    }
}

/// Moves the disk that `copies` hold to the outputs of `job`, of which there may be none. Blocks; must be called within a runtime, on a
/// thread that may block.
///
/// # Errors
/// What the copies and the outputs say; the sinks come back with it.
pub fn move_stored(copies: &Arc<Copies>, mut job: Transfer) -> Result<Transferred, Failed> {
    job.limits = accepted(&job.limits);
    let mut bytes = Bytestream(copies.clone());
    let map = copies.image().ok_or_else(|| Error::new(Kind::Internal, "no copy to read from"));
    let map = map.and_then(|image| open_map(&mut bytes, image, &job.limits));
    let map = match map {
        Ok(map) => map,
        Err(error) => return Err(Failed::before(error, job)),
    };
    let mut map = Sparse::new(map, copies.clone());
    transfer(&mut map, &mut Direct(bytes), job)
}

/// It was made here, and what is raw is not looked into: a guest's disk may begin like anything.
fn open_map(bytes: &mut Bytestream, image: &StoredImage, limits: &Limits) -> Result<Box<dyn DiskMap>> {
    let format = image.format.disk_format;
    let shape = if format == DiskFormat::Raw { Shape::Opaque } else { Shape::Whole };
    format::open_as(bytes, &shape, Some(format), limits, Order::Tables)
}

/// What was accepted once is not refused for its size now.
fn accepted(limits: &Limits) -> Limits {
    Limits { max_virtual_size: u64::MAX, max_size: u64::MAX, max_expansion: u64::MAX, ..limits.clone() }
}
