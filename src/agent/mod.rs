//! The agent: one per node, carries out the node's ImageTasks with the engine and reports how it goes.
//!
//! ```text
//! ImageTasks of this node ─► view (watch) ─► queue (what to start, what to stop) ─► work, one for each task
//!                                                                                     ├─ import: pipeline::import ◄─ permit
//!                                                                                     ├─ delete: Store::delete
//!                                                                                     └─ report: the task's status
//! heartbeat: the Lease, from a task of its own, never behind engine work
//! reach:     what this node sees of each ImageStore, in the NodeCache
//! ```
//!
//! * `queue`, `rate` and `failure` are pure; they know neither clients nor clocks.
//! * What decides is always the API server's word: before work begins and before anything is published, the task is read anew.
//! * Losing the API server stops nothing that runs; it only defers beginning, publishing and reporting until it is back.
//!
//! Knows the API types and the engine. Must not know the controller: the contract between the two is in `api::task`.

mod bucket;
mod config;
mod copy;
mod failure;
mod heartbeat;
mod import;
mod listing;
mod metrics;
mod permit;
mod pool;
mod probe;
mod queue;
mod rate;
mod reach;
mod remove;
mod report;
mod request;
mod run;
mod secret;
mod stores;
mod view;
mod work;
mod workplace;

pub use config::{Config, LeaseTiming, chunk_memory};
pub use run::{AgentError, run};
pub use stores::{Place, Stores};

/// Field manager of everything the agent writes.
const FIELD_MANAGER: &str = "vitrine-agent";
