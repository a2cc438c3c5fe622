//! Work that a store does behind its callers' backs, and that later work waits for.

use std::time::Duration;

use tokio::sync::watch;

/// How long work waits for cleaning up that this process has begun before it.
const SETTLE: Duration = Duration::from_secs(10);

/// How much cleaning up is under way.
#[derive(Default)]
pub(super) struct Cleaning(watch::Sender<usize>);

/// One piece of it, which is over when this is dropped.
pub(super) struct Piece(watch::Sender<usize>);

impl Cleaning {
    /// Counts a piece.
    pub(super) fn begin(&self) -> Piece {
        self.0.send_modify(|count| *count = count.saturating_add(1));
        Piece(self.0.clone())
    }

    /// Waits until all that was begun is over, for a while.
    pub(super) async fn settle(&self) {
        let mut count = self.0.subscribe();
        let _ = tokio::time::timeout(SETTLE, count.wait_for(|count| *count == 0)).await;
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count = count.saturating_sub(1));
    }
}
