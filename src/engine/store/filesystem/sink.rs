//! The asynchronous side of an object that is being written: hands pieces to its thread and bounds the memory they take.

use std::{
    sync::{Arc, mpsc},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Semaphore, oneshot};

use super::{
    super::{ObjectStat, Sink, cut_off, describe},
    partial::Partial,
    place::Place,
    writer::{Order, Piece, Progress, Writer},
};
use crate::{
    error::{Error, Kind, Result},
    model::{ObjectKey, OutputFormat, Verified},
};

/// Memory of the pieces that wait to be written, in bytes per sink. Covers three of the largest pieces, so that the disk
/// never waits for the next.
const MEMORY: usize = 12 << 20;
/// A longer piece is handed over in parts of this size, so that none needs all of `MEMORY`.
const MAX_PIECE: usize = 4 << 20;
/// What a piece counts at least, so that a flood of tiny ones is bounded too: more than a place in the queue takes.
const MIN_COST: usize = 512;
/// How much is filled at once where there are to be no holes, in bytes: milliseconds where room can be set aside, seconds where zeros must
/// be written.
const FILLED: u64 = 256 << 20;
/// How long dropping a sink waits for its files to be gone. Usually milliseconds; a disk that hangs must not hold the runtime,
/// and the thread goes on by itself.
const DROP_PATIENCE: Duration = Duration::from_secs(1);

/// The sink.
pub(super) struct FilesystemSink {
    place: Arc<Place>,
    key: ObjectKey,
    format: OutputFormat,
    /// `None` once the sink has ended.
    queue: Option<mpsc::Sender<Order>>,
    memory: Arc<Semaphore>,
    progress: Arc<Progress>,
    /// Ends when the thread does.
    ended: mpsc::Receiver<()>,
    /// Where the furthest write ended.
    end: u64,
    /// Whether a write was begun and its future dropped: then nobody knows whether its bytes arrived.
    interrupted: bool,
    /// How far holes are filled; `None` where they may stay.
    filled: Option<u64>,
}

impl FilesystemSink {
    /// Starts the thread that writes `partial`.
    pub(super) fn start(place: Arc<Place>, key: ObjectKey, format: OutputFormat, partial: Partial) -> Result<Self> {
        let (queue, orders) = mpsc::channel();
        let (alive, ended) = mpsc::channel();
        let progress = Arc::new(Progress::default());
        let writer = Writer::new(Arc::clone(&place), partial, Arc::clone(&progress));
        std::thread::Builder::new()
            .name(format!("write {key}"))
            .spawn(move || {
                let _alive: mpsc::Sender<()> = alive;
                writer.run(&orders);
            })
            .map_err(|e| {
                let message = format!("store {}: starting a thread to write {key}", place.name());
                Error::with_source(Kind::Unavailable, message, e)
            })?;
        let memory = Arc::new(Semaphore::new(MEMORY));
        let queue = Some(queue);
        Ok(Self { place, key, format, queue, memory, progress, ended, end: 0, interrupted: false, filled: None })
    }

    fn send(&self, order: Order) -> Result<()> {
        let sent = self.queue.as_ref().is_some_and(|queue| queue.send(order).is_ok());
        if sent { Ok(()) } else { Err(self.thread_gone()) }
    }

    fn thread_gone(&self) -> Error {
        let message =
            format!("store {}: the thread that writes {} ended early; report this", self.place.name(), self.key);
        Error::new(Kind::Internal, message)
    }

    /// Sends the last order and waits for what came of it.
    async fn end<T>(&mut self, order: Order, answer: oneshot::Receiver<Result<T>>) -> Result<T> {
        self.send(order)?;
        self.queue = None;
        answer.await.map_err(|_| self.thread_gone())?
    }

    fn check_commit(&self, length: u64) -> Result<()> {
        self.progress.check()?;
        if self.end > length {
            return Err(cut_off(self.place.name(), &self.key, length, self.end));
        }
        if self.interrupted {
            let message = format!(
                "store {}: a write of {} was cancelled, so it cannot be published",
                self.place.name(),
                self.key
            );
            return Err(Error::new(Kind::Internal, message));
        }
        Ok(())
    }
}

#[async_trait]
impl Sink for FilesystemSink {
    async fn write_at(&mut self, offset: u64, mut bytes: Bytes) -> Result<()> {
        self.progress.check()?;
        let end =
            offset.checked_add(bytes.len() as u64).filter(|end| i64::try_from(*end).is_ok()).ok_or_else(|| {
                let message = format!("{} bytes at {offset} of {} end past the largest file", bytes.len(), self.key);
                Error::new(Kind::InvalidInput, message)
            })?;
        self.interrupted = true;
        let mut offset = offset;
        while !bytes.is_empty() {
            let bytes = bytes.split_to(bytes.len().min(MAX_PIECE));
            let cost = u32::try_from(bytes.len().max(MIN_COST)).unwrap_or(u32::MAX);
            let memory = Arc::clone(&self.memory).acquire_many_owned(cost).await.map_err(|_| self.thread_gone())?;
            let length = bytes.len() as u64;
            self.send(Order::Write(Piece::new(offset, bytes, memory)))?;
            offset = offset.saturating_add(length);
        }
        self.interrupted = false;
        self.end = self.end.max(end);
        Ok(())
    }

    fn hold_all(&mut self) -> Result<()> {
        self.filled = Some(0);
        Ok(())
    }

    async fn prepare(&mut self, length: u64) -> Result<bool> {
        let Some(start) = self.filled.filter(|filled| *filled < length) else { return Ok(false) };
        let end = start.saturating_add(FILLED).min(length);
        let (reply, answer) = oneshot::channel();
        self.send(Order::Fill { stretch: start..end, reply })?;
        answer.await.map_err(|_| self.thread_gone())?;
        self.progress.check()?;
        self.filled = Some(end);
        Ok(end < length)
    }

    async fn commit(mut self: Box<Self>, length: u64, proof: &Verified) -> Result<ObjectStat> {
        self.check_commit(length)?;
        while self.prepare(length).await? {}
        let image = Box::new(describe(self.format, length, proof));
        let (reply, answer) = oneshot::channel();
        self.end(Order::Publish { image, reply }, answer).await
    }

    async fn abort(mut self: Box<Self>) -> Result<()> {
        self.progress.abandon();
        let (reply, answer) = oneshot::channel();
        self.end(Order::Abort { reply }, answer).await
    }
}

impl Drop for FilesystemSink {
    fn drop(&mut self) {
        if self.queue.take().is_some() {
            self.progress.abandon();
            // Disconnected when the thread is done, which is the only thing that can arrive.
            let _ = self.ended.recv_timeout(DROP_PATIENCE);
        }
    }
}
