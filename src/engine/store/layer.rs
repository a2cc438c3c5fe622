//! What stands in front of another store: it does what that one does, but for what it says itself.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

use super::{Capacity, ObjectEntry, ObjectReader, ObjectStat, Resumed, Sink, Store};
use crate::{
    error::Result,
    model::{ObjectKey, OutputFormat},
};

/// A store in front of another one. Its methods are those of [`Store`] that any of them changes; every layer is a store by them.
#[async_trait]
pub trait Layer: Send + Sync {
    /// The store behind it.
    fn inner(&self) -> &dyn Store;

    /// As [`Store::name`].
    fn name(&self) -> &str {
        self.inner().name()
    }

    /// As [`Store::create`].
    async fn create(&self, key: &ObjectKey, attempt: u32, format: OutputFormat) -> Result<Box<dyn Sink>>;

    /// As [`Store::resume`]. Begins anew if nothing else is said: what the store behind it would go on with has not come through `create`.
    async fn resume(&self, key: &ObjectKey, attempt: u32, format: OutputFormat) -> Result<Resumed> {
        Ok(Resumed { sink: self.create(key, attempt, format).await?, left: None })
    }

    /// As [`Store::open`].
    async fn open(&self, key: &ObjectKey) -> Result<Arc<dyn ObjectReader>> {
        self.inner().open(key).await
    }

    /// As [`Store::stat`].
    async fn stat(&self, key: &ObjectKey) -> Result<ObjectStat> {
        self.inner().stat(key).await
    }

    /// As [`Store::delete`].
    async fn delete(&self, key: &ObjectKey, attempt: u32) -> Result<()> {
        self.inner().delete(key, attempt).await
    }

    /// As [`Store::list`].
    async fn list(&self) -> Result<Vec<ObjectEntry>> {
        self.inner().list().await
    }

    /// As [`Store::probe`].
    async fn probe(&self) -> Result<()> {
        self.inner().probe().await
    }
}

#[async_trait]
impl<L: Layer> Store for L {
    fn name(&self) -> &str {
        Layer::name(self)
    }

    fn id(&self) -> Option<String> {
        self.inner().id()
    }

    async fn claim(&self) -> Result<()> {
        self.inner().claim().await
    }

    async fn create(&self, key: &ObjectKey, attempt: u32, format: OutputFormat) -> Result<Box<dyn Sink>> {
        Layer::create(self, key, attempt, format).await
    }

    async fn resume(&self, key: &ObjectKey, attempt: u32, format: OutputFormat) -> Result<Resumed> {
        Layer::resume(self, key, attempt, format).await
    }

    async fn open(&self, key: &ObjectKey) -> Result<Arc<dyn ObjectReader>> {
        Layer::open(self, key).await
    }

    async fn stat(&self, key: &ObjectKey) -> Result<ObjectStat> {
        Layer::stat(self, key).await
    }

    async fn delete(&self, key: &ObjectKey, attempt: u32) -> Result<()> {
        Layer::delete(self, key, attempt).await
    }

    async fn list(&self) -> Result<Vec<ObjectEntry>> {
        Layer::list(self).await
    }

    async fn sweep(&self, older_than: Duration) -> Result<Vec<String>> {
        self.inner().sweep(older_than).await
    }

    async fn probe(&self) -> Result<()> {
        Layer::probe(self).await
    }

    async fn capacity(&self) -> Result<Option<Capacity>> {
        self.inner().capacity().await
    }
}
