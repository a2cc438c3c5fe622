//! Leadership by a Lease (coordination.k8s.io): of several operators one acts.
//!
//! ```text
//! sent      +2 s, +4 s, …          +10 s                          +15 s
//! │ renewed │ renews again, and    │ not renewed: acts no more,   │ whoever saw no change since
//! │         │ again if it fails    │ and stands for election      │ may take the lease
//! ```
//!
//! * Expiry is judged by this process's clock alone: a lease is expired when its record has not changed for its duration, however the
//!   holder's clock stands.
//! * The holder counts from when it *sent* the last renewal that was answered, which is before anybody can have seen it. What is left
//!   of the duration at the deadline is for requests that are under way then.
//! * Beyond the deadline nothing is written, even by code that has not heard of it yet: see [`Mandate::guard`].
//!
//! Knows the API server and the clock. Must not know what a leader does.

mod mandate;
#[cfg(test)]
mod tests;

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{Api, Client, api::ObjectMeta, api::PostParams};
use tokio::time::{Instant, sleep, sleep_until, timeout};

pub use mandate::Mandate;

use super::{Doing as _, Error, Result, readiness::Readiness};

/// How much longer than agreed a candidate may wait, so that several do not always ask at the same moment.
const JITTER: f64 = 1.2;
/// How many durations an answer of the API server holds: long enough that a restart of it is not told of every operator.
const READY_FOR: u32 = 2;
/// How long giving the lease up may take: it expires by itself as well.
const RELEASE_WITHIN: Duration = Duration::from_secs(2);

/// How long one election lasts. The parts have the proportions of client-go's defaults: 15 s, 10 s, 2 s.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// How long a lease holds without renewal.
    pub duration: Duration,
}

impl Terms {
    /// How long after the last renewal the holder acts. The third that remains is for clocks that do not run alike, and for requests
    /// that the API server has not finished.
    fn deadline(&self) -> Duration {
        self.duration * 2 / 3
    }

    /// The time from one request to the next. Five fit into the deadline, so that some that fail are no loss.
    fn period(&self) -> Duration {
        self.duration * 2 / 15
    }

    /// How long a renewal may take: one that hangs, on a connection that is dead, leaves time for another.
    fn patience(&self) -> Duration {
        self.deadline() / 2
    }
}

/// A candidate for leadership.
#[derive(Clone)]
pub struct Election {
    api: Api<Lease>,
    name: String,
    identity: String,
    terms: Terms,
    readiness: Readiness,
}

/// Leadership that was won. It lasts as long as `keep` is awaited and does not return.
pub struct Leadership {
    election: Election,
    lease: Lease,
    mandate: Mandate,
}

impl Election {
    /// A candidate called `identity` (unique to this process) for the lease `name`.
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str, terms: Terms) -> Self {
        let (name, identity) = (name.to_owned(), identity.to_owned());
        Self { api: Api::namespaced(client, namespace), name, identity, terms, readiness: Readiness::default() }
    }

    /// The same, and `readiness` tells whether the API server lets this candidate stand: then it does its work, be it to wait.
    #[must_use]
    pub fn with_readiness(self, readiness: Readiness) -> Self {
        Self { readiness, ..self }
    }

    fn is_answered(&self) {
        self.readiness.hold(self.terms.duration * READY_FOR);
    }

    /// Waits until this candidate leads. An API server that does not answer is asked again.
    pub async fn win(&self) -> Leadership {
        let mut seen: Option<(Option<LeaseSpec>, Instant)> = None;
        loop {
            let sent = Instant::now();
            let tried = timeout(self.terms.deadline(), self.try_to_win(&mut seen)).await;
            if matches!(tried, Ok(Ok(_))) {
                self.is_answered();
            }
            match tried {
                Ok(Ok(Some(lease))) => {
                    tracing::info!(lease = self.name, identity = self.identity, "leading");
                    let mandate = Mandate::until(sent + self.terms.deadline());
                    return Leadership { election: self.clone(), lease, mandate };
                }
                Ok(Ok(None)) => {}
                Ok(Err(error)) => tracing::warn!(%error, "leader election"),
                Err(_) => tracing::warn!("leader election: the API server does not answer"),
            }
            sleep(self.terms.period().mul_f64(rand::random_range(1.0..JITTER))).await;
        }
    }

    async fn try_to_win(&self, seen: &mut Option<(Option<LeaseSpec>, Instant)>) -> Result<Option<Lease>> {
        let Some(lease) = self.api.get_opt(&self.name).await.doing(|| "read the leader's lease")? else {
            let lease = self.record(None);
            let made = self.api.create(&PostParams::default(), &lease).await.doing(|| "make the leader's lease");
            return lost_race_is_none(made);
        };
        let since = match seen {
            Some((spec, since)) if *spec == lease.spec => *since,
            _ => {
                let now = Instant::now();
                *seen = Some((lease.spec.clone(), now));
                now
            }
        };
        if !self.may_take(&lease, since.elapsed()) {
            return Ok(None);
        }
        lost_race_is_none(self.replace(&lease).await)
    }

    fn may_take(&self, lease: &Lease, unchanged_for: Duration) -> bool {
        let Some(spec) = &lease.spec else { return true };
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if holder.is_empty() || holder == self.identity {
            return true;
        }
        let seconds = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or(0);
        unchanged_for >= Duration::from_secs(seconds).max(Duration::from_secs(1))
    }

    /// Writes that this candidate holds the lease, if nobody changed it since it was read.
    async fn replace(&self, read: &Lease) -> Result<Lease> {
        let record = self.record(Some(read));
        self.api.replace(&self.name, &PostParams::default(), &record).await.doing(|| "write the leader's lease")
    }

    /// The lease as this candidate holds it, built on the version that was read.
    fn record(&self, before: Option<&Lease>) -> Lease {
        let now = MicroTime(Timestamp::now());
        let old = before.and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let ours = old.holder_identity.as_deref() == Some(&self.identity);
        let transitions = old.lease_transitions.unwrap_or(0);
        Lease {
            metadata: before.map_or_else(
                || ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
                |lease| lease.metadata.clone(),
            ),
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                // A lease counts in whole seconds; rounding up keeps others away a little longer than we claim.
                lease_duration_seconds: i32::try_from(self.terms.duration.as_millis().div_ceil(1000)).ok(),
                acquire_time: if ours { old.acquire_time } else { Some(now.clone()) },
                renew_time: Some(now),
                lease_transitions: Some(if ours || before.is_none() {
                    transitions
                } else {
                    transitions.saturating_add(1)
                }),
                ..LeaseSpec::default()
            }),
        }
    }
}

