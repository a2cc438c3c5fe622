//! The commands that operators are told to run, as they stand in the documents: all of `docs/handbook.md` and `docs/troubleshooting.md`, and
//! those of `docs/install.md`, `docs/metrics.md`, `docs/stores.md` and `README.md`.
//!
//! On a control plane of each test's own, for all of it happens in the namespace `vitrine-system`. There are no nodes behind it: what moves
//! bytes are agents that are processes of this machine, and what Deployment and DaemonSet do to pods is not seen here (see `tests/e2e`).

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use kube::{
    ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use vitrine::api::{Image, ImagePhase};
use vitrine_harness::{
    CephCluster, ControlPlane, FaultServer, Gateway, Process, Route,
    document::{self, commands},
};

use crate::{
    node::{
        disks::{entries, raw, sha256, sha256_of},
        lab::{Node, PATIENCE, until},
    },
    whole::{
        door::{ADDRESS, Door},
        site::{Site, phase},
    },
};

const HANDBOOK: &str = include_str!("../../docs/handbook.md");
const TROUBLESHOOTING: &str = include_str!("../../docs/troubleshooting.md");
const INSTALL: &str = include_str!("../../docs/install.md");
const METRICS: &str = include_str!("../../docs/metrics.md");
const STORES: &str = include_str!("../../docs/stores.md");
const README: &str = include_str!("../../README.md");
const TREE: &str = env!("CARGO_MANIFEST_DIR");
const SPACE: &str = "vitrine-system";
/// What the documents call `team`.
const TEAM: &str = "vitrine-system-t";
const SIZE: usize = 3 << 20;

/// A person at a desk with the clone's charts, and the plugin in the path.
struct Desk<'p> {
    plane: &'p ControlPlane,
    person: document::Desk<'p>,
}

impl<'p> Desk<'p> {
    async fn new(plane: &'p ControlPlane) -> Self {
        let person = document::Desk::new(plane, "operator").await;
        person.give("kubectl-vitrine", Path::new(env!("CARGO_BIN_EXE_vitrine")));
        for part in ["charts", "config"] {
            symlink(Path::new(TREE).join(part), person.folder().join(part)).unwrap();
        }
        Self { plane, person }
    }

    async fn run(&self, script: &str) -> String {
        self.person.run(script).await
    }

    async fn get(&self, what: &str) -> Value {
        serde_json::from_str(&self.run(&format!("kubectl get --output json {what}")).await).unwrap()
    }

    /// Makes an ImageStore with the label by which the operator knows it.
    async fn store(&self, name: &str, spec: &Value) {
        let metadata = json!({ "name": name, "labels": { "vitrine.dev/lab": SPACE } });
        let store =
            json!({ "apiVersion": "vitrine.dev/v1alpha1", "kind": "ImageStore", "metadata": metadata, "spec": spec });
        self.plane.apply(&store.to_string()).await.unwrap();
    }
}

/// A pod's template for `app`, of which nothing runs.
fn pods(app: &str) -> Value {
    let containers = json!([{ "name": app, "image": "none" }]);
    let template = json!({ "metadata": { "labels": { "app": app } }, "spec": { "containers": containers } });
    json!({ "selector": { "matchLabels": { "app": app } }, "template": template })
}

