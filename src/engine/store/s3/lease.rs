//! Signs of life: an object that is written again and again for as long as somebody writes, or reads.
//!
//! A server of objects knows nothing of who uses them. What bears a sign of life younger than the lease, by the server's clock, is left
//! alone by everybody else.

use std::sync::Arc;

use bytes::Bytes;
use object_store::{ObjectMeta, path::Path};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{index, place::Place};
use crate::error::Result;

/// How often a sign of life is given while one counts.
const OFTEN: u32 = 3;

/// The signs of life of one writer or reader; they end when it is dropped.
pub(super) struct Lease {
    stop: CancellationToken,
    task: Option<JoinHandle<()>>,
}

/// Gives one sign of life.
pub(super) async fn give(place: &Place, path: &Path) -> Result<()> {
    place.put(path, Bytes::new(), &format!("giving a sign of life at {path}")).await
}

impl Lease {
    /// Gives signs of life at `path` from now on, as long as `wanted` says yes. The first one was given before.
    pub(super) fn keep<W>(place: &Arc<Place>, path: Path, wanted: impl Fn() -> W + Send + 'static) -> Self
    where
        W: Future<Output = bool> + Send,
    {
        let (stop, place) = (CancellationToken::new(), Arc::clone(place));
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let pause = place.options().lease.checked_div(OFTEN).unwrap_or_default();
            while stopped.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
                if !wanted().await {
                    break;
                }
                // What was begun is ended, so that none comes after the last.
                if let Err(error) = give(&place, &path).await {
                    tracing::info!(store = place.name(), %error, "no sign of life could be given");
                }
            }
        });
        Self { stop, task: Some(task) }
    }

    /// Ends them; none comes after that.
    pub(super) async fn end(mut self) {
        self.stop.cancel();
        if let Some(task) = self.task.take() {
            let _ = task.await;
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Whether this sign of life counts at the time `now` of the server.
pub(super) fn counts(place: &Place, meta: &ObjectMeta, now: u64) -> bool {
    index::changed(meta).saturating_add(place.options().lease.as_secs().max(1)) >= now
}
