//! How much each tenant may do at once, so that none of them takes all of an agent.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::answer::Refusal;

/// The unit in which bytes are counted: a semaphore counts to 2^29 at least.
const UNIT: usize = 1 << 10;

/// All tenants that are being served.
#[derive(Debug)]
pub struct Tenants {
    known: Mutex<BTreeMap<String, Weak<Tenant>>>,
    requests: usize,
    bytes: usize,
}

/// What one of them may still do.
#[derive(Debug)]
pub struct Tenant {
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
}

/// A request that is being answered.
#[derive(Debug)]
pub struct Place {
    tenant: Arc<Tenant>,
    _request: OwnedSemaphorePermit,
}

/// Room for bytes that are read and not yet sent.
#[derive(Debug)]
pub struct Room {
    _permit: OwnedSemaphorePermit,
}

impl Tenants {
    /// So many requests at once for each, and so many bytes read and not yet sent.
    pub fn new(requests: usize, bytes: usize) -> Self {
        Self { known: Mutex::default(), requests, bytes }
    }

    /// Lets a request of the tenant in, if it has not too many already.
    ///
    /// # Errors
    /// 429.
    pub fn enter(&self, namespace: &str) -> Result<Place, Refusal> {
        let tenant = self.tenant(namespace);
        let request = tenant.requests.clone().try_acquire_owned().map_err(|_| {
            let most = self.requests;
            Refusal::too_many(format!(
                "namespace {namespace} has {most} requests under way on this node, which is as many as it may; try again later"
            ))
        })?;
        Ok(Place { tenant, _request: request })
    }

    fn tenant(&self, namespace: &str) -> Arc<Tenant> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tenant) = known.get(namespace).and_then(Weak::upgrade) {
            return tenant;
        }
        known.retain(|_, tenant| tenant.strong_count() > 0);
        let bytes = self.bytes.checked_div(UNIT).unwrap_or(0).clamp(1, Semaphore::MAX_PERMITS);
        let tenant = Tenant {
            requests: Arc::new(Semaphore::new(self.requests.min(Semaphore::MAX_PERMITS))),
            bytes: Arc::new(Semaphore::new(bytes)),
        };
        let tenant = Arc::new(tenant);
        known.insert(namespace.to_owned(), Arc::downgrade(&tenant));
        tenant
    }
}

impl Place {
    /// Waits until there is room for `length` bytes, or for half of all there is, if they are more.
    pub async fn room(&self, length: usize, all: usize) -> Option<Room> {
        let half = all.checked_div(UNIT.saturating_mul(2)).unwrap_or(0).max(1);
        let units = length.div_ceil(UNIT).clamp(1, half);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        self.tenant.bytes.clone().acquire_many_owned(units).await.ok().map(|permit| Room { _permit: permit })
    }
}

/// `bytes` that keep their room until they are sent.
pub fn keep(bytes: Bytes, room: Room) -> Bytes {
    struct Kept {
        bytes: Bytes,
        _room: Room,
    }
    impl AsRef<[u8]> for Kept {
        fn as_ref(&self) -> &[u8] {
            &self.bytes
        }
    }
    Bytes::from_owner(Kept { bytes, _room: room })
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn a_tenant_has_its_requests_and_no_other_ones() {
        let tenants = Tenants::new(2, 1 << 20);
        let places: Vec<_> = (0..2).map(|_| tenants.enter("a").unwrap()).collect();
        let refused = tenants.enter("a").unwrap_err();
        assert!(refused.code.as_u16() == 429 && refused.retry_after.is_some(), "{refused:?}");
        tenants.enter("b").unwrap();
        drop(places);
        tenants.enter("a").unwrap();
    }

    #[tokio::test]
    async fn bytes_wait_for_those_before_them_to_be_sent() {
        let all = 4 * UNIT;
        let tenants = Tenants::new(9, all);
        let place = tenants.enter("a").unwrap();
        let read = async || keep(Bytes::from(vec![0; 2 * UNIT]), place.room(2 * UNIT, all).await.unwrap());
        let (one, two) = (read().await, read().await);
        assert!(place.room(UNIT, all).now_or_never().is_none());
        drop(one);
        assert!(place.room(100 * UNIT, all).now_or_never().is_some(), "more than there is takes half of it");
        drop(two);
    }
}
