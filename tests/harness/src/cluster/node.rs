//! A real node: containerd, kubelet and kube-proxy in namespaces of their own, which a power cut ends at once.
//!
//! The paths inside are the usual ones. Its disk is a folder of the scope, and stays when its power goes. Knows nothing of its cluster
//! but how to reach it. Needs root, and Debian's packages runc, nftables and iproute2.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::ControlPlane;
use super::access::Proof;
use super::kubectl::{Output, run_to_end};
use crate::error::{Context, Error, Result};
use crate::network::{BRIDGE, GATEWAY};
use crate::pause;
use crate::process::Process;
use crate::tools::{Tool, ToolPaths};

const SCRIPT: &str = include_str!("node.sh");
/// How long whatever ran on a node may take to be gone after a power cut: the kernel closes files and unmounts.
const OFF_DEADLINE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// A node. Dropping it cuts its power.
#[derive(Debug)]
pub struct Node {
    name: String,
    number: u8,
    folder: PathBuf,
    mark: String,
    paths: [PathBuf; 3],
    process: Mutex<Option<Process>>,
}

impl Node {
    /// Writes what the node `number` (from 1) is to be; it has no power yet.
    pub(super) fn create(plane: &ControlPlane, tools: &ToolPaths, name: &str, number: u8) -> Result<Self> {
        let scope = plane.scope();
        let folder = scope.dir().join(name);
        fs::create_dir_all(&folder).context(|| format!("make {}", folder.display()))?;
        let beside = |tool| Ok(tools.path(tool)?.parent().unwrap_or(Path::new("/")).to_owned());
        let paths = [beside(Tool::Kubelet)?, beside(Tool::CniBridge)?, beside(Tool::Containerd)?];
        let node = Self {
            name: name.to_owned(),
            number,
            folder,
            mark: scope.mark().to_owned(),
            paths,
            process: Mutex::new(None),
        };
        node.write_keys(plane)?;
        node.write_settings()?;
        pause::write_archive(&node.folder.join("pause.tar"))?;
        Ok(node)
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node's address in the cluster's network.
    pub fn address(&self) -> Ipv4Addr {
        let [a, b, c, _] = GATEWAY.octets();
        Ipv4Addr::new(a, b, c, 10 + self.number)
    }

    /// Where a file of the node's disk is on this machine. `path` is below `/var/lib` or `/var/log`.
    pub fn on_disk(&self, path: &str) -> PathBuf {
        self.folder.join(path.trim_start_matches("/var/"))
    }

    /// Turns its power on. It is ready some seconds later.
    pub(super) fn start(&self, plane: &ControlPlane) -> Result<()> {
        let mut command = plane.scope().command("/bin/sh");
        let [tools, cni, runtime] = &self.paths;
        command.arg(self.folder.join("node.sh")).arg("outside").env("name", &self.name).env("folder", &self.folder);
        command.env("number", self.number.to_string()).env("mark", &self.mark).env("bridge", BRIDGE);
        command.env("address", self.address().to_string()).env("gateway", GATEWAY.to_string());
        command.env("tools", tools).env("cni", cni).env("runtime", runtime);
        let process = plane.scope().spawn(&self.name, command)?;
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = Some(process);
        Ok(())
    }

    /// Cuts its power: all that runs on it is gone at once. Its disk stays.
    ///
    /// # Errors
    /// When a process does not go.
    pub async fn power_off(&self) -> Result<()> {
        drop(self.process.lock().unwrap_or_else(PoisonError::into_inner).take());
        let start = Instant::now();
        while !self.remove_groups() {
            if start.elapsed() > OFF_DEADLINE {
                return Err(Error::new(format!("processes of the node {} do not end", self.name)));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Runs a command on the node, as one who is logged in there.
    ///
    /// # Errors
    /// When the node has no power or the command cannot be run. That it fails is no error: see [`Output::success`].
    pub async fn run(&self, plane: &ControlPlane, args: &[&str]) -> Result<Output> {
        let init = self.init().ok_or_else(|| Error::new(format!("the node {} has no power", self.name)))?;
        let mut command = plane.scope().command("nsenter");
        command.args(["-t", &init.to_string(), "-m", "-u", "-i", "-n", "-p", "-C", "--"]).args(args);
        let [tools, _, runtime] = &self.paths;
        let path = format!("{}:{}:/usr/sbin:/usr/bin:/sbin:/bin", runtime.display(), tools.display());
        command.env("PATH", path);
        run_to_end(command, "").await.context(|| args.join(" "))
    }

    /// Gives its containerd an image, from an OCI archive.
    ///
    /// # Errors
    /// When containerd does not take it.
    pub async fn load_image(&self, plane: &ControlPlane, archive: &Path) -> Result<()> {
        let archive = archive.to_string_lossy();
        let import = ["ctr", "--namespace", "k8s.io", "images", "import", &archive];
        self.run(plane, &import).await?.success().map(drop)
    }

    /// What went wrong on the node, as far as its programs have said so.
    pub(super) fn complaint(&self, what: &str) -> Error {
        let tail = |name: &str| {
            let text = fs::read(self.folder.join(name)).unwrap_or_default();
            let text = String::from_utf8_lossy(&text).into_owned();
            let lines: Vec<_> = text.lines().rev().take(15).collect();
            format!("{name}:\n{}", lines.into_iter().rev().collect::<Vec<_>>().join("\n"))
        };
        let process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        let outside = process.as_ref().map_or_else(|| "no power".to_owned(), Process::log_tail);
        let (containerd, kubelet) = (tail("containerd.log"), tail("kubelet.log"));
        Error::new(format!("the node {} {what}\n{outside}\n{containerd}\n{kubelet}", self.name))
    }

    /// The first process in the node's namespaces, by the number that it has outside: the only child of the one that made them.
    fn init(&self) -> Option<u32> {
        let process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        let id = process.as_ref()?.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    /// Whether none of the node's control groups is left. They can be removed once nothing runs in them, one after the other.
    fn remove_groups(&self) -> bool {
        let root = Path::new("/sys/fs/cgroup");
        let hierarchies = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
        let groups = hierarchies.chain([root.to_owned()]).map(|each| each.join(&self.mark).join(&self.name));
        groups.filter(|group| group.is_dir()).all(|group| remove_group(&group))
    }

    fn write_keys(&self, plane: &ControlPlane) -> Result<()> {
        let (access, name) = (&plane.access, &self.name);
        let url = format!("https://{GATEWAY}:{}", plane.port.port());
        let user = access.authority.client(&format!("system:node:{name}"), Some("system:nodes"))?;
        let proxy = access.authority.client("system:kube-proxy", None)?;
        let server = access.authority.server(&[name, &self.address().to_string()])?;
        self.write("kubelet.kubeconfig", &access.kubeconfig(&url, &Proof::Certificate(&user)))?;
        self.write("proxy.kubeconfig", &access.kubeconfig(&url, &Proof::Certificate(&proxy)))?;
        self.write("ca.crt", &access.authority.pem())?;
        self.write("kubelet.crt", &server.certificate)?;
        self.write("kubelet.key", &server.key)
    }

    fn write_settings(&self) -> Result<()> {
        let [_, cni, _] = &self.paths;
        let given = |text: &str| {
            text.replace("@FOLDER@", &self.folder.to_string_lossy())
                .replace("@CNI@", &cni.to_string_lossy())
                .replace("@NUMBER@", &self.number.to_string())
                .replace("@PAUSE@", pause::NAME)
        };
        fs::create_dir_all(self.folder.join("net.d")).context(|| "make net.d")?;
        self.write("node.sh", SCRIPT)?;
        self.write("containerd.toml", &given(include_str!("node/containerd.toml")))?;
        self.write("net.d/10-lab.conflist", &given(include_str!("node/network.json")))?;
        self.write("kubelet.json", &given(include_str!("node/kubelet.json")))
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.folder.join(name);
        fs::write(&path, text).context(|| format!("write {}", path.display()))
    }
}

/// Removes a group and those below it; whether it could.
fn remove_group(group: &Path) -> bool {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    let mut below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    below.all(|entry| remove_group(&entry.path())) && fs::remove_dir(group).is_ok()
}