#[tokio::test]
async fn an_installation_is_made_upgraded_rolled_back_and_paused() {
    let plane = ControlPlane::start().await.unwrap();
    let desk = Desk::new(&plane).await;
    // Building is not done here, and pushing takes a registry: what is pushed is what is built.
    let install = commands(INSTALL, "make image");
    let lines: Vec<_> = install.lines().collect();
    let [make, push, install] = lines[..] else { panic!("{lines:?}") };
    let made = desk.run(&format!("{make} --dry-run --no-print-directory --directory {TREE}")).await;
    let archive = push.strip_prefix("skopeo copy oci-archive:").and_then(|rest| rest.split_once(" docker://"));
    let (archive, image) = archive.unwrap_or_else(|| panic!("{push}"));
    assert!(
        made.contains("config/image/build.py")
            && made.contains(Path::new(archive).file_name().unwrap().to_str().unwrap()),
        "{made}"
    );
    // The README's way is the same in short.
    let short = commands(README, "make image");
    let (_, short) = short.split_once('\n').unwrap();
    let rendered =
        desk.run(&short.replace("helm install", "helm template").replace('…', "registry.example/short")).await;
    assert!(rendered.contains("registry.example/short:"), "{rendered}");
    desk.run(&format!("{install} --set agents.awaitRollout.enabled=false")).await;
    let container = "{.spec.template.spec.containers[0]";
    let operator = format!("kubectl --namespace {SPACE} get deployment vitrine-operator --output jsonpath");
    assert_eq!(desk.run(&format!("{operator}='{container}.image}}'")).await, image);

    // As Argo CD's own installation leaves it.
    desk.run("kubectl create namespace argocd").await;
    let settings = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "data": { "timeout.reconciliation": "60s" },
        "metadata": { "name": "argocd-cm", "namespace": "argocd", "labels": { "app.kubernetes.io/part-of": "argocd" } },
    });
    desk.run(&format!("kubectl apply --filename - <<'CM'\n{settings}\nCM")).await;
    desk.run(&commands(INSTALL, "kubectl --namespace argocd create configmap")).await;
    let map = desk.get("--namespace argocd configmap argocd-cm").await;
    for kind in ["Image", "ImageStore"] {
        let health = map["data"][format!("resource.customizations.health.vitrine.dev_{kind}")].as_str();
        assert!(health.is_some_and(|script| script.contains("Progressing")), "{map}");
    }
    assert_eq!(map["data"]["timeout.reconciliation"], "60s", "{map}");
    assert_eq!(map["metadata"]["labels"]["app.kubernetes.io/part-of"], "argocd", "{map}");

    desk.run(&commands(METRICS, "helm upgrade vitrine charts/vitrine")).await;
    let agents = desk.get(&format!("--namespace {SPACE} configmap vitrine-agents")).await;
    let agents = agents["data"]["agents.yaml"].as_str().unwrap();
    assert!(agents.contains("OTEL_EXPORTER_OTLP_ENDPOINT") && agents.contains("http://collector."), "{agents}");

    let told = desk.run(&commands(HANDBOOK, "helm get values")).await;
    assert!(told.contains("superseded") && told.contains("deployed"), "{told}");
    assert!(
        fs::read_to_string(desk.person.folder().join("vitrine-values.yaml"))
            .unwrap()
            .contains("registry.example/vitrine")
    );
    let args = format!("{operator}='{container}.args}}'");
    desk.run(&commands(HANDBOOK, "helm upgrade vitrine charts/vitrine --namespace vitrine-system --set")).await;
    assert!(desk.run(&args).await.contains("--orphan-grace=315360000"));
    desk.run(&commands(HANDBOOK, "helm rollback")).await;
    assert!(!desk.run(&args).await.contains("--orphan-grace"));

    let scale = commands(HANDBOOK, "kubectl --namespace vitrine-system scale");
    for (line, replicas) in scale.lines().zip(["0", "2"]) {
        desk.run(line).await;
        assert_eq!(desk.run(&format!("{operator}='{{.spec.replicas}}'")).await, replicas);
    }
    assert_eq!(scale.lines().count(), 2);
}

#[tokio::test]
async fn images_are_inspected_converted_and_hashed_as_the_readme_says() {
    let person = document::Desk::new(ControlPlane::shared().await.unwrap(), "reader").await;
    person.give("vitrine", Path::new(env!("CARGO_BIN_EXE_vitrine")));
    fs::write(person.folder().join("given.raw"), raw(4, SIZE)).unwrap();
    person.run("vitrine convert given.raw disk.qcow2 && xz --keep disk.qcow2").await;
    let server = FaultServer::start().unwrap();
    server.put("/disk.qcow2", Route::file(&person.folder().join("disk.qcow2")).unwrap());
    let block = commands(README, "vitrine inspect https://example.org/disk.qcow2");
    let told = person.run(&block.replace("https://example.org/disk.qcow2", &server.url("/disk.qcow2"))).await;
    assert!(told.contains("accepted"), "{told}");
    assert_eq!(sha256_of(&person.folder().join("disk.raw")), sha256(&raw(4, SIZE)));
    let digest = person.run("vitrine checksum --content given.raw | cut --delimiter=' ' --fields=1").await;
    assert!(told.contains(digest.trim()), "{digest} in {told}");
}

