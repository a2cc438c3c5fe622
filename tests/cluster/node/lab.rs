//! A namespace with agents' rights on a control plane, nodes in it, agents on them, and orders for these.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use kube::{
    Api, Client, Config,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::json;
use vitrine::{
    api::{
        Action, DeleteOrder, FilesystemBackend, ImageIdentity, ImageTask, ImageTaskSpec, ImportOrder, Output, StoreRef,
        StoreTarget, TaskFailure, TaskHttp, TaskPhase, TaskSource, crd_yaml, crds,
    },
    kube::client::connect_with,
};
use vitrine_engine::model::{Compression, DiskFormat};
use vitrine_harness::{ControlPlane, FaultServer, Process};

use super::{access, disks::entries};

/// How long anything may take that a test waits for: some seconds on an idle machine, much more on one that compiles beside it.
pub const PATIENCE: Duration = Duration::from_mins(3);
/// How often a test looks.
const POLL: Duration = Duration::from_millis(20);

/// Raw, as most orders want it.
pub const RAW: Output =
    Output { disk_format: DiskFormat::Raw, subformat: None, compression: Compression::None, cluster_size: 65_536 };

/// One test's part of a control plane.
pub struct Lab<'a> {
    pub plane: &'a ControlPlane,
    pub client: Client,
    /// The operator's namespace, and the prefix of the names of nodes and stores.
    pub namespace: String,
    pub server: FaultServer,
}

/// A node with its folders.
pub struct Node {
    pub name: String,
    pub stores: PathBuf,
    pub work: PathBuf,
    kubeconfig: PathBuf,
}

/// What to import and where to; `Order::new` fills in the rest.
#[derive(Clone)]
pub struct Order {
    pub image: String,
    pub revision: i64,
    pub attempt: i64,
    pub node: String,
    pub import: ImportOrder,
}

impl<'a> Lab<'a> {
    /// A lab called `name` on `plane`.
    pub async fn open(plane: &'a ControlPlane, name: &str) -> Self {
        let definitions: String = crds().iter().map(|crd| crd_yaml(crd).unwrap()).collect();
        plane.apply(&definitions).await.unwrap();
        plane.apply(&access::manifest(name)).await.unwrap();
        let wait = ["wait", "--for=condition=Established", "--timeout=60s", "crd"];
        let names: Vec<_> = crds().into_iter().map(|crd| crd.metadata.name.unwrap()).collect();
        let args: Vec<_> = wait.into_iter().chain(names.iter().map(String::as_str)).collect();
        plane.kubectl(&args).await.unwrap().success().unwrap();
        let kubeconfig = Kubeconfig::read_from(plane.kubeconfig()).unwrap();
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        let client = connect_with(config).unwrap();
        Self { plane, client, namespace: name.to_owned(), server: FaultServer::start().unwrap() }
    }

