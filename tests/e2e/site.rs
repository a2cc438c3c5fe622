//! A cluster of two nodes with Vitrine in it, which all tests of this program share, one after the other: a node without power, or
//! a chart that is uninstalled, would be in the way of every other test.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard, OnceCell};
use vitrine_harness::{Cluster, Fault, FaultServer, Node, Route, qemu};

pub const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/vitrine");
pub const SPACE: &str = "vitrine-system";
/// The namespace of the person who wants images.
pub const TENANT: &str = "tenant";
/// The folder of stores on the nodes.
pub const STORES: &str = "/var/lib/vitrine";
/// How long anything may take: minutes of work beside it, on two cores.
const PATIENCE: Duration = Duration::from_secs(240);
const TIMEOUT: &str = "300s";
const POLL: Duration = Duration::from_millis(200);
/// Silence is noticed sooner than by default, failure repeated sooner, and what no Image knows removed sooner, so that no test waits a minute
/// for it. The grace is longer than a listing of a store is old.
const VALUES: &str = r#"{
    "image": {"pullPolicy": "Never"},
    "operator": {
        "extraArgs": ["--agent-grace=10", "--retry-base=1", "--leader-lease=6", "--sweep-interval=1", "--orphan-grace=7"]
    },
    "agents": {
        "allowSources": ["10.77.0.1"],
        "clusterCIDRs": ["10.96.0.0/16", "10.244.0.0/16"],
        "extraArgs": ["--lease-duration=10", "--lease-renew=2", "--probe-interval=5", "--list-interval=1"]
    }
}"#;
/// With a folder of the nodes.
const STORE: &str = r#"{
    "agents": {"storePath": "/var/lib/vitrine"},
    "defaultStore": {"enabled": true, "name": "local", "spec": {"filesystem": {"path": "/var/lib/vitrine/images"}}}
}"#;

pub struct Site {
    pub cluster: Cluster,
    pub server: FaultServer,
}

/// The site, for one test at a time.
pub async fn site() -> MutexGuard<'static, Site> {
    static SITE: OnceCell<Mutex<Site>> = OnceCell::const_new();
    SITE.get_or_init(async || Mutex::new(Site::open().await)).await.lock().await
}

impl Site {
    async fn open() -> Self {
        let cluster = Cluster::start(&["n1", "n2"]).await.unwrap();
        let server = cluster.http().unwrap();
        let folder = cluster.plane().scope().dir();
        std::fs::write(folder.join("values.json"), VALUES).unwrap();
        std::fs::write(folder.join("store.json"), STORE).unwrap();
        cluster.load_image(&build_image(folder)).await.unwrap();
        let site = Self { cluster, server };
        for node in site.cluster.nodes() {
            site.prepare(node).await;
        }
        site.kubectl(&["create", "namespace", TENANT]).await;
        site.install_strictly().await;
        site.helm("upgrade", &["--wait"]).await;
        site.serve("first", "zlib.qcow2", &[]);
        site.declare("first", json!({})).await;
        site.active("first").await;
        site
    }

    /// Installs without a folder of the nodes, where nothing is let in that does not keep to the strictest level. Afterwards, folders
    /// of nodes are let in.
    async fn install_strictly(&self) {
        let level = "pod-security.kubernetes.io/enforce";
        self.kubectl(&["create", "namespace", SPACE]).await;
        self.kubectl(&["label", "namespace", SPACE, &format!("{level}=restricted")]).await;
        let values = self.file("values.json");
        let install = ["install", "vitrine", CHART, "-n", SPACE, "--wait", "--timeout", TIMEOUT, "-f", &values];
        self.cluster.plane().helm(&install).await.unwrap().success().unwrap();
        self.all_ready().await;
        let pods = self.get(&["pods", "-n", SPACE]).await;
        let restarts = |pod: &Value| pod["status"]["containerStatuses"][0]["restartCount"].as_i64();
        assert!(pods["items"].as_array().unwrap().iter().all(|pod| restarts(pod) == Some(0)), "{pods}");
        self.kubectl(&["label", "--overwrite", "namespace", SPACE, &format!("{level}=privileged")]).await;
    }

    /// Fails unless operator and agents are all there, as `helm --wait` says.
    pub async fn all_ready(&self) {
        let operator = self.get(&["deployment", "vitrine-operator", "-n", SPACE]).await;
        let agents = self.get(&["daemonset", "vitrine-agent", "-n", SPACE]).await;
        let (operator, agents) = (&operator["status"], &agents["status"]);
        assert_eq!((&operator["readyReplicas"], &operator["updatedReplicas"]), (&2.into(), &2.into()));
        assert_eq!((&agents["numberReady"], &agents["updatedNumberScheduled"]), (&2.into(), &2.into()));
    }

    fn file(&self, name: &str) -> String {
        self.cluster.plane().scope().dir().join(name).to_str().unwrap().to_owned()
    }

    /// What an administrator does on a node that shall keep images.
    async fn prepare(&self, node: &Node) {
        let make = ["install", "-d", "-m", "2770", "-g", "65532", STORES];
        node.run(self.cluster.plane(), &make).await.unwrap().success().unwrap();
    }

