//! Logs: structured, to standard error. `RUST_LOG` chooses what is said, as tracing-subscriber's `EnvFilter` reads it.

use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

/// What is said when nothing else is asked for. The kube crates tell of every reconnect at `info`.
const DEFAULT_FILTER: &str = "info,kube=warn,kube_runtime=warn,kube_client=warn";

/// How logs are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

/// What writes the log.
pub(super) fn layer(format: LogFormat) -> impl Layer<Registry> + Send + Sync {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    let lines = match format {
        LogFormat::Text => fmt::layer().with_writer(std::io::stderr).boxed(),
        LogFormat::Json => fmt::layer().json().with_writer(std::io::stderr).boxed(),
    };
    lines.with_filter(filter)
}