/// What a test of the running whole holds.
struct Ward<'a> {
    site: &'a Site<'a>,
    desk: &'a Desk<'a>,
    /// The nodes that the documents speak of: one with the stores `slow` and `fast`, and `node-3` with `far`.
    nodes: &'a [Node; 2],
}

impl Ward<'_> {
    /// Runs the block of `document` that begins with `first`, with what is called otherwise here.
    async fn run(&self, document: &str, first: &str) -> String {
        let block = commands(document, first).replace("namespace team", &format!("namespace {TEAM}"));
        self.desk
            .run(&block.replace("node-3", &self.nodes[1].name).replace("store show local", "store show slow"))
            .await
    }

    async fn declare(&self, name: &str, stores: &[&str]) -> Image {
        let http = json!({ "http": { "url": self.site.lab.server.url("/disk") } });
        let metadata = json!({ "name": name, "namespace": TEAM });
        let spec = json!({ "source": http, "stores": stores });
        let image =
            json!({ "apiVersion": "vitrine.dev/v1alpha1", "kind": "Image", "metadata": metadata, "spec": spec });
        self.site.lab.plane.apply(&image.to_string()).await.unwrap();
        self.site.active("t", name).await
    }

    fn folder(&self, store: &str) -> PathBuf {
        self.nodes[usize::from(store == "far")].stores.join(store)
    }

    /// Makes the stores, `slow` the default.
    async fn stores(&self) {
        for (name, node) in [("slow", 0), ("fast", 0), ("far", 1)] {
            let selector = json!({ "kubernetes.io/hostname": self.nodes[node].name });
            let folder = json!({ "path": self.folder(name) });
            let spec = json!({ "default": name == "slow", "nodeSelector": selector, "filesystem": folder });
            self.desk.store(name, &spec).await;
        }
    }

    async fn images(&self) -> Vec<Image> {
        self.site.images("t").list(&ListParams::default()).await.unwrap().items
    }

    /// Waits until every Image is Active and in these stores.
    async fn all_in(&self, what: &str, is_so: impl Fn(&str, &[&str]) -> bool) {
        until(what, async || {
            let images = self.images().await;
            let so = images.iter().all(|image| {
                let ready = phase(image) == Some(ImagePhase::Active);
                let locations = image.status.iter().flat_map(|status| &status.locations);
                let stores: Vec<_> = locations.filter(|l| l.phase.is_copy()).map(|l| l.store.as_str()).collect();
                ready && is_so(&image.name_any(), &stores)
            });
            so.then_some(())
        })
        .await;
    }

    async fn told(&self, name: &str, reason: &str) {
        let about = format!("involvedObject.name={name},reason={reason}");
        let ask = format!("kubectl --namespace {TEAM} get events --output name --field-selector {about}");
        let tells = async || (!self.desk.run(&ask).await.is_empty()).then_some(());
        until(&format!("{reason} is told of {name}"), tells).await;
    }
}

/// The lines of a table, as words.
fn rows(table: &str) -> Vec<Vec<&str>> {
    table.lines().map(|line| line.split_whitespace().collect()).collect()
}

/// An operator that looks for what was forsaken all the time.
fn operator(site: &Site<'_>, more: &[&str]) -> Process {
    site.operator(&[&["--sweep-interval", "1"][..], more].concat())
}

