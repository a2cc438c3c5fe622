//! Gives finished chunks their place in every output, in order, and hands the bytes to the sinks.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::{
    sync::mpsc,
    task::{JoinError, JoinHandle},
};

use super::{Progress, expansion::Expansion, work::Finished};
use crate::{
    error::{Error, Kind, Result},
    format::{Finish, Layout, Write},
    model::{ContentManifest, Limits},
    store::Sink,
};

/// Batches that wait for a sink; each holds one chunk at most.
const QUEUE: usize = 1;

/// Adjoining pieces are joined up to this many bytes, so that a store gets few large writes instead of many small ones.
const JOINED: usize = 4 << 20;

/// A sink and the name of its store.
pub struct NamedSink {
    /// The store's name, for messages.
    pub store: String,
    /// Where to write.
    pub sink: Box<dyn Sink>,
}

impl NamedSink {
    /// Removes what was written. The user must see what went wrong first; what goes wrong here is for the log.
    pub async fn remove(self) {
        let Self { store, sink } = self;
        if let Err(error) = sink.abort().await {
            tracing::warn!(store, %error, "removing an unfinished object failed");
        }
    }
}

/// A sink with the task that feeds it.
pub struct SinkTask {
    /// The store's name.
    pub store: String,
    sender: Option<mpsc::Sender<Vec<Write>>>,
    task: JoinHandle<Result<NamedSink>>,
}

impl SinkTask {
    /// Starts to write what `send` brings. A single write that takes longer than `stall` fails. Must be called within a runtime.
    pub fn start(sink: NamedSink, stall: Duration) -> Self {
        let (sender, batches) = mpsc::channel(QUEUE);
        Self { store: sink.store.clone(), sender: Some(sender), task: tokio::spawn(write_all(sink, batches, stall)) }
    }

    /// Queues a batch, waiting for room. False if the sink has failed; `join` tells why.
    fn send(&self, batch: Vec<Write>) -> bool {
        self.sender.as_ref().is_some_and(|sender| sender.blocking_send(batch).is_ok())
    }

    /// Whether it takes no more, because a write failed.
    fn has_failed(&self) -> bool {
        self.sender.as_ref().is_none_or(mpsc::Sender::is_closed)
    }

    /// Waits until all is written, and gives the sink back.
    ///
    /// # Errors
    /// The first write that failed. The sink is gone then, and with it what it wrote.
    pub async fn join(mut self) -> Result<NamedSink> {
        self.sender = None;
        self.task.await.map_err(|e: JoinError| Error::with_source(Kind::Internal, "writing", e))?
    }
}

/// After a failure nobody waits for the sink any more: others go on at once, and what it wrote is removed meanwhile.
async fn write_all(
    mut named: NamedSink,
    mut batches: mpsc::Receiver<Vec<Write>>,
    stall: Duration,
) -> Result<NamedSink> {
    while let Some(batch) = batches.recv().await {
        for write in batch {
            if let Err(error) = write_within(stall, &mut *named.sink, write).await {
                drop(batches);
                let error = error.context(format!("store {}", named.store));
                if tokio::time::timeout(stall, named.remove()).await.is_err() {
                    tracing::warn!(%error, "removing an unfinished object takes too long; it is left to a sweep");
                }
                return Err(error);
            }
        }
    }
    Ok(named)
}

async fn write_within(stall: Duration, sink: &mut dyn Sink, write: Write) -> Result<()> {
    let (offset, length) = (write.offset, write.bytes.len());
    let written = tokio::time::timeout(stall, sink.write_at(offset, write.bytes)).await;
    written.unwrap_or_else(|_| {
        let message = format!(
            "a write of {length} bytes at byte {offset} has made no progress for {} s: does its server answer, and is its volume \
             mounted?",
            stall.as_secs()
        );
        Err(Error::new(Kind::Unavailable, message))
    })
}

/// One file being laid out, and the sinks that get it.
pub struct Group {
    /// Gives pieces their place.
    pub layout: Box<dyn Layout>,
    /// Who writes the file.
    pub sinks: Vec<SinkTask>,
}

/// Hands writes to every sink; those that failed say so when they are joined.
fn send(sinks: &[SinkTask], writes: Vec<Write>, progress: &Progress) {
    let writes = join(writes);
    progress.write(writes.iter().map(|write| write.bytes.len() as u64).sum());
    for sink in sinks {
        let _alive = sink.send(writes.clone());
    }
}

/// A file that is written completely and not published, with the tasks of its sinks.
pub struct WrittenFile {
    /// Length of the file in bytes.
    pub length: u64,
    /// Who wrote it.
    pub sinks: Vec<SinkTask>,
}

