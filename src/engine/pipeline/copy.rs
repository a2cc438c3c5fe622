//! Copy: from a store that holds an image to others, in the same one pass as an import.
//!
//! What is recorded of the source goes with it; what is copied must be the content that was asked for, or nothing is published. Each
//! target is for itself: one that fails is dropped, and the others go on. What a killed copy left in a target is not copied again.

use std::sync::Arc;

use tokio::{runtime::Handle, task::spawn_blocking};
use tokio_util::sync::CancellationToken;

use super::{
    Imported, Output, Permit, Progress, Published, Stage, Target, Transfer, Transferred,
    deliver::WrittenFile,
    import::imported,
    publish::{Begun, Placing, approve, join_sinks, nowhere, open_sinks, publish, remove_all, remove_differing},
    resume::{self, Known},
    stored::{self, Copies, Opened, move_stored},
    transfer::{BUFFERS, Failed},
    verify::{Verdict, is_rot, verify_opened},
};
use crate::{
    error::{Error, Kind, Result},
    model::{ChunkDigest, ContentManifest, Digest, Evidence, Limits, ObjectKey, Received, StoredImage, Verified},
    store::{DEADLINE, Store},
};

/// A copy to be made.
pub struct Copy {
    /// Where the image is, best first: the next is read where one cannot be.
    pub sources: Vec<Arc<dyn Store>>,
    /// What the guest must see.
    pub content: Digest,
    /// Name of the object in every store.
    pub key: ObjectKey,
    /// The fencing token.
    pub attempt: u32,
    /// Where it goes.
    pub targets: Vec<Target>,
    /// Asked before publishing, if somebody must be.
    pub permit: Option<Arc<dyn Permit>>,
    /// Bounds.
    pub limits: Limits,
    /// Threads that unpack, hash and encode.
    pub workers: usize,
}

/// What was found wrong with a copy that was to be read.
#[derive(Debug)]
pub struct Fault {
    /// The store's name.
    pub store: String,
    /// What was found.
    pub message: String,
    /// Whether what is there is not what was published. Else it could not be read, which may pass.
    pub rotten: bool,
}

/// What became of a copy.
#[derive(Debug)]
pub struct Copied {
    /// What was copied, and what became of each target; or why nothing was.
    pub result: Result<Imported>,
    /// What was found wrong with sources.
    pub faults: Vec<Fault>,
}

/// Copies an image.
pub async fn copy(job: &Copy, progress: &Arc<Progress>, cancel: &CancellationToken) -> Copied {
    progress.enter(Stage::Connecting);
    let mut faults = Vec::new();
    let result = copy_from_any(job, &mut faults, progress, cancel).await;
    Copied { result, faults }
}

async fn copy_from_any(
    job: &Copy,
    faults: &mut Vec<Fault>,
    progress: &Arc<Progress>,
    cancel: &CancellationToken,
) -> Result<Imported> {
    let mut left = open_all(job, faults, cancel).await?;
    while let Some(first) = left.first() {
        let (image, known) = (first.reader.image().clone(), faults.len());
        match copy_from(job, left, &image, faults, progress, cancel).await? {
            Ok(done) => return Ok(done),
            // Nothing is wrong with what was read, so another copy cannot help.
            Err((error, _)) if faults.len() == known => return Err(error),
            Err((_, untainted)) => left = untainted,
        }
    }
    let said = faults.iter().map(|fault| fault.message.as_str()).collect::<Vec<_>>().join("; ");
    Err(Error::new(Kind::Unavailable, format!("no copy can be read: {said}")))
}

async fn open_all(job: &Copy, faults: &mut Vec<Fault>, cancel: &CancellationToken) -> Result<Vec<Opened>> {
    let mut all = Vec::new();
    for store in &job.sources {
        match stored::open(&**store, &job.key, &job.content, job.limits.store_stall, cancel).await {
            Ok(opened) => all.push(opened),
            Err(error) if error.kind() == Kind::Cancelled => return Err(error),
            Err(error) => faults.push(fault(store.name(), &error)),
        }
    }
    Ok(all)
}

fn fault(store: &str, error: &Error) -> Fault {
    Fault { store: store.to_owned(), message: error.to_string(), rotten: is_rot(error) }
}

/// What came of copying from some of the sources: or why not, and which of them nothing is known against.
type Tried = Result<Imported, (Error, Vec<Opened>)>;

/// Copies from `sources`, which are read as one.
///
/// # Errors
/// What no other source could mend.
async fn copy_from(
    job: &Copy,
    sources: Vec<Opened>,
    image: &StoredImage,
    faults: &mut Vec<Fault>,
    progress: &Arc<Progress>,
    cancel: &CancellationToken,
) -> Result<Tried> {
    progress.enter(Stage::Connecting);
    progress.expect(Some(image.length));
    let known = Known { manifest: &image.manifest, workers: job.workers, progress };
    let Begun { outputs, published, kept } = open_sinks(&job.placing(), Some(known), cancel).await?;
    if outputs.is_empty() {
        return take_over(job, image, published, cancel).await.map(Ok);
    }
    progress.enter(Stage::Transferring);
    let stop = cancel.child_token();
    let copies = Copies::new(sources.clone(), job.limits.store_stall, stop.clone(), progress);
    let moved = move_away(job, &copies, (outputs, kept), progress, stop).await?;
    faults.extend(copies.take_faults().iter().map(|(store, error)| fault(store, error)));
    let error = match moved {
        Ok((manifest, files)) if manifest.root() == job.content => {
            return conclude(job, image, manifest, files, published, progress, cancel).await.map(Ok);
        }
        Ok((manifest, files)) => {
            let found = format!("{} was read, and {} is expected", manifest.root(), job.content);
            Failed::after(Error::new(Kind::Changed, found), files).settle().await
        }
        Err(error) if cancel.is_cancelled() => return Err(error),
        Err(error) => error,
    };
    let unread: Vec<_> = sources.into_iter().skip(copies.used().len()).collect();
    let mut untainted = examine(job, copies.used(), faults, progress, cancel).await?;
    untainted.extend(unread);
    Ok(Err((error, untainted)))
}

