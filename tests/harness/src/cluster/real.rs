//! A cluster with real nodes, in a network of its own.

use std::path::Path;
use std::time::{Duration, Instant};

use super::node::Node;
use super::{ControlPlane, programs};
use crate::error::{Context, Error, Result};
use crate::http::FaultServer;
use crate::network::Network;
use crate::process::Process;
use crate::scope::Scope;
use crate::tools::{self, Tool};

/// How long a node may take to be ready: 8 s on two idle cores.
const READY_DEADLINE: Duration = Duration::from_secs(180);
/// The pods' networks are numbered with one digit.
const MOST_NODES: usize = 9;
const POLL: Duration = Duration::from_millis(250);

/// A control plane with a scheduler and real nodes. Its addresses are in a network of its own: `plane()` runs kubectl and helm there.
/// Dropping it ends all of it and removes its files.
#[derive(Debug)]
pub struct Cluster {
    // Dropped in this order.
    nodes: Vec<Node>,
    _scheduler: Process,
    plane: ControlPlane,
}

impl Cluster {
    /// Starts one with nodes of these names and waits until they are ready. Builds what it needs first. There is no DNS in it.
    ///
    /// # Errors
    /// When a program cannot be built or does not become ready; the message holds the end of its log.
    pub async fn start(names: &[&str]) -> Result<Self> {
        if names.len() > MOST_NODES {
            return Err(Error::new(format!("a cluster has at most {MOST_NODES} nodes")));
        }
        let wanted = [&Tool::CONTROL_PLANE[..], &Tool::NODES[..]].concat();
        let tools =
            tokio::task::spawn_blocking(move || tools::ensure(&wanted)).await.context(|| "build the tools")??;
        let plane = ControlPlane::start_in(Scope::open_apart("cluster").await?, tools.clone()).await?;
        let scheduler = programs::start_scheduler(plane.scope(), tools.path(Tool::KubeScheduler)?)?;
        let nodes = names.iter().zip(1..).map(|(name, number)| Node::create(&plane, &tools, name, number));
        let cluster = Self { nodes: nodes.collect::<Result<_>>()?, _scheduler: scheduler, plane };
        for node in &cluster.nodes {
            node.start(&cluster.plane)?;
        }
        for node in &cluster.nodes {
            cluster.wait_until_ready(node).await?;
        }
        Ok(cluster)
    }

    /// Its control plane.
    pub fn plane(&self) -> &ControlPlane {
        &self.plane
    }

    /// Its nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn node(&self, name: &str) -> Result<&Node> {
        let found = self.nodes.iter().find(|node| node.name() == name);
        found.ok_or_else(|| Error::new(format!("there is no node {name}")))
    }

    /// The network that it is in.
    ///
    /// # Errors
    /// Never for one that was started here.
    pub fn network(&self) -> Result<&Network> {
        self.plane.scope().network().ok_or_else(|| Error::new("the cluster has no network of its own"))
    }

    /// An HTTP server that its pods reach.
    ///
    /// # Errors
    /// When no port can be had.
    pub fn http(&self) -> Result<FaultServer> {
        FaultServer::start_in(self.network()?)
    }

    /// Gives every node an image, from an OCI archive.
    ///
    /// # Errors
    /// When a node does not take it.
    pub async fn load_image(&self, archive: &Path) -> Result<()> {
        for node in &self.nodes {
            node.load_image(&self.plane, archive).await?;
        }
        Ok(())
    }

    /// Turns the power of a node on again and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn power_on(&self, node: &Node) -> Result<()> {
        node.start(&self.plane)?;
        self.wait_until_ready(node).await
    }

    async fn wait_until_ready(&self, node: &Node) -> Result<()> {
        let path = r#"jsonpath={.status.conditions[?(@.type=="Ready")].status}/{.status.nodeInfo.bootID}"#;
        let start = Instant::now();
        loop {
            let told = self.plane.kubectl(&["get", "node", node.name(), "-o", path]).await?;
            if told.stdout.starts_with("True/") {
                return Ok(());
            }
            if start.elapsed() > READY_DEADLINE {
                return Err(node.complaint(&format!("is not ready: {}{}", told.stdout, told.stderr)));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}
