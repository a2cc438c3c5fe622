//! The sinks of an import: opened before the first byte, published after the last.

use std::time::Duration;

use futures::future::join_all;
use tokio_util::sync::CancellationToken;

use super::{
    Permit, Published, Target,
    deliver::{NamedSink, SinkTask, WrittenFile},
    resume::{self, Known},
    transfer::Output,
};
use crate::{
    error::{Error, Kind, Result},
    format,
    model::{ChunkDigest, Digest, DiskFormat, Evidence, ObjectKey, OutputFormat, Verified},
    store::{ObjectStat, Sink, answer, answer_within},
};

/// A sink with all its bytes, and the length of its file.
pub struct WrittenSink {
    length: u64,
    sink: NamedSink,
}

/// What is placed where, and under which rules.
pub struct Placing<'a> {
    /// Name of the object in every store.
    pub key: &'a ObjectKey,
    /// The fencing token.
    pub attempt: u32,
    /// Where it goes.
    pub targets: &'a [Target],
    /// Whether one store's failure fails all.
    pub require_all: bool,
    /// Asked before anything is removed or published, if somebody must be.
    pub permit: Option<&'a dyn Permit>,
    /// How long a store may take to answer.
    pub patience: Duration,
}

impl Placing<'_> {
    /// How its sinks are waited for.
    pub fn joining<'a>(&self, stop: &'a CancellationToken) -> Joining<'a> {
        Joining { require_all: self.require_all, patience: self.patience, stop }
    }
}

/// What writing begins with.
pub struct Begun {
    /// A sink in every store that does not hold the object yet, grouped by output format. There is none if each has it, or has failed.
    pub outputs: Vec<Output>,
    /// What became of the other stores.
    pub published: Vec<Published>,
    /// The chunks that every sink holds already.
    pub kept: Vec<ChunkDigest>,
}

/// Begins to write to every store; where the content is `known`, over what a dead writer left there.
///
/// # Errors
/// With `require_all`, what the first store says that fails.
pub async fn open_sinks(job: &Placing<'_>, known: Option<Known<'_>>, stop: &CancellationToken) -> Result<Begun> {
    let mut outputs: Vec<(OutputFormat, Vec<NamedSink>)> = Vec::new();
    let (mut published, mut kept) = (Vec::new(), None::<Vec<ChunkDigest>>);
    // All at once: who does not answer keeps nobody waiting twice.
    let begun = join_all(job.targets.iter().map(|target| begin(job, target, known, stop))).await;
    for (Target { store, output }, begun) in job.targets.iter().zip(begun) {
        let name = store.name().to_owned();
        match begun {
            Ok(Start::Sink(sink, held)) => {
                kept = Some(kept.map_or_else(|| held.clone(), |kept| resume::common(&kept, &held)));
                let sink = NamedSink { store: name, sink };
                match outputs.iter_mut().find(|(format, _)| format == output) {
                    Some((_, sinks)) => sinks.push(sink),
                    None => outputs.push((*output, vec![sink])),
                }
            }
            Ok(Start::There(stat)) => published.push(Published { store: name, result: Ok(*stat) }),
            Err(error) if job.require_all => return Err(error.context(format!("store {name}"))),
            Err(error) => published.push(Published { store: name, result: Err(error) }),
        }
    }
    let outputs = outputs
        .into_iter()
        .map(|(output, sinks)| Ok(Output { encoder: format::encoder(output)?.into(), sinks }))
        .collect::<Result<_>>()?;
    Ok(Begun { outputs, published, kept: kept.unwrap_or_default() })
}

/// What a store says to one who begins to write.
enum Start {
    /// Where to write, and what it holds already.
    Sink(Box<dyn Sink>, Vec<ChunkDigest>),
    /// It holds the object already.
    There(Box<ObjectStat>),
}

async fn begin(
    job: &Placing<'_>,
    target: &Target,
    known: Option<Known<'_>>,
    stop: &CancellationToken,
) -> Result<Start> {
    let (store, name) = (&target.store, target.store.name());
    // Where other formats put a chunk depends on what came before it, which is not known any more.
    let begun = if let Some(known) = known.filter(|_| target.output.disk_format == DiskFormat::Raw) {
        resume::begin(job, &**store, target.output, known, stop).await
    } else {
        let created = store.create(job.key, job.attempt, target.output);
        let sink = answer_within(job.patience, name, "beginning to write", stop, created).await;
        sink.map(|sink| (sink, Vec::new()))
    };
    match begun {
        Ok((sink, held)) => Ok(Start::Sink(sink, held)),
        Err(error) if error.kind() == Kind::AlreadyExists => {
            let stat = answer_within(job.patience, name, "looking for the image", stop, store.stat(job.key)).await;
            stat.map(|stat| Start::There(Box::new(stat)))
        }
        Err(error) => Err(error),
    }
}

