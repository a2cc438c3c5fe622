//! Import: from a source to published objects, all or nothing.

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::{
    Output, Progress, Stage, Transfer,
    deliver::WrittenFile,
    intake::{Intake, Stopped, Stream, check_length},
    publish::{Begun, Placing, approve, join_sinks, nowhere, open_sinks, publish, remove_all, remove_differing},
    transfer::BUFFERS,
};
use crate::{
    error::{Error, Kind, Result},
    io::Keep,
    model::{
        ContainerFormat, Digest, DiskFormat, Evidence, Limits, ObjectKey, OutputFormat, Properties, Received, Rule,
        Verified,
    },
    source::{Opened, Source},
    store::{DEADLINE as PATIENCE, ObjectStat, Store, answer_within},
};

/// A store that gets the image, and how it wants it.
#[derive(Clone)]
pub struct Target {
    /// The store.
    pub store: Arc<dyn Store>,
    /// The form of the file.
    pub output: OutputFormat,
}

/// Asked right before anything is published: whether this work still belongs to who does it.
#[async_trait]
pub trait Permit: Send + Sync {
    /// Whether to publish.
    ///
    /// # Errors
    /// `Conflict` if another attempt has taken over, `Cancelled` if nobody wants it any more, `Unavailable` if it cannot be told.
    async fn permit(&self) -> Result<()>;
}

/// An import to be done.
pub struct Import {
    /// Where the bytes come from.
    pub source: Arc<dyn Source>,
    /// What the user says they are; `None` for whatever is found.
    pub disk_format: Option<DiskFormat>,
    /// What the user says is around them; `None` for whatever is found.
    pub container_format: Option<ContainerFormat>,
    /// The disk that is meant where the container holds several, by its file's name or its id; `None` for the one that boots.
    pub container_disk: Option<String>,
    /// What the bytes as received must hash to.
    pub checksums: Vec<Digest>,
    /// Names what is asked for: an object that was made for another request is not taken for this one's. `None` takes any.
    pub request: Option<String>,
    /// Name of the object in every store.
    pub key: ObjectKey,
    /// The fencing token.
    pub attempt: u32,
    /// Where it goes.
    pub targets: Vec<Target>,
    /// Whether one store's failure fails the import.
    pub require_all: bool,
    /// Asked before publishing, if somebody must be.
    pub permit: Option<Arc<dyn Permit>>,
    /// Bounds.
    pub limits: Limits,
    /// Folder for the spill file.
    pub scratch: PathBuf,
    /// Threads that unpack, hash and encode.
    pub workers: usize,
}

/// An import that succeeded.
#[derive(Debug)]
pub struct Imported {
    /// What was around the disk.
    pub container_format: ContainerFormat,
    /// What that said of the machine.
    pub properties: Properties,
    /// What the source's disk format was.
    pub disk_format: DiskFormat,
    /// Size of the guest's disk in bytes.
    pub virtual_size: u64,
    /// Bytes received and their digests.
    pub received: Received,
    /// Digest of what the guest sees.
    pub content_digest: Digest,
    /// What became of each store.
    pub published: Vec<Published>,
}

/// One store's part of an import.
#[derive(Debug)]
pub struct Published {
    /// The store's name.
    pub store: String,
    /// The object, or why there is none.
    pub result: Result<ObjectStat>,
}

/// Imports an image.
///
/// An object that an earlier attempt published and nobody reported is adopted, not fetched again.
///
/// # Errors
/// The first thing that went wrong; its kind says whether trying again may help. Nothing unverified is published and nothing
/// unpublished stays behind.
pub async fn import(job: &Import, progress: &Arc<Progress>, cancel: &CancellationToken) -> Result<Imported> {
    if let Some(imported) = adopt(job, cancel).await? {
        return Ok(imported);
    }
    // What cannot be read twice has to be kept from the start.
    let keep = if job.source.reopens() { Keep::Unread } else { Keep::All };
    let result = match attempt(job, keep, progress, cancel).await {
        Err(error) if error.kind() == Kind::NeedsSpill && keep == Keep::Unread => {
            tracing::info!(source = job.source.describe(), %error, "starting over with the whole stream kept on disk");
            attempt(job, Keep::All, progress, cancel).await
        }
        Err(error) if error.kind() == Kind::NeedsSpill && keep == Keep::All => Err(only_once(job, error)),
        result => result,
    };
    match result {
        // Published since it was looked for at the beginning, by an earlier attempt that was slow.
        Err(error) if error.kind() == Kind::AlreadyExists => adopt(job, cancel).await?.ok_or(error),
        result => result,
    }
}

