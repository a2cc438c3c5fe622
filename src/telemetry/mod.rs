//! What a running operator or agent tells of itself: logs, metrics, and whether it is well.
//!
//! | module | what |
//! | --- | --- |
//! | `logs` | to standard error |
//! | `metrics` | what the rest of the program counts, in Prometheus' text format |
//! | `server` | `/metrics`, `/healthz` and `/readyz` over plain HTTP |
//!
//! Code that counts names its metrics itself, by the macros of the crate `metrics`, as it logs by those of `tracing`: it knows nothing of
//! who collects them. `docs/metrics.md` lists all of them.

mod logs;
mod metrics;
mod server;

pub use logs::{LogFormat, start};
pub use server::{Server, ServerError};
