//! The heartbeat: keeps the agent's Lease alive, and tells the rest of the agent whether it is.
//!
//! Runs by itself, so that no work can hold it up. The operator judges by when it sees `renewTime` change; this side counts from
//! when it *sent* the last renewal that was answered, which is earlier. So the agent always notices first.

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference},
    jiff::Timestamp,
};
use kube::{Api, api::PostParams};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    FIELD_MANAGER, LeaseTiming,
    request::{self, RequestError},
};
use crate::api::identity::{ANNOTATION_NODE, LABEL_AGENT, agent_lease_name};

/// The pause after a renewal that failed: short, because what counts is how much of the duration is left.
const RETRY: Duration = Duration::from_secs(1);

/// When the Lease was last renewed, as the rest of the agent sees it.
#[derive(Clone, Debug)]
pub struct Pulse {
    beats: watch::Receiver<Option<Beat>>,
    duration: Duration,
}

/// One renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Beat {
    /// When the request was sent.
    sent: Instant,
    /// How often the Lease had run out before: others may have been given this agent's work since the last beat.
    lapses: u64,
}

impl Pulse {
    /// Whether the Lease holds now.
    pub fn holds(&self) -> bool {
        self.beats.borrow().is_some_and(|beat| beat.sent.elapsed() < self.duration)
    }

    /// How often the Lease has run out so far. What was learnt before the last time cannot be relied on.
    pub fn lapses(&self) -> u64 {
        self.beats.borrow().map_or(0, |beat| beat.lapses)
    }

    /// Waits for the next renewal. Never returns after the heartbeat has ended.
    pub async fn next(&mut self) {
        if self.beats.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until the Lease holds.
    pub async fn held(&mut self) {
        while !self.holds() {
            self.next().await;
        }
    }
}

/// Another process has taken this node's Lease: two agents run on one node.
#[derive(Debug, thiserror::Error)]
#[error("another agent ({0}) has taken over the Lease of this node: only one may run on a node")]
pub struct Superseded(String);

/// Keeps one Lease.
pub struct Heartbeat {
    leases: Api<Lease>,
    node: String,
    holder: String,
    owner: Option<OwnerReference>,
    timing: LeaseTiming,
    beats: watch::Sender<Option<Beat>>,
    /// What the API server last said; the next renewal replaces exactly this.
    current: Option<Lease>,
    taken_over: bool,
}

impl Heartbeat {
    /// A heartbeat for the agent `holder` on `node`, not begun yet.
    pub fn new(
        leases: Api<Lease>,
        node: &str,
        holder: &str,
        owner: Option<OwnerReference>,
        timing: LeaseTiming,
    ) -> (Self, Pulse) {
        let (beats, receiver) = watch::channel(None);
        let pulse = Pulse { beats: receiver, duration: timing.duration };
        let (node, holder) = (node.to_owned(), holder.to_owned());
        (Self { leases, node, holder, owner, timing, beats, current: None, taken_over: false }, pulse)
    }

    /// Renews until `stop`. The Lease is left as it is then: it runs out by itself if the agent does not come back.
    ///
    /// # Errors
    /// `Superseded`, and nothing else: every other failure is tried again.
    pub async fn keep(mut self, stop: CancellationToken) -> Result<(), Superseded> {
        loop {
            let sent = Instant::now();
            let pause = match self.renew().await? {
                Ok(()) => {
                    self.beat(sent);
                    self.timing.renew
                }
                Err(error) => {
                    tracing::warn!(%error, "renewing the Lease of this node failed");
                    RETRY.min(self.timing.renew)
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return Ok(()),
            }
        }
    }

    fn beat(&self, sent: Instant) {
        self.beats.send_modify(|beat| {
            let over = beat.is_some_and(|last| last.sent.elapsed() >= self.timing.duration);
            let lapses = beat.map_or(0, |last| last.lapses).saturating_add(u64::from(over));
            if over {
                tracing::warn!("the Lease of this node had run out: what was to be done is read anew");
            }
            *beat = Some(Beat { sent, lapses });
        });
    }

    /// One renewal: the outer error ends the agent, the inner one is tried again.
    async fn renew(&mut self) -> Result<Result<(), RequestError>, Superseded> {
        let name = agent_lease_name(&self.node);
        let known = match self.current.take() {
            Some(lease) => Some(lease),
            None => match request::once(self.leases.get_opt(&name)).await {
                Ok(found) => found,
                Err(error) => return Ok(Err(error)),
            },
        };
        let parameters = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let written = match known {
            None => {
                let lease = self.fill(Lease::default(), name);
                request::once(self.leases.create(&parameters, &lease)).await
            }
            Some(lease) => {
                let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone()).unwrap_or_default();
                if self.taken_over && holder != self.holder {
                    return Err(Superseded(holder));
                }
                let lease = self.fill(lease, name.clone());
                request::once(self.leases.replace(&name, &parameters, &lease)).await
            }
        };
        Ok(written.map(|lease| {
            self.taken_over = true;
            self.current = Some(lease);
        }))
    }

    fn fill(&self, mut lease: Lease, name: String) -> Lease {
        let now = MicroTime(Timestamp::now());
        let spec = lease.spec.take().unwrap_or_default();
        let mine = spec.holder_identity.as_deref() == Some(self.holder.as_str());
        let ObjectMeta { labels, annotations, owner_references, .. } = &mut lease.metadata;
        labels.get_or_insert_default().insert(LABEL_AGENT.to_owned(), "true".to_owned());
        annotations.get_or_insert_default().insert(ANNOTATION_NODE.to_owned(), self.node.clone());
        if owner_references.is_none() {
            *owner_references = self.owner.clone().map(|owner| vec![owner]);
        }
        lease.metadata.name = Some(name);
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.holder.clone()),
            lease_duration_seconds: Some(i32::try_from(self.timing.duration.as_secs().max(1)).unwrap_or(i32::MAX)),
            acquire_time: if mine { spec.acquire_time } else { Some(now.clone()) },
            renew_time: Some(now),
            lease_transitions: if mine {
                spec.lease_transitions
            } else {
                spec.lease_transitions.map(|n| n.saturating_add(1)).or(Some(0))
            },
            ..LeaseSpec::default()
        });
        lease
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heart(duration: u64) -> (watch::Sender<Option<Beat>>, Pulse) {
        let (beats, receiver) = watch::channel(None);
        (beats, Pulse { beats: receiver, duration: Duration::from_secs(duration) })
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_holds_from_the_sending_of_a_renewal_for_its_duration() {
        let (beats, mut pulse) = heart(10);
        assert!(!pulse.holds(), "never renewed");
        beats.send_replace(Some(Beat { sent: Instant::now(), lapses: 0 }));
        tokio::time::advance(Duration::from_secs(9)).await;
        assert!(pulse.holds());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!pulse.holds());
        let waiting = tokio::spawn(async move { pulse.held().await });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        beats.send_replace(Some(Beat { sent: Instant::now(), lapses: 1 }));
        waiting.await.unwrap();
    }
}
