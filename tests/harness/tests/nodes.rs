//! Real nodes run pods, several clusters live beside each other, and nothing is left of them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use vitrine_harness::{Cluster, Route};

/// On busy cores everything takes long.
const PATIENCE: Duration = Duration::from_secs(120);
/// A container that is nothing but busybox.
const POD: &str = r#"{
    apiVersion: v1, kind: Pod, metadata: {name: trial},
    spec: {terminationGracePeriodSeconds: 0, containers: [{
        name: shell, image: "localhost/pause:1", imagePullPolicy: Never, command: [/busybox, sleep, "600"],
        resources: {limits: {memory: 32Mi}}}]}
}"#;

async fn kubectl(cluster: &Cluster, args: &[&str]) -> String {
    cluster.plane().kubectl(args).await.expect("kubectl runs").success().expect("kubectl succeeds")
}

/// The control groups of all scopes with this mark.
fn groups(mark: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = std::fs::read_dir(root).expect("read").flatten().map(|entry| entry.path());
    hierarchies.chain([root.to_owned()]).map(|path| path.join(mark)).filter(|path| path.is_dir()).collect()
}

async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !so().await {
        assert!(start.elapsed() < PATIENCE, "not so after {} s: {what}", PATIENCE.as_secs());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn use_one() {
    let cluster = Cluster::start(&["n1"]).await.expect("a cluster");
    let (mark, folder) = (cluster.plane().scope().mark().to_owned(), cluster.plane().scope().dir().to_owned());
    assert!(!groups(&mark).is_empty());
    let server = cluster.http().expect("a server");
    server.put("/x", Route::bytes(*b"from outside of the nodes"));
    cluster.plane().apply(POD).await.expect("apply");
    kubectl(&cluster, &["wait", "--for=condition=Ready", "pod/trial", "--timeout=120s"]).await;
    // The whole way: API server to kubelet to container, and from there to a server and to a service.
    let get = format!(
        "printf 'GET /x HTTP/1.0\\r\\n\\r\\n' | /busybox nc {} {}",
        server.address().ip(),
        server.address().port()
    );
    let got = kubectl(&cluster, &["exec", "trial", "--", "/busybox", "sh", "-c", &get]).await;
    assert!(got.ends_with("from outside of the nodes"), "{got}");
    let service = ["exec", "trial", "--", "/busybox", "sh", "-c", "/busybox nc -w 5 10.96.0.1 443 </dev/null"];
    until("the API server's service is reached", async || {
        cluster.plane().kubectl(&service).await.is_ok_and(|done| done.status.success())
    })
    .await;

    let node = cluster.node("n1").expect("the node");
    node.power_off().await.expect("off");
    assert!(node.run(cluster.plane(), &["true"]).await.is_err());
    until("the node counts as not ready", async || {
        kubectl(&cluster, &["get", "nodes", "--no-headers"]).await.contains("NotReady")
    })
    .await;
    cluster.power_on(node).await.expect("on");
    kubectl(&cluster, &["wait", "--for=condition=Ready", "pod/trial", "--timeout=120s"]).await;

    drop((server, cluster));
    assert!(!folder.exists());
    assert_eq!(groups(&mark), Vec::<PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clusters_beside_each_other_run_pods_lose_their_power_and_leave_nothing() {
    tokio::join!(use_one(), use_one());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_owner_leaves_nothing() {
    let lab = env!("CARGO_BIN_EXE_vitrine-lab");
    let told = tempfile::NamedTempFile::new().expect("a file");
    let path = told.path().to_str().expect("UTF-8");
    let script = format!("echo $VITRINE_LAB_SCOPE >{path}; exec sleep 600");
    let mut owner = Command::new(lab);
    owner.args(["run", "--nodes", "1", "sh", "-c", &script]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut owner = owner.spawn().expect("start");
    let mark = || std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    until("the command runs", async || !mark().is_empty()).await;
    assert!(!groups(&mark()).is_empty());
    owner.kill().expect("kill -9");
    owner.wait().expect("wait");
    let folder = std::env::temp_dir().join(mark());
    until("nothing is left", async || groups(&mark()).is_empty() && !folder.exists()).await;
}
