//! Vitrine: an image service for virtual machines that lives in Kubernetes.
//!
//! ```text
//! engine (a crate of its own, knows no Kubernetes): source ─► unpack ─► format ─► verify ─► store
//! api ─► kube ─► { controller (decides) , agent (moves bytes) , http , client (a person) } ─► cli   the cluster side
//! ```
//!
//! Imports point one way (held by `tests/structure`): `engine → api → kube → {controller, agent, http, client} → cli → telemetry →
//! main`. Modules in one pair of braces never import each other, and `cli` imports none of them but `client`.

pub mod agent;
pub mod api;
pub mod cli;
pub mod client;
pub mod controller;
pub mod http;
pub mod kube;
pub mod telemetry;
