//! How the cluster side talks to Kubernetes: connecting, applying, conditions, events, finalizers, leadership, readiness, waiting.
//!
//! Knows the API types and the client. Must not know what any controller decides.

pub mod apply;
pub mod backoff;
pub mod client;
pub mod condition;
mod error;
pub mod event;
pub mod leader;
pub mod readiness;
pub mod signal;

pub use error::{Doing, Error, Result};
