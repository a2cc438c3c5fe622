//! Leadership by a Lease (coordination.k8s.io): of several operators one acts.
//!
//! Expiry is judged by this process's clock alone: a lease is expired when its record has not changed for its duration, however the
//! holder's clock stands. The holder stops in good time before others may take over: it gives up when it has not renewed for two thirds
//! of the duration.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{Api, Client, api::ObjectMeta, api::PostParams};
use tokio::time::{Instant, sleep, timeout};

use super::{Doing as _, Error, Result};

/// How long one election lasts, and how often it is confirmed.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// How long a lease holds without renewal.
    pub duration: Duration,
}

impl Terms {
    /// A third: two renewals may be lost.
    fn renew_every(&self) -> Duration {
        self.duration / 3
    }

    fn give_up_after(&self) -> Duration {
        self.duration * 2 / 3
    }
}

/// A candidate for leadership.
pub struct Election {
    api: Api<Lease>,
    name: String,
    identity: String,
    terms: Terms,
}

/// Leadership that was won. It holds as long as `keep` is awaited and does not return.
pub struct Leadership {
    election: Election,
    lease: Lease,
}

impl Election {
    /// A candidate called `identity` (unique to this process) for the lease `name`.
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str, terms: Terms) -> Self {
        Self { api: Api::namespaced(client, namespace), name: name.to_owned(), identity: identity.to_owned(), terms }
    }

    /// Waits until this candidate leads. An API server that does not answer is asked again.
    pub async fn win(self) -> Leadership {
        let mut seen: Option<(Option<LeaseSpec>, Instant)> = None;
        loop {
            match self.try_to_win(&mut seen).await {
                Ok(Some(lease)) => {
                    tracing::info!(lease = self.name, identity = self.identity, "leading");
                    return Leadership { election: self, lease };
                }
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "leader election"),
            }
            sleep(self.terms.renew_every().min(Duration::from_secs(2))).await;
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
        let taken = self.record(Some(&lease));
        let result =
            self.api.replace(&self.name, &PostParams::default(), &taken).await.doing(|| "take the leader's lease");
        lost_race_is_none(result)
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
    /// Renews until leadership is lost; returns only then.
    pub async fn keep(&mut self) -> Error {
        let terms = self.election.terms;
        let mut renewed = Instant::now();
        loop {
            sleep(terms.renew_every().min(Duration::from_secs(5))).await;
            let left = terms.give_up_after().saturating_sub(renewed.elapsed());
            match timeout(left, self.renew()).await {
                Ok(Ok(())) => renewed = Instant::now(),
                Ok(Err(error)) if error.is_conflict() => {
                    if let Some(lost) = self.taken_by_another().await {
                        return lost;
                    }
                }
                Ok(Err(error)) => tracing::warn!(%error, "the leader's lease was not renewed"),
                Err(_) => {}
            }
            if renewed.elapsed() >= terms.give_up_after() {
                return Error::LeadershipLost(format!(
                    "the lease could not be renewed for {} s",
                    renewed.elapsed().as_secs()
                ));
            }
        }
    }

    /// Lets a successor begin at once. Failing costs it the lease's duration, nothing else.
    pub async fn release(mut self) {
        if let Some(spec) = &mut self.lease.spec {
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
        }
        let election = &self.election;
        let params = PostParams::default();
        let released = election.api.replace(&election.name, &params, &self.lease);
        if !matches!(timeout(Duration::from_secs(2), released).await, Ok(Ok(_))) {
            tracing::info!("the leader's lease was not released; it expires by itself");
        }
    }

    async fn renew(&mut self) -> Result<()> {
        let renewed = self.election.record(Some(&self.lease));
        let params = PostParams::default();
        self.lease =
            self.election.api.replace(&self.election.name, &params, &renewed).await.doing(|| "renew the lease")?;
        Ok(())
    }

    /// After a conflict: somebody else holds it, or merely touched it (a label, say), which is no loss.
    async fn taken_by_another(&mut self) -> Option<Error> {
        match self.election.api.get(&self.election.name).await {
            Ok(lease) => {
                let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone()).unwrap_or_default();
                self.lease = lease;
                (holder != self.election.identity).then(|| Error::LeadershipLost(format!("{holder} leads now")))
            }
            Err(_) => None,
        }
    }
}

fn lost_race_is_none(result: Result<Lease>) -> Result<Option<Lease>> {
    match result {
        Ok(lease) => Ok(Some(lease)),
        Err(error) if error.is_conflict() || error.is_already_exists() => Ok(None),
        Err(error) => Err(error),
    }
}
