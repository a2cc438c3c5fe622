//! A decorator that has a store hold every byte of what is written to it from now on: no holes. Knows nothing of how that is done, and
//! changes nothing else, but that nobody goes on with what a dead writer left: which of its zeros are stored is not known.

use std::sync::Arc;

use async_trait::async_trait;

use super::{Sink, Store, layer::Layer};
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
impl Layer for ThickStore {
    fn inner(&self) -> &dyn Store {
        &*self.inner
    }

    async fn create(&self, key: &ObjectKey, attempt: u32, format: OutputFormat) -> Result<Box<dyn Sink>> {
        let mut sink = self.inner.create(key, attempt, format).await?;
        match sink.hold_all() {
            Ok(()) => Ok(sink),
            Err(error) => {
                sink.abort().await?;
                Err(error.context(format!("store {}", self.inner.name())))
            }
        }
    }
}