    /// A lab on the control plane that all tests share.
    pub async fn shared(name: &str) -> Lab<'static> {
        Lab::open(ControlPlane::shared().await.unwrap(), name).await
    }

    /// A new node called `<lab>-<short>`, with a token as a pod on it would have.
    pub async fn node(&self, short: &str) -> Node {
        let name = format!("{}-{short}", self.namespace);
        self.plane.create_node(&name).await.unwrap();
        let kubeconfig = self.plane.kubeconfig_for(&self.namespace, "vitrine-agent", Some(&name)).await.unwrap();
        let dir = self.plane.scope().dir().join(&name);
        let (stores, work) = (dir.join("stores"), dir.join("work"));
        std::fs::create_dir_all(&stores).unwrap();
        Node { name, stores, work, kubeconfig }
    }

    /// Starts an agent on `node`, with `extra` on its command line.
    pub fn start(&self, node: &Node, extra: &[&str]) -> Process {
        self.start_in(node, &[], extra)
    }

    /// Starts an agent by the command `wrapper`, which must `exec` what follows it.
    pub fn start_in(&self, node: &Node, wrapper: &[&str], extra: &[&str]) -> Process {
        let program = env!("CARGO_BIN_EXE_vitrine");
        let line: Vec<&str> = wrapper.iter().copied().chain([program]).collect();
        let mut command = self.plane.scope().command(line[0]);
        command.args(&line[1..]).arg("agent");
        command.args(["--node-name", &node.name, "--operator-namespace", &self.namespace]);
        command.arg("--work-dir").arg(&node.work).arg("--store-root").arg(&node.stores);
        command.args(["--allow-source", "127.0.0.1"]).args(extra);
        let usual =
            [["--workers", "2"], ["--stall-timeout", "2"], ["--source-attempts", "3"], ["--probe-interval", "2"]];
        for pair in usual {
            if !extra.contains(&pair[0]) {
                command.args(pair);
            }
        }
        command.env("KUBECONFIG", &node.kubeconfig).env("RUST_LOG", "info,vitrine=debug");
        for proxy in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
            command.env_remove(proxy);
        }
        self.plane.scope().spawn(&node.name, command).unwrap()
    }

    /// All tasks of this lab.
    pub fn tasks(&self) -> Api<ImageTask> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Orders an import; gives the task's name.
    pub async fn import(&self, order: &Order) -> String {
        let name = format!("{}-r{}-import-{}", order.image, order.revision, order.attempt);
        let spec = self.spec(order, Action::Import);
        self.create(&name, ImageTaskSpec { import: Some(order.import.clone()), ..spec }).await
    }

    /// Orders the removal of what `order` imports from where it imports it to; gives the task's name.
    pub async fn delete(&self, order: &Order) -> String {
        let name = format!("{}-r{}-delete-{}", order.image, order.revision, order.attempt);
        let target = |store: &StoreTarget| StoreRef {
            name: store.name.clone(),
            store_id: store.store_id.clone(),
            backend: store.backend.clone(),
        };
        let delete = DeleteOrder { stores: order.import.stores.iter().map(target).collect(), fence: order.attempt };
        let spec = self.spec(order, Action::Delete);
        self.create(&name, ImageTaskSpec { delete: Some(delete), ..spec }).await
    }

    fn spec(&self, order: &Order, action: Action) -> ImageTaskSpec {
        ImageTaskSpec {
            action,
            image: ImageIdentity {
                namespace: self.namespace.clone(),
                name: order.image.clone(),
                uid: order.image.clone(),
                generation: 1,
            },
            revision: order.revision,
            node_name: order.node.clone(),
            attempt: order.attempt,
            import: None,
            copy: None,
            verify: None,
            delete: None,
            cancelled: false,
        }
    }

    async fn create(&self, name: &str, spec: ImageTaskSpec) -> String {
        self.tasks().create(&PostParams::default(), &ImageTask::new(name, spec)).await.unwrap();
        name.to_owned()
    }

    /// Cancels a task, as the operator does.
    pub async fn cancel(&self, name: &str) {
        let patch = Patch::Merge(json!({ "spec": { "cancelled": true } }));
        self.tasks().patch(name, &PatchParams::default(), &patch).await.unwrap();
    }

    /// Deletes a task.
    pub async fn drop_task(&self, name: &str) {
        self.tasks().delete(name, &DeleteParams::default()).await.unwrap();
    }

    /// The task, once `is_so` holds of it.
    pub async fn wait_for(&self, name: &str, what: &str, is_so: impl Fn(&ImageTask) -> bool) -> ImageTask {
        let tasks = self.tasks();
        until(&format!("task {name}: {what}"), async || tasks.get(name).await.ok().filter(&is_so)).await
    }

    /// The task, once it has ended.
    pub async fn ended(&self, name: &str) -> ImageTask {
        self.wait_for(name, "has ended", |task| phase(task).is_final()).await
    }

    /// The task, which must succeed.
    pub async fn succeeded(&self, name: &str) -> ImageTask {
        let task = self.ended(name).await;
        assert_eq!(phase(&task), TaskPhase::Succeeded, "{name}: {:?}", task.status);
        task
    }

    /// Why the task, which must fail, did.
    pub async fn failure(&self, name: &str) -> TaskFailure {
        let task = self.ended(name).await;
        assert_eq!(phase(&task), TaskPhase::Failed, "{name}: {:?}", task.status);
        task.status.unwrap().failure.unwrap()
    }

    /// Waits until the import of `path` is in full swing: it has its place in the store in `folder`, and bytes keep coming.
    pub async fn receiving(&self, path: &str, folder: &Path) {
        let begun = async || entries(folder).iter().any(|name| name.starts_with(".partial-")).then_some(());
        until(&format!("{path} has its place in {}", folder.display()), begun).await;
        let sent = self.server.sent(path);
        until(&format!("{path} is being sent"), async || (self.server.sent(path) > sent).then_some(())).await;
    }
}

impl Drop for Lab<'_> {
    /// What the agents said is gone with the control plane, so a test that fails shows it.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for entry in std::fs::read_dir(self.plane.scope().dir()).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(&format!("{}-", self.namespace))
                && entry.path().extension().is_some_and(|end| end == "log")
            {
                eprintln!("--- {name}\n{}", std::fs::read_to_string(entry.path()).unwrap_or_default());
            }
        }
    }
}

impl Node {
    /// The order to import `url` as the first revision of `image` into this node's store `s`.
    pub fn order(&self, image: &str, url: &str) -> Order {
        let store = self.stores.join("s");
        Order::new(&self.name, image, url, &store, false)
    }

    /// The folder of the store that `order` names.
    pub fn store(&self) -> PathBuf {
        self.stores.join("s")
    }

    /// Whether nothing is left of unfinished work.
    pub fn assert_clean(&self) {
        let left = |path: &Path| std::fs::read_dir(path).map_or(0, Iterator::count);
        assert_eq!(left(&self.work.join("scratch")), 0, "spill files in {}", self.work.display());
        let unfinished: Vec<_> = entries(&self.store()).into_iter().filter(|name| name.starts_with('.')).collect();
        assert_eq!(unfinished, [""; 0], "leftovers in {}", self.store().display());
    }
}

impl Order {
    /// The order to import `url` as the first revision of `image` into the store in `folder`.
    pub fn new(node: &str, image: &str, url: &str, folder: &Path, shared: bool) -> Self {
        let filesystem = FilesystemBackend { path: folder.display().to_string(), shared };
        let http = TaskHttp { url: url.to_owned(), ..TaskHttp::default() };
        let import = ImportOrder {
            source: TaskSource { http: Some(http), upload: None },
            checksums: Vec::new(),
            checksum_url: None,
            disk_format: vitrine::api::DeclaredFormat::Auto,
            container_format: None,
            container_disk: None,
            request: None,
            require_all_stores: true,
            stores: vec![StoreTarget {
                name: "s".to_owned(),
                output: RAW,
                store_id: None,
                thin_provisioning: true,
                backend: filesystem.into(),
            }],
        };
        Self { image: image.to_owned(), revision: 1, attempt: 1, node: node.to_owned(), import }
    }
}

/// How far a task is.
pub fn phase(task: &ImageTask) -> TaskPhase {
    task.status.as_ref().and_then(|status| status.phase).unwrap_or_default()
}

/// Waits until `look` finds something; fails after a time that no machine needs.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "waited {} s in vain: {what}", PATIENCE.as_secs());
        tokio::time::sleep(POLL).await;
    }
}
