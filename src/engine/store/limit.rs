//! A decorator that bounds how many objects are written to a store at once. Knows nothing of what is written.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{ObjectStat, Resumed, Sink, Store, layer::Layer};
use crate::{
    error::{Error, Kind, Result},
    model::{ObjectKey, OutputFormat, Verified},
};

/// A store of which at most so many sinks exist at once; `create` waits for its turn.
pub struct LimitedStore {
    inner: Arc<dyn Store>,
    turns: Arc<Semaphore>,
}

impl LimitedStore {
    /// Lets at most `sinks` sinks of `inner` exist at once; 0 counts as 1, since a store that never takes anything helps nobody.
    pub fn new(inner: Arc<dyn Store>, sinks: usize) -> Self {
        Self { inner, turns: Arc::new(Semaphore::new(sinks.clamp(1, Semaphore::MAX_PERMITS))) }
    }

    async fn turn(&self) -> Result<OwnedSemaphorePermit> {
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        turn.map_err(|e| Error::with_source(Kind::Internal, format!("store {}: no more turns", self.inner.name()), e))
    }
}

#[async_trait]
impl Layer for LimitedStore {
    fn inner(&self) -> &dyn Store {
        &*self.inner
    }

    async fn create(&self, key: &ObjectKey, attempt: u32, format: OutputFormat) -> Result<Box<dyn Sink>> {
        let turn = self.turn().await?;
        Ok(Box::new(LimitedSink { inner: self.inner.create(key, attempt, format).await?, _turn: turn }))
    }

    async fn resume(&self, key: &ObjectKey, attempt: u32, format: OutputFormat) -> Result<Resumed> {
        let turn = self.turn().await?;
        let Resumed { sink, left } = self.inner.resume(key, attempt, format).await?;
        Ok(Resumed { sink: Box::new(LimitedSink { inner: sink, _turn: turn }), left })
    }
}

struct LimitedSink {
    inner: Box<dyn Sink>,
    /// Given back when the sink is gone, after `inner`: fields drop in order.
    _turn: OwnedSemaphorePermit,
}

#[async_trait]
impl Sink for LimitedSink {
    fn takes_any_order(&self) -> bool {
        self.inner.takes_any_order()
    }

    async fn write_at(&mut self, offset: u64, bytes: Bytes) -> Result<()> {
        self.inner.write_at(offset, bytes).await
    }

    fn hold_all(&mut self) -> Result<()> {
        self.inner.hold_all()
    }

    async fn prepare(&mut self, length: u64) -> Result<bool> {
        self.inner.prepare(length).await
    }

    async fn commit(self: Box<Self>, length: u64, proof: &Verified) -> Result<ObjectStat> {
        let Self { inner, _turn } = *self;
        inner.commit(length, proof).await
    }

    async fn abort(self: Box<Self>) -> Result<()> {
        let Self { inner, _turn } = *self;
        inner.abort().await
    }
}
