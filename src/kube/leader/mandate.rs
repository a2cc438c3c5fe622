//! Until when a leader may act, and a client that writes no longer than that.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::Request;
use kube::{Client, client::Body};
use tokio::time::Instant;
use tower::{BoxError, service_fn};

use crate::kube::Error;

/// Until when one leadership may act. Clones are the same mandate.
#[derive(Clone, Debug)]
pub struct Mandate(Arc<Mutex<Option<Instant>>>);

impl Mandate {
    /// One that lasts until `end` unless it is extended.
    pub fn until(end: Instant) -> Self {
        Self(Arc::new(Mutex::new(Some(end))))
    }

    /// Whether the leader may act now.
    pub fn holds(&self) -> bool {
        !self.left().is_zero()
    }

    /// How much longer it lasts.
    pub fn left(&self) -> Duration {
        let end = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        end.map_or(Duration::ZERO, |end| end.saturating_duration_since(Instant::now()))
    }

    /// Lets it last until `end`. One that has ended for good stays so.
    pub fn extend(&self, end: Instant) {
        if let Some(current) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            *current = end;
        }
    }

    /// Ends it for good.
    pub fn end(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// `client`, which writes nothing after the mandate has run out. What acts learns of the end some time after it: after a pause of
    /// the whole process (a frozen container, a node under pressure) that may be long after another leads.
    pub fn guard(&self, client: Client) -> Client {
        let (mandate, namespace) = (self.clone(), client.default_namespace().to_owned());
        let send = move |request: Request<Body>| {
            let (mandate, client) = (mandate.clone(), client.clone());
            async move {
                if !request.method().is_safe() && !mandate.holds() {
                    let message = format!("{} {} was not sent", request.method(), request.uri().path());
                    return Err(BoxError::from(Error::LeadershipLost(message)));
                }
                client.send(request).await.map_err(BoxError::from)
            }
        };
        Client::new(service_fn(send), namespace)
    }
}
