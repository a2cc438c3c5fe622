//! Back ends that keep image data.
//!
//! A store knows names, bytes and proofs; it knows nothing of formats, sources or Kubernetes.
//!
//! | module | what |
//! | --- | --- |
//! | [`filesystem`] | a folder: the embedded default |
//! | [`memory`] | the reference for all others, and for tests |
//! | [`rbd`] | a Ceph pool: an RBD image with a protected snapshot per object |
//! | [`s3`] | a bucket of an S3 server: pieces that hold only data, published by one conditional write |
//! | [`layer`] | decorators: [`limit`] of sinks at once, [`fault`]s on purpose, [`thick`] objects without holes, [`meter`] for metrics |
//! | [`discard`], [`plain`], [`pipe`] | nothing, a file or a stream in a store's place: no object is kept that could be found by its key |
//!
//! `tests/stores` holds the conformance suite that every one of them passes.

mod cleaning;
mod data_file;
mod deadline;
pub mod discard;
pub mod fault;
pub mod filesystem;
pub mod layer;
mod leftover;
pub mod limit;
pub mod memory;
pub mod meter;
mod owner;
pub mod pipe;
pub mod plain;
pub mod rbd;
mod record;
pub mod s3;
mod steps;
pub mod thick;
mod token;
mod writeback;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

pub use deadline::{DEADLINE, answer, answer_within};
pub use leftover::{CERTAINTY, Leftover, Resumed};

use crate::{
    error::{Error, Kind, Result},
    model::{ObjectKey, OutputFormat, StoredImage, Verified},
};

/// A back end. Every method may be called from many tasks at once.
#[async_trait]
pub trait Store: Send + Sync {
    /// The ImageStore's name, for messages.
    fn name(&self) -> &str;

    /// Which back end it is, so that another one in its place is noticed; `None` where nothing tells.
    fn id(&self) -> Option<String> {
        None
    }

    /// Makes sure that the store is this installation's, where the back end can bear its mark, and marks it if it bears none. `create` does
    /// the same; `delete` and `sweep` are refused where there is another one's mark, and reading needs none.
    ///
    /// # Errors
    /// `Denied` if it is another one's, `Unavailable`.
    async fn claim(&self) -> Result<()> {
        Ok(())
    }

    /// Begins to write `key` under a private name. `attempt` is the fencing token: once a sink with a higher attempt exists
    /// for `key`, one with a lower attempt can no longer publish. Of two sinks with the same attempt, the one created last
    /// can publish: that is an agent which was killed and began again. What an earlier attempt left behind is removed.
    ///
    /// # Errors
    /// `AlreadyExists` if `key` is published, `Conflict` if a higher attempt has begun, `Denied` if the store is another installation's,
    /// `NoSpace`, `Unavailable`.
    async fn create(&self, key: &ObjectKey, attempt: u32, format: OutputFormat) -> Result<Box<dyn Sink>>;

    /// Begins to write `key` as `create` does, and over what an earlier writer left, where that one is surely dead: it can neither publish
    /// nor write any more. Where that is not certain, or nothing is left, or the back end cannot, the sink is empty. May take
    /// [`CERTAINTY`] longer than `create`.
    ///
    /// # Errors
    /// As `create`.
    async fn resume(&self, key: &ObjectKey, attempt: u32, format: OutputFormat) -> Result<Resumed> {
        Ok(Resumed { sink: self.create(key, attempt, format).await?, left: None })
    }

    /// Opens a published object for reading.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    async fn open(&self, key: &ObjectKey) -> Result<Arc<dyn ObjectReader>>;

    /// What is known of a published object and how much the store really holds for it.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    async fn stat(&self, key: &ObjectKey) -> Result<ObjectStat>;

    /// Removes what `attempt` or an earlier one published for `key`, and every leftover of their sinks; from then on none of
    /// these can publish. Removing what is not there succeeds. Works also when the store is full.
    ///
    /// # Errors
    /// `Conflict` if a higher attempt has begun or published, `Denied` if the store is another installation's: nothing is removed then.
    /// `Unavailable`.
    async fn delete(&self, key: &ObjectKey, attempt: u32) -> Result<()>;

    /// All that the store holds, published or not.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn list(&self) -> Result<Vec<ObjectEntry>>;

    /// Removes what unfinished sinks and deletions left behind, if it was not changed for `older_than` and nobody is writing
    /// it. Published objects are never touched. Returns the names of what was removed.
    ///
    /// # Errors
    /// `Unavailable`, and what stood in the way of removing single ones; the others are removed then.
    async fn sweep(&self, older_than: Duration) -> Result<Vec<String>>;

    /// Whether the store can be read and written now; cheap.
    ///
    /// # Errors
    /// What a write would meet.
    async fn probe(&self) -> Result<()>;

    /// Size and free space; `None` where the back end does not tell.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn capacity(&self) -> Result<Option<Capacity>>;
}

