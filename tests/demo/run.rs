//! A run of the demo, and the cluster that it runs on.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tempfile::TempDir;
use vitrine_harness::ControlPlane;

/// No part of a demo takes this long, even beside a compilation.
const DEADLINE: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(50);

/// Waits until something is so.
pub async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !so() {
        assert!(started.elapsed() < DEADLINE, "not so after {DEADLINE:?}: {what}");
        tokio::time::sleep(POLL).await;
    }
}

/// A running demo. Dropping it kills what it is.
pub struct Demo {
    child: Child,
    /// Its folder for temporary files, with what it says in a file.
    folder: TempDir,
    ended: bool,
}

impl Demo {
    /// `make demo`, with `KUBECONFIG=…` if one is given.
    pub fn make(kubeconfig: Option<&Path>, environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new("make");
        command.args(["--no-print-directory", "demo"]).env_remove("KUBECONFIG");
        if let Some(kubeconfig) = kubeconfig {
            command.arg(format!("KUBECONFIG={}", kubeconfig.display()));
        }
        Self::start(command.envs(environment.iter().copied()))
    }

    /// The script that `make demo` starts, whose process becomes that of `vitrine-lab`.
    pub fn script(kubeconfig: &Path) -> Self {
        Self::start(Command::new("tests/demo/run.sh").env("VITRINE_DEMO_KUBECONFIG", kubeconfig))
    }

    fn start(command: &mut Command) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let said = fs::File::create(folder.path().join("said")).unwrap();
        command.current_dir(env!("CARGO_MANIFEST_DIR")).env("TMPDIR", folder.path()).process_group(0);
        command.env("VITRINE_DEMO_BUILT", "yes");
        for variable in ["MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES"] {
            command.env_remove(variable);
        }
        command.stdin(Stdio::null()).stdout(said.try_clone().unwrap()).stderr(said);
        Self { child: command.spawn().unwrap(), folder, ended: false }
    }

    fn said(&self) -> String {
        fs::read_to_string(self.folder.path().join("said")).unwrap()
    }

    /// Waits until it has said `text`.
    pub async fn wait_for(&self, text: &str) {
        until(&format!("it says {text}"), || self.said().contains(text)).await;
    }

    /// Waits for its end: how it ended, and all that it said. It must have left nothing on this machine.
    pub async fn end(mut self) -> (ExitStatus, String) {
        let mut status = None;
        let started = Instant::now();
        while status.is_none() {
            assert!(started.elapsed() < DEADLINE, "it still runs: {}", self.said());
            tokio::time::sleep(POLL).await;
            status = self.child.try_wait().unwrap();
        }
        self.ended = true;
        let left = entries(self.folder.path());
        assert_eq!(left, [self.folder.path().join("said")], "{}", self.said());
        (status.unwrap(), self.said())
    }

    /// Where it lives on this machine: the folder and the processes that carry its name.
    pub fn scope(&self) -> Scope {
        let dirs = entries(self.folder.path());
        Scope(dirs.into_iter().find(|path| path.is_dir()).unwrap())
    }

    /// kill -9, of the first process only.
    pub async fn kill(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::KILL).unwrap();
        self.child.wait().unwrap();
        let scope = self.scope();
        until("its scope is gone", || scope.is_gone()).await;
        self.ended = true;
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if !self.ended {
            let _ended_meanwhile = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
            let _status = self.child.wait();
        }
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// The folder of a `vitrine-lab` scope.
pub struct Scope(PathBuf);

impl Scope {
    /// Whether neither folder nor processes are left.
    pub fn is_gone(&self) -> bool {
        let mark = self.0.to_str().unwrap().as_bytes();
        let is_its = |process: &PathBuf| {
            fs::read(process.join("environ")).is_ok_and(|environ| environ.windows(mark.len()).any(|part| part == mark))
        };
        !self.0.exists() && !entries(Path::new("/proc")).iter().any(is_its)
    }
}

/// The cluster of somebody, seen with every right.
pub struct Cluster<'a>(&'a ControlPlane);

impl<'a> Cluster<'a> {
    pub fn of(plane: &'a ControlPlane) -> Self {
        Self(plane)
    }

    async fn kubectl(&self, args: &[&str]) -> String {
        self.0.kubectl(args).await.unwrap().success().unwrap()
    }

    /// Two Nodes of its own.
    pub async fn add_nodes(&self) {
        for name in ["own-1", "own-2"] {
            self.0.create_node(name).await.unwrap();
        }
    }

    pub async fn apply(&self, manifest: &str) {
        let mut last = String::new();
        // A kind is known some time after its definition.
        for _ in 0..100 {
            match self.0.apply(manifest).await {
                Ok(_) => return,
                Err(error) => last = error.to_string(),
            }
            tokio::time::sleep(POLL).await;
        }
        panic!("{last}");
    }

    pub async fn delete(&self, manifest: &str) {
        self.0.kubectl_with_input(&["delete", "-f", "-"], manifest).await.unwrap().success().unwrap();
    }

    /// Waits until an object of this name is in the demo's namespace.
    pub async fn wait_for(&self, kind: &str, name: &str) {
        let started = Instant::now();
        loop {
            let found = self.0.kubectl(&["get", kind, name, "--namespace", "vitrine-demo"]).await.unwrap();
            if found.status.success() {
                return;
            }
            assert!(started.elapsed() < DEADLINE, "{kind} {name} did not come: {}", found.stderr);
        }
    }

    /// Every object of every kind, a line each: kind, namespace, name, uid.
    pub async fn everything(&self) -> Vec<String> {
        self.list("custom-columns=K:.kind,S:.metadata.namespace,N:.metadata.name,U:.metadata.uid").await
    }

    /// The same with the versions; leases are left out, for they change on their own.
    pub async fn everything_with_versions(&self) -> Vec<String> {
        let columns = "custom-columns=K:.kind,S:.metadata.namespace,N:.metadata.name,V:.metadata.resourceVersion";
        self.list(columns).await.into_iter().filter(|line| !line.starts_with("Lease ")).collect()
    }

    async fn list(&self, columns: &str) -> Vec<String> {
        let kinds = self.kubectl(&["api-resources", "--verbs=list", "--output=name"]).await;
        let kinds = kinds.split_whitespace().collect::<Vec<_>>().join(",");
        let found = self
            .kubectl(&["get", &kinds, "--all-namespaces", "--ignore-not-found", "--no-headers", "--output", columns])
            .await;
        let mut lines: Vec<_> =
            found.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        lines.sort();
        lines
    }

    /// A kubeconfig of an account that may read everything and change nothing.
    pub async fn reader(&self) -> PathBuf {
        self.apply("{apiVersion: v1, kind: ServiceAccount, metadata: {name: reader, namespace: default}}").await;
        self.apply(
            "{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: reader}, \
             rules: [{apiGroups: ['*'], resources: ['*'], verbs: [get, list, watch]}]}",
        )
        .await;
        self.apply(
            "{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: reader}, \
             roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: reader}, \
             subjects: [{kind: ServiceAccount, name: reader, namespace: default}]}",
        )
        .await;
        self.0.kubeconfig_for("default", "reader", None).await.unwrap()
    }
}
