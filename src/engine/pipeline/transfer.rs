//! The threads between an opened disk and its sinks.

use std::{sync::Arc, thread, time::Duration};

use crossbeam_channel::{Receiver, Sender, bounded};
use tokio_util::sync::CancellationToken;

use super::{
    Input, Progress,
    cut::{Cutter, Unit},
    deliver::{Delivery, Group, NamedSink, SinkTask, WrittenFile},
    work::{Finished, Worker},
};
use crate::{
    error::{Error, Kind, Result},
    format::{DiskMap, Encoder},
    io::Pool,
    model::{CHUNK_SIZE, Compression, ContentManifest, Limits, OutputFormat},
};

/// Chunks under way beside those in the workers' hands: enough that a slow one does not stop the others.
const AHEAD: usize = 1;

/// Chunk buffers beside those in the workers' hands: they keep a sink busy while the others work.
const SPARE: usize = 8;

/// Chunk buffers of a transfer whose source needs little memory itself, 4 MiB each; there are no more workers than buffers.
pub const BUFFERS: usize = 14;

/// One output format and the sinks that get a file in it.
pub struct Output {
    /// Writes the format.
    pub encoder: Arc<dyn Encoder>,
    /// Who gets the file.
    pub sinks: Vec<NamedSink>,
}

/// How to transfer.
pub struct Transfer {
    /// Where to.
    pub outputs: Vec<Output>,
    /// Whether one sink's failure ends it.
    pub require_all: bool,
    /// Bounds.
    pub limits: Limits,
    /// Threads that unpack, hash and encode.
    pub workers: usize,
    /// Chunk buffers at most.
    pub buffers: usize,
    /// Counters to keep.
    pub progress: Arc<Progress>,
    /// Ends it early. Also cancelled by the transfer itself when it fails, to wake an input that waits.
    pub cancel: CancellationToken,
}

/// A finished transfer: everything is written, nothing is published.
pub struct Transferred {
    /// What the guest sees.
    pub manifest: ContentManifest,
    /// One for every output.
    pub files: Vec<WrittenFile>,
}

/// A transfer that failed, with the sinks that wait to be told.
pub struct Failed {
    error: Option<Error>,
    sinks: Vec<SinkTask>,
}

impl Failed {
    /// A failure before anything was moved.
    pub fn before(error: Error, job: Transfer) -> Self {
        let (stall, sinks) = (job.limits.store_stall, job.outputs.into_iter().flat_map(|output| output.sinks));
        Self { error: Some(error), sinks: sinks.map(|sink| SinkTask::start(sink, stall)).collect() }
    }

    /// A failure after everything was written.
    pub fn after(error: Error, files: Vec<WrittenFile>) -> Self {
        Self { error: Some(error), sinks: files.into_iter().flat_map(|file| file.sinks).collect() }
    }

    /// Whether it was nothing but the sinks.
    pub fn is_of_sinks(&self) -> bool {
        self.error.is_none()
    }

    /// Whether more of the source has to be kept than was.
    pub fn needs_spill(&self) -> bool {
        self.error.as_ref().is_some_and(|error| error.kind() == Kind::NeedsSpill)
    }

    /// The same with another error, if it is the transfer's.
    pub fn map(self, change: impl FnOnce(Error) -> Error) -> Self {
        Self { error: self.error.map(change), ..self }
    }

    /// Removes what the sinks wrote and gives the error to show: a sink's own, if one failed.
    pub async fn settle(self) -> Error {
        let mut cause = None;
        for task in self.sinks {
            match task.join().await {
                Ok(sink) => sink.remove().await,
                Err(error) => cause = cause.or(Some(error)),
            }
        }
        cause.or(self.error).unwrap_or_else(|| Error::new(Kind::Cancelled, "the transfer was cancelled"))
    }
}