impl Leadership {
    /// For how long this leadership may act.
    pub fn mandate(&self) -> &Mandate {
        &self.mandate
    }

    /// Renews until leadership is lost; returns only then. A renewal that fails is tried again until the deadline.
    pub async fn keep(&mut self) -> Error {
        let terms = self.election.terms;
        let mut next = Instant::now() + terms.period();
        loop {
            sleep_until(next.min(Instant::now() + self.mandate.left())).await;
            if !self.mandate.holds() {
                self.mandate.end();
                let seconds = terms.deadline().as_secs_f32();
                return Error::LeadershipLost(format!("the lease could not be renewed for {seconds:.0} s"));
            }
            let sent = Instant::now();
            next = sent + terms.period();
            match timeout(terms.patience().min(self.mandate.left()), self.renew()).await {
                Ok(Ok(())) => {
                    self.election.is_answered();
                    self.mandate.extend(sent + terms.deadline());
                }
                Ok(Err(lost @ Error::LeadershipLost(_))) => {
                    self.mandate.end();
                    return lost;
                }
                Ok(Err(error)) => tracing::warn!(%error, "the leader's lease was not renewed"),
                Err(_) => tracing::warn!("the leader's lease was not renewed: the API server does not answer"),
            }
        }
    }

    /// Lets a successor begin at once. Failing costs it the lease's duration, nothing else.
    pub async fn release(mut self) {
        self.mandate.end();
        if let Some(spec) = &mut self.lease.spec {
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
        }
        let election = &self.election;
        let params = PostParams::default();
        let released = election.api.replace(&election.name, &params, &self.lease);
        if !matches!(timeout(RELEASE_WITHIN, released).await, Ok(Ok(_))) {
            tracing::info!("the leader's lease was not released; it expires by itself");
        }
    }

    /// One renewal. `LeadershipLost` if another leads, or may by now.
    async fn renew(&mut self) -> Result<()> {
        match self.election.replace(&self.lease).await {
            Ok(lease) => self.lease = lease,
            // Somebody else holds it or merely touched it (a label, say), which is no loss; or an earlier renewal did arrive.
            Err(error) if error.is_conflict() || error.is_not_found() => {
                let found = self.election.api.get_opt(&self.election.name).await.doing(|| "read the leader's lease")?;
                let Some(lease) = found else {
                    return Err(Error::LeadershipLost("the lease was deleted, and anybody may make it anew".into()));
                };
                let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone()).unwrap_or_default();
                if holder != self.election.identity {
                    return Err(Error::LeadershipLost(format!("{holder} leads now")));
                }
                self.lease = self.election.replace(&lease).await?;
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

fn lost_race_is_none(result: Result<Lease>) -> Result<Option<Lease>> {
    match result {
        Ok(lease) => Ok(Some(lease)),
        Err(error) if error.is_conflict() || error.is_already_exists() => Ok(None),
        Err(error) => Err(error),
    }
}