/// An object being written. Dropping it without `commit` removes what was written.
#[async_trait]
pub trait Sink: Send {
    /// Whether writes may come in any order. Else each begins at or behind the end of the one before.
    fn takes_any_order(&self) -> bool {
        true
    }

    /// Writes `bytes` at `offset`. What is never written reads as zeros. Returns when the back end took them over; they
    /// need not be durable before `commit` returns.
    ///
    /// # Errors
    /// `NoSpace`, `Io`, `Unavailable`.
    async fn write_at(&mut self, offset: u64, bytes: Bytes) -> Result<()>;

    /// Has the store hold every byte of the object for real, the zeros too that are never written. Called before the first write.
    ///
    /// # Errors
    /// `InvalidInput` where the store can only leave them out.
    fn hold_all(&mut self) -> Result<()> {
        Err(Error::new(Kind::InvalidInput, "zeros are never stored there: leave its thinProvisioning out"))
    }

    /// Does a part of what takes long before an object of `length` bytes can be published, once everything is written; whether there
    /// is more of it. Who calls this until there is not can see that it goes on, and stop it; `commit` does what is left.
    ///
    /// # Errors
    /// As `write_at`.
    async fn prepare(&mut self, length: u64) -> Result<bool> {
        let _ = length;
        Ok(false)
    }

    /// Makes the object durable, `length` bytes long, and publishes it under its key, all or nothing.
    ///
    /// # Errors
    /// `Conflict` if a higher attempt has begun, `AlreadyExists` if the key was published meanwhile. Nothing is left then.
    async fn commit(self: Box<Self>, length: u64, proof: &Verified) -> Result<ObjectStat>;

    /// Removes what was written. Dropping does the same without telling whether it worked.
    ///
    /// # Errors
    /// What stood in the way of removing.
    async fn abort(self: Box<Self>) -> Result<()>;
}

/// A published object, open for reading.
#[async_trait]
pub trait ObjectReader: Send + Sync {
    /// What is known of it.
    fn image(&self) -> &StoredImage;

    /// Up to `length` bytes at `offset`; fewer only at the end.
    ///
    /// # Errors
    /// `Io`, `Unavailable`.
    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes>;

    /// The first stretch of stored bytes at or after `offset` as start and end; `None` if only holes follow.
    ///
    /// # Errors
    /// `Io`, `Unavailable`.
    async fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>>;
}

/// A published object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectStat {
    /// What was recorded when it was published.
    pub image: StoredImage,
    /// Where it is, as a URL without credentials.
    pub url: String,
    /// Bytes the store really holds for its data.
    pub allocated_size: u64,
}

/// One entry of a store's listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectEntry {
    /// Whose it is; `None` for something in the store's place that Vitrine did not name.
    pub key: Option<ObjectKey>,
    /// The back end's own name of it.
    pub name: String,
    /// Whether it is published; else a leftover or a write under way.
    pub published: bool,
    /// Seconds since it was last changed.
    pub age_seconds: u64,
}

/// Room in a store, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// All of it.
    pub total: u64,
    /// What is left.
    pub available: u64,
}

/// What is recorded of an object that is published in `format`, `length` bytes long, on the strength of `proof`.
pub(crate) fn describe(format: OutputFormat, length: u64, proof: &Verified) -> StoredImage {
    StoredImage {
        format,
        length,
        source_size: proof.received().length,
        source_digests: proof.received().digests.clone(),
        source_format: proof.source_format(),
        container_format: proof.container_format(),
        properties: proof.properties().clone(),
        request: proof.request().map(str::to_owned),
        manifest: proof.manifest().clone(),
    }
}

/// The error for an attempt at `key` that came too late: of `latest`, or of an earlier sink of the same one.
pub(crate) fn overtaken(store: &str, key: &ObjectKey, attempt: u32, latest: u32) -> Error {
    let message = if attempt == latest {
        format!("store {store}: another writer of attempt {attempt} at {key} began later, and goes on with it")
    } else {
        format!("store {store}: attempt {attempt} at {key} was overtaken by attempt {latest}, which goes on with it")
    };
    Error::new(Kind::Conflict, message)
}

/// The error for an `attempt` at writing `key` under which it was deleted, by the attempt `by`.
pub(crate) fn deleted(store: &str, key: &ObjectKey, attempt: u32, by: u32) -> Error {
    Error::new(
        Kind::Conflict,
        format!(
            "store {store}: {key} was deleted (attempt {by}) while attempt {attempt} wrote it; a later one can write it"
        ),
    )
}

/// The error for a `length` that would cut off bytes which were written. A fault of the caller, noticed before anything is
/// published.
pub(crate) fn cut_off(store: &str, key: &ObjectKey, length: u64, written: u64) -> Error {
    Error::new(
        Kind::Internal,
        format!(
            "store {store}: {key} was committed with {length} bytes, but bytes were written up to {written}; report this"
        ),
    )
}