/// Moves the disk that `map` describes from `input` to the outputs. Blocks; must be called within a runtime, on a thread that
/// may block. Sinks are left open: the caller commits them once the evidence is complete.
///
/// # Errors
/// What any stage says; the sinks come back with it.
pub fn transfer(map: &mut dyn DiskMap, input: &mut dyn Input, job: Transfer) -> Result<Transferred, Failed> {
    let Transfer { outputs, require_all, limits, workers, buffers, progress, cancel } = job;
    let encoders: Vec<_> = outputs.iter().map(|output| output.encoder.clone()).collect();
    let groups = match open_groups(outputs, map.virtual_size(), limits.store_stall) {
        Ok(groups) => groups,
        Err(error) => return Err(Failed { error: Some(error), sinks: Vec::new() }),
    };
    let afforded = usize::try_from(limits.chunk_memory / CHUNK_SIZE).unwrap_or(usize::MAX);
    let buffers = workers.saturating_add(SPARE).min(share_with_packed(buffers.min(afforded), &encoders)).max(1);
    // More threads than buffers would only hold what each keeps for unpacking and packing.
    let workers = workers.clamp(1, buffers);
    let mut delivery = Delivery::new(groups, require_all, &limits, &progress);
    let worker = Worker::new(Pool::bounded(buffers), encoders);
    let result = thread::scope(|scope| {
        let (units, work) = bounded::<Job>(1);
        let (promises, order) = bounded(workers.saturating_add(AHEAD));
        for _ in 0..workers {
            let (work, worker) = (work.clone(), &worker);
            scope.spawn(move || serve(&work, worker));
        }
        drop(work);
        let (limits, token) = (&limits, cancel.clone());
        let cutter = scope.spawn(move || {
            Cutter::new(map, input, limits).run(&mut |unit| !token.is_cancelled() && promise(unit, &units, &promises))
        });
        let delivered = deliver(order, &mut delivery);
        if !matches!(delivered, Ok(true)) {
            cancel.cancel();
        }
        let cut = cutter.join().unwrap_or_else(|_| Err(Error::new(Kind::Internal, "a stage of the pipeline panicked")));
        // A worker's or a sink's error came first; the cutter then only says that it was stopped.
        match delivered {
            Ok(true) => cut,
            Ok(false) => Ok(None),
            Err(error) => Err(error),
        }
    });
    match result {
        Ok(Some(virtual_size)) => match delivery.finish(virtual_size) {
            Ok((manifest, files)) => Ok(Transferred { manifest, files }),
            Err(error) => Err(Failed { error: Some(error), sinks: Vec::new() }),
        },
        Ok(None) => Err(Failed { error: None, sinks: delivery.into_sinks() }),
        Err(error) => Err(Failed { error: Some(error), sinks: delivery.into_sinks() }),
    }
}

/// How many of `buffers` there may be: a chunk that is packed for an output is there twice for a while.
fn share_with_packed(buffers: usize, encoders: &[Arc<dyn Encoder>]) -> usize {
    let packs = encoders.iter().any(|encoder| encoder.output().compression != Compression::None);
    if packs { buffers.saturating_mul(3) / 5 } else { buffers }
}

fn open_groups(outputs: Vec<Output>, virtual_size: Option<u64>, stall: Duration) -> Result<Vec<Group>> {
    outputs
        .into_iter()
        .map(|Output { encoder, sinks }| {
            if let Some(named) = sinks.iter().find(|named| !named.sink.takes_any_order())
                && !encoder.is_forward(virtual_size)
            {
                return Err(not_forward(&named.store, encoder.output(), virtual_size.is_none()));
            }
            let layout = encoder.layout(virtual_size)?;
            Ok(Group { layout, sinks: sinks.into_iter().map(|sink| SinkTask::start(sink, stall)).collect() })
        })
        .collect()
}

/// Why `output` cannot be written to `store` from its beginning to its end.
fn not_forward(store: &str, output: OutputFormat, unknown: bool) -> Error {
    let why = if unknown {
        "begins with the size of the disk, which is known only at the source's end"
    } else {
        "has tables in front that are written last"
    };
    let message = format!("{store}: {} {why}: write it to a file, or raw or a fixed vhd here", output.disk_format);
    Error::new(Kind::InvalidInput, message)
}

type Answer = Result<Option<Finished>>;
type Job = (Unit, Sender<Answer>);

/// Queues a unit for the workers, and its answer for the delivery, so that answers come in order.
fn promise(unit: Unit, units: &Sender<Job>, promises: &Sender<Receiver<Answer>>) -> bool {
    let (sender, answer) = bounded(1);
    units.send((unit, sender)).is_ok() && promises.send(answer).is_ok()
}

fn serve(work: &Receiver<Job>, worker: &Worker) {
    loop {
        // Taken before the unit: who waits for a buffer holds no input meanwhile, and each unit that is begun can be ended, so that
        // no number of buffers is too small.
        let buffer = worker.buffer();
        let Ok((unit, answer)) = work.recv() else { return };
        // The delivery may have ended already; then nobody waits for the answer.
        drop(answer.send(worker.finish(unit, buffer)));
    }
}

/// Delivers in order until the cutter has ended. False if a sink's failure ended it.
fn deliver(order: Receiver<Receiver<Answer>>, delivery: &mut Delivery<'_>) -> Result<bool> {
    for answer in order {
        let finished = answer.recv().map_err(|_| Error::new(Kind::Internal, "a worker of the pipeline panicked"))??;
        if let Some(finished) = finished
            && !delivery.take(finished)?
        {
            return Ok(false);
        }
    }
    Ok(true)
}
