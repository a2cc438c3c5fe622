//! Copy and Verify: from a task's order to the engine's, and back to what the task says of stored copies.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use vitrine_engine::{
    error::{Error, Kind, Result},
    model::Digest,
    pipeline::{Copy, Fault, Permit, Published, Verification},
    store::{self, Store},
};

use super::{
    failure,
    import::{here, key, targets, token},
    remove::referred,
    workplace::Workplace,
};
use crate::api::{ImageTaskSpec, StoreFault, StoreRef};

/// A copy that can begin.
pub struct Prepared {
    /// What the engine needs.
    pub job: Copy,
    /// Targets that cannot be opened.
    pub closed: Vec<Published>,
    /// Sources that cannot be opened.
    pub faults: Vec<StoreFault>,
}

/// Everything that the engine needs for the order in `spec`.
///
/// # Errors
/// `InvalidInput` if the order makes no sense; what the stores say if none of them can be written to.
pub async fn prepare(
    place: &Workplace,
    spec: &ImageTaskSpec,
    permit: Arc<dyn Permit>,
    stop: &CancellationToken,
) -> Result<Prepared> {
    let order = spec.copy.as_ref().ok_or_else(|| Error::new(Kind::InvalidInput, "the task has no copy order"))?;
    let (targets, closed) = targets(place, &order.stores, false, stop).await?;
    let (mut sources, mut faults) = (Vec::new(), Vec::new());
    for source in &order.from {
        match open(place, source, stop).await {
            Ok(store) => sources.push(store),
            Err(error) if error.kind() == Kind::Cancelled => return Err(error),
            Err(error) => faults.push(StoreFault { rotten: false, ..rot(&source.name, &error.to_string()) }),
        }
    }
    let job = Copy {
        sources,
        content: digest(&order.content_digest)?,
        key: key(spec)?,
        attempt: token(spec.attempt)?,
        targets,
        permit: Some(permit),
        limits: place.config.limits.clone(),
        workers: place.config.workers,
    };
    Ok(Prepared { job, closed, faults })
}

/// Everything that the engine needs for the order in `spec`.
///
/// # Errors
/// `InvalidInput` if the order makes no sense; what opening the store says.
pub async fn prepare_verification(
    place: &Workplace,
    spec: &ImageTaskSpec,
    stop: &CancellationToken,
) -> Result<Verification> {
    let order = spec.verify.as_ref().ok_or_else(|| Error::new(Kind::InvalidInput, "the task has no verify order"))?;
    Ok(Verification {
        store: open(place, &order.store, stop).await?,
        key: key(spec)?,
        content: digest(&order.content_digest)?,
        limits: place.config.limits.clone(),
        workers: place.config.workers,
    })
}

async fn open(place: &Workplace, source: &StoreRef, stop: &CancellationToken) -> Result<Arc<dyn Store>> {
    let patience = place.config.limits.store_stall.min(store::DEADLINE);
    let opening = place.stores.open_existing(referred(source));
    let opened = store::answer_within(patience, &source.name, "opening it", stop, opening).await;
    let absent = || {
        // A folder that is not there tells nothing of what was in it.
        let message = format!("store {}: its folder is not there; is its volume mounted?", source.name);
        here(place, Error::new(Kind::Unavailable, message))
    };
    opened.map_err(|error| here(place, error))?.ok_or_else(absent)
}

fn digest(text: &str) -> Result<Digest> {
    text.parse().map_err(|e| Error::with_source(Kind::InvalidInput, format!("content digest {text}"), e))
}

/// What to write into the task of what the engine found wrong.
pub fn fault(fault: Fault) -> StoreFault {
    let Fault { store, message, rotten } = fault;
    StoreFault { rotten, ..rot(&store, &message) }
}

/// A copy in `store` that is not what was stored.
pub fn rot(store: &str, message: &str) -> StoreFault {
    StoreFault { store: store.to_owned(), message: failure::shorten(message, failure::MAX_MESSAGE), rotten: true }
}