/// An image that must be read in another order than that in which its source gives it, once.
fn only_once(job: &Import, error: Error) -> Error {
    let source = job.source.describe();
    let message = format!(
        "{source} can be read only once, and this image must be read here and there, for which it is too large: \
                 save it as a file first, or raise max-spill"
    );
    Error::with_source(Kind::InvalidInput, message, error)
}

impl Import {
    /// How long a store may take to answer: one that others do not wait for has less time.
    fn patience(&self) -> Duration {
        if self.require_all { PATIENCE } else { self.limits.store_stall.min(PATIENCE) }
    }

    fn placing(&self) -> Placing<'_> {
        Placing {
            key: &self.key,
            attempt: self.attempt,
            targets: &self.targets,
            require_all: self.require_all,
            permit: self.permit.as_deref(),
            patience: self.patience(),
        }
    }
}

/// The result of an earlier attempt that ended between publishing and reporting: every target holds the object.
async fn adopt(job: &Import, cancel: &CancellationToken) -> Result<Option<Imported>> {
    let mut published = Vec::new();
    for Target { store, output } in &job.targets {
        let stat = store.stat(&job.key);
        match answer_within(job.patience(), store.name(), "looking for the image", cancel, stat).await {
            Ok(stat) => {
                check_adopted(job, *output, &stat).map_err(|error| error.context(format!("store {}", store.name())))?;
                published.push((store.name().to_owned(), stat));
            }
            Err(error) if error.kind() == Kind::NotFound => return Ok(None),
            // One that fails is dropped later, and the others get the image.
            Err(error) if !job.require_all && error.kind() != Kind::Cancelled => return Ok(None),
            Err(error) => return Err(error.context(format!("store {}", store.name()))),
        }
    }
    let Some((_, first)) = published.first() else {
        return Err(Error::new(Kind::InvalidInput, "an import needs at least one store"));
    };
    let image = first.image.clone();
    let evidence = Evidence {
        received: Received { length: image.source_size, digests: image.source_digests },
        declared: job.checksums.clone(),
        source_format: image.source_format,
        container_format: image.container_format,
        properties: image.properties,
        request: image.request,
        violations: Vec::new(),
        manifest: image.manifest,
    };
    let verified = Verified::try_from(evidence)?;
    let mut published: Vec<_> =
        published.into_iter().map(|(store, stat)| Published { store, result: Ok(stat) }).collect();
    remove_differing(&job.placing(), verified.content_digest(), &mut published, cancel).await?;
    Ok(Some(imported(&verified, published)))
}

/// Whether an object that is there already is what would be made now, as far as that can be told without the source.
fn check_adopted(job: &Import, output: OutputFormat, stat: &ObjectStat) -> Result<()> {
    let image = &stat.image;
    let differs = |what: &str| {
        let message = format!("it holds {} already, with another {what}", job.key);
        Err(Error::new(Kind::AlreadyExists, message))
    };
    // One of the two has no name where people ask by hand, and in what was stored before requests had one.
    if job.request.iter().zip(&image.request).any(|(asked, made_for)| asked != made_for) {
        return differs("source or format asked for");
    }
    if job.disk_format.is_some_and(|declared| declared != image.source_format) {
        return differs("disk format than declared");
    }
    if job.container_format.is_some_and(|declared| declared != image.container_format) {
        return differs("container format than declared");
    }
    // Raw has nothing but its name.
    let both_raw = output.disk_format == DiskFormat::Raw && image.format.disk_format == DiskFormat::Raw;
    if output != image.format && !both_raw { differs("output format") } else { Ok(()) }
}

pub fn imported(verified: &Verified, published: Vec<Published>) -> Imported {
    Imported {
        container_format: verified.container_format(),
        properties: verified.properties().clone(),
        disk_format: verified.source_format(),
        virtual_size: verified.manifest().virtual_size,
        received: verified.received().clone(),
        content_digest: verified.content_digest().clone(),
        published,
    }
}

