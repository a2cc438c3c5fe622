//! `vitrine agent`: what an agent is told on its command line. `main` hands it on; nothing here starts one.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use clap::Args;
use ipnet::IpNet;
use vitrine_engine::source::{AddressPolicy, AddressRule, HostPattern};

use super::bounds::Bounds;
use crate::api::identity;

/// Run the agent of one node: carry out its ImageTasks, report its stores.
#[derive(Args, Clone, Debug)]
pub struct Agent {
    /// The node this agent runs on
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub node_name: String,
    /// Where the operator keeps ImageTasks, their Secrets and the agents' Leases
    #[arg(long, env = "OPERATOR_NAMESPACE", value_name = "NAMESPACE", default_value = "vitrine-system")]
    pub operator_namespace: String,
    /// A folder of the agent's own on the node, for spill files
    #[arg(long, value_name = "FOLDER", default_value = "/var/lib/vitrine-agent")]
    pub work_dir: PathBuf,
    /// Stores may lie below this folder only; may be given several times
    #[arg(long = "store-root", value_name = "FOLDER", default_value = "/var/lib/vitrine")]
    pub store_roots: Vec<PathBuf>,
    /// Imports that run at once; others wait in order of creation
    #[arg(long, value_name = "NUMBER", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub max_concurrent: u16,
    /// Threads for each import that unpack, hash and encode [default: one for each core]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: Option<u16>,
    /// Write logs as JSON
    #[arg(long)]
    pub log_json: bool,
    /// Serve /metrics, /healthz and /readyz here, over plain HTTP; port 0 takes a free one, which the log names
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub telemetry_address: Option<SocketAddr>,
    /// Where images may be fetched from.
    #[command(flatten)]
    pub sources: Sources,
    /// Bounds on each image.
    #[command(flatten)]
    pub bounds: Bounds,
    /// Timing.
    #[command(flatten)]
    pub timing: Timing,
    /// The data API.
    #[command(flatten)]
    pub data: Data,
}

/// The data API: images' bytes over HTTPS, for who may read them.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Data API")]
pub struct Data {
    /// Address and port to serve images' data at, as 0.0.0.0:8443 [default: it is not served]
    #[arg(long = "data-address", value_name = "ADDRESS")]
    pub address: Option<SocketAddr>,
    /// The address by which other agents reach this one [default: the one of --data-address]
    #[arg(long = "data-host", env = "POD_IP", value_name = "ADDRESS")]
    pub host: Option<IpAddr>,
    /// Seconds after which a connection is closed on which the other side does nothing
    #[arg(long = "data-idle-timeout", value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub idle_timeout: u64,
    /// Connections at once; others wait
    #[arg(long = "data-connections", value_name = "NUMBER", default_value_t = 512, value_parser = clap::value_parser!(u16).range(1..))]
    pub connections: u16,
    /// Requests of one namespace that are answered at once; more are refused
    #[arg(long = "data-requests", value_name = "NUMBER", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    pub requests: u16,
    /// Seconds without a byte after which an upload that was begun is given up
    #[arg(long, value_name = "SECONDS", default_value_t = 3600, value_parser = clap::value_parser!(u64).range(1..=604_800))]
    pub upload_idle_timeout: u64,
    /// MiB of one namespace that are read and not yet sent; more wait
    #[arg(long = "data-memory", value_name = "MIB", default_value_t = 16, value_parser = clap::value_parser!(u16).range(2..))]
    pub memory: u16,
}

/// Where images may be fetched from. Proxies are taken from HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Sources (proxies: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY)")]
pub struct Sources {
    /// Allow what is denied by nature (loopback, link-local, cluster): a network in CIDR notation, an address, a name or `*.name`; may
    /// be given several times
    #[arg(long = "allow-source", value_name = "WHAT", value_parser = parse_rule)]
    pub allow: Vec<AddressRule>,
    /// Deny a network, address or name, whatever is allowed; may be given several times
    #[arg(long = "deny-source", value_name = "WHAT", value_parser = parse_rule)]
    pub deny: Vec<AddressRule>,
    /// A network of the cluster itself (services, pods), denied unless allowed; may be given several times
    #[arg(long = "cluster-cidr", value_name = "CIDR")]
    pub cluster_networks: Vec<IpNet>,
    /// Deny everything that no --allow-source names
    #[arg(long = "only-allowed-sources")]
    pub only_allowed: bool,
    /// Seconds without a byte after which a connection to a source is given up
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub stall_timeout: u64,
    /// Tries in a row without progress before a source is given up
    #[arg(long, value_name = "NUMBER", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub source_attempts: u32,
}

impl Sources {
    /// The policy that they make.
    pub fn policy(&self) -> AddressPolicy {
        AddressPolicy {
            allow: self.allow.clone(),
            deny: self.deny.clone(),
            cluster_networks: self.cluster_networks.clone(),
            only_allowed: self.only_allowed,
            ..AddressPolicy::default()
        }
    }
}

/// Timing; the defaults are part of what operator and agents agree on.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Timing (in seconds)")]
pub struct Timing {
    /// How long the agent's Lease holds without renewal
    #[arg(long, value_name = "SECONDS", default_value_t = identity::LEASE_DURATION_SECONDS, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub lease_duration: u64,
    /// How often it is renewed; at most a third of the duration makes sense
    #[arg(long, value_name = "SECONDS", default_value_t = identity::LEASE_RENEW_SECONDS, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub lease_renew: u64,
    /// How often stores are looked at
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub probe_interval: u64,
    /// How often what stores hold is listed, so that what no Image knows is found
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub list_interval: u64,
    /// How long a store may take for one write or read before it counts as stalled: an import into several stores goes on without it
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub store_stall_timeout: u64,
    /// How long work may clean up when the agent is asked to end; less than the pod's grace period
    #[arg(long, value_name = "SECONDS", default_value_t = 25, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub grace: u64,
}

/// A network, an address, or a pattern of names.
fn parse_rule(text: &str) -> Result<AddressRule, String> {
    if let Ok(network) = text.parse::<IpNet>() {
        return Ok(AddressRule { networks: vec![network], ..AddressRule::default() });
    }
    let host: HostPattern = text.parse().map_err(|error| format!("{error}, or a network such as 10.0.0.0/8"))?;
    Ok(AddressRule { hosts: vec![host], ..AddressRule::default() })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        agent: Agent,
    }

    fn parse(args: &[&str]) -> Result<Agent, clap::Error> {
        let base = ["agent", "--node-name", "n1"];
        Line::try_parse_from(base.iter().chain(args)).map(|line| line.agent)
    }

    #[test]
    fn sources_become_a_policy() {
        let args = ["--allow-source", "127.0.0.0/8", "--allow-source", "*.mirror.example", "--deny-source", "10.0.0.1"];
        let policy = parse(&args).unwrap().sources.policy();
        let asks = |url: &str| policy.check_url(&url.parse().unwrap()).is_ok();
        assert!(asks("http://127.0.0.1/x") && asks("http://a.mirror.example/x"));
        assert!(!asks("http://10.0.0.1/x") && !asks("http://169.254.169.254/x"));
        assert!(parse(&["--allow-source", "a b"]).is_err());
        let policy = parse(&["--only-allowed-sources"]).unwrap().sources.policy();
        assert!(policy.check_url(&"http://example.com/x".parse().unwrap()).is_err());
    }

    #[test]
    fn what_would_stop_an_agent_from_working_is_refused() {
        for wrong in [["--max-concurrent", "0"], ["--lease-duration", "0"], ["--workers", "0"]] {
            assert!(parse(&wrong).is_err(), "{wrong:?}");
        }
    }
}
