//! Alerts that are answered by the very commands of `docs/runbooks`, while what each of them is about is so.

use std::{fs::File, os::unix::fs::FileExt as _};

use serde_json::json;
use vitrine_harness::{Fault, Node};

use crate::{
    data::{Desk, commands, desk},
    install::file_of,
    site::{SPACE, STORES, Site, TENANT, site},
};

const IMAGES_FAILED: &str = include_str!("../../docs/runbooks/VitrineImagesFailed.md");
const TASKS_FAILING: &str = include_str!("../../docs/runbooks/VitrineTasksFailing.md");
const IMPORTS_STUCK: &str = include_str!("../../docs/runbooks/VitrineImportsStuck.md");
const COPY_ROTTEN: &str = include_str!("../../docs/runbooks/VitrineCopyRotten.md");
const STORE_NOT_READY: &str = include_str!("../../docs/runbooks/VitrineStoreNotReady.md");
const STORE_NOT_WRITABLE: &str = include_str!("../../docs/runbooks/VitrineStoreNotWritable.md");
const STORE_UNREACHABLE: &str = include_str!("../../docs/runbooks/VitrineStoreUnreachable.md");
const STORE_ALMOST_FULL: &str = include_str!("../../docs/runbooks/VitrineStoreAlmostFull.md");
const STORE_ORPHANS: &str = include_str!("../../docs/runbooks/VitrineStoreOrphans.md");
const NO_LEADER: &str = include_str!("../../docs/runbooks/VitrineNoLeader.md");
const RECONCILE_FAILING: &str = include_str!("../../docs/runbooks/VitrineReconcileFailing.md");
/// What the store `odd` holds that no Image knows.
const ORPHAN: &str = "00000000-0000-4000-8000-000000000000-r1";

/// Somebody who was called by an alert.
pub struct OnCall<'a> {
    pub desk: &'a Desk<'a>,
    /// The Image or the store that it is about.
    pub name: &'a str,
    /// The pod that it is about.
    pub pod: &'a str,
}

