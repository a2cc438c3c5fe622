//! A real Kubernetes control plane on loopback: etcd, kube-apiserver and kube-controller-manager, with TLS, RBAC and service accounts.
//!
//! No nodes, no scheduler: pods stay pending, and [`ControlPlane::create_node`] makes Node objects that nothing stands behind. Several
//! can run at once. Everything that a control plane starts or writes is in one [`Scope`], and gone with it. [`Cluster`] is one with
//! real nodes.

mod access;
mod api;
mod kubectl;
mod node;
mod programs;
mod real;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::OnceCell;

pub use kubectl::Output;
pub use node::Node;
pub use real::Cluster;

use crate::error::{Context, Error, Result};
use crate::port::PortLease;
use crate::process::Process;
use crate::scope::Scope;
use crate::tools::{self, Tool, ToolPaths};
use access::Access;
use api::Api;

/// How long one component may take: 4 s on two idle cores, much more on a machine that compiles beside it.
const START_DEADLINE: Duration = Duration::from_secs(180);
/// How long the API server may finish what it is doing when asked to stop.
const STOP_DEADLINE: Duration = Duration::from_secs(15);
/// How often a starting component is asked whether it is ready.
const POLL: Duration = Duration::from_millis(50);
/// A foreign program can take a port between our look and the API server's bind; thrice in a row is no coincidence.
const PORT_ATTEMPTS: usize = 3;

/// A running control plane. Dropping it ends it and removes its files.
#[derive(Debug)]
pub struct ControlPlane {
    // Dropped in this order: the processes first, then the scope, whose keeper waits for the rest.
    controllers: Process,
    apiserver: Mutex<Option<Process>>,
    etcd: Process,
    port: PortLease,
    access: Access,
    api: Api,
    tools: ToolPaths,
    scope: Scope,
}

impl ControlPlane {
    /// Starts one, building the programs first if need be. When this returns, namespaces get their default service account, so the
    /// controllers work too.
    ///
    /// # Errors
    /// When a program cannot be built, or does not become ready; the message holds the end of its log.
    pub async fn start() -> Result<Self> {
        let tools = tokio::task::spawn_blocking(|| tools::ensure(&Tool::CONTROL_PLANE))
            .await
            .context(|| "build the tools")??;
        Self::start_in(Scope::open("cluster")?, tools).await
    }

    async fn start_in(scope: Scope, tools: ToolPaths) -> Result<Self> {
        let access = Access::create(scope.dir())?;
        let etcd = programs::start_etcd(&scope, tools.path(Tool::Etcd)?).await?;
        let (apiserver, port, api) = start_apiserver_somewhere(&scope, &tools, &access).await?;
        access.write_kubeconfigs(&api.url())?;
        let controllers = programs::start_controllers(&scope, tools.path(Tool::KubeControllerManager)?)?;
        let plane = Self { controllers, apiserver: Mutex::new(Some(apiserver)), etcd, port, access, api, tools, scope };
        plane.wait_for_controllers().await?;
        Ok(plane)
    }

