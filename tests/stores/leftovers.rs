//! What several stores' tests do with what killed writers left.

use std::time::{Duration, Instant};

use vitrine_engine::store::Store;

/// Sweeps until nothing unpublished is left: it takes some seconds until a back end knows who is dead.
pub async fn sweep_all(store: &dyn Store) {
    let start = Instant::now();
    loop {
        store.sweep(Duration::ZERO).await.unwrap();
        let left: Vec<_> = store.list().await.unwrap().into_iter().filter(|entry| !entry.published).collect();
        if left.is_empty() {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(120), "not swept: {left:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
