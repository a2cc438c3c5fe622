//! The thread that writes one object's data: it takes pieces from a queue, joins neighbours, has them written back early, and fills holes
//! where there are to be none.
//!
//! Runs on its own thread and not on the runtime's: it must finish its work, or clean up, also while the runtime shuts down.

use std::{
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
};

use bytes::Bytes;
use rustix::io::Errno;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{
    super::{ObjectStat, data_file::DataFile},
    fill,
    partial::Partial,
    place::Place,
    room,
};
use crate::{
    error::{Error, Kind, Result},
    model::StoredImage,
};

/// Bytes that one system call writes at most: large enough that its cost does not show, small enough that several fit into
/// the memory of a sink.
const MAX_BATCH: usize = 4 << 20;
/// Pieces that one system call writes at most: 4 KiB pieces fill a batch, and the kernel takes no more (`IOV_MAX`).
const MAX_PIECES: usize = MAX_BATCH / 4096;
/// What holes are filled with where no room can be set aside.
static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

/// What a sink asks of its thread.
pub(super) enum Order {
    /// Write these bytes.
    Write(Piece),
    /// Hold every byte of the stretch for real.
    Fill {
        /// The stretch.
        stretch: Range<u64>,
        /// Where to tell that it is done; an error is told by `Progress`.
        reply: oneshot::Sender<()>,
    },
    /// Publish, after all writes before.
    Publish {
        /// What to record.
        image: Box<StoredImage>,
        /// Where to tell.
        reply: oneshot::Sender<Result<ObjectStat>>,
    },
    /// Remove everything.
    Abort {
        /// Where to tell.
        reply: oneshot::Sender<Result<()>>,
    },
}

/// Bytes, their place, and the memory they are allowed.
pub(super) struct Piece {
    /// Offset in the object.
    offset: u64,
    /// What to write.
    bytes: Bytes,
    /// Given back when they are written.
    _memory: OwnedSemaphorePermit,
}

impl Piece {
    /// A piece that holds on to `memory` until it is written.
    pub(super) fn new(offset: u64, bytes: Bytes, memory: OwnedSemaphorePermit) -> Self {
        Self { offset, bytes, _memory: memory }
    }

    fn end(&self) -> u64 {
        self.offset.saturating_add(self.bytes.len() as u64)
    }
}

/// What sink and thread both see.
#[derive(Default)]
pub(super) struct Progress {
    abandoned: AtomicBool,
    failure: Mutex<Option<(Kind, String)>>,
}

impl Progress {
    /// Tells the thread that nobody waits for the object any more.
    pub(super) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
    }

    /// The error that ended the writing, told again to everybody who asks.
    pub(super) fn check(&self) -> Result<()> {
        match &*self.failure.lock().unwrap_or_else(PoisonError::into_inner) {
            Some((kind, message)) => Err(Error::new(*kind, message.clone())),
            None => Ok(()),
        }
    }

    fn fail(&self, error: &Error) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some((error.kind(), error.to_string()));
    }
}

/// The thread's state.
pub(super) struct Writer {
    place: Arc<Place>,
    partial: Partial,
    progress: Arc<Progress>,
    allowance: room::Allowance,
    data: DataFile,
}

impl Writer {
    /// A writer of `partial`.
    pub(super) fn new(place: Arc<Place>, partial: Partial, progress: Arc<Progress>) -> Self {
        let data = partial.writable();
        Self { place, partial, progress, allowance: room::Allowance::default(), data }
    }

