//! The servers of a control plane and their flags. They run in the scope's folder, and name their files relative to it.

use std::path::Path;
use std::time::{Duration, Instant};

use tokio::net::UnixStream;

use crate::error::Result;
use crate::network::GATEWAY;
use crate::process::Process;
use crate::scope::Scope;

/// etcd listens in the scope's folder, so that only its user reaches it, and no port is spent. The names are relative because a
/// socket's path has at most 107 bytes.
const ETCD_SOCKET: &str = "etcd.sock";
/// See [`super::START_DEADLINE`].
const ETCD_DEADLINE: Duration = Duration::from_secs(60);

/// What Vitrine's tests rely on, and no more: every further controller costs watches, memory and time to start.
const CONTROLLERS: &[&str] = &[
    "clusterrole-aggregation-controller",
    "garbage-collector-controller",
    "legacy-serviceaccount-token-cleaner-controller",
    "namespace-controller",
    "resourcequota-controller",
    "root-ca-certificate-publisher-controller",
    "serviceaccount-controller",
    "serviceaccount-token-controller",
];

/// What it takes beside those where there are nodes.
const NODE_CONTROLLERS: &[&str] = &[
    "daemonset-controller",
    "deployment-controller",
    "disruption-controller",
    "endpointslice-controller",
    "job-controller",
    "node-lifecycle-controller",
    "pod-garbage-collector-controller",
    "replicaset-controller",
    "taint-eviction-controller",
];
/// How long a node may be silent before it counts as not ready: a few of its heartbeats (see `node`), and no test waits 40 s for it.
const NODE_GRACE: &str = "16s";

/// Starts etcd and waits until it takes connections.
pub async fn start_etcd(scope: &Scope, program: &Path) -> Result<Process> {
    let client = format!("unix://{ETCD_SOCKET}");
    let peer = "unix://peer.sock";
    let mut command = scope.command(program);
    command
        // A test's data need not survive a power cut.
        .args(["--name=lab", "--data-dir=etcd", "--unsafe-no-fsync", "--log-level=warn"])
        .arg(format!("--listen-client-urls={client}"))
        .arg(format!("--advertise-client-urls={client}"))
        .arg(format!("--listen-peer-urls={peer}"))
        .arg(format!("--initial-advertise-peer-urls={peer}"))
        .arg(format!("--initial-cluster=lab={peer}"));
    let etcd = scope.spawn("etcd", command)?;
    let start = Instant::now();
    while UnixStream::connect(scope.dir().join(ETCD_SOCKET)).await.is_err() {
        if etcd.ended().is_some() || start.elapsed() > ETCD_DEADLINE {
            return Err(etcd.complaint("does not take connections"));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(etcd)
}

/// Starts the API server; it is not ready yet when this returns.
pub fn start_apiserver(scope: &Scope, program: &Path, port: u16) -> Result<Process> {
    let mut command = scope.command(program);
    command
        .arg(format!("--etcd-servers=unix:{ETCD_SOCKET}"))
        .arg(format!("--secure-port={port}"))
        .arg("--service-cluster-ip-range=10.96.0.0/16")
        .args(["--client-ca-file=ca.crt", "--tls-cert-file=apiserver.crt", "--tls-private-key-file=apiserver.key"])
        .args(["--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file=accounts.pub"])
        .arg("--service-account-signing-key-file=accounts.key")
        .args(["--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction"])
        .args(["--allow-privileged=true", "--profiling=false"])
        // Without it, stopping waits a minute for the watches that clients never close.
        .arg("--shutdown-watch-termination-grace-period=2s");
    match scope.network() {
        // It refuses to advertise a loopback address; nothing follows the advertised one, as nothing writes it to an Endpoints.
        None => command.args([
            "--bind-address=127.0.0.1",
            "--advertise-address=192.0.2.1",
            "--endpoint-reconciler-type=none",
        ]),
        Some(_) => command
            .args(["--bind-address=0.0.0.0", &format!("--advertise-address={GATEWAY}")])
            .args(["--kubelet-client-certificate=admin.crt", "--kubelet-client-key=admin.key"])
            .args(["--kubelet-certificate-authority=ca.crt", "--kubelet-preferred-address-types=InternalIP"]),
    };
    scope.spawn("kube-apiserver", command)
}

/// Starts the controllers. The API server must be ready: they end if it is not.
pub fn start_controllers(scope: &Scope, program: &Path) -> Result<Process> {
    let mut command = scope.command(program);
    let mut controllers = CONTROLLERS.to_vec();
    if scope.network().is_some() {
        controllers.extend(NODE_CONTROLLERS);
        command.args(["--node-monitor-period=2s", &format!("--node-monitor-grace-period={NODE_GRACE}")]);
    }
    command
        .args(["--kubeconfig=controllers.kubeconfig", "--secure-port=0", "--leader-elect=false", "--profiling=false"])
        .args(["--service-account-private-key-file=accounts.key", "--root-ca-file=ca.crt"])
        .arg(format!("--controllers={}", controllers.join(",")));
    scope.spawn("kube-controller-manager", command)
}

/// Starts the scheduler. The API server must be ready.
pub fn start_scheduler(scope: &Scope, program: &Path) -> Result<Process> {
    let mut command = scope.command(program);
    command.args([
        "--kubeconfig=controllers.kubeconfig",
        "--secure-port=0",
        "--leader-elect=false",
        "--profiling=false",
    ]);
    scope.spawn("kube-scheduler", command)
}