#[tokio::test]
async fn the_handbook_goes_as_it_is_written() {
    let plane = ControlPlane::start().await.unwrap();
    let site = Site::open(&plane, SPACE).await;
    let nodes = [site.lab.node("one").await, site.lab.node("three").await];
    let first = operator(&site, &[]);
    let quick = ["--probe-interval", "1", "--list-interval", "1", "--lease-duration", "4", "--lease-renew", "1"];
    let agents = nodes.each_ref().map(|node| site.lab.start(node, &[&ADDRESS[..], &quick[..]].concat()));
    let mut desk = Desk::new(&plane).await;
    Door::of(&site, &nodes[1]).await;
    let port = Door::of(&site, &nodes[0]).await.address.port();
    desk.person.set("VITRINE_DATA_URL", format!("https://localhost:{port}"));
    let ward = Ward { site: &site, desk: &desk, nodes: &nodes };
    site.lab.server.put("/disk", Route::bytes(raw(1, SIZE)));
    ward.stores().await;
    for (name, stores) in [("debian", &["slow"][..]), ("plain", &[]), ("away", &["far"])] {
        ward.declare(name, stores).await;
    }
    let file = desk.person.folder().join("appliance.raw");
    fs::write(&file, raw(2, SIZE)).unwrap();
    ward.run(HANDBOOK, "kubectl vitrine image upload appliance.raw appliance").await;

    is_looked_at(&ward).await;
    is_saved(&ward, &file).await;
    let _operator = is_lost_and_restored(&ward, first).await;
    is_paused_and_verified(&ward).await;
    is_moved(&ward).await;
    a_store_is_replaced(&ward).await;
    a_node_is_lost(&ward, agents).await;
}

async fn is_looked_at(ward: &Ward<'_>) {
    let told = ward.run(HANDBOOK, "kubectl vitrine doctor").await;
    assert!(told.contains("0 problems") && told.contains("slow") && told.contains("far"), "{told}");
    assert!(ward.run(HANDBOOK, "kubectl vitrine version").await.contains(env!("CARGO_PKG_VERSION")));
    let told = ward.run(TROUBLESHOOTING, "kubectl vitrine doctor").await;
    for part in ["0 problems", "ImportSucceeded", "StoreReady", &*ward.nodes[0].name] {
        assert!(told.contains(part), "{part} in {told}");
    }
    let room = ward.run(HANDBOOK, "kubectl get imagestores --output wide").await;
    assert!(rows(&room).iter().any(|row| row[..3] == [TEAM, "away", "far"] && row[3].parse::<u64>().is_ok()), "{room}");
}

async fn is_saved(ward: &Ward<'_>, file: &Path) {
    ward.run(HANDBOOK, "kubectl get imagestores --output yaml").await;
    let told = ward.run(HANDBOOK, "kubectl get imagestores --output custom-columns=STORE:.metadata.name,CEPH").await;
    assert!(told.contains(&format!("{TEAM}/appliance")) && !told.contains(&format!("{TEAM}/debian")), "{told}");
    fs::remove_file(file).unwrap();
    ward.run(HANDBOOK, "kubectl vitrine image save").await;
    assert_eq!(sha256_of(file), sha256(&raw(2, SIZE)));
}

/// All objects are lost and the stores are there: what is restored from what was saved has other uids, and takes over nothing.
async fn is_lost_and_restored(ward: &Ward<'_>, first: Process) -> Process {
    let (site, merge) = (ward.site, PatchParams::default());
    let before: BTreeMap<_, _> =
        ward.images().await.iter().map(|image| (image.name_any(), image.uid().unwrap())).collect();
    first.terminate(PATIENCE).await.unwrap();
    let free = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
    for name in before.keys() {
        site.images("t").patch(name, &merge, &free).await.unwrap();
        site.images("t").delete(name, &DeleteParams::default()).await.unwrap();
    }
    for name in ["slow", "fast", "far"] {
        site.stores().patch(name, &merge, &free).await.unwrap();
        site.stores().delete(name, &DeleteParams::default()).await.unwrap();
    }
    let patient = operator(site, &[]);
    ward.run(HANDBOOK, "kubectl create --filename imagestores.yaml").await;
    for name in ["debian", "plain", "away"] {
        let image = site.active("t", name).await;
        assert_ne!(image.uid().as_ref(), Some(&before[name]), "it is another one");
    }
    let waits = |image: &Image| image.status.as_ref().is_some_and(|status| status.upload.is_some());
    site.wait_for("t", "appliance", "waits for its bytes", waits).await;
    ward.run(HANDBOOK, "kubectl vitrine image upload appliance.raw appliance").await;
    let listing = "kubectl get imagestores --output custom-columns=STORE:.metadata.name,COUNT";
    until("what was lost is listed", async || {
        let told = ward.run(HANDBOOK, listing).await;
        before.values().all(|uid| told.contains(&format!("{uid}-r1"))).then_some(())
    })
    .await;
    let kept = |store: &str| entries(&ward.folder(store));
    assert_eq!(
        [kept("slow").len(), kept("far").len()],
        [6, 2],
        "nothing was taken over, and nothing removed that is young"
    );
    patient.terminate(PATIENCE).await.unwrap();
    let strict = operator(site, &["--orphan-grace", "1"]);
    until("what was lost is removed", async || ([kept("slow").len(), kept("far").len()] == [3, 1]).then_some(())).await;
    assert!(before.values().all(|uid| !kept("slow").contains(&format!("{uid}-r1"))));
    strict
}

