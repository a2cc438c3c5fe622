//! What a writer that died left of an object, for whoever goes on with it. Nothing in it is to be believed before it was looked at.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::Sink;
use crate::error::Result;

/// How much longer than other answers one may take by which a dead writer's work is taken over: Ceph knows after half a minute that a
/// client is dead, and breaking its lock takes some seconds more.
pub const CERTAINTY: Duration = Duration::from_secs(75);

/// A sink, and what it holds already.
pub struct Resumed {
    /// Where to write.
    pub sink: Box<dyn Sink>,
    /// What a dead writer left in it; `None` where the sink is empty. To be dropped before anything is written.
    pub left: Option<Box<dyn Leftover>>,
}

/// The bytes that a dead writer left, which are those of a new sink now. What was never written reads as zeros.
#[async_trait]
pub trait Leftover: Send + Sync {
    /// Up to `length` bytes at `offset`; fewer only where nothing follows.
    ///
    /// # Errors
    /// `Io`, `Unavailable`.
    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes>;

    /// The first stretch of stored bytes at or after `offset` as start and end; `None` if nothing follows.
    ///
    /// # Errors
    /// `Io`, `Unavailable`.
    async fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>>;

    /// Makes `start..end` read as zeros and holds nothing for it any more.
    ///
    /// # Errors
    /// `InvalidInput` where the back end cannot; else what stood in the way.
    async fn clear(&self, start: u64, end: u64) -> Result<()>;
}
