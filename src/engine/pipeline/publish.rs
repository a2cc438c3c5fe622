//! The sinks of an import: opened before the first byte, published after the last.

use tokio_util::sync::CancellationToken;

use super::{
    Import, Published, Target,
    deliver::{NamedSink, WrittenFile},
    transfer::Output,
};
use crate::{
    error::{Error, Kind, Result},
    format,
    model::{Digest, OutputFormat, Verified},
    store::answer,
};

/// A sink with all its bytes, and the length of its file.
pub struct WrittenSink {
    length: u64,
    sink: NamedSink,
}

/// A sink in every store that does not hold the object yet, grouped by output format.
///
/// # Errors
/// What a store says; with `require_all` the first one that does.
pub async fn open_sinks(job: &Import, stop: &CancellationToken) -> Result<(Vec<Output>, Vec<Published>)> {
    let mut outputs: Vec<(OutputFormat, Vec<NamedSink>)> = Vec::new();
    let mut published = Vec::new();
    for Target { store, output } in &job.targets {
        let name = store.name().to_owned();
        let created = store.create(&job.key, job.attempt, *output);
        let sink = match answer(&name, "beginning to write", stop, created).await {
            Ok(sink) => sink,
            Err(error) if error.kind() == Kind::AlreadyExists => {
                let result = answer(&name, "looking for the image", stop, store.stat(&job.key)).await;
                published.push(Published { store: name, result });
                continue;
            }
            Err(error) if job.require_all => return Err(error.context(format!("store {name}"))),
            Err(error) => {
                published.push(Published { store: name, result: Err(error) });
                continue;
            }
        };
        let sink = NamedSink { store: name, sink };
        match outputs.iter_mut().find(|(format, _)| format == output) {
            Some((_, sinks)) => sinks.push(sink),
            None => outputs.push((*output, vec![sink])),
        }
    }
    if outputs.is_empty() {
        let first = published.into_iter().find_map(|p| p.result.err());
        return Err(first.unwrap_or_else(|| Error::new(Kind::AlreadyExists, "every store holds the image already")));
    }
    let outputs = outputs
        .into_iter()
        .map(|(output, sinks)| Ok(Output { encoder: format::encoder(output)?.into(), sinks }))
        .collect::<Result<_>>()?;
    Ok((outputs, published))
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

/// Makes sure that what earlier attempts published is what came now: the source may have been replaced since. What differs is
/// removed, so that one revision never means two things.
///
/// # Errors
/// `Changed` if anything differed: the next attempt brings the same to every store. What the permit says before each removal.
pub async fn remove_differing(
    job: &Import,
    content: &Digest,
    published: &[Published],
    stop: &CancellationToken,
) -> Result<()> {
    let mut differing = Vec::new();
    for Target { store, .. } in &job.targets {
        let earlier = published.iter().filter(|published| published.store == store.name());
        let stats = earlier.filter_map(|published| published.result.as_ref().ok());
        if stats.map(|stat| stat.image.manifest.root()).any(|found| found != *content) {
            if let Some(permit) = &job.permit {
                permit.permit().await?;
            }
            let removed = answer(store.name(), "removing other bytes", stop, store.delete(&job.key, job.attempt)).await;
            removed.map_err(|e| e.context(format!("store {}", store.name())))?;
            differing.push(store.name());
        }
    }
    if differing.is_empty() {
        return Ok(());
    }
    let message = format!(
        "store {} held other bytes, of an earlier attempt, than the source has now; they are removed, and the next attempt brings \
         the same to every store. Declare a checksum if the source must not change",
        differing.join(", ")
    );
    Err(Error::new(Kind::Changed, message))
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
    let mut sinks = sinks.into_iter();
    while let Some(WrittenSink { length, sink: NamedSink { store, sink } }) = sinks.next() {
        let result = sink.commit(length, verified).await.map_err(|e| e.context(format!("store {store}")));
        match result {
            Err(error) if require_all => {
                remove_all(sinks.collect()).await;
                return Err(error);
            }
            result => published.push(Published { store, result }),
        }
    }
    if published.iter().any(|p| p.result.is_ok()) {
        return Ok(());
    }
    let first = published.drain(..).find_map(|p| p.result.err());
    Err(first.unwrap_or_else(|| Error::new(Kind::Internal, "no store took the image")))
}