async fn is_paused_and_verified(ward: &Ward<'_>) {
    ward.run(HANDBOOK, "kubectl vitrine image deactivate").await;
    let told = ward.desk.get("imagestore fast").await;
    assert_eq!(told["spec"]["readOnly"], true);
    ward.desk.run(r#"kubectl patch imagestore fast --type merge --patch '{"spec": {"readOnly": false}}'"#).await;
    // What status speaks of and is not there, as after a snapshot of etcd was restored, is found out and made anew.
    let image = ward.site.active("t", "debian").await;
    let kept = ward.folder("slow").join(format!("{}-r1", image.uid().unwrap()));
    fs::remove_dir_all(&kept).unwrap();
    ward.run(HANDBOOK, "kubectl annotate images --all").await;
    ward.told("debian", "LocationCorrupt").await;
    let anew = |image: &Image| {
        image.status.as_ref().is_some_and(|status| status.revision == Some(2))
            && phase(image) == Some(ImagePhase::Active)
    };
    ward.site.wait_for("t", "debian", "is made anew", anew).await;
    let verified =
        |image: &Image| image.status.iter().flat_map(|status| &status.locations).all(|l| l.verified_at.is_some());
    ward.site.wait_for("t", "plain", "is verified", verified).await;
}

async fn is_moved(ward: &Ward<'_>) {
    ward.site.active("t", "debian").await;
    assert_eq!(ward.run(HANDBOOK, "kubectl --namespace team patch image debian").await.lines().last(), Some("fast"));
}

async fn a_store_is_replaced(ward: &Ward<'_>) {
    ward.declare("named", &["slow"]).await;
    ward.run(HANDBOOK, "kubectl patch imagestore slow").await;
    let naming = ward.run(HANDBOOK, "kubectl get images --all-namespaces --output custom").await;
    assert_eq!(rows(&naming), [[TEAM, "named", "[slow]"]]);
    ward.all_in("none has moved yet", |name, stores| name != "plain" || stores == ["slow"]).await;
    ward.site.patch("named", json!({ "spec": { "stores": ["fast"] } })).await;
    ward.run(HANDBOOK, "kubectl delete imagestore slow").await;
    ward.all_in("all are in the new store", |name, stores| name == "away" || stores == ["fast"]).await;
    assert_eq!(entries(&ward.folder("slow")), [""; 0]);
}

async fn a_node_is_lost(ward: &Ward<'_>, agents: [Process; 2]) {
    let there = ward.run(HANDBOOK, "kubectl get images --all-namespaces --no-headers").await;
    assert_eq!(rows(&there), [[TEAM, "away", ward.nodes[1].name.as_str()]]);
    ward.run(HANDBOOK, "kubectl drain").await;
    agents[1].kill();
    ward.run(HANDBOOK, "kubectl delete node").await;
    ward.told("away", "LocationLost").await;
    // It would be imported again, if any other node had the store.
    let lost = |image: &Image| image.status.as_ref().is_some_and(|status| status.locations.is_empty());
    let image = ward.site.wait_for("t", "away", "has no copy", lost).await;
    assert_eq!(phase(&image), Some(ImagePhase::Queued), "{:?}", image.status);
}

#[tokio::test]
async fn pools_and_buckets_are_set_up_verified_and_get_other_keys() {
    let ceph = CephCluster::start().await.unwrap();
    let gateway = Gateway::start(&ceph).await.unwrap();
    gateway.make_bucket("images").unwrap();
    let plane = ControlPlane::start().await.unwrap();
    let site = Site::open(&plane, SPACE).await;
    let node = site.lab.node("n").await;
    let metadata = json!({ "name": "vitrine-operator", "namespace": SPACE });
    let operator =
        json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": pods("operator") });
    plane.apply(&operator.to_string()).await.unwrap();
    let mut desk = Desk::new(&plane).await;
    let metadata = json!({ "name": "vitrine-agent" });
    let agents = json!({ "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": metadata, "spec": pods("agent") });
    let file = desk.person.folder().join("agents.yaml");
    fs::write(&file, agents.to_string()).unwrap();
    let _operator = site.operator(&["--agents-owner", "vitrine-operator", "--agents-file", file.to_str().unwrap()]);
    let _agent = site.lab.start(&node, &["--probe-interval", "1"]);
    desk.person.set("CEPH_CONF", ceph.config().display().to_string());

    desk.run(&commands(STORES, "ceph osd pool create images")).await;
    let rbd = json!({ "monitors": [ceph.monitors()], "pool": "images", "secretRef": { "name": "ceph-images" } });
    desk.store("ceph", &json!({ "default": true, "rbd": rbd })).await;
    desk.run("kubectl wait imagestore/ceph --for=condition=Writable --timeout=120s").await;
    let (id, secret) = gateway.access_key();
    let keyed = |block: String, secret: &str| {
        block
            .replace("accessKeyID=AK...", &format!("accessKeyID={id}"))
            .replace("secretAccessKey=...", &format!("secretAccessKey={secret}"))
    };
    desk.run(&keyed(commands(STORES, "kubectl -n vitrine-system create secret generic s3-images"), "withdrawn")).await;
    let bucket = json!({ "endpoint": gateway.endpoint(), "bucket": "images", "secretRef": { "name": "s3-images" } });
    desk.store("s3", &json!({ "s3": bucket })).await;
    desk.run("kubectl wait imagestore/s3 --for=condition=Ready=False --timeout=120s").await;
    desk.run(&keyed(commands(HANDBOOK, "kubectl --namespace vitrine-system create secret generic s3-images"), secret))
        .await;
    desk.run("kubectl wait imagestore/s3 --for=condition=Writable --timeout=120s").await;
    // The operator keeps the DaemonSet as its file has it, and leaves a restart in peace.
    let restarted = async || {
        let set = desk.get(&format!("--namespace {SPACE} daemonset vitrine-agent")).await;
        let template = &set["spec"]["template"]["metadata"]["annotations"]["kubectl.kubernetes.io/restartedAt"];
        assert!(template.is_string(), "{set}");
    };
    restarted().await;
    fs::write(&file, agents.to_string().replace("\"none\"", "\"another\"")).unwrap();
    let path = "{.spec.template.spec.containers[0].image}";
    desk.run(&format!(
        "kubectl --namespace {SPACE} wait daemonset vitrine-agent --for=jsonpath='{path}'=another --timeout=120s"
    ))
    .await;
    restarted().await;

    site.lab.server.put("/disk", Route::bytes(raw(1, SIZE)));
    let metadata = json!({ "name": "debian", "namespace": TEAM });
    let spec = json!({ "source": { "http": { "url": site.lab.server.url("/disk") } }, "stores": ["ceph", "s3"] });
    let image = json!({ "apiVersion": "vitrine.dev/v1alpha1", "kind": "Image", "metadata": metadata, "spec": spec });
    plane.apply(&image.to_string()).await.unwrap();
    site.active("t", "debian").await;
    desk.run(&format!("kubectl config set-context --current --namespace={TEAM}")).await;
    desk.run(&commands(STORES, "kubectl annotate image debian")).await;
    let verified =
        |image: &Image| image.status.iter().flat_map(|status| &status.locations).all(|l| l.verified_at.is_some());
    site.wait_for("t", "debian", "is verified", verified).await;
    site.delete("t", "debian").await;
}
