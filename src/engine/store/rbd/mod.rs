//! A pool of a Ceph cluster as a store: every object is an RBD image with a protected snapshot, as Cinder, Nova and ceph-csi clone from.
//!
//! ```text
//! KEY@snap                                  a published object (an image)
//! .vitrine-partial-KEY-aATTEMPT-NONCE       an image being written, or left by a writer that died
//! .vitrine-removed-KEY-aATTEMPT-NONCE       a deleted image that somebody still reads
//! vitrine_index                             who may publish what (a RADOS object)          (see index)
//! vitrine_record.KEY-aATTEMPT-NONCE         facts and chunk digests (RADOS objects)        (see record)
//! ```
//!
//! Publishing: the image gets its length, its snapshot is made and protected, the record is written, and one atomic swap in the index
//! publishes all of it; then the image gets its public name. Deleting is one swap too. Whoever meets what is not finished finishes it,
//! so a key is there whole or not at all, wherever a process dies.
//!
//! The libraries are loaded when a store is opened: without them this store cannot be, and everything else works.
//! Knows nothing of formats or sources.

mod capacity;
mod clones;
mod coverage;
mod ffi;
mod flight;
mod index;
mod layout;
mod leftover;
mod options;
mod owner;
mod place;
mod published;
mod reader;
mod record;
mod removal;
mod sink;
mod step;
mod sweep;
mod writing;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;

pub use self::{
    options::{RbdCluster, RbdOptions},
    step::Step,
};

use self::{place::Place, reader::RbdReader, sink::RbdSink};
use super::{Capacity, ObjectEntry, ObjectReader, ObjectStat, Resumed, Sink, Store};
use crate::{
    error::Result,
    model::{ObjectKey, OutputFormat},
};

/// The store.
#[derive(Clone)]
pub struct RbdStore {
    place: Arc<Place>,
    /// The most writes that any sink had under way.
    peak: Arc<Mutex<usize>>,
}

impl fmt::Debug for RbdStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RbdStore")
            .field("name", &self.place.name())
            .field("id", &self.place.id())
            .finish_non_exhaustive()
    }
}

impl RbdStore {
    /// Connects to the cluster. Blocks, for `connect_timeout` at most.
    ///
    /// # Errors
    /// `Unavailable` if Ceph's libraries are missing or no monitor answers, `Denied` if user or key are wrong, `NotFound` if the pool or
    /// the namespace does not exist, `InvalidInput` if the options are none.
    pub fn open(name: &str, options: &RbdOptions) -> Result<Self> {
        Ok(Self { place: Arc::new(Place::open(name, options)?), peak: Arc::default() })
    }

    /// The id of the cluster, its `fsid`.
    pub fn cluster_id(&self) -> &str {
        self.place.fsid()
    }

    /// Makes `name` in `pool` (or `pool/namespace`) of the same cluster a copy-on-write clone of a published object; returns its URL.
    ///
    /// # Errors
    /// `NotFound` if the object, the pool or the namespace is not there, `AlreadyExists` if the name is taken, `InvalidInput` if it is one
    /// of the store's own, `Denied`, `Unavailable`.
    pub async fn clone_image(&self, key: &ObjectKey, pool: &str, name: &str) -> Result<String> {
        let doing = format!("cloning {key} to {pool}/{name}");
        let (key, pool, name) = (key.clone(), pool.to_owned(), name.to_owned());
        self.place.call(doing, move |place| clones::make(place, &key, &pool, &name)).await
    }

    /// The clones of a published object, as `pool/name` or `pool/namespace/name`.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`.
    pub async fn children(&self, key: &ObjectKey) -> Result<Vec<String>> {
        let (doing, key) = (format!("looking for clones of {key}"), key.clone());
        self.place.call(doing, move |place| clones::list(place, &key)).await
    }

    /// The most writes that any sink of this store had under way at once, as known at its end.
    pub fn most_writes_under_way(&self) -> usize {
        *self.peak.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The most that may be.
    pub const MAX_WRITES_UNDER_WAY: usize = flight::WRITES;

    /// Has `on_step` called after every step of publishing and deleting: for tests, which die there.
    #[doc(hidden)]
    pub fn watch_steps(&self, on_step: impl Fn(Step) + Send + Sync + 'static) {
        self.place.steps.watch(on_step);
    }
}

#[async_trait]
impl Store for RbdStore {
    fn name(&self) -> &str {
        self.place.name()
    }

    fn id(&self) -> Option<String> {
        Some(self.place.id())
    }

    async fn claim(&self) -> Result<()> {
        if self.place.owner().is_none() {
            return Ok(());
        }
        self.place.call("looking whose it is", |place| owner::claim(place)).await
    }

    async fn create(&self, key: &ObjectKey, attempt: u32, format: OutputFormat) -> Result<Box<dyn Sink>> {
        self.claim().await?;
        self.place.cleaning.settle().await;
        Ok(Box::new(RbdSink::begin(&self.place, key, attempt, format, Arc::clone(&self.peak)).await?))
    }

    async fn resume(&self, key: &ObjectKey, attempt: u32, format: OutputFormat) -> Result<Resumed> {
        self.claim().await?;
        self.place.cleaning.settle().await;
        let peak = Arc::clone(&self.peak);
        match RbdSink::resume(&self.place, key, attempt, format, peak).await? {
            Some((sink, left)) => Ok(Resumed { sink: Box::new(sink), left: Some(Box::new(left)) }),
            None => Ok(Resumed { sink: self.create(key, attempt, format).await?, left: None }),
        }
    }

    async fn open(&self, key: &ObjectKey) -> Result<Arc<dyn ObjectReader>> {
        let (doing, key) = (format!("opening {key}"), key.clone());
        Ok(Arc::new(self.place.call(doing, move |place| RbdReader::open(place, &key)).await?))
    }

    async fn stat(&self, key: &ObjectKey) -> Result<ObjectStat> {
        let (doing, key) = (format!("looking at {key}"), key.clone());
        self.place.call(doing, move |place| published::stat(place, &key)).await
    }

    async fn delete(&self, key: &ObjectKey, attempt: u32) -> Result<()> {
        self.place.cleaning.settle().await;
        let (doing, key) = (format!("deleting {key}"), key.clone());
        let work = move |place: &Arc<Place>| owner::check(place).and_then(|()| removal::delete(place, &key, attempt));
        self.place.call(doing, work).await
    }

    async fn list(&self) -> Result<Vec<ObjectEntry>> {
        self.place.cleaning.settle().await;
        self.place.call("listing images", sweep::list).await
    }

    async fn sweep(&self, older_than: Duration) -> Result<Vec<String>> {
        self.place.cleaning.settle().await;
        let work = move |place: &Arc<Place>| owner::check(place).and_then(|()| sweep::sweep(place, older_than));
        self.place.call("sweeping", work).await
    }

    async fn probe(&self) -> Result<()> {
        self.place.call("probing", capacity::probe).await
    }

    async fn capacity(&self) -> Result<Option<Capacity>> {
        self.place.call("asking for its capacity", capacity::capacity).await
    }
}
