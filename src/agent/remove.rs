//! Delete: takes a revision out of stores, and clears up after imports that came to nothing.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;
use vitrine_engine::{
    error::{Error, Kind, Result},
    store::Store,
};

use super::{import, request, workplace::Workplace};
use crate::api::{ImageTaskSpec, ImportOrder};

/// How often clearing up is tried before it is reported as not done.
const ATTEMPTS: u32 = 5;
/// The first pause between two tries; it doubles.
const PAUSE: Duration = Duration::from_millis(500);

/// Removes what the order in `spec` names. What is not there is no error.
///
/// # Errors
/// What a store says; those before it in the order have been dealt with.
pub async fn remove(place: &Workplace, spec: &ImageTaskSpec, stop: &CancellationToken) -> Result<()> {
    let order = spec.delete.as_ref().ok_or_else(|| Error::new(Kind::InvalidInput, "the task has no delete order"))?;
    let key = import::key(spec)?;
    for target in &order.stores {
        if stop.is_cancelled() {
            return Err(Error::new(Kind::Cancelled, "the delete was stopped"));
        }
        if let Some(store) = place.stores.open_existing(&target.name, target.filesystem.as_ref()).await? {
            store.delete(&key).await?;
            tracing::info!(store = target.name, %key, "removed");
        }
    }
    Ok(())
}

/// Removes what an import that came to nothing may have left in this node's own stores. Stores that others write to as well are
/// left alone: a later attempt may be at work there, or done, and it takes over or removes what this one left.
///
/// # Errors
/// The last failure, after several tries.
pub async fn clear_up(place: &Workplace, spec: &ImageTaskSpec) -> Result<()> {
    let Some(order) = &spec.import else { return Ok(()) };
    let key = import::key(spec)?;
    let mut pause = PAUSE;
    for attempt in 1..=ATTEMPTS {
        let result = async {
            for store in own_stores(place, order).await? {
                store.delete(&key).await?;
            }
            Ok(())
        };
        match result.await {
            Err(error) if attempt < ATTEMPTS => {
                tracing::warn!(%error, "clearing up failed; trying again in {} ms", pause.as_millis());
            }
            result => return result,
        }
        tokio::time::sleep(request::jittered(pause)).await;
        pause = pause.saturating_mul(2);
    }
    Ok(())
}

async fn own_stores(place: &Workplace, order: &ImportOrder) -> Result<Vec<Arc<dyn Store>>> {
    let mut stores = Vec::new();
    for target in &order.stores {
        let backend = target.filesystem.as_ref().filter(|backend| !backend.shared);
        if let Some(backend) = backend
            && let Some(store) = place.stores.open_existing(&target.name, Some(backend)).await?
        {
            stores.push(store);
        }
    }
    Ok(stores)
}
