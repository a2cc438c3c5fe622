//! The control plane does what Vitrine's tests rely on.

use vitrine_harness::ControlPlane;

const CRD: &str = include_str!("manifests/crd.yaml");
const OWN_NODE_ONLY: &str = include_str!("manifests/own-node-only.yaml");

async fn shared() -> &'static ControlPlane {
    ControlPlane::shared().await.expect("a control plane")
}

async fn run(plane: &ControlPlane, args: &[&str]) -> String {
    plane.kubectl(args).await.expect("kubectl runs").success().expect("kubectl succeeds")
}

async fn install_crd(plane: &ControlPlane) {
    plane.apply(CRD).await.expect("apply");
    run(plane, &["wait", "--for=condition=Established", "crd/errands.lab.vitrine.test"]).await;
}

fn errand(name: &str, node: &str, replicas: i32) -> String {
    format!(
        "{{apiVersion: lab.vitrine.test/v1, kind: Errand, metadata: {{name: {name}}}, spec: {{nodeName: {node}, replicas: {replicas}}}}}"
    )
}

#[tokio::test]
async fn client_and_server_are_the_pinned_version() {
    let versions = run(shared().await, &["version"]).await;
    let module = include_str!("../go/kubernetes/go.mod");
    let pinned =
        module.lines().find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes v")).expect("a pinned version");
    assert_eq!(versions.matches(&format!("Version: v{pinned}")).count(), 2, "{versions}");
}

#[tokio::test]
async fn cel_rules_of_a_crd_are_enforced() {
    let plane = shared().await;
    install_crd(plane).await;
    plane.apply(&errand("good", "n1", 3)).await.expect("an odd number is fine");
    let refusal = plane.apply(&errand("bad", "n1", 2)).await.expect_err("an even number is not").to_string();
    assert!(refusal.contains("replicas must be odd"), "{refusal}");
}

#[tokio::test]
async fn a_node_bound_token_is_known_by_its_node() {
    let plane = shared().await;
    install_crd(plane).await;
    plane.apply(OWN_NODE_ONLY).await.expect("apply");
    for node in ["n1", "n2"] {
        plane.create_node(node).await.expect("a node");
        plane.apply(&errand(&format!("of-{node}"), node, 1)).await.expect("an errand");
    }
    let kubeconfig = plane.kubeconfig_for("default", "agent", Some("n1")).await.expect("a kubeconfig");
    let kubeconfig = kubeconfig.to_str().expect("a path in UTF-8");
    let listed = run(
        plane,
        &["get", "errands", "-o", "name", "--field-selector", "spec.nodeName=n2", "--kubeconfig", kubeconfig],
    )
    .await;
    assert_eq!(listed, "errand.lab.vitrine.test/of-n2\n");

    let label = ["label", "--overwrite", "--kubeconfig", kubeconfig];
    // A policy takes a moment to reach the API server's admission chain.
    let mut refusal = String::new();
    for attempt in 0..100 {
        let output = plane
            .kubectl(&[&label[..], &["errand/of-n2", &format!("attempt=a{attempt}")]].concat())
            .await
            .expect("kubectl runs");
        if !output.status.success() {
            refusal = output.stderr;
            break;
        }
    }
    assert!(refusal.contains("errands of node n2 are not for node n1"), "{refusal}");
    run(plane, &[&label[..], &["errand/of-n1", "seen=yes"]].concat()).await;
}

#[tokio::test]
async fn a_restarted_api_server_has_its_data_at_the_same_place() {
    let plane = ControlPlane::start().await.expect("a control plane");
    let url = plane.url();
    run(&plane, &["create", "namespace", "kept"]).await;
    plane.stop_apiserver().await.expect("stop");
    let refusal = plane.kubectl(&["get", "namespaces"]).await.expect("kubectl runs");
    assert!(!refusal.status.success() && refusal.stderr.contains("refused"), "{refusal:?}");
    plane.start_apiserver().await.expect("start");
    run(&plane, &["get", "namespace", "kept"]).await;

    plane.kill_apiserver();
    plane.start_apiserver().await.expect("start");
    run(&plane, &["get", "namespace", "kept"]).await;
    assert_eq!(plane.url(), url);
    // The controllers have come back to it too.
    run(&plane, &["delete", "namespace", "kept", "--timeout=120s"]).await;
}

#[tokio::test]
async fn two_control_planes_know_nothing_of_each_other() {
    let (one, other) = (shared().await, ControlPlane::start().await.expect("a control plane"));
    assert_ne!(one.url(), other.url());
    run(&other, &["create", "configmap", "mine"]).await;
    let missing = one.kubectl(&["get", "configmap", "mine"]).await.expect("kubectl runs");
    assert!(!missing.status.success() && missing.stderr.contains("NotFound"), "{missing:?}");
    let foreign = other.kubectl(&["get", "namespaces", "--server", &one.url()]).await.expect("kubectl runs");
    assert!(!foreign.status.success() && foreign.stderr.contains("certificate"), "{foreign:?}");
    let dir = other.logs().to_owned();
    drop(other);
    assert!(!dir.exists());
}

#[tokio::test]
async fn what_an_owner_had_is_collected_with_it() {
    let plane = shared().await;
    run(plane, &["create", "namespace", "garbage"]).await;
    run(plane, &["create", "configmap", "owner", "-n", "garbage"]).await;
    let uid = run(plane, &["get", "configmap", "owner", "-n", "garbage", "-o", "jsonpath={.metadata.uid}"]).await;
    let owned = format!(
        "{{apiVersion: v1, kind: ConfigMap, metadata: {{name: owned, namespace: garbage, \
         ownerReferences: [{{apiVersion: v1, kind: ConfigMap, name: owner, uid: {uid}}}]}}}}"
    );
    plane.apply(&owned).await.expect("apply");
    run(plane, &["delete", "configmap", "owner", "-n", "garbage"]).await;
    run(plane, &["wait", "--for=delete", "configmap/owned", "-n", "garbage", "--timeout=120s"]).await;
}

#[tokio::test]
async fn helm_reaches_the_cluster() {
    let listed = shared().await.helm(&["list", "--all-namespaces", "-o", "json"]).await.expect("helm runs");
    assert_eq!(listed.success().expect("helm succeeds").trim(), "[]");
}