    /// The one control plane that the tests of this process share, started by whoever asks first. It ends with the process.
    ///
    /// # Errors
    /// As [`ControlPlane::start`]; the next one to ask tries again.
    pub async fn shared() -> Result<&'static Self> {
        static SHARED: OnceCell<ControlPlane> = OnceCell::const_new();
        SHARED.get_or_try_init(Self::start).await
    }

    /// Where the API server listens: `https://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        self.api.url()
    }

    /// The certificate authority that signed the API server's certificate, as PEM text.
    pub fn ca(&self) -> String {
        self.access.authority.pem()
    }

    /// A kubeconfig with every right. It holds its keys itself, so it can be copied.
    pub fn kubeconfig(&self) -> PathBuf {
        self.access.path("admin.kubeconfig")
    }

    /// The folder with the logs (`etcd.log`, `kube-apiserver.log`, `kube-controller-manager.log`).
    pub fn logs(&self) -> &Path {
        self.scope.dir()
    }

    /// The scope of this control plane, for starting processes that shall end with it.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Each component with its resident memory in bytes.
    pub fn memory(&self) -> Vec<(&'static str, u64)> {
        let apiserver = self.apiserver().as_ref().and_then(Process::rss);
        let parts = [
            ("etcd", self.etcd.rss()),
            ("kube-apiserver", apiserver),
            ("kube-controller-manager", self.controllers.rss()),
        ];
        parts.into_iter().filter_map(|(name, rss)| rss.map(|rss| (name, rss))).collect()
    }

    /// Stops the API server as a rolling update would: it finishes requests and closes watches. Its port and data stay.
    ///
    /// # Errors
    /// When it does not stop in 15 s; it was killed then.
    pub async fn stop_apiserver(&self) -> Result<()> {
        let Some(apiserver) = self.apiserver().take() else {
            return Ok(());
        };
        // Dropping it kills it, should it not have obeyed.
        apiserver.terminate(STOP_DEADLINE).await.map(drop)
    }

    /// Kills the API server in the middle of what it does. Its port and data stay.
    pub fn kill_apiserver(&self) {
        drop(self.apiserver().take());
    }

    /// Starts the API server again, on the same port and data, and waits until it is ready. Nothing happens if it runs.
    ///
    /// # Errors
    /// When it does not become ready; the message holds the end of its log.
    pub async fn start_apiserver(&self) -> Result<()> {
        if self.apiserver().is_some() {
            return Ok(());
        }
        let apiserver =
            programs::start_apiserver(&self.scope, self.tools.path(Tool::KubeApiserver)?, self.port.port())?;
        wait_until_ready(&apiserver, &self.api).await?;
        *self.apiserver() = Some(apiserver);
        Ok(())
    }

    /// Stops the API server and starts it again.
    ///
    /// # Errors
    /// As its two halves.
    pub async fn restart_apiserver(&self) -> Result<()> {
        self.stop_apiserver().await?;
        self.start_apiserver().await
    }

    async fn wait_for_controllers(&self) -> Result<()> {
        let start = Instant::now();
        let account = "/api/v1/namespaces/default/serviceaccounts/default";
        while !matches!(self.api.get(account).await, Ok((200, _))) {
            if let Some(status) = self.controllers.ended() {
                return Err(self.controllers.complaint(&format!("ended ({status}) before it was ready")));
            }
            if start.elapsed() > START_DEADLINE {
                return Err(self.controllers.complaint("has not made the default service account"));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    fn apiserver(&self) -> MutexGuard<'_, Option<Process>> {
        self.apiserver.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn start_apiserver_somewhere(
    scope: &Scope,
    tools: &ToolPaths,
    access: &Access,
) -> Result<(Process, PortLease, Api)> {
    let mut last = Error::new("no port was tried");
    for _ in 0..PORT_ATTEMPTS {
        let port = PortLease::reserve()?;
        let apiserver = programs::start_apiserver(scope, tools.path(Tool::KubeApiserver)?, port.port())?;
        let api = Api::new(port.port(), access.admin_tls()?, scope.network().cloned());
        match wait_until_ready(&apiserver, &api).await {
            Ok(()) => return Ok((apiserver, port, api)),
            Err(error) if apiserver.log().contains("address already in use") => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

async fn wait_until_ready(apiserver: &Process, api: &Api) -> Result<()> {
    let start = Instant::now();
    loop {
        let answer = api.get("/readyz").await;
        if matches!(&answer, Ok((200, _))) {
            return Ok(());
        }
        if let Some(status) = apiserver.ended() {
            return Err(apiserver.complaint(&format!("ended ({status}) before it was ready")));
        }
        if start.elapsed() > START_DEADLINE {
            return Err(apiserver.complaint(&format!("is not ready after {} s ({answer:?})", START_DEADLINE.as_secs())));
        }
        tokio::time::sleep(POLL).await;
    }
}