/// The serial end of a transfer.
pub struct Delivery<'a> {
    groups: Vec<Group>,
    manifest: ContentManifest,
    expansion: Expansion<'a>,
    require_all: bool,
    progress: &'a Progress,
}

impl<'a> Delivery<'a> {
    /// Delivers to `groups`. With `require_all`, the first sink that fails ends it; else the last.
    pub fn new(groups: Vec<Group>, require_all: bool, limits: &'a Limits, progress: &'a Progress) -> Self {
        let expansion = Expansion::new(limits, progress);
        Self { groups, manifest: ContentManifest::default(), expansion, require_all, progress }
    }

    /// Takes the next chunk. False if delivery cannot go on because of a sink.
    ///
    /// # Errors
    /// A violation if far more comes out than went in.
    pub fn take(&mut self, finished: Finished) -> Result<bool> {
        self.expansion.add(finished.data)?;
        self.manifest.chunks.push(finished.digest);
        for (group, encoded) in self.groups.iter_mut().zip(finished.encoded) {
            let writes = group.layout.place(encoded)?;
            send(&group.sinks, writes, self.progress);
        }
        Ok(!self.must_stop())
    }

    /// Writes what remains, now that the virtual size is known. Gives what the guest sees, and the
    /// file of every group.
    ///
    /// # Errors
    /// If the size cannot be expressed in an output format.
    pub fn finish(mut self, virtual_size: u64) -> Result<(ContentManifest, Vec<WrittenFile>)> {
        self.manifest.virtual_size = virtual_size;
        let mut files = Vec::new();
        for Group { layout, sinks } in self.groups {
            let Finish { writes, length } = layout.finish(virtual_size)?;
            send(&sinks, writes, self.progress);
            files.push(WrittenFile { length, sinks });
        }
        Ok((self.manifest, files))
    }

    /// The sinks, when delivery ended early; joining them tells which failed.
    pub fn into_sinks(self) -> Vec<SinkTask> {
        self.groups.into_iter().flat_map(|group| group.sinks).collect()
    }

    fn must_stop(&self) -> bool {
        let mut failed = self.groups.iter().flat_map(|group| &group.sinks).map(SinkTask::has_failed);
        if self.require_all { failed.any(|f| f) } else { failed.all(|f| f) }
    }
}

/// Joins writes that adjoin.
fn join(writes: Vec<Write>) -> Vec<Write> {
    let mut runs: Vec<Vec<Write>> = Vec::new();
    let mut run_length = 0_usize;
    for write in writes.into_iter().filter(|write| !write.bytes.is_empty()) {
        let length = write.bytes.len();
        let adjoins = runs.last().and_then(|run| run.last()).is_some_and(|last| end(last) == write.offset);
        match runs.last_mut() {
            Some(run) if adjoins && run_length.saturating_add(length) <= JOINED => {
                run_length = run_length.saturating_add(length);
                run.push(write);
            }
            _ => {
                run_length = length;
                runs.push(vec![write]);
            }
        }
    }
    runs.into_iter().filter_map(one).collect()
}

fn end(write: &Write) -> u64 {
    write.offset.saturating_add(write.bytes.len() as u64)
}

/// One write for a run of adjoining ones. A single one is not copied.
fn one(mut run: Vec<Write>) -> Option<Write> {
    if run.len() < 2 {
        return run.pop();
    }
    let offset = run.first()?.offset;
    let mut buffer = BytesMut::with_capacity(run.iter().map(|write| write.bytes.len()).sum());
    for write in run {
        buffer.extend_from_slice(&write.bytes);
    }
    Some(Write { offset, bytes: Bytes::from(buffer) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(offset: u64, length: u64) -> Write {
        let bytes: Vec<u8> = (offset..offset + length).map(|i| u8::try_from(i % 251).unwrap()).collect();
        Write { offset, bytes: bytes.into() }
    }

    #[test]
    fn adjoining_writes_become_one() {
        let writes = [(0, 10), (10, 5), (15, 1), (20, 4), (30, 2), (32, 3), (35, 0)];
        let joined = join(writes.into_iter().map(|(offset, length)| write(offset, length)).collect());
        let shape: Vec<_> = joined.iter().map(|w| (w.offset, w.bytes.len())).collect();
        assert_eq!(shape, vec![(0, 16), (20, 4), (30, 5)]);
        for found in joined {
            assert_eq!(found.bytes, write(found.offset, found.bytes.len() as u64).bytes);
        }
    }

    #[test]
    fn joined_writes_stay_bounded() {
        let joined = join((0..10).map(|i| write(i << 20, 1 << 20)).collect());
        assert!(joined.iter().all(|w| w.bytes.len() <= JOINED));
        assert_eq!(joined.iter().map(|w| w.bytes.len()).sum::<usize>(), 10 << 20);
    }
}
