//! What agents and people may do.

use serde_json::json;

use super::lab::{Lab, client_of};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use vitrine::api::{ImageTask, NodeCache, NodeCacheSpec};

async fn make_task(lab: &Lab, name: &str, node: &str) {
    let sample = include_str!("../../../config/samples/imagetask.yaml")
        .replace("vitrine-system", &lab.system())
        .replace("0b5f5f8e-8f5c-4a57-9c3f-1d2d3c4b5a69-r1-import-1", name)
        .replace("nodeName: node-1", &format!("nodeName: {node}"));
    lab.plane.apply(&sample).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_sees_its_nodes_tasks_and_changes_no_others() {
    let lab = Lab::new("bound").await;
    let (one, two) = (lab.node("n1"), lab.node("n2"));
    for node in [&one, &two] {
        lab.plane.create_node(node).await.unwrap();
    }
    make_task(&lab, "task-1", &one).await;
    make_task(&lab, "task-2", &two).await;
    let client = client_of(lab.plane.kubeconfig_for(&lab.system(), "vitrine-agent", Some(&one)).await.unwrap()).await;
    let tasks: Api<ImageTask> = Api::namespaced(client.clone(), &lab.system());
    let ours = tasks.list(&ListParams::default().fields(&format!("spec.nodeName={one}"))).await.unwrap();
    assert_eq!(super::lab::task_names(&ours.items), ["task-1"]);

    let (params, run) = (PatchParams::default(), Patch::Merge(json!({ "status": { "phase": "Running" } })));
    tasks.patch_status("task-1", &params, &run).await.unwrap();
    let refused = tasks.patch_status("task-2", &params, &run).await.unwrap_err().to_string();
    assert!(refused.contains(&format!("may not change imagetasks task-2, which belongs to node {two}")), "{refused}");
    let spec = Patch::Merge(json!({ "spec": { "cancelled": true } }));
    assert!(
        tasks.patch("task-1", &params, &spec).await.unwrap_err().to_string().contains("forbidden"),
        "spec is the operator's"
    );

    let caches: Api<NodeCache> = Api::all(client.clone());
    let cache = |name: &str| NodeCache::new(name, NodeCacheSpec::default());
    caches.create(&PostParams::default(), &cache(&one)).await.unwrap();
    let refused = caches.create(&PostParams::default(), &cache(&two)).await.unwrap_err().to_string();
    assert!(refused.contains(&format!("which belongs to node {two}")), "{refused}");

    let leases: Api<k8s_openapi::api::coordination::v1::Lease> = Api::namespaced(client, &lab.system());
    for (name, allowed) in [
        (format!("vitrine-agent-{one}"), true),
        (format!("vitrine-agent-{two}"), false),
        ("vitrine-operator".into(), false),
    ] {
        let lease = json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": { "name": name } });
        let made = leases.patch(&name, &PatchParams::apply("vitrine-agent"), &Patch::Apply(lease)).await;
        assert_eq!(made.is_ok(), allowed, "{name}: {made:?}");
    }
    // A token that names no node (one made by hand) may do nothing.
    let client = client_of(lab.plane.kubeconfig_for(&lab.system(), "vitrine-agent", None).await.unwrap()).await;
    let tasks: Api<ImageTask> = Api::namespaced(client, &lab.system());
    let refused = tasks.patch_status("task-1", &params, &run).await.unwrap_err().to_string();
    assert!(refused.contains("names no node"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_protected_image_cannot_be_deleted() {
    let lab = Lab::new("protected").await;
    lab.image("golden", "none").await;
    lab.patch_image("golden", json!({ "spec": { "protected": true } })).await;
    let refused = lab.images().delete("golden", &DeleteParams::default()).await.unwrap_err().to_string();
    assert!(refused.contains("Image protected/golden is protected: set spec.protected to false first"), "{refused}");
    lab.patch_image("golden", json!({ "spec": { "protected": false } })).await;
    lab.delete_image("golden").await;
    lab.until_image_gone("golden").await;
}
