//! What an agent is told when it starts.

use std::{path::PathBuf, sync::Arc, time::Duration};
use vitrine_engine::{
    model::Limits,
    source::{AddressPolicy, Patience, ProxySettings},
};

use crate::api::identity;

/// How an agent on one node works.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's name.
    pub node: String,
    /// Where ImageTasks, their Secrets and Leases are.
    pub namespace: String,
    /// A folder of the agent's own on the node: its lock and spill files.
    pub work_dir: PathBuf,
    /// Folders below which stores may lie. Who may write ImageStores must not thereby write anywhere on the node.
    pub store_roots: Vec<PathBuf>,
    /// Imports that run at once; the rest waits in order of creation.
    pub concurrent_imports: usize,
    /// Threads that unpack, hash and encode, for each import.
    pub workers: usize,
    /// Where images may be fetched from.
    pub policy: Arc<AddressPolicy>,
    /// Proxies to go through.
    pub proxy: ProxySettings,
    /// How patient sources are.
    pub patience: Patience,
    /// Bounds on each import.
    pub limits: Limits,
    /// The heartbeat.
    pub lease: LeaseTiming,
    /// How often stores are looked at.
    pub probe_interval: Duration,
    /// How often what stores hold is listed.
    pub list_interval: Duration,
    /// How long work may take to clean up after itself when the agent is asked to end.
    pub grace: Duration,
}

/// When the Lease is renewed and for how long it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTiming {
    /// How often.
    pub renew: Duration,
    /// How long without renewal.
    pub duration: Duration,
}

impl Default for LeaseTiming {
    fn default() -> Self {
        Self {
            renew: Duration::from_secs(identity::LEASE_RENEW_SECONDS),
            duration: Duration::from_secs(identity::LEASE_DURATION_SECONDS),
        }
    }
}
