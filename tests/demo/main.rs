//! The demo as a person starts it, `make demo`, alone and on a cluster that is somebody's: what it leaves, refuses and survives.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test may end by panicking; clippy.toml allows it in #[test] functions only, not in what they call"
)]

mod run;

use std::path::Path;

use run::{Cluster, Demo};
use vitrine_harness::ControlPlane;

/// A proxy that nobody serves. On loopback nothing may go through it.
const DEAD_PROXY: [(&str, &str); 2] = [("HTTP_PROXY", "http://127.0.0.1:9"), ("HTTPS_PROXY", "http://127.0.0.1:9")];

#[tokio::test(flavor = "multi_thread")]
async fn alone_it_uses_its_own_cluster_whatever_the_shell_exports() {
    let plane = ControlPlane::start().await.unwrap();
    let cluster = Cluster::of(&plane);
    let before = cluster.everything().await;
    let demo = Demo::make(None, &[("KUBECONFIG", plane.kubeconfig().to_str().unwrap()), DEAD_PROXY[0], DEAD_PROXY[1]]);
    let (status, said) = demo.end().await;
    assert!(status.success(), "{said}");
    assert!(said.contains("Images are identical"), "{said}");
    assert_eq!(cluster.everything().await, before, "it changed the cluster that KUBECONFIG named");
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_cluster_that_exists_it_leaves_nothing_and_lets_nobody_in_between() {
    let plane = ControlPlane::start().await.unwrap();
    let cluster = Cluster::of(&plane);
    let refused = refusal(&plane).await;
    assert!(refused.contains("the cluster has no Node"), "{refused}");
    cluster.add_nodes().await;
    let before = cluster.everything().await;

    // Killed in the middle: its processes and files go at once, the next one removes what is in the cluster.
    let killed = Demo::script(&plane.kubeconfig());
    cluster.wait_for("images", "debian").await;
    let scope = killed.scope();
    killed.kill().await;
    run::until("nothing of it is on this machine", || scope.is_gone()).await;
    assert_ne!(cluster.everything().await, before, "the killed one had made nothing");

    let demo = Demo::make(Some(&plane.kubeconfig()), &DEAD_PROXY);
    demo.wait_for("Six images").await;
    let second = refusal(&plane).await;
    assert!(second.contains("another run of the demo is using this cluster"), "{second}");
    let (status, said) = demo.end().await;
    assert!(status.success(), "{said}");
    assert!(said.contains("It is dead: removing what it left"), "{said}");
    for promised in ["context lab", &plane.url(), "own-1, own-2, which are not touched", "Images are identical"] {
        assert!(said.contains(promised), "{promised}: {said}");
    }
    assert_eq!(cluster.everything().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_touches_nothing_where_vitrine_is_and_where_it_may_not() {
    let plane = ControlPlane::start().await.unwrap();
    let cluster = Cluster::of(&plane);
    cluster.add_nodes().await;

    let reader = cluster.reader().await;
    let before = cluster.everything_with_versions().await;
    let (status, said) = Demo::make(Some(&reader), &[]).end().await;
    assert!(!status.success(), "{said}");
    assert!(said.contains("changed nothing") && said.contains("clusterroles: create, patch, delete\n"), "{said}");
    assert_eq!(cluster.everything_with_versions().await, before);

    // Each of these alone is somebody's: one CRD with an Image of it, a role, the tenant's namespace.
    let crd =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("crds/vitrine.dev_images.yaml")).unwrap();
    let image = "{apiVersion: vitrine.dev/v1alpha1, kind: Image, metadata: {name: precious, namespace: default}, \
                 spec: {source: {http: {url: 'https://example.org/disk'}}}}";
    let role = "{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: vitrine-view}}";
    let space = "{apiVersion: v1, kind: Namespace, metadata: {name: vitrine-demo}}";
    for (manifests, name) in [
        (&[crd.as_str(), image][..], "CustomResourceDefinition images.vitrine.dev"),
        (&[role], "ClusterRole vitrine-view"),
        (&[space], "Namespace vitrine-demo"),
    ] {
        for manifest in manifests {
            cluster.apply(manifest).await;
        }
        let before = cluster.everything_with_versions().await;
        let said = refusal(&plane).await;
        assert!(said.contains("is left alone") && said.contains(name), "{said}");
        assert_eq!(cluster.everything_with_versions().await, before);
        for manifest in manifests.iter().rev() {
            cluster.delete(manifest).await;
        }
    }
}

/// What the demo says when it refuses the cluster.
async fn refusal(plane: &ControlPlane) -> String {
    let (status, said) = Demo::make(Some(&plane.kubeconfig()), &[]).end().await;
    assert!(!status.success(), "it did not refuse: {said}");
    assert!(said.contains("The demo did not begin, and changed nothing"), "{said}");
    said
}
