//! A bucket of an S3 server as a store: every object is a record and pieces of data, below one small entry that publishes them.
//!
//! ```text
//! PREFIX/KEY                          who may publish what (the key's entry)                          (see index)
//! PREFIX/.data/KEY-TOKEN/NUMBER       pieces: what was written, in the order in which it was          (see extents)
//! PREFIX/.data/KEY-TOKEN/record       facts, chunk digests, and where in the pieces the bytes are     (see record)
//! PREFIX/.data/KEY-TOKEN/lease        the sign of life of who writes it                               (see lease)
//! PREFIX/.readers/KEY-TOKEN/NONCE     the sign of life of who reads it
//! PREFIX/.trial-NONCE                 what is being tried out                                         (see trial)
//! PREFIX/.owner                       which installation writes here                                  (see owner)
//! ```
//!
//! Publishing: the pieces and the record are written under names that nobody else uses, and then one conditional write of the entry
//! publishes them. Deleting is one conditional write too. Whoever meets what is not finished finishes it, so a key is there whole or not
//! at all, wherever a process dies. Zeros and holes take no room.
//!
//! Knows nothing of formats or sources.

mod extents;
mod fault;
mod index;
mod layout;
mod lease;
mod options;
mod owner;
mod place;
mod reader;
mod record;
mod removal;
mod sink;
mod step;
mod sweep;
mod trial;
mod upload;
mod uploads;
mod writing;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use object_store::{ObjectStoreExt as _, PutPayload};

pub use self::{options::S3Options, step::Step};

use self::{place::Place, reader::S3Reader, sink::S3Sink};
use super::{Capacity, ObjectEntry, ObjectReader, ObjectStat, Sink, Store};
use crate::{
    error::Result,
    model::{ObjectKey, OutputFormat},
};

/// The store.
#[derive(Clone)]
pub struct S3Store {
    place: Arc<Place>,
}

impl fmt::Debug for S3Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Store")
            .field("name", &self.place.name())
            .field("options", self.place.options())
            .finish_non_exhaustive()
    }
}

impl S3Store {
    /// Prepares the use of a bucket. Nobody is asked yet: whether it is there, and what may be done with it, a probe tells.
    ///
    /// # Errors
    /// `InvalidInput` if the options are none.
    pub fn open(name: &str, options: &S3Options) -> Result<Self> {
        Ok(Self { place: Arc::new(Place::open(name, options)?) })
    }

    /// Bytes that one sink holds in memory at most, beside what it is given.
    pub const MAX_MEMORY: usize = upload::PART * upload::PARTS;

    /// Has `on_step` called after every step of publishing and deleting: for tests, which die there.
    #[doc(hidden)]
    pub fn watch_steps(&self, on_step: impl Fn(Step) + Send + Sync + 'static) {
        self.place.steps.watch(on_step);
    }
}

#[async_trait]
impl Store for S3Store {
    fn name(&self) -> &str {
        self.place.name()
    }

    fn id(&self) -> Option<String> {
        Some(self.place.id())
    }

    async fn claim(&self) -> Result<()> {
        owner::claim(&self.place).await
    }

    async fn create(&self, key: &ObjectKey, attempt: u32, format: OutputFormat) -> Result<Box<dyn Sink>> {
        self.claim().await?;
        self.place.cleaning.settle().await;
        Ok(Box::new(S3Sink::begin(&self.place, key, attempt, format).await?))
    }

    async fn open(&self, key: &ObjectKey) -> Result<Arc<dyn ObjectReader>> {
        let (place, key) = (Arc::clone(&self.place), key.clone());
        let doing = format!("opening {key}");
        Ok(Arc::new(self.place.call(&doing, async move { S3Reader::open(&place, &key).await }).await?))
    }

    async fn stat(&self, key: &ObjectKey) -> Result<ObjectStat> {
        let record = reader::read_record(&self.place, key).await?;
        Ok(writing::stat(&self.place, key, &record))
    }

    async fn delete(&self, key: &ObjectKey, attempt: u32) -> Result<()> {
        self.place.cleaning.settle().await;
        let (place, key) = (Arc::clone(&self.place), key.clone());
        let doing = format!("deleting {key}");
        let work = async move {
            owner::check(&place).await?;
            removal::delete(&place, &key, attempt).await
        };
        self.place.call(&doing, work).await
    }

    async fn list(&self) -> Result<Vec<ObjectEntry>> {
        self.place.cleaning.settle().await;
        sweep::list(&self.place).await
    }

    async fn sweep(&self, older_than: Duration) -> Result<Vec<String>> {
        self.place.cleaning.settle().await;
        owner::check(&self.place).await?;
        sweep::sweep(&self.place, older_than).await
    }

    async fn probe(&self) -> Result<()> {
        self.place.trial().pass(&self.place).await?;
        let (doing, path) = ("probing", self.place.layout().trial(rand::random()));
        let probed = async {
            let client = self.place.quick();
            client.put(&path, PutPayload::from_bytes(Bytes::new())).await?;
            client.delete(&path).await
        };
        self.place.bounded(doing, probed).await.map_err(|fault| self.place.fault(doing, &fault))
    }

    async fn capacity(&self) -> Result<Option<Capacity>> {
        Ok(None)
    }
}
