//! Delete: takes a revision out of stores, and clears up after imports that came to nothing.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;
use vitrine_engine::{
    error::{Error, Kind, Result},
    model::ObjectKey,
    pipeline::Permit,
    store::{self, Store},
};

use super::{
    import::{self, here},
    request,
    stores::Place,
    workplace::Workplace,
};
use crate::api::{ImageTaskSpec, StoreRef, StoreTarget};

/// How often clearing up is tried before it is reported as not done.
const ATTEMPTS: u32 = 5;
/// The first pause between two tries; it doubles.
const PAUSE: Duration = Duration::from_millis(500);

/// Removes what the order in `spec` names, as far as `permit` lets it. What is not there is no error, and what a later attempt than the
/// order speaks of has brought stays.
///
/// # Errors
/// What a store or the permit says; the stores before it in the order have been dealt with.
pub async fn remove(
    place: &Workplace,
    spec: &ImageTaskSpec,
    permit: &dyn Permit,
    stop: &CancellationToken,
) -> Result<()> {
    let order = spec.delete.as_ref().ok_or_else(|| Error::new(Kind::InvalidInput, "the task has no delete order"))?;
    let (key, fence) = (import::key(spec)?, import::token(order.fence)?);
    for target in &order.stores {
        let opening = place.stores.open_existing(referred(target));
        let opened = store::answer(&target.name, "opening it", stop, opening).await;
        if let Some(store) = opened.map_err(|error| here(place, error))? {
            permit.permit().await?;
            delete(&*store, &key, fence, stop).await?;
        }
    }
    Ok(())
}

/// The store as the task refers to it.
pub fn referred(store: &StoreRef) -> Place<'_> {
    Place { name: &store.name, backend: &store.backend, id: store.store_id.as_deref() }
}

async fn delete(store: &dyn Store, key: &ObjectKey, fence: u32, stop: &CancellationToken) -> Result<()> {
    match store::answer(store.name(), "removing an image", stop, store.delete(key, fence)).await {
        Ok(()) => tracing::info!(store = store.name(), %key, "removed"),
        // What was to go is gone: a later attempt removed it before it began.
        Err(error) if error.kind() == Kind::Conflict => {
            tracing::info!(store = store.name(), %key, %error, "left to a later attempt");
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Whether an import or a copy writes to stores that other nodes write to as well: what it leaves there, `clear_up` does not remove.
pub fn is_shared(spec: &ImageTaskSpec) -> bool {
    spec.targets().iter().any(|target| target.backend.is_shared())
}

/// Removes what an import that came to nothing may have left in this node's own stores. Stores that others write to as well are
/// left alone: a later attempt may be at work there, or done, and it takes over or removes what this one left; if there is none, the
/// operator orders a Delete.
///
/// # Errors
/// The last failure, after several tries.
pub async fn clear_up(place: &Workplace, spec: &ImageTaskSpec) -> Result<()> {
    if spec.targets().is_empty() {
        return Ok(());
    }
    let (key, token) = (import::key(spec)?, import::token(spec.attempt)?);
    let mut pause = PAUSE;
    for attempt in 1..=ATTEMPTS {
        let result = async {
            for store in own_stores(place, spec.targets()).await? {
                delete(&*store, &key, token, &place.end).await?;
            }
            Ok::<_, Error>(())
        };
        match result.await {
            Err(error) if attempt < ATTEMPTS && error.kind() != Kind::Cancelled => {
                tracing::warn!(%error, "clearing up failed; trying again in {} ms", pause.as_millis());
            }
            result => return result,
        }
        tokio::time::sleep(request::jittered(pause)).await;
        pause = pause.saturating_mul(2);
    }
    Ok(())
}

async fn own_stores(place: &Workplace, targets: &[StoreTarget]) -> Result<Vec<Arc<dyn Store>>> {
    let mut stores = Vec::new();
    for target in targets.iter().filter(|target| target.backend.is_local()) {
        let opening = place.stores.open_existing(import::named(target));
        stores.extend(store::answer(&target.name, "opening it", &place.end, opening).await?);
    }
    Ok(stores)
}
