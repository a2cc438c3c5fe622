//! A decorator that makes a store fail or dawdle on purpose, so that what depends on stores can be tested against it.
//!
//! Knows nothing of the store behind it; without a fault set it changes nothing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;

use super::{ObjectReader, ObjectStat, Resumed, Sink, Store, layer::Layer};
use crate::{
    error::{Error, Kind, Result},
    model::{ObjectKey, OutputFormat, Verified},
};

/// When a commit fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitFault {
    /// Nothing is published.
    Before(Kind),
    /// The object is published and the caller is told otherwise, as when a reply is lost.
    After(Kind),
}

/// What is to go wrong. The default is nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Fails the write with this number, counted from 1 over all sinks of the store, once.
    pub write: Option<(u64, Kind)>,
    /// Delays every write.
    pub delay: Duration,
    /// Fails every commit.
    pub commit: Option<CommitFault>,
    /// Fails every read with a number from this one on, counted from 1 over all readers of the store.
    pub read: Option<(u64, Kind)>,
    /// Fails every probe.
    pub probe: Option<Kind>,
    /// Fails every look at an object.
    pub stat: Option<Kind>,
}

/// A store with faults.
pub struct FaultyStore {
    inner: Arc<dyn Store>,
    state: Arc<State>,
}

struct State {
    faults: Faults,
    writes: AtomicU64,
    reads: AtomicU64,
}

impl FaultyStore {
    /// Puts `faults` in front of `inner`.
    pub fn new(inner: Arc<dyn Store>, faults: Faults) -> Self {
        Self { inner, state: Arc::new(State { faults, writes: AtomicU64::new(0), reads: AtomicU64::new(0) }) }
    }

    /// How many writes were asked for so far, in all sinks.
    pub fn writes(&self) -> u64 {
        self.state.writes.load(Ordering::Relaxed)
    }

    /// How many reads were asked for so far, by all readers.
    pub fn reads(&self) -> u64 {
        self.state.reads.load(Ordering::Relaxed)
    }
}

fn injected(kind: Kind, doing: &str) -> Error {
    Error::new(kind, format!("fault on purpose while {doing}"))
}

#[async_trait]
impl Layer for FaultyStore {
    fn inner(&self) -> &dyn Store {
        &*self.inner
    }

    async fn create(&self, key: &ObjectKey, attempt: u32, format: OutputFormat) -> Result<Box<dyn Sink>> {
        let inner = self.inner.create(key, attempt, format).await?;
        Ok(Box::new(FaultySink { inner, state: Arc::clone(&self.state) }))
    }

    async fn resume(&self, key: &ObjectKey, attempt: u32, format: OutputFormat) -> Result<Resumed> {
        let Resumed { sink, left } = self.inner.resume(key, attempt, format).await?;
        Ok(Resumed { sink: Box::new(FaultySink { inner: sink, state: Arc::clone(&self.state) }), left })
    }

    async fn open(&self, key: &ObjectKey) -> Result<Arc<dyn ObjectReader>> {
        let inner = self.inner.open(key).await?;
        Ok(Arc::new(FaultyReader { inner, state: Arc::clone(&self.state) }))
    }

    async fn stat(&self, key: &ObjectKey) -> Result<ObjectStat> {
        match self.state.faults.stat {
            Some(kind) => Err(injected(kind, "looking at an object")),
            None => self.inner.stat(key).await,
        }
    }

    async fn probe(&self) -> Result<()> {
        match self.state.faults.probe {
            Some(kind) => Err(injected(kind, "probing")),
            None => self.inner.probe().await,
        }
    }
}

struct FaultySink {
    inner: Box<dyn Sink>,
    state: Arc<State>,
}

#[async_trait]
impl Sink for FaultySink {
    fn takes_any_order(&self) -> bool {
        self.inner.takes_any_order()
    }

    async fn write_at(&mut self, offset: u64, bytes: Bytes) -> Result<()> {
        let number = self.state.writes.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if !self.state.faults.delay.is_zero() {
            tokio::time::sleep(self.state.faults.delay).await;
        }
        match self.state.faults.write {
            Some((at, kind)) if at == number => Err(injected(kind, "writing")),
            _ => self.inner.write_at(offset, bytes).await,
        }
    }

    fn hold_all(&mut self) -> Result<()> {
        self.inner.hold_all()
    }

    async fn prepare(&mut self, length: u64) -> Result<bool> {
        self.inner.prepare(length).await
    }

    async fn commit(self: Box<Self>, length: u64, proof: &Verified) -> Result<ObjectStat> {
        match self.state.faults.commit {
            None => self.inner.commit(length, proof).await,
            Some(CommitFault::Before(kind)) => {
                self.inner.abort().await?;
                Err(injected(kind, "committing"))
            }
            Some(CommitFault::After(kind)) => {
                self.inner.commit(length, proof).await?;
                Err(injected(kind, "hearing that the commit was done"))
            }
        }
    }

    async fn abort(self: Box<Self>) -> Result<()> {
        self.inner.abort().await
    }
}

struct FaultyReader {
    inner: Arc<dyn ObjectReader>,
    state: Arc<State>,
}

#[async_trait]
impl ObjectReader for FaultyReader {
    fn image(&self) -> &crate::model::StoredImage {
        self.inner.image()
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes> {
        let number = self.state.reads.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        match self.state.faults.read {
            Some((from, kind)) if number >= from => Err(injected(kind, "reading")),
            _ => self.inner.read_at(offset, length).await,
        }
    }

    async fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>> {
        self.inner.next_data(offset).await
    }
}