    /// Works until the object is published or given up. A queue whose sender is gone means that it is given up.
    pub(super) fn run(mut self, queue: &mpsc::Receiver<Order>) {
        let mut next = queue.recv().ok();
        while let Some(order) = next.take() {
            match order {
                Order::Write(first) => {
                    let batch;
                    (batch, next) = gather(first, queue);
                    let pieces: Vec<&[u8]> = batch.iter().map(|piece| &*piece.bytes).collect();
                    let start = batch.first().map_or(0, |piece| piece.offset);
                    self.work(|writer| writer.try_write(&pieces, start));
                    // Before waiting: the sender may need the memory that the batch holds.
                    drop(batch);
                    next = next.or_else(|| queue.recv().ok());
                }
                Order::Fill { stretch, reply } => {
                    self.work(|writer| writer.try_fill(&stretch));
                    // Whoever asked may have gone away.
                    let _ = reply.send(());
                    next = queue.recv().ok();
                }
                Order::Publish { image, reply } => {
                    // A caller that went away has lost the answer, not the object.
                    let _ = reply.send(self.publish(*image));
                    return;
                }
                Order::Abort { reply } => {
                    let _ = reply.send(self.partial.remove());
                    return;
                }
            }
        }
    }

    fn publish(self, image: StoredImage) -> Result<ObjectStat> {
        self.progress.check()?;
        self.partial.publish(image)
    }

    /// Works on the data; the first failure ends the object at once, so that a full disk gets its room back.
    fn work(&mut self, work: impl FnOnce(&mut Self) -> Result<()>) {
        if self.progress.abandoned.load(Ordering::Acquire) || self.progress.check().is_err() {
            return;
        }
        if let Err(error) = work(self) {
            // In this order: who hears of the failure finds nothing left.
            if let Err(error) = self.partial.remove() {
                tracing::warn!(%error, "an unfinished object stays behind until it is swept");
            }
            self.progress.fail(&error);
        }
    }

    /// Writes `pieces` one behind the other from `start` on.
    fn try_write(&mut self, pieces: &[&[u8]], start: u64) -> Result<()> {
        let length = pieces.iter().map(|piece| piece.len() as u64).sum();
        self.allowance.take(&self.place, self.partial.data(), &self.partial.label(), length)?;
        self.data.write(pieces, start).map_err(|errno| self.explain(errno, length))
    }

    fn try_fill(&mut self, stretch: &Range<u64>) -> Result<()> {
        let file = Arc::clone(self.partial.data());
        if stretch.start == 0 {
            // Not every file system counts as data what it has only in memory, and zeros would be written over it.
            rustix::fs::fdatasync(&file).map_err(|errno| self.explain(errno, 0))?;
        }
        let holes = fill::holes(&file, stretch).map_err(|errno| self.explain(errno, 0))?;
        let missing = holes.iter().map(|hole| hole.end.saturating_sub(hole.start)).sum();
        self.allowance.take(&self.place, &file, &self.partial.label(), missing)?;
        if fill::reserve(&file, stretch).map_err(|errno| self.explain(errno, missing))? {
            return Ok(());
        }
        for hole in holes {
            let mut at = hole.start;
            while at < hole.end {
                let left = usize::try_from(hole.end.saturating_sub(at)).unwrap_or(usize::MAX);
                let zeros = ZEROS.get(..left).unwrap_or(&ZEROS);
                self.data.write(&[zeros], at).map_err(|errno| self.explain(errno, missing))?;
                at = at.saturating_add(zeros.len() as u64);
            }
        }
        Ok(())
    }

    fn explain(&self, errno: Errno, length: u64) -> Error {
        match errno {
            Errno::NOSPC | Errno::DQUOT => {
                room::no_space(&self.place, self.partial.data(), &self.partial.label(), length)
            }
            errno => self.place.error(&format!("writing {}", self.partial.label()), errno),
        }
    }
}

/// The pieces that follow `first` without a gap and are there already, and the order that comes after them.
fn gather(first: Piece, queue: &mpsc::Receiver<Order>) -> (Vec<Piece>, Option<Order>) {
    let mut end = first.end();
    let mut size = first.bytes.len();
    let mut batch = vec![first];
    while size < MAX_BATCH && batch.len() < MAX_PIECES {
        match queue.try_recv() {
            Ok(Order::Write(piece)) if piece.offset == end => {
                end = piece.end();
                size = size.saturating_add(piece.bytes.len());
                batch.push(piece);
            }
            Ok(other) => return (batch, Some(other)),
            Err(_) => break,
        }
    }
    (batch, None)
}
