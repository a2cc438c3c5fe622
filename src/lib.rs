//! Vitrine: an image service for virtual machines that lives in Kubernetes.
//!
//! ```text
//! source ─► unpack ─► format ─► verify ─► store (one or many)        the engine: knows no Kubernetes
//!    └──────── pulled by pipeline::import, in one pass ────────┘
//! api ─► kube ─► { controller (decides) , agent (moves bytes) , cli }   the cluster side
//! ```
//!
//! Imports point one way (held by `tests/structure`):
//! `model → error → io → {source, unpack, format, verify, store} → pipeline → api → kube → {controller, agent, cli} → main`.
//! The modules in braces never import each other.

pub mod error;
pub mod format;
pub mod io;
pub mod model;
pub mod source;
pub mod store;
pub mod unpack;
pub mod verify;
