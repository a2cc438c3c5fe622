//! A store that keeps nothing: for computing what an import would find out, and behind what keeps bytes but no objects.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Capacity, ObjectEntry, ObjectReader, ObjectStat, Sink, Store, describe};
use crate::{
    error::{Error, Kind, Result},
    model::{ObjectKey, OutputFormat, Verified},
};

/// The store.
#[derive(Clone, Copy, Debug, Default)]
pub struct Discard;

#[async_trait]
impl Store for Discard {
    fn name(&self) -> &'static str {
        "discard"
    }

    async fn create(&self, _key: &ObjectKey, _attempt: u32, format: OutputFormat) -> Result<Box<dyn Sink>> {
        Ok(Box::new(DiscardSink { format }))
    }

    async fn open(&self, key: &ObjectKey) -> Result<Arc<dyn ObjectReader>> {
        Err(not_kept(key))
    }

    async fn stat(&self, key: &ObjectKey) -> Result<ObjectStat> {
        Err(not_kept(key))
    }

    async fn delete(&self, _key: &ObjectKey, _attempt: u32) -> Result<()> {
        Ok(())
    }

    async fn list(&self) -> Result<Vec<ObjectEntry>> {
        Ok(Vec::new())
    }

    async fn sweep(&self, _older_than: Duration) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    async fn probe(&self) -> Result<()> {
        Ok(())
    }

    async fn capacity(&self) -> Result<Option<Capacity>> {
        Ok(None)
    }
}

fn not_kept(key: &ObjectKey) -> Error {
    Error::new(Kind::NotFound, format!("no object is kept under {key} here"))
}

struct DiscardSink {
    format: OutputFormat,
}

#[async_trait]
impl Sink for DiscardSink {
    async fn write_at(&mut self, _offset: u64, _bytes: Bytes) -> Result<()> {
        Ok(())
    }

    async fn commit(self: Box<Self>, length: u64, proof: &Verified) -> Result<ObjectStat> {
        let image = describe(self.format, length, proof);
        Ok(ObjectStat { image, url: "discard:".to_owned(), allocated_size: 0 })
    }

    async fn abort(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