/// Why there is nothing to write to: what the first store said, or that every one holds the image.
pub fn nowhere(published: Vec<Published>) -> Error {
    let first = published.into_iter().find_map(|p| p.result.err());
    first.unwrap_or_else(|| Error::new(Kind::AlreadyExists, "every store holds the image already"))
}

/// Waits for all writes, and for what else takes long before publishing. With `require_all`, one failure removes what the others wrote.
///
/// # Errors
/// With `require_all`, the first failure.
pub async fn join_sinks(
    files: Vec<WrittenFile>,
    rules: Joining<'_>,
    published: &mut Vec<Published>,
) -> Result<Vec<WrittenSink>> {
    let tasks = files.into_iter().flat_map(|WrittenFile { length, sinks }| sinks.into_iter().map(move |t| (t, length)));
    // All at once: each may have much to do.
    let joined = join_all(tasks.map(|(task, length)| finish(task, length, rules))).await;
    let (mut sinks, mut failure) = (Vec::new(), None);
    for (store, result) in joined {
        match result {
            Ok(sink) => sinks.push(sink),
            Err(error) if rules.require_all || error.kind() == Kind::Cancelled => failure = failure.or(Some(error)),
            Err(error) => published.push(Published { store, result: Err(error) }),
        }
    }
    match failure {
        None => Ok(sinks),
        Some(error) => {
            remove_all(sinks).await;
            Err(error)
        }
    }
}

/// How sinks are waited for.
#[derive(Clone, Copy)]
pub struct Joining<'a> {
    /// Whether one store's failure fails all.
    pub require_all: bool,
    /// How long a store may go on without progress.
    pub patience: Duration,
    /// Ends it early.
    pub stop: &'a CancellationToken,
}

/// Waits for a sink's writes, and has it do what is to be done before it is committed.
async fn finish(task: SinkTask, length: u64, rules: Joining<'_>) -> (String, Result<WrittenSink>) {
    let store = task.store.clone();
    let mut sink = match task.join().await {
        Ok(sink) => sink,
        Err(error) => return (store, Err(error)),
    };
    loop {
        let prepared = sink.sink.prepare(length);
        match answer_within(rules.patience, &store, "storing zeros", rules.stop, prepared).await {
            Ok(true) => {}
            Ok(false) => return (store, Ok(WrittenSink { length, sink })),
            Err(error) => {
                sink.remove().await;
                return (store, Err(error));
            }
        }
    }
}

/// The three conditions for publishing: the bytes are right, the work is still ours, and what is published already is the same.
///
/// # Errors
/// The condition that does not hold.
pub async fn approve(
    job: &Placing<'_>,
    evidence: Evidence,
    published: &mut [Published],
    cancel: &CancellationToken,
) -> Result<Verified> {
    let verified = Verified::try_from(evidence)?;
    if let Some(permit) = job.permit {
        permit.permit().await?;
    }
    remove_differing(job, verified.content_digest(), published, cancel).await?;
    Ok(verified)
}

/// Makes sure that what earlier attempts published is what came now: the source may have been replaced since. What differs is
/// removed, so that one revision never means two things.
///
/// # Errors
/// With `require_all`, `Changed` if anything differed: the next attempt brings the same to every store. Else that is only what became
/// of the stores in question. What the permit says before each removal, and what removing says.
pub async fn remove_differing(
    job: &Placing<'_>,
    content: &Digest,
    published: &mut [Published],
    stop: &CancellationToken,
) -> Result<()> {
    let mut differing = Vec::new();
    for Target { store, .. } in job.targets {
        let earlier = published.iter_mut().filter(|published| published.store == store.name());
        for found in earlier {
            if !found.result.as_ref().is_ok_and(|stat| stat.image.manifest.root() != *content) {
                continue;
            }
            if let Some(permit) = job.permit {
                permit.permit().await?;
            }
            let removed = answer(store.name(), "removing other bytes", stop, store.delete(job.key, job.attempt)).await;
            removed.map_err(|e| e.context(format!("store {}", store.name())))?;
            differing.push(store.name());
            found.result = Err(changed(store.name()));
        }
    }
    if differing.is_empty() || !job.require_all { Ok(()) } else { Err(changed(&differing.join(", "))) }
}

fn changed(stores: &str) -> Error {
    let message = format!(
        "store {stores} held other bytes, of an earlier attempt, than the source has now; they are removed, and the next attempt brings \
         the same to every store. Declare a checksum if the source must not change"
    );
    Error::new(Kind::Changed, message)
}

