//! `vitrine operator`: what it may be told. `main` carries it out.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::Args;

/// Run the operator: it decides which node does what, and never touches image bytes.
#[derive(Clone, Debug, Args)]
pub struct Operator {
    /// The namespace of tasks, agents' leases and the leader's lease.
    #[arg(long, env = "VITRINE_NAMESPACE", default_value = "vitrine-system")]
    pub namespace: String,
    /// Serve the Images of this namespace only; may be given several times.
    #[arg(long = "watch-namespace", value_name = "NAMESPACE")]
    pub watch_namespaces: Vec<String>,
    /// Serve the ImageStores with these labels only, written as for `kubectl -l`.
    #[arg(long, value_name = "SELECTOR", default_value = "")]
    pub store_selector: String,
    /// The name this operator is known by; the pod's name is a good one.
    #[arg(long, env = "POD_NAME", default_value = "operator")]
    pub name: String,
    /// How long a leader may be silent before another operator takes over.
    #[arg(long, value_name = "SECONDS", default_value = "15", value_parser = seconds)]
    pub leader_lease: Duration,
    /// How long an agent's lease may be missing before its node counts as gone for good.
    #[arg(long, value_name = "SECONDS", default_value = "40", value_parser = seconds)]
    pub agent_grace: Duration,
    /// The wait after the first failed attempt at an import; it doubles with each.
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    pub retry_base: Duration,
    /// How often to look for what was forsaken: tasks and stored data of Images that are no more.
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub sweep_interval: Duration,
    /// How long stored data must be known to be no Image's, and not be changed, before it is removed.
    #[arg(long, value_name = "SECONDS", default_value = "86400", value_parser = seconds)]
    pub orphan_grace: Duration,
    /// How long a key that signs agents' certificates is believed; the next one takes over after three quarters of it.
    #[arg(long, value_name = "SECONDS", default_value = "63072000", value_parser = authority_validity)]
    pub authority_validity: Duration,
    /// A name by which agents' data API is reached from outside, for their certificates; may be given several times.
    #[arg(long = "data-name", value_name = "NAME")]
    pub data_names: Vec<String>,
    /// The manifest of the agents' DaemonSet, which the operator keeps as it is in this file; without it, somebody else sees to the
    /// agents.
    #[arg(long, value_name = "FILE", requires = "agents_owner")]
    pub agents_file: Option<PathBuf>,
    /// The Deployment in the operator's namespace that the agents' DaemonSet belongs to, and goes with.
    #[arg(long, value_name = "NAME")]
    pub agents_owner: Option<String>,
    /// The manifest of an ImageStore to make if there is none of its name. What is there is never changed.
    #[arg(long, value_name = "FILE")]
    pub default_store_file: Option<PathBuf>,
    /// Write logs as JSON.
    #[arg(long)]
    pub log_json: bool,
    /// Serve /metrics, /healthz and /readyz here, over plain HTTP; port 0 takes a free one, which the log names
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub telemetry_address: Option<SocketAddr>,
}

/// Wait until the agents' DaemonSet is as the file has it, and every agent is ready.
#[derive(Clone, Debug, Args)]
pub struct AwaitAgents {
    /// The namespace of the operator and the agents.
    #[arg(long, env = "VITRINE_NAMESPACE", default_value = "vitrine-system")]
    pub namespace: String,
    /// The manifest of the agents' DaemonSet that the operator was given.
    #[arg(long, value_name = "FILE")]
    pub agents_file: PathBuf,
    /// How long to wait.
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = seconds)]
    pub timeout: Duration,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text} is not a number of seconds"))?;
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|d| !d.is_zero())
        .ok_or_else(|| "it must be more than 0".to_owned())
}

/// Certificates count in whole seconds, and what is signed holds for an eighth of this.
fn authority_validity(text: &str) -> Result<Duration, String> {
    const LEAST: Duration = Duration::from_secs(16);
    seconds(text)?.checked_sub(LEAST).map(|more| more + LEAST).ok_or_else(|| "it must be 16 or more".to_owned())
}