impl OnCall<'_> {
    /// Runs the block of `book` that begins with `first`, with the names that are meant.
    pub async fn run(&self, book: &str, first: &str) -> String {
        let names = [(" NAMESPACE", TENANT), (" NAME", self.name), (" POD", self.pod)];
        let put = |block: String, (blank, name): (&str, &str)| block.replace(blank, &format!(" {name}"));
        self.desk.run(&names.into_iter().fold(commands(book, first), put)).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn alerts_are_answered_as_it_is_written() {
    let site = site().await;
    let desk = desk(&site, "call").await;
    tokio::join!(images_fail_hang_and_rot(&site, &desk), a_store_is_lost_and_not_ones_own(&site, &desk));
    the_operator_is_refused(&site, &desk).await;
}

async fn images_fail_hang_and_rot(site: &Site, desk: &Desk<'_>) {
    let on_call = OnCall { desk, name: "gone", pod: "" };
    site.declare("gone", json!({})).await;
    site.serve("slow", "zlib.qcow2", &[Fault::Rate(200_000)]);
    site.declare("slow", json!({})).await;
    let node = site.importing_on("slow").await.name();
    let told = on_call.run(IMPORTS_STUCK, "kubectl vitrine task list").await;
    let is_it = |line: &str| ["Import", "tenant/slow", node].iter().all(|part| line.contains(part));
    assert!(told.lines().any(is_it) && told.contains("local"), "{told}");
    site.kubectl(&["delete", "image", "slow", "-n", TENANT]).await;

    let failed = async || (site.image("gone").await["status"]["phase"] == "Failed").then_some(());
    site.until("Image gone has failed", failed).await;
    let told = on_call.run(IMAGES_FAILED, "kubectl vitrine image list").await;
    for part in ["gone", "Failed", "NotFound", "mend the cause"] {
        assert!(told.contains(part) && !told.contains("first"), "{part} in {told}");
    }
    let told = on_call.run(TASKS_FAILING, "kubectl vitrine image list").await;
    let is_it = |line: &str| ["tenant/gone", "\"attempt\":1", "404"].iter().all(|part| line.contains(part));
    assert!(told.contains("UnrecoverableError") && told.lines().any(is_it), "{told}");
    let told = on_call.run(STORE_ALMOST_FULL, "kubectl vitrine store list").await;
    let mut rows = told.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    assert!(rows.any(|row| row.starts_with(&[TENANT, "first", "local"]) && row[3].parse::<u64>().is_ok()), "{told}");

    site.serve("gone", "zlib.qcow2", &[]);
    on_call.run(IMAGES_FAILED, "kubectl vitrine image import").await;
    let image = site.active("gone").await;
    let file = File::options().write(true).open(file_of(site, &image)).unwrap();
    file.write_all_at(&[0x5a; 4096], 0).unwrap();
    on_call.run(COPY_ROTTEN, "kubectl annotate images").await;
    site.until("the copy is found rotten", async || {
        let told = on_call.run(COPY_ROTTEN, "kubectl get events").await;
        ["LocationCorrupt", "image/gone"].iter().all(|part| told.contains(part)).then_some(())
    })
    .await;
    let anew = async || (site.active("gone").await["status"]["revision"] == 2).then_some(());
    site.until("Image gone is made anew", anew).await;
    site.kubectl(&["delete", "image", "gone", "-n", TENANT]).await;
}

async fn a_store_is_lost_and_not_ones_own(site: &Site, desk: &Desk<'_>) {
    let [one, two] = site.cluster.nodes() else { panic!("two nodes") };
    let sh = async |node: &Node, script: &str| {
        let line = format!("cd {STORES}\n{script}");
        node.run(site.cluster.plane(), &["sh", "-ec", &line]).await.unwrap().success().unwrap();
    };
    let agent = site.agent_on(two).await;
    let on_call = OnCall { desk, name: "odd", pod: agent["metadata"]["name"].as_str().unwrap() };
    // A node looks by itself every few seconds; this does not wait for that.
    let look = async || desk.run("kubectl vitrine store probe odd || true").await;
    let shown = async |book: &str, first: &str, parts: &[&str]| {
        site.until(&format!("{parts:?} is shown"), async || {
            let told = on_call.run(book, first).await;
            parts.iter().all(|part| told.contains(part)).then_some(())
        })
        .await;
    };
    for node in [one, two] {
        sh(node, "install -d -m 2770 -g 65532 odd\ntouch odd/notes").await;
    }
    let store = json!({
        "apiVersion": "vitrine.dev/v1alpha1", "kind": "ImageStore", "metadata": { "name": "odd" },
        "spec": { "filesystem": { "path": format!("{STORES}/odd") } },
    });
    site.cluster.plane().apply(&store.to_string()).await.unwrap();
    let taken = |node: &Node| format!("{}: store odd: {STORES}/odd is no Vitrine store and not empty", node.name());
    let both = [&*taken(one), &taken(two), "Ready=False"];
    shown(STORE_NOT_READY, "kubectl vitrine store show", &both).await;
    sh(one, "rm odd/notes").await;
    look().await;
    // What is no Image's and has a record is an object.
    sh(one, &format!("install -d -m 2770 odd/{ORPHAN}\ntouch odd/{ORPHAN}/image.json")).await;
    let half = ["1 nodes, and not by 1", &*taken(two), "Ready=True", on_call.pod, two.name()];
    shown(STORE_UNREACHABLE, "kubectl get pod POD", &half).await;
    sh(two, "rm odd/notes").await;
    let told = on_call.run(STORE_UNREACHABLE, "kubectl vitrine store probe").await;
    assert!(told.contains(one.name()) && told.contains(two.name()), "{told}");

    for node in [one, two] {
        sh(node, "echo another > odd/.vitrine-owner").await;
    }
    look().await;
    let not_ours = "is written to by another cluster, another";
    shown(STORE_NOT_WRITABLE, "kubectl vitrine store show", &["Writable=False ReadOnly", not_ours]).await;
    let kept = [&*format!("1: {ORPHAN} on node {}", one.name()), "begun action=Delete", "failed error=", not_ours];
    shown(STORE_ORPHANS, "kubectl vitrine store show", &kept).await;
    site.kubectl(&["delete", "imagestore", "odd"]).await;
    for node in [one, two] {
        sh(node, "rm -r odd").await;
    }
}

/// Has the API server refuse to change these objects, whoever asks.
async fn refuse(site: &Site, policy: &str, group: &str, resource: &str, name: &str) {
    let rule = json!({
        "apiGroups": [group], "apiVersions": ["*"], "operations": ["UPDATE"], "resources": [resource], "resourceNames": [name],
    });
    let spec = json!({
        "matchConstraints": { "resourceRules": [rule] }, "validations": [{ "expression": "false", "message": "not today" }],
    });
    let bound = json!({ "policyName": policy, "validationActions": ["Deny"] });
    for (kind, spec) in [("ValidatingAdmissionPolicy", spec), ("ValidatingAdmissionPolicyBinding", bound)] {
        let metadata = json!({ "name": policy });
        let object = json!({ "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": metadata, "spec": spec });
        site.cluster.plane().apply(&object.to_string()).await.unwrap();
    }
}

async fn the_operator_is_refused(site: &Site, desk: &Desk<'_>) {
    let on_call = OnCall { desk, name: "", pod: "" };
    let image = ["image", "first", "-n", TENANT];
    refuse(site, "no-status", "vitrine.dev", "images/status", "first").await;
    site.until("status cannot be written", async || {
        let attempt = ["--subresource=status", "--type=merge", "--patch={}", "--dry-run=server"];
        let done = site.cluster.plane().kubectl(&[&["patch"], &image[..], &attempt].concat()).await.unwrap();
        (!done.status.success()).then_some(())
    })
    .await;
    // Status is to say of each change to spec that it was seen.
    desk.run(&format!("kubectl vitrine image set first --tag seen --namespace {TENANT}")).await;
    site.until("the operator tells of it", async || {
        let label = "app.kubernetes.io/name=vitrine-operator";
        let log = site.kubectl(&["logs", "-n", SPACE, "-l", label, "--tail=-1"]).await;
        log.contains("not today").then_some(())
    })
    .await;
    let told = on_call.run(RECONCILE_FAILING, "kubectl logs").await;
    assert!(told.contains("first") && told.contains("not today") && told.contains("0 problems"), "{told}");
    assert!(!told.contains("was not found in local store"), "{told}");

    refuse(site, "no-leader", "coordination.k8s.io", "leases", "vitrine-operator").await;
    site.until("the operators tell of it", async || {
        let told = on_call.run(NO_LEADER, "kubectl get deployment,pods").await;
        let parts = ["deployment.apps/vitrine-operator", "holderIdentity", "\"leader election\"", "not today"];
        parts.iter().all(|part| told.contains(part)).then_some(())
    })
    .await;
    let kinds = "validatingadmissionpolicies,validatingadmissionpolicybindings";
    site.kubectl(&["delete", kinds, "no-status", "no-leader"]).await;
    site.until("somebody leads again", async || {
        let image = site.image("first").await;
        (image["status"]["observedGeneration"] == image["metadata"]["generation"]).then_some(())
    })
    .await;
}
