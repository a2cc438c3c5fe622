//! The sinks of an import: opened before the first byte, published after the last.

use std::time::Duration;

use futures::future::join_all;
use tokio_util::sync::CancellationToken;

use super::{
    Permit, Published, Target,
    deliver::{NamedSink, WrittenFile},
    transfer::Output,
};
use crate::{
    error::{Error, Kind, Result},
    format,
    model::{Digest, Evidence, ObjectKey, OutputFormat, Verified},
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

/// A sink in every store that does not hold the object yet, grouped by output format. There is none if each has it, or has failed.
///
/// # Errors
/// With `require_all`, what the first store says that fails.
pub async fn open_sinks(job: &Placing<'_>, stop: &CancellationToken) -> Result<(Vec<Output>, Vec<Published>)> {
    let mut outputs: Vec<(OutputFormat, Vec<NamedSink>)> = Vec::new();
    let mut published = Vec::new();
    // All at once: who does not answer keeps nobody waiting twice.
    let begun = join_all(job.targets.iter().map(|target| begin(job, target, stop))).await;
    for (Target { store, output }, begun) in job.targets.iter().zip(begun) {
        let name = store.name().to_owned();
        match begun {
            Ok(Begun::Sink(sink)) => {
                let sink = NamedSink { store: name, sink };
                match outputs.iter_mut().find(|(format, _)| format == output) {
                    Some((_, sinks)) => sinks.push(sink),
                    None => outputs.push((*output, vec![sink])),
                }
            }
            Ok(Begun::There(stat)) => published.push(Published { store: name, result: Ok(*stat) }),
            Err(error) if job.require_all => return Err(error.context(format!("store {name}"))),
            Err(error) => published.push(Published { store: name, result: Err(error) }),
        }
    }
    let outputs = outputs
        .into_iter()
        .map(|(output, sinks)| Ok(Output { encoder: format::encoder(output)?.into(), sinks }))
        .collect::<Result<_>>()?;
    Ok((outputs, published))
}

/// What a store says to one who begins to write.
enum Begun {
    Sink(Box<dyn Sink>),
    /// It holds the object already.
    There(Box<ObjectStat>),
}

async fn begin(job: &Placing<'_>, target: &Target, stop: &CancellationToken) -> Result<Begun> {
    let (store, name) = (&target.store, target.store.name());
    let created = store.create(job.key, job.attempt, target.output);
    match answer_within(job.patience, name, "beginning to write", stop, created).await {
        Ok(sink) => Ok(Begun::Sink(sink)),
        Err(error) if error.kind() == Kind::AlreadyExists => {
            let stat = answer_within(job.patience, name, "looking for the image", stop, store.stat(job.key)).await;
            stat.map(|stat| Begun::There(Box::new(stat)))
        }
        Err(error) => Err(error),
    }
}

/// Why there is nothing to write to: what the first store said, or that every one holds the image.
pub fn nowhere(published: Vec<Published>) -> Error {
    let first = published.into_iter().find_map(|p| p.result.err());
    first.unwrap_or_else(|| Error::new(Kind::AlreadyExists, "every store holds the image already"))
}

/// Waits for all writes. With `require_all`, one failure removes what the others wrote.
///
/// # Errors
/// With `require_all`, the first failure.
pub async fn join_sinks(
    files: Vec<WrittenFile>,
    require_all: bool,
    published: &mut Vec<Published>,
) -> Result<Vec<WrittenSink>> {
    let mut sinks = Vec::new();
    let mut failure = None;
    for WrittenFile { length, sinks: tasks } in files {
        for task in tasks {
            let store = task.store.clone();
            match task.join().await {
                Ok(sink) => sinks.push(WrittenSink { length, sink }),
                Err(error) if require_all => failure = failure.or(Some(error)),
                Err(error) => published.push(Published { store, result: Err(error) }),
            }
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