/// Finds out which of `used` gave the wrong bytes, reading each by itself; gives back those that did not.
async fn examine(
    job: &Copy,
    used: &[Opened],
    faults: &mut Vec<Fault>,
    progress: &Arc<Progress>,
    cancel: &CancellationToken,
) -> Result<Vec<Opened>> {
    let mut untainted = Vec::new();
    for opened in used {
        if faults.iter().any(|fault| fault.store == opened.store) {
            continue;
        }
        let verdict = verify_opened(opened.clone(), &job.content, &job.limits, job.workers, progress, cancel).await;
        match verdict {
            Ok(Verdict::Sound) => untainted.push(opened.clone()),
            Ok(Verdict::Rotten(message)) => faults.push(Fault { store: opened.store.clone(), message, rotten: true }),
            Err(error) if error.kind() == Kind::Cancelled => return Err(error),
            Err(error) => faults.push(fault(&opened.store, &error)),
        }
    }
    Ok(untainted)
}

type Moved = Result<(ContentManifest, Vec<WrittenFile>)>;

/// Runs the blocking part on a thread of its own; what comes of it is complete with the chunks that were kept. The inner error may be
/// the source's.
///
/// # Errors
/// Those of the targets, when none is left.
async fn move_away(
    job: &Copy,
    copies: &Arc<Copies>,
    (outputs, kept): (Vec<Output>, Vec<ChunkDigest>),
    progress: &Arc<Progress>,
    stop: CancellationToken,
) -> Result<Moved> {
    let work = Transfer {
        outputs,
        require_all: false,
        limits: job.limits.clone(),
        workers: job.workers,
        buffers: BUFFERS,
        progress: progress.clone(),
        cancel: stop.clone(),
    };
    let (copies, handle) = (copies.clone(), Handle::current());
    // If this future is dropped, the guard ends the threads.
    let _guard = stop.drop_guard();
    let done = spawn_blocking(move || {
        let _runtime = handle.enter();
        let moved = move_stored(&copies, work, &kept);
        (moved, kept)
    });
    let (moved, kept) = done.await.map_err(|e| Error::with_source(Kind::Internal, "the copy's thread failed", e))?;
    match moved {
        Ok(Transferred { manifest, files }) => Ok(Ok((resume::complete(manifest, kept), files))),
        Err(failed) if failed.is_of_sinks() => Err(failed.settle().await),
        Err(failed) => Ok(Err(failed.settle().await)),
    }
}

/// The targets hold it already, or have failed: an earlier attempt ended between publishing and reporting.
async fn take_over(
    job: &Copy,
    image: &StoredImage,
    mut published: Vec<Published>,
    cancel: &CancellationToken,
) -> Result<Imported> {
    remove_differing(&job.placing(), &job.content, &mut published, cancel).await?;
    if !published.iter().any(|published| published.result.is_ok()) {
        return Err(nowhere(published));
    }
    let verified = Verified::try_from(evidence(image, image.manifest.clone()))?;
    Ok(imported(&verified, published))
}

/// Publishes what was read, which is the content that was asked for.
async fn conclude(
    job: &Copy,
    image: &StoredImage,
    manifest: ContentManifest,
    files: Vec<WrittenFile>,
    mut published: Vec<Published>,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<Imported> {
    let sinks = join_sinks(files, job.placing().joining(cancel), &mut published).await?;
    progress.enter(Stage::Publishing);
    let verified = match approve(&job.placing(), evidence(image, manifest), &mut published, cancel).await {
        Ok(verified) => verified,
        Err(error) => {
            remove_all(sinks).await;
            return Err(error);
        }
    };
    publish(sinks, &verified, false, &mut published).await?;
    Ok(imported(&verified, published))
}

/// What is known of the source of an object goes with it.
fn evidence(image: &StoredImage, manifest: ContentManifest) -> Evidence {
    Evidence {
        received: Received { length: image.source_size, digests: image.source_digests.clone() },
        declared: Vec::new(),
        source_format: image.source_format,
        container_format: image.container_format,
        properties: image.properties.clone(),
        request: image.request.clone(),
        violations: Vec::new(),
        manifest,
    }
}

impl Copy {
    fn placing(&self) -> Placing<'_> {
        Placing {
            key: &self.key,
            attempt: self.attempt,
            targets: &self.targets,
            require_all: false,
            permit: self.permit.as_deref(),
            patience: self.limits.store_stall.min(DEADLINE),
        }
    }
}
