//! The `vitrine` program: parse, call, exit.

use std::process::ExitCode;

use clap::Parser as _;
use vitrine::{
    cli::{Cli, Operator, Verb},
    controller::{self, Settings},
    kube::{Result, client, signal},
    telemetry::{self, LogFormat},
};

fn main() -> ExitCode {
    match Cli::parse().verb {
        Verb::Inspect(inspect) => inspect.run(),
        Verb::Convert(convert) => convert.run(),
        Verb::Import(import) => import.run(),
        Verb::Checksum(checksum) => checksum.run(),
        Verb::Crds(crds) => crds.run(),
        Verb::Operator(operator) => serve(operator.log_json, run_operator(operator)),
    }
}

/// Runs a server to its end.
fn serve(log_json: bool, server: impl Future<Output = Result<()>>) -> ExitCode {
    telemetry::start(if log_json { LogFormat::Json } else { LogFormat::Text });
    let outcome = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime.block_on(server).map_err(|error| error.to_string()),
        Err(error) => Err(format!("no runtime: {error}")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error, "vitrine ends");
            ExitCode::FAILURE
        }
    }
}

async fn run_operator(operator: Operator) -> Result<()> {
    let stop = signal::stop_token()?;
    // A pod that is restarted keeps its name; the suffix tells its lives apart.
    let identity = format!("{}_{:08x}", operator.name, rand::random::<u32>());
    let mut settings = Settings::new(operator.namespace, identity);
    settings.watch_namespaces = operator.watch_namespaces;
    settings.store_selector = operator.store_selector;
    settings.leader_lease = operator.leader_lease;
    settings.agent_grace = operator.agent_grace;
    settings.retry.backoff.base = operator.retry_base;
    controller::run(client::connect().await?, settings, stop).await
}
