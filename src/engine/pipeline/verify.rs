//! Verification: reads a published object from end to end and holds it against the digest of its content.
//!
//! The same pass as a copy, without anything to write to.

use std::sync::Arc;

use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use super::{
    Progress, Stage, Transfer,
    stored::{self, Copies, Opened, move_stored},
    transfer::BUFFERS,
};
use crate::{
    error::{Error, Kind, Result},
    model::{Digest, Limits, ObjectKey},
    store::Store,
};

/// A verification to be done.
pub struct Verification {
    /// Where the object is.
    pub store: Arc<dyn Store>,
    /// Which.
    pub key: ObjectKey,
    /// What the guest must see there.
    pub content: Digest,
    /// Bounds.
    pub limits: Limits,
    /// Threads that unpack and hash.
    pub workers: usize,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is what was published.
    Sound,
    /// It is not, or not there at all: what was found.
    Rotten(String),
}

/// Verifies a published object.
///
/// # Errors
/// Why it could not be read: that says nothing of what it holds.
pub async fn verify(job: &Verification, progress: &Arc<Progress>, cancel: &CancellationToken) -> Result<Verdict> {
    progress.enter(Stage::Connecting);
    let opened = stored::open(&*job.store, &job.key, &job.content, job.limits.store_stall, cancel).await;
    let opened = match opened {
        Ok(opened) => opened,
        Err(error) => return rotten_or(error),
    };
    verify_opened(opened, &job.content, &job.limits, job.workers, progress, cancel).await
}

/// Verifies what is open already.
///
/// # Errors
/// As `verify`.
pub(super) async fn verify_opened(
    opened: Opened,
    content: &Digest,
    limits: &Limits,
    workers: usize,
    progress: &Arc<Progress>,
    cancel: &CancellationToken,
) -> Result<Verdict> {
    progress.enter(Stage::Transferring);
    let (store, stop) = (opened.store.clone(), cancel.child_token());
    let copies = Copies::new(vec![opened], limits.store_stall, stop.clone(), progress);
    let (read, handle) = (copies.clone(), tokio::runtime::Handle::current());
    let work = Transfer {
        outputs: Vec::new(),
        require_all: true,
        limits: limits.clone(),
        workers,
        buffers: BUFFERS,
        progress: progress.clone(),
        cancel: stop.clone(),
    };
    // If this future is dropped, the guard ends the threads.
    let _guard = stop.drop_guard();
    let done = spawn_blocking(move || {
        let _runtime = handle.enter();
        move_stored(&read, work, &[])
    });
    let done = done.await.map_err(|e| Error::with_source(Kind::Internal, "the verification's thread failed", e))?;
    match done {
        Ok(moved) if moved.manifest.root() == *content => Ok(Verdict::Sound),
        Ok(moved) => Ok(Verdict::Rotten(format!(
            "store {store}: its content is {} and ought to be {content}",
            moved.manifest.root()
        ))),
        Err(failed) => {
            let error = failed.settle().await;
            // The store's own words are better than what the stages in between made of them.
            rotten_or(copies.take_faults().pop().map_or(error, |(_, fault)| fault))
        }
    }
}

/// What an error while reading says of what is stored.
///
/// # Errors
/// `error`, if it says nothing of that.
pub(super) fn rotten_or(error: Error) -> Result<Verdict> {
    if is_rot(&error) { Ok(Verdict::Rotten(error.to_string())) } else { Err(error) }
}

/// Whether an error while reading means that what was published is not there any more, wholly and as it was.
pub(super) fn is_rot(error: &Error) -> bool {
    matches!(error.kind(), Kind::NotFound | Kind::Refused | Kind::Changed) || error.is_damage()
}
