//! A person at a command line, and a cluster: what `kubectl vitrine` does there, short of parsing and printing.
//!
//! ```text
//! connect: which cluster, as whom, in which namespace ─► images, stores, tasks: read and changed by the person's own rights
//! view: what of them is shown in rows          wait: until an Image is as was asked for
//! explain: what the API server says, in words that say what to do          text, table: for people's eyes
//! ```
//!
//! Knows the API types and a client of Kubernetes. Must not know the operator or the agents: it sees of them what anybody sees.

pub mod change;
pub mod connect;
pub mod data;
pub mod doctor;
pub mod explain;
pub mod images;
pub mod logs;
pub mod probe;
pub mod site;
pub mod table;
pub mod tasks;
pub mod text;
pub mod version;
pub mod view;
pub mod wait;

/// Field manager of what it writes.
pub const FIELD_MANAGER: &str = "kubectl-vitrine";
