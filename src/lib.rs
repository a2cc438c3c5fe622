//! Vitrine: an image service for virtual machines that lives in Kubernetes.
//!
//! ```text
//! source ─► unpack ─► format ─► verify ─► store (one or many)        the engine: knows no Kubernetes
//!    └──────── pulled by pipeline::import, in one pass ────────┘
//! api ─► kube ─► { controller (decides) , agent (moves bytes) , cli }   the cluster side
//! ```
//!
//! Imports point one way (held by `tests/structure`): `model → error → io → {source, unpack, format, verify, store} → pipeline →
//! {cache, peer} → api → kube → {controller, agent, http, cli} → telemetry → main`.
//! Modules in one pair of braces never import each other.

pub mod agent;
pub mod api;
pub mod cli;
pub mod controller;
pub mod error;
pub mod format;
pub mod io;
pub mod kube;
pub mod model;
pub mod pipeline;
pub mod source;
pub mod store;
pub mod telemetry;
pub mod unpack;
pub mod verify;
