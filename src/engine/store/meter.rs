//! A decorator that counts and times what is asked of a store, for metrics. Changes nothing of what it does.

use std::{sync::Arc, time::Instant};

use async_trait::async_trait;
use bytes::Bytes;
use metrics::{Counter, Histogram, counter, histogram};

use super::{ObjectEntry, ObjectReader, ObjectStat, Resumed, Sink, Store, layer::Layer};
use crate::{
    error::Result,
    model::{ObjectKey, OutputFormat, StoredImage, Verified},
};

/// A store whose requests are counted:
///
/// | metric | labels |
/// | --- | --- |
/// | `vitrine_store_request_duration_seconds` | `store`, `operation` |
/// | `vitrine_store_request_failures_total` | `store`, `operation`, `reason`: an [`error::Kind`](crate::error::Kind) |
/// | `vitrine_store_read_bytes_total`, `vitrine_store_written_bytes_total` | `store` |
pub struct MeteredStore {
    inner: Arc<dyn Store>,
    creating: Operation,
    opening: Operation,
    looking: Operation,
    deleting: Operation,
    listing: Operation,
    object: Arc<ObjectMeter>,
}

/// One kind of request.
struct Operation {
    store: String,
    name: &'static str,
    took: Histogram,
}

/// What is asked of single objects.
struct ObjectMeter {
    reading: Operation,
    read: Counter,
    writing: Operation,
    written: Counter,
    publishing: Operation,
}

impl Operation {
    fn new(store: &str, name: &'static str) -> Self {
        let took =
            histogram!("vitrine_store_request_duration_seconds", "store" => store.to_owned(), "operation" => name);
        Self { store: store.to_owned(), name, took }
    }

    async fn time<T>(&self, request: impl Future<Output = Result<T>> + Send) -> Result<T> {
        let began = Instant::now();
        let outcome = request.await;
        self.took.record(began.elapsed());
        if let Err(error) = &outcome {
            let (store, reason) = (self.store.clone(), format!("{:?}", error.kind()));
            counter!("vitrine_store_request_failures_total", "store" => store, "operation" => self.name, "reason" => reason)
                .increment(1);
        }
        outcome
    }
}

impl MeteredStore {
    /// Counts what is asked of `inner`. Whoever collects must be there already.
    pub fn new(inner: Arc<dyn Store>) -> Self {
        let name = inner.name().to_owned();
        let of = |operation| Operation::new(&name, operation);
        let object = ObjectMeter {
            reading: of("read"),
            read: counter!("vitrine_store_read_bytes_total", "store" => name.clone()),
            writing: of("write"),
            written: counter!("vitrine_store_written_bytes_total", "store" => name.clone()),
            publishing: of("publish"),
        };
        let (creating, opening, looking) = (of("create"), of("open"), of("stat"));
        let (deleting, listing) = (of("delete"), of("list"));
        Self { inner, creating, opening, looking, deleting, listing, object: Arc::new(object) }
    }

    fn sink(&self, inner: Box<dyn Sink>) -> Box<dyn Sink> {
        Box::new(MeteredSink { inner, meter: Arc::clone(&self.object) })
    }
}

#[async_trait]
impl Layer for MeteredStore {
    fn inner(&self) -> &dyn Store {
        &*self.inner
    }

    async fn create(&self, key: &ObjectKey, attempt: u32, format: OutputFormat) -> Result<Box<dyn Sink>> {
        self.creating.time(self.inner.create(key, attempt, format)).await.map(|sink| self.sink(sink))
    }

    async fn resume(&self, key: &ObjectKey, attempt: u32, format: OutputFormat) -> Result<Resumed> {
        // Not timed: it may wait until a writer is surely dead.
        let Resumed { sink, left } = self.inner.resume(key, attempt, format).await?;
        Ok(Resumed { sink: self.sink(sink), left })
    }

    async fn open(&self, key: &ObjectKey) -> Result<Arc<dyn ObjectReader>> {
        let inner = self.opening.time(self.inner.open(key)).await?;
        Ok(Arc::new(MeteredReader { inner, meter: Arc::clone(&self.object) }))
    }

    async fn stat(&self, key: &ObjectKey) -> Result<ObjectStat> {
        self.looking.time(self.inner.stat(key)).await
    }

    async fn delete(&self, key: &ObjectKey, attempt: u32) -> Result<()> {
        self.deleting.time(self.inner.delete(key, attempt)).await
    }

    async fn list(&self) -> Result<Vec<ObjectEntry>> {
        self.listing.time(self.inner.list()).await
    }
}

struct MeteredSink {
    inner: Box<dyn Sink>,
    meter: Arc<ObjectMeter>,
}

#[async_trait]
impl Sink for MeteredSink {
    fn takes_any_order(&self) -> bool {
        self.inner.takes_any_order()
    }

    async fn write_at(&mut self, offset: u64, bytes: Bytes) -> Result<()> {
        let length = bytes.len() as u64;
        self.meter.writing.time(self.inner.write_at(offset, bytes)).await?;
        self.meter.written.increment(length);
        Ok(())
    }

    fn hold_all(&mut self) -> Result<()> {
        self.inner.hold_all()
    }

    async fn prepare(&mut self, length: u64) -> Result<bool> {
        self.inner.prepare(length).await
    }

    async fn commit(self: Box<Self>, length: u64, proof: &Verified) -> Result<ObjectStat> {
        let Self { inner, meter } = *self;
        meter.publishing.time(inner.commit(length, proof)).await
    }

    async fn abort(self: Box<Self>) -> Result<()> {
        self.inner.abort().await
    }
}

struct MeteredReader {
    inner: Arc<dyn ObjectReader>,
    meter: Arc<ObjectMeter>,
}

#[async_trait]
impl ObjectReader for MeteredReader {
    fn image(&self) -> &StoredImage {
        self.inner.image()
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes> {
        let bytes = self.meter.reading.time(self.inner.read_at(offset, length)).await?;
        self.meter.read.increment(bytes.len() as u64);
        Ok(bytes)
    }

    async fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>> {
        self.inner.next_data(offset).await
    }
}