async fn attempt(job: &Import, keep: Keep, progress: &Arc<Progress>, cancel: &CancellationToken) -> Result<Imported> {
    progress.enter(Stage::Connecting);
    let opened = tokio::select! {
        opened = job.source.open() => opened?,
        () = cancel.cancelled() => return Err(Error::new(Kind::Cancelled, "the import was cancelled")),
    };
    let shows_cuts = opened.shows_cuts;
    let done = attempt_with(job, keep, opened, progress, cancel).await;
    done.map_err(|error| if shows_cuts { error } else { perhaps_cut(error) })
}

/// What a cut looks like where the source does not show one. The same bytes are asked for again then: they may come whole.
fn perhaps_cut(error: Error) -> Error {
    match error.violation().map(|violation| violation.rule) {
        Some(Rule::ChecksumMismatch | Rule::Truncated | Rule::CompressedStream) => {
            let message = "the server does not mark the end of the file, so it may have been cut off";
            Error::with_source(Kind::Unavailable, message, error)
        }
        _ => error,
    }
}

async fn attempt_with(
    job: &Import,
    keep: Keep,
    opened: Opened,
    progress: &Arc<Progress>,
    cancel: &CancellationToken,
) -> Result<Imported> {
    check_length(opened.length, &job.limits)?;
    progress.expect(opened.length);
    let stop = cancel.child_token();
    // If this future is dropped, the guard ends the threads.
    let _guard = stop.clone().drop_guard();
    let mut work = Work::Begin(Box::new(Intake::new(job, keep, progress, &stop)), opened);
    let (files, evidence, mut published) = loop {
        let Begun { outputs, published, kept: _ } = open_sinks(&job.placing(), None, cancel).await?;
        if outputs.is_empty() {
            return Err(nowhere(published));
        }
        progress.enter(Stage::Transferring);
        match receive(job, work, outputs, progress, &stop).await? {
            Receipt::Moved(files, evidence) => break (files, evidence, published),
            Receipt::Again(stream) => work = Work::ByTables(stream),
        }
    };
    let sinks = join_sinks(files, job.placing().joining(cancel), &mut published).await?;
    progress.enter(Stage::Publishing);
    let verified = match approve(&job.placing(), evidence, &mut published, cancel).await {
        Ok(verified) => verified,
        Err(error) => {
            remove_all(sinks).await;
            return Err(error);
        }
    };
    publish(sinks, &verified, job.require_all, &mut published).await?;
    Ok(imported(&verified, published))
}

/// What the blocking part is to do.
enum Work {
    Begin(Box<Intake>, Opened),
    ByTables(Box<Stream>),
}

/// What the blocking part has done.
enum Receipt {
    Moved(Vec<WrittenFile>, Evidence),
    /// Nothing: the stream, of which all that came was kept, has to be read by its tables.
    Again(Box<Stream>),
}

/// Runs the blocking part on a thread of its own.
async fn receive(
    job: &Import,
    work: Work,
    outputs: Vec<Output>,
    progress: &Arc<Progress>,
    stop: &CancellationToken,
) -> Result<Receipt> {
    let handle = Handle::current();
    let transfer = Transfer {
        outputs,
        require_all: job.require_all,
        limits: job.limits.clone(),
        workers: job.workers,
        buffers: BUFFERS,
        progress: progress.clone(),
        cancel: stop.clone(),
    };
    let done = tokio::task::spawn_blocking(move || match work {
        Work::Begin(intake, opened) => intake.run(opened, &handle, transfer),
        Work::ByTables(stream) => stream.run_by_tables(&handle, transfer),
    });
    match done.await.map_err(|e| Error::with_source(Kind::Internal, "the import's thread failed", e))? {
        Ok((files, evidence)) => Ok(Receipt::Moved(files, evidence)),
        Err(Stopped { failed, again }) => match (failed.settle().await, again) {
            (error, Some(stream)) if error.kind() == Kind::NeedsSpill => {
                tracing::info!(source = job.source.describe(), %error, "starting over with what was kept of the stream");
                Ok(Receipt::Again(stream))
            }
            (error, _) => Err(error),
        },
    }
}