    /// Installs or upgrades the chart with a folder of the nodes and these arguments.
    pub async fn helm(&self, verb: &str, args: &[&str]) -> String {
        let (values, store) = (self.file("values.json"), self.file("store.json"));
        let given = [verb, "vitrine", CHART, "-n", SPACE, "--timeout", TIMEOUT, "-f", &values, "-f", &store];
        let line = [&given[..], args].concat();
        self.cluster.plane().helm(&line).await.unwrap().success().unwrap()
    }

    /// What kubectl prints.
    pub async fn kubectl(&self, args: &[&str]) -> String {
        self.cluster.plane().kubectl(args).await.unwrap().success().unwrap()
    }

    /// What kubectl gets.
    pub async fn get(&self, args: &[&str]) -> Value {
        let line = [&["get", "-o", "json"][..], args].concat();
        serde_json::from_str(&self.kubectl(&line).await).unwrap()
    }

    /// Has the server serve a file of the Debian disk for the image `name`.
    pub fn serve(&self, name: &str, file: &str, faults: &[Fault]) {
        let route = Route::file(&debian(file)).unwrap();
        let route = faults.iter().fold(route, |route, fault| route.always(fault.clone()));
        self.server.put(&format!("/{name}"), route);
    }

    /// Declares the Image `name`, from the server.
    pub async fn declare(&self, name: &str, more: Value) {
        let mut spec = json!({ "source": { "http": { "url": self.server.url(&format!("/{name}")) } } });
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let image = json!({
            "apiVersion": "vitrine.dev/v1alpha1", "kind": "Image",
            "metadata": { "name": name, "namespace": TENANT }, "spec": spec,
        });
        self.cluster.plane().apply(&image.to_string()).await.unwrap();
    }

    /// The Image `name`.
    pub async fn image(&self, name: &str) -> Value {
        self.get(&["image", name, "-n", TENANT]).await
    }

    /// The Image, once it is Active and Ready.
    pub async fn active(&self, name: &str) -> Value {
        self.until(&format!("Image {name} is Active"), async || {
            let image = self.image(name).await;
            (image["status"]["phase"] == "Active" && condition(&image, "Ready")["status"] == "True").then_some(image)
        })
        .await
    }

    /// The node on which the Image is being imported, once bytes of it have arrived there.
    pub async fn importing_on(&self, name: &str) -> &Node {
        let path = format!("/{name}");
        self.until(&format!("bytes of {name} flow"), async || (self.server.sent(&path) > 0).then_some(())).await;
        let tasks = self.get(&["imagetasks", "-n", SPACE]).await;
        let of_it = |task: &&Value| task["spec"]["image"]["name"] == name;
        let task = tasks["items"].as_array().unwrap().iter().find(of_it).unwrap_or_else(|| panic!("{tasks}"));
        self.cluster.node(task["spec"]["nodeName"].as_str().unwrap()).unwrap()
    }

    /// The agent's pod on a node.
    pub async fn agent_on(&self, node: &Node) -> Value {
        let field = format!("spec.nodeName={}", node.name());
        let label = "app.kubernetes.io/name=vitrine-agent";
        let pods = self.get(&["pods", "-n", SPACE, "-l", label, "--field-selector", &field]).await;
        pods["items"][0].clone()
    }

    /// Waits until `look` finds something.
    pub async fn until<T>(&self, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            if let Some(found) = look().await {
                return found;
            }
            let late = began.elapsed() > PATIENCE;
            assert!(!late, "not within {} s: {what}\n{}", PATIENCE.as_secs(), self.state().await);
            tokio::time::sleep(POLL).await;
        }
    }

    /// What somebody would look at first.
    async fn state(&self) -> String {
        let looks: [&[&str]; 4] = [
            &["get", "nodes,pods", "-A", "-o", "wide"],
            &["get", "images,imagestores,imagetasks,nodecaches", "-A", "-o", "wide"],
            &["get", "events", "-A", "--sort-by=.lastTimestamp"],
            &["logs", "-n", SPACE, "-l", "app.kubernetes.io/part-of=vitrine", "--tail=20", "--prefix"],
        ];
        let mut seen = Vec::new();
        for look in looks {
            if let Ok(done) = self.cluster.plane().kubectl(look).await {
                seen.push(format!("$ kubectl {}\n{}{}", look.join(" "), done.stdout, done.stderr));
            }
        }
        seen.join("\n")
    }
}

/// A condition of an object.
pub fn condition(object: &Value, kind: &str) -> Value {
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.into_iter().find(|condition| condition["type"] == kind).unwrap_or_default()
}

/// A file of the Debian test disk.
pub fn debian(name: &str) -> PathBuf {
    qemu::debian_disk().unwrap().join(name)
}

/// The container image, with the program that this test was built with.
fn build_image(folder: &Path) -> PathBuf {
    let archive = folder.join("vitrine.tar");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/config/image/build.py");
    let binary = format!("amd64={}", env!("CARGO_BIN_EXE_vitrine"));
    // As containers know it that are named without a registry.
    let tag = concat!("docker.io/library/vitrine:", env!("CARGO_PKG_VERSION"));
    let mut build = Command::new("python3");
    build.args([script, "--binary", &binary, "--tag", tag, "--output"]).arg(&archive);
    let built = build.output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    archive
}
