//! A decorator that has a store hold every byte of what is written to it from now on: no holes. Knows nothing of how that is done, and
//! changes nothing else, but that nobody goes on with what a dead writer left: which of its zeros are stored is not known.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

use super::{Capacity, ObjectEntry, ObjectReader, ObjectStat, Sink, Store};
use crate::{
    error::Result,
    model::{ObjectKey, OutputFormat},
};

/// A store without thin provisioning.
pub struct ThickStore {
    inner: Arc<dyn Store>,
}

impl ThickStore {
    /// Has `inner` hold everything.
    pub fn new(inner: Arc<dyn Store>) -> Self {
        Self { inner }
    }
}

#[async_trait]
impl Store for ThickStore {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn id(&self) -> Option<String> {
        self.inner.id()
    }

    async fn claim(&self) -> Result<()> {
        self.inner.claim().await
    }

    async fn create(&self, key: &ObjectKey, attempt: u32, format: OutputFormat) -> Result<Box<dyn Sink>> {
        let mut sink = self.inner.create(key, attempt, format).await?;
        match sink.hold_all() {
            Ok(()) => Ok(sink),
            Err(error) => {
                sink.abort().await?;
                Err(error.context(format!("store {}", self.name())))
            }
        }
    }

    async fn open(&self, key: &ObjectKey) -> Result<Arc<dyn ObjectReader>> {
        self.inner.open(key).await
    }

    async fn stat(&self, key: &ObjectKey) -> Result<ObjectStat> {
        self.inner.stat(key).await
    }

    async fn delete(&self, key: &ObjectKey, attempt: u32) -> Result<()> {
        self.inner.delete(key, attempt).await
    }

    async fn list(&self) -> Result<Vec<ObjectEntry>> {
        self.inner.list().await
    }

    async fn sweep(&self, older_than: Duration) -> Result<Vec<String>> {
        self.inner.sweep(older_than).await
    }

    async fn probe(&self) -> Result<()> {
        self.inner.probe().await
    }

    async fn capacity(&self) -> Result<Option<Capacity>> {
        self.inner.capacity().await
    }
}
