//! What an agent is told when it starts.

use std::{path::PathBuf, sync::Arc, time::Duration};
use vitrine_engine::{
    model::{CHUNK_SIZE, Limits},
    source::{AddressPolicy, Patience, ProxySettings, Uploads},
};

use crate::api::identity;

/// Memory for chunks on their way to stores, of all imports together. With as much again for what the stores' clients copy and for
/// everything else, an agent stays within 256 MiB.
const CHUNK_MEMORY: u64 = 112 << 20;

/// What each of `imports` at once may take of the memory for chunks; never nothing.
pub fn chunk_memory(imports: usize) -> u64 {
    let share = CHUNK_MEMORY.checked_div(imports as u64).unwrap_or(CHUNK_MEMORY);
    share.clamp(CHUNK_SIZE, Limits::default().chunk_memory)
}

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
    /// Where uploads are handed in.
    pub uploads: Arc<Uploads>,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imports_share_the_memory_for_chunks() {
        let all = Limits::default().chunk_memory;
        assert_eq!([1, 2, 4].map(chunk_memory), [all, all, CHUNK_MEMORY / 4]);
        assert_eq!((chunk_memory(1000), chunk_memory(0)), (CHUNK_SIZE, all));
    }
}
