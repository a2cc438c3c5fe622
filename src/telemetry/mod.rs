//! What a running operator or agent tells of itself: logs, metrics, and whether it is well.
//!
//! | module | what |
//! | --- | --- |
//! | `logs` | to standard error |
//! | `metrics` | what the rest of the program counts, in Prometheus' text format |
//! | `server` | `/metrics`, `/healthz` and `/readyz` over plain HTTP |
//! | `traces` | to a collector of OpenTelemetry, if there is one |
//!
//! Code that counts names its metrics itself, by the macros of the crate `metrics`, as it logs by those of `tracing`: it knows nothing of
//! who collects them. `docs/metrics.md` lists all of them.

mod logs;
mod metrics;
mod server;
mod traces;

use opentelemetry_otlp::ExporterBuildError;
use tracing_subscriber::{Layer, layer::SubscriberExt as _, util::SubscriberInitExt as _};

pub use logs::LogFormat;
pub use server::{Server, ServerError};
pub use traces::Traces;

/// Begins logging, and tracing as the program `service`. A second call changes nothing. What is given is to be kept until the end.
/// Must not be called within a runtime.
///
/// # Errors
/// If traces cannot be sent to where the environment says; logging has begun then.
pub fn start(format: LogFormat, service: &'static str) -> Result<Traces, ExporterBuildError> {
    let traces = Traces::of_environment(service);
    let layers = traces.as_ref().ok().and_then(Traces::layer).map(Layer::boxed).into_iter();
    let layers: Vec<_> = layers.chain([logs::layer(format).boxed()]).collect();
    // It fails only if logging has begun already.
    let _ = tracing_subscriber::registry().with(layers).try_init();
    traces
}
