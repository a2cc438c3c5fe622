//! The `vitrine` program: parse, call, exit.

use std::{net::SocketAddr, process::ExitCode, sync::Arc, thread, time::Duration};

use async_trait::async_trait;
use vitrine::{
    agent::{self, LeaseTiming},
    api::Backend,
    cli::{Agent, AwaitAgents, Cli, Operator, Verb},
    controller::{self, Settings},
    http,
    kube::{client, readiness::Readiness, signal},
    telemetry::{self, LogFormat},
};
use vitrine_engine::{
    error::Error,
    model::Limits,
    source::{Patience, ProxySettings, Uploads},
    store::Store,
};

fn main() -> ExitCode {
    match Cli::of_process().verb {
        Verb::Image(image) => image.run(),
        Verb::Store(store) => store.run(),
        Verb::Task(task) => task.run(),
        Verb::Doctor(doctor) => doctor.run(),
        Verb::Version(version) => version.run(),
        Verb::Completion(completion) => completion.run(),
        Verb::Inspect(inspect) => inspect.run(),
        Verb::Convert(convert) => convert.run(),
        Verb::Import(import) => import.run(),
        Verb::Checksum(checksum) => checksum.run(),
        Verb::Clone(clone) => clone.run(),
        Verb::Children(children) => children.run(),
        Verb::Agent(agent) => serve("vitrine-agent", agent.log_json, run_agent(&agent)),
        Verb::Crds(crds) => crds.run(),
        Verb::Operator(operator) => serve("vitrine-operator", operator.log_json, run_operator(operator)),
        Verb::AwaitAgents(wait) => serve("vitrine-await-agents", false, await_agents(wait)),
    }
}

/// Why a server ended; said once, at its end.
type Failure = Box<dyn std::error::Error>;

/// Runs the server `name` to its end.
fn serve(name: &'static str, log_json: bool, server: impl Future<Output = Result<(), Failure>>) -> ExitCode {
    let traces = telemetry::start(if log_json { LogFormat::Json } else { LogFormat::Text }, name);
    if let Err(error) = &traces {
        tracing::warn!(%error, "no traces are sent: look at the variables OTEL_EXPORTER_OTLP_…");
    }
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

async fn run_operator(operator: Operator) -> Result<(), Failure> {
    let stop = signal::stop_token()?;
    // A pod that is restarted keeps its name; the suffix tells its lives apart.
    let identity = format!("{}_{:08x}", operator.name, rand::random::<u32>());
    let mut settings = Settings::new(operator.namespace, identity);
    settings.watch_namespaces = operator.watch_namespaces;
    settings.store_selector = operator.store_selector;
    settings.leader_lease = operator.leader_lease;
    settings.agent_grace = operator.agent_grace;
    settings.retry.backoff.base = operator.retry_base;
    settings.sweep_interval = operator.sweep_interval;
    settings.orphan_grace = operator.orphan_grace;
    settings.authority =
        controller::AuthorityTerms { validity: operator.authority_validity, names: operator.data_names };
    let agents = operator.agents_file.zip(operator.agents_owner);
    settings.agents = agents.map(|(file, owner)| controller::agents::Order { file, owner });
    settings.default_store = operator.default_store_file;
    let readiness = tell(operator.telemetry_address).await?;
    Box::pin(controller::run(client::connect().await?, settings, readiness, stop)).await;
    Ok(())
}

async fn await_agents(wait: AwaitAgents) -> Result<(), Failure> {
    let client = client::connect().await?;
    let nodes = controller::agents::await_rollout(&client, &wait.namespace, &wait.agents_file, wait.timeout).await?;
    tracing::info!(nodes, "the agents are ready");
    Ok(())
}

async fn run_agent(agent: &Agent) -> Result<(), Failure> {
    let idle = Duration::from_secs(agent.data.upload_idle_timeout);
    let uploads = Arc::new(Uploads::new(agent.max_concurrent.into(), idle));
    let (stop, client) = (signal::stop_token()?, client::connect().await?);
    let readiness = tell(agent.telemetry_address).await?;
    let door = match agent.data.address {
        Some(address) => {
            let cannot = |error| format!("nothing can be served at {address}: {error}; see --data-address");
            Some(http::listen(address).await.map_err(cannot)?)
        }
        None => None,
    };
    let (client_, stop_, uploads_) = (client.clone(), stop.clone(), uploads.clone());
    let lend = |stores| {
        if let Some(door) = door {
            let served = http::serve(data_config(agent), door, client_, (Arc::new(Lent(stores)), uploads_), stop_);
            tokio::spawn(async move {
                if let Err(error) = served.await {
                    tracing::error!(%error, "images' data is not served");
                }
            });
        }
    };
    Ok(agent::run(agent_config(agent, uploads), client, &readiness, stop, lend).await?)
}

/// Begins to answer probes and scrapes, if there is an address for that; where to say whether this process is ready.
async fn tell(address: Option<SocketAddr>) -> Result<Readiness, Failure> {
    let readiness = Readiness::default();
    if let Some(address) = address {
        tokio::spawn(telemetry::Server::open(address, readiness.clone()).await?.serve());
    }
    Ok(readiness)
}

/// The agent's stores as the data API wants them.
struct Lent(Arc<agent::Stores>);

#[async_trait]
impl http::Shelf for Lent {
    async fn open(&self, name: &str, backend: &Backend, id: Option<&str>) -> Result<Option<Arc<dyn Store>>, Error> {
        self.0.open_existing(agent::Place { name, backend, id }).await
    }
}

fn data_config(args: &Agent) -> http::Config {
    http::Config {
        node: args.node_name.clone(),
        namespace: args.operator_namespace.clone(),
        host: args.data.host,
        idle: Duration::from_secs(args.data.idle_timeout),
        patience: Duration::from_secs(args.timing.store_stall_timeout),
        connections: args.data.connections.into(),
        requests_per_tenant: args.data.requests.into(),
        bytes_per_tenant: usize::from(args.data.memory) << 20,
        max_size: args.bounds.limits().max_size,
    }
}

fn agent_config(args: &Agent, uploads: Arc<Uploads>) -> agent::Config {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let timing = &args.timing;
    let lease = LeaseTiming {
        renew: Duration::from_secs(timing.lease_renew),
        duration: Duration::from_secs(timing.lease_duration),
    };
    let patience = Patience {
        stall: Duration::from_secs(args.sources.stall_timeout),
        attempts: args.sources.source_attempts,
        ..Patience::default()
    };
    agent::Config {
        node: args.node_name.clone(),
        namespace: args.operator_namespace.clone(),
        work_dir: args.work_dir.clone(),
        store_roots: args.store_roots.clone(),
        concurrent_imports: usize::from(args.max_concurrent),
        workers: args.workers.map_or(cores, usize::from),
        policy: Arc::new(args.sources.policy()),
        proxy: ProxySettings::from_environment(),
        patience,
        uploads,
        limits: Limits {
            store_stall: Duration::from_secs(timing.store_stall_timeout),
            chunk_memory: agent::chunk_memory(args.max_concurrent.into()),
            ..args.bounds.limits()
        },
        lease,
        probe_interval: Duration::from_secs(timing.probe_interval),
        list_interval: Duration::from_secs(timing.list_interval),
        grace: Duration::from_secs(timing.grace),
    }
}
