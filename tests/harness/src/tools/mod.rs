//! The Kubernetes programs, built from the Go modules in `go/` into a cache outside the tree.
//!
//! What is built is named by a digest of everything that decides the result, so a changed pin builds anew and an unchanged one is
//! found in milliseconds. Knows how to get programs; knows nothing of how they are run.

mod build;
mod family;
mod progress;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use family::Family;

use crate::error::{Error, Result};

/// A program that the harness can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tool {
    /// The key-value store under the API server.
    Etcd,
    /// The API server.
    KubeApiserver,
    /// The built-in controllers: namespaces, garbage collection, service accounts and more.
    KubeControllerManager,
    /// What chooses a node for a pod.
    KubeScheduler,
    /// What runs a node's pods.
    Kubelet,
    /// What leads a node's connections to services on to their pods.
    KubeProxy,
    /// The command line client.
    Kubectl,
    /// The chart installer.
    Helm,
    /// What a kubelet runs containers with; its shim lies beside it.
    Containerd,
    /// The command line client of containerd.
    Ctr,
    /// The plugin that gives pods their network; those that it needs lie beside it.
    CniBridge,
    /// How Flux and Argo CD read an object.
    Gitops,
}

impl Tool {
    /// Every tool there is.
    pub const ALL: [Self; 12] = [
        Self::Etcd,
        Self::KubeApiserver,
        Self::KubeControllerManager,
        Self::KubeScheduler,
        Self::Kubelet,
        Self::KubeProxy,
        Self::Kubectl,
        Self::Helm,
        Self::Containerd,
        Self::Ctr,
        Self::CniBridge,
        Self::Gitops,
    ];
    /// What a control plane and its user need.
    pub const CONTROL_PLANE: [Self; 4] = [Self::Etcd, Self::KubeApiserver, Self::KubeControllerManager, Self::Kubectl];

    /// What real nodes need beside a control plane.
    pub const NODES: [Self; 6] =
        [Self::KubeScheduler, Self::Kubelet, Self::KubeProxy, Self::Containerd, Self::Ctr, Self::CniBridge];

    /// The name of its program file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::KubeApiserver => "kube-apiserver",
            Self::KubeControllerManager => "kube-controller-manager",
            Self::KubeScheduler => "kube-scheduler",
            Self::Kubelet => "kubelet",
            Self::KubeProxy => "kube-proxy",
            Self::Kubectl => "kubectl",
            Self::Helm => "helm",
            Self::Containerd => "containerd",
            Self::Ctr => "ctr",
            Self::CniBridge => "bridge",
            Self::Gitops => "gitops",
        }
    }

    /// The tool of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|tool| tool.name() == name)
    }

    fn family(self) -> &'static Family {
        match self {
            Self::Etcd => &family::ETCD,
            Self::KubeApiserver
            | Self::KubeControllerManager
            | Self::KubeScheduler
            | Self::Kubelet
            | Self::KubeProxy
            | Self::Kubectl => &family::KUBERNETES,
            Self::Helm => &family::HELM,
            Self::Containerd | Self::Ctr => &family::CONTAINERD,
            Self::CniBridge => &family::CNI,
            Self::Gitops => &family::GITOPS,
        }
    }
}

/// Where the tools that were asked for are.
#[derive(Debug, Clone, Default)]
pub struct ToolPaths(BTreeMap<Tool, PathBuf>);

impl ToolPaths {
    /// The program file of `tool`.
    ///
    /// # Errors
    /// When it was not among the tools asked for.
    pub fn path(&self, tool: Tool) -> Result<&Path> {
        let missing = || Error::new(format!("{} was not asked of tools::ensure", tool.name()));
        self.0.get(&tool).map(PathBuf::as_path).ok_or_else(missing)
    }

    /// Each tool with its program file.
    pub fn iter(&self) -> impl Iterator<Item = (Tool, &Path)> {
        self.0.iter().map(|(tool, path)| (*tool, path.as_path()))
    }
}

/// Makes sure that these programs exist, building what is missing: minutes the first time, milliseconds afterwards. It blocks; what
/// it does is written to standard error.
///
/// # Errors
/// When Go is missing or a build fails; the message holds what Go said.
pub fn ensure(tools: &[Tool]) -> Result<ToolPaths> {
    // Found once is found for the life of the process: the tests of one binary ask again and again.
    static FOUND: Mutex<BTreeMap<&str, PathBuf>> = Mutex::new(BTreeMap::new());
    let mut found = FOUND.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut paths = ToolPaths::default();
    for &tool in tools {
        let family = tool.family();
        let folder = match found.get(family.name) {
            Some(folder) => folder.clone(),
            None => build::ensure(family, &cache_dir()?.join("tools"))?,
        };
        paths.0.insert(tool, folder.join(tool.name()));
        found.insert(family.name, folder);
    }
    Ok(paths)
}

/// The folder under which everything is cached that can be made again: `$VITRINE_CACHE`, or `vitrine` in the user's cache folder.
///
/// # Errors
/// When neither it nor `$XDG_CACHE_HOME` nor `$HOME` says where that is.
pub fn cache_dir() -> Result<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("VITRINE_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("vitrine")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/vitrine")))
        .ok_or_else(|| {
            Error::new(
                "none of VITRINE_CACHE, XDG_CACHE_HOME and HOME is set: set VITRINE_CACHE to a folder for built tools",
            )
        })
}