/// Removes what was written.
pub async fn remove_all(sinks: Vec<WrittenSink>) {
    for written in sinks {
        written.sink.remove().await;
    }
}

/// Commits every sink. After a failure with `require_all`, what is already published stays: it is verified, and the next
/// attempt adopts it.
///
/// # Errors
/// With `require_all`, the first failure; else the first if all failed.
pub async fn publish(
    sinks: Vec<WrittenSink>,
    verified: &Verified,
    require_all: bool,
    published: &mut Vec<Published>,
) -> Result<()> {
    if require_all {
        publish_in_turn(sinks, verified, published).await?;
    } else {
        published.extend(join_all(sinks.into_iter().map(|written| commit(written, verified))).await);
    }
    if published.iter().any(|p| p.result.is_ok()) {
        return Ok(());
    }
    let first = published.drain(..).find_map(|p| p.result.err());
    Err(first.unwrap_or_else(|| Error::new(Kind::Internal, "no store took the image")))
}

async fn publish_in_turn(sinks: Vec<WrittenSink>, verified: &Verified, published: &mut Vec<Published>) -> Result<()> {
    let mut sinks = sinks.into_iter();
    while let Some(sink) = sinks.next() {
        match commit(sink, verified).await {
            Published { result: Err(error), .. } => {
                remove_all(sinks.collect()).await;
                return Err(error);
            }
            done => published.push(done),
        }
    }
    Ok(())
}

/// One that was published and did not say so in time is found by the next attempt.
async fn commit(written: WrittenSink, verified: &Verified) -> Published {
    let WrittenSink { length, sink: NamedSink { store, sink } } = written;
    // To stop in the middle of this would only leave it open what became of it.
    let never = CancellationToken::new();
    let result = answer(&store, "publishing", &never, sink.commit(length, verified)).await;
    let result = result.map_err(|e| e.context(format!("store {store}")));
    Published { store, result }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use async_trait::async_trait;
    use bytes::Bytes;

    use super::*;

    /// A sink with `left` parts to do before it can be published, each of which takes a second, or never ends.
    struct Laborious {
        left: u32,
        hangs: bool,
        aborted: Arc<AtomicU32>,
    }

    #[async_trait]
    impl Sink for Laborious {
        async fn write_at(&mut self, _offset: u64, _bytes: Bytes) -> Result<()> {
            Ok(())
        }

        async fn prepare(&mut self, length: u64) -> Result<bool> {
            assert_eq!(length, 7);
            tokio::time::sleep(if self.hangs { Duration::MAX } else { Duration::from_secs(1) }).await;
            self.left = self.left.saturating_sub(1);
            Ok(self.left > 0)
        }

        async fn commit(self: Box<Self>, _length: u64, _proof: &Verified) -> Result<ObjectStat> {
            Err(Error::new(Kind::Internal, format!("{} parts were not done", self.left)))
        }

        async fn abort(self: Box<Self>) -> Result<()> {
            self.aborted.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
    }

    const PATIENCE: Duration = Duration::from_secs(5);

    async fn joined(left: u32, hangs: bool, stop: &CancellationToken) -> (Result<Vec<WrittenSink>>, u32) {
        let aborted = Arc::new(AtomicU32::new(0));
        let sink = Box::new(Laborious { left, hangs, aborted: aborted.clone() });
        let task = SinkTask::start(NamedSink { store: "s".to_owned(), sink }, PATIENCE);
        let rules = Joining { require_all: true, patience: PATIENCE, stop };
        let files = vec![WrittenFile { length: 7, sinks: vec![task] }];
        let joined = join_sinks(files, rules, &mut Vec::new()).await;
        (joined, aborted.load(Ordering::Relaxed))
    }

    #[tokio::test(start_paused = true)]
    async fn what_takes_long_is_waited_for_as_long_as_it_goes_on() {
        let stop = CancellationToken::new();
        // Far longer than any one of them may take.
        let (joined_, aborted) = joined(1000, false, &stop).await;
        assert_eq!((joined_.unwrap().len(), aborted), (1, 0));
        let (hung, aborted) = joined(1, true, &stop).await;
        let error = hung.map(|sinks| sinks.len()).unwrap_err();
        assert_eq!((error.kind(), aborted), (Kind::Unavailable, 1), "{error}");
        assert!(error.to_string().contains("store s"), "{error}");
        let cancelled = stop.clone();
        tokio::spawn(async move {
            tokio::time::sleep(PATIENCE / 2).await;
            cancelled.cancel();
        });
        let (stopped, aborted) = joined(1000, false, &stop).await;
        assert_eq!((stopped.map(|sinks| sinks.len()).unwrap_err().kind(), aborted), (Kind::Cancelled, 1));
    }
}
