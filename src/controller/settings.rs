//! What an operator is told when it starts.

use std::{path::PathBuf, time::Duration};

use super::{agents, image::decide::RetryPolicy};
use crate::{api::identity, kube::backoff::Backoff};

/// What an operator is told when it starts.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The namespace of tasks, agents' leases and the leader's lease.
    pub namespace: String,
    /// Namespaces whose Images it serves; empty means all.
    pub watch_namespaces: Vec<String>,
    /// Labels of the ImageStores it serves, as kubectl's `-l`; empty means all.
    pub store_selector: String,
    /// Unique to this process: a pod's name, and something random.
    pub identity: String,
    /// How long a leader may be silent before another takes over.
    pub leader_lease: Duration,
    /// How long an agent's Lease may be missing before its node counts as gone.
    pub agent_grace: Duration,
    /// What failing costs.
    pub retry: RetryPolicy,
    /// How often to look for what was forsaken, and how old it must be. Nothing waits for it.
    pub sweep_interval: Duration,
    /// How long data that no Image knows must not have been changed before it is removed.
    pub orphan_grace: Duration,
    /// How agents' certificates are signed.
    pub authority: AuthorityTerms,
    /// The agents' DaemonSet; none if somebody else sees to the agents.
    pub agents: Option<agents::Order>,
    /// The file with the ImageStore to begin with, if there is to be one.
    pub default_store: Option<PathBuf>,
}

/// How agents' certificates are signed.
#[derive(Clone, Debug)]
pub struct AuthorityTerms {
    /// How long a key signs and what it signed is believed, in all. The next one takes over after three quarters of it.
    pub validity: Duration,
    /// Names by which agents are reached, besides that of their Service.
    pub names: Vec<String>,
}

impl Settings {
    /// How long who signs agents' certificates is believed: two years, so that a copy of the published ones is good for months.
    pub const AUTHORITY_VALIDITY: Duration = Duration::from_hours(24 * 730);
    /// How long a leader may be silent, as others have it: an API server's restart of some seconds goes unnoticed, and nobody waits
    /// long for a successor. A longer outage costs the leadership, and the operator stands again when it is over.
    pub const LEADER_LEASE: Duration = Duration::from_secs(15);
    /// The wait after the first failed attempt, which is long enough for a server to have been restarted.
    pub const RETRY_BASE: Duration = Duration::from_secs(5);
    /// The longest wait between attempts.
    pub const RETRY_MAX: Duration = Duration::from_secs(300);
    /// How often forsaken things are looked for.
    pub const SWEEP_INTERVAL: Duration = Duration::from_secs(60);
    /// How long data that no Image knows is left: a day, in which somebody may notice that it was not meant to be forsaken.
    pub const ORPHAN_GRACE: Duration = Duration::from_hours(24);
    /// The number of attempts; see [`RetryPolicy::limit`].
    pub const RETRY_LIMIT: i64 = 5;

    /// The defaults, for an operator in `namespace`.
    pub fn new(namespace: impl Into<String>, identity: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            watch_namespaces: Vec::new(),
            store_selector: String::new(),
            identity: identity.into(),
            leader_lease: Self::LEADER_LEASE,
            agent_grace: Duration::from_secs(identity::LEASE_DURATION_SECONDS),
            sweep_interval: Self::SWEEP_INTERVAL,
            orphan_grace: Self::ORPHAN_GRACE,
            authority: AuthorityTerms { validity: Self::AUTHORITY_VALIDITY, names: Vec::new() },
            agents: None,
            default_store: None,
            retry: RetryPolicy {
                backoff: Backoff { base: Self::RETRY_BASE, limit: Self::RETRY_MAX },
                limit: Self::RETRY_LIMIT,
            },
        }
    }
}
