//! The agents' DaemonSet, which the operator keeps as its file has it, with the rights of config/ and no others.

use std::{fs, path::Path};

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;
use vitrine_harness::Process;

use super::lab::{Lab, until};

const NAME: &str = "vitrine-agent";

/// A manifest of agents with the label `app: app` that run `image`.
fn manifest(app: &str, image: &str) -> String {
    let labels = json!({ "app": app });
    let set = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": { "name": NAME },
        "spec": {
            "selector": { "matchLabels": labels },
            "template": {
                "metadata": { "labels": labels },
                "spec": { "containers": [{ "name": "agent", "image": image }] },
            },
        },
    });
    set.to_string()
}

async fn owner(lab: &Lab) -> Deployment {
    let pod = json!({ "containers": [{ "name": "operator", "image": "none" }] });
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": { "name": "vitrine-operator", "namespace": lab.system() },
        "spec": {
            "selector": { "matchLabels": { "app": "operator" } },
            "template": { "metadata": { "labels": { "app": "operator" } }, "spec": pod },
        },
    });
    lab.plane.apply(&deployment.to_string()).await.unwrap();
    let deployments: Api<Deployment> = Api::namespaced(lab.client.clone(), &lab.system());
    deployments.get("vitrine-operator").await.unwrap()
}

async fn operator(lab: &Lab, file: &Path) -> Process {
    let kubeconfig = lab.plane.kubeconfig_for(&lab.system(), "vitrine-operator", None).await.unwrap();
    let mut command = lab.plane.scope().command(env!("CARGO_BIN_EXE_vitrine"));
    command
        .env("KUBECONFIG", kubeconfig)
        .args(["operator", "--namespace", &lab.system(), "--watch-namespace", &lab.name])
        .args(["--store-selector", &format!("vitrine.dev/lab={}", lab.name), "--leader-lease", "3"])
        .args(["--default-store-file", "/nowhere", "--agents-owner", "vitrine-operator", "--agents-file"])
        .arg(file);
    lab.plane.scope().spawn(&format!("{}-operator", lab.name), command).unwrap()
}

/// The DaemonSet, once `wanted` is so.
async fn until_set(lab: &Lab, what: &str, wanted: impl Fn(&DaemonSet) -> bool) -> DaemonSet {
    let sets: Api<DaemonSet> = Api::namespaced(lab.client.clone(), &lab.system());
    let look = || async {
        match sets.get_opt(NAME).await.ok()? {
            Some(set) if wanted(&set) => Some(Ok(set)),
            other => Some(Err(other)),
        }
    };
    until(&format!("the DaemonSet {what}"), look).await
}

fn runs(set: &DaemonSet, image: &str) -> bool {
    let pod = set.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    pod.is_some_and(|pod| pod.containers.iter().any(|container| container.image.as_deref() == Some(image)))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agents_daemonset_is_kept_as_the_file_has_it_and_goes_with_the_operator() {
    let lab = Lab::new("crew").await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("agents.yaml");
    fs::write(&file, manifest("agent", "one")).unwrap();
    let owner = owner(&lab).await;
    let _operator = operator(&lab, &file).await;
    let set = until_set(&lab, "is made", |set| runs(set, "one")).await;
    let owners = set.metadata.owner_references.clone().unwrap();
    assert_eq!((owners[0].name.as_str(), Some(&owners[0].uid)), ("vitrine-operator", owner.metadata.uid.as_ref()));

    let sets: Api<DaemonSet> = Api::namespaced(lab.client.clone(), &lab.system());
    let drift =
        json!({ "spec": { "template": { "spec": { "containers": [{ "name": "agent", "image": "other" }] } } } });
    sets.patch(NAME, &PatchParams::default(), &Patch::Strategic(drift)).await.unwrap();
    let first = set.metadata.generation.unwrap();
    until_set(&lab, "is repaired", |set| runs(set, "one") && set.metadata.generation > Some(first + 1)).await;
    sets.delete(NAME, &DeleteParams::default()).await.unwrap();
    until_set(&lab, "is made again", |again| runs(again, "one") && again.metadata.uid != set.metadata.uid).await;

    fs::write(&file, manifest("agent", "two")).unwrap();
    until_set(&lab, "follows the file", |set| runs(set, "two")).await;
    // The selector of a DaemonSet cannot be changed.
    fs::write(&file, manifest("otherwise", "three")).unwrap();
    let told = || async {
        let events = lab.events(&lab.system(), "vitrine-operator").await;
        let both = ["AgentsNotApplied", "DefaultStoreNotMade"].iter().all(|told| events.contains(&(*told).to_owned()));
        if both { Some(Ok(())) } else { Some(Err(events)) }
    };
    until("who looks at the Deployment is told", told).await;

    let deployments: Api<Deployment> = Api::namespaced(lab.client.clone(), &lab.system());
    deployments.delete("vitrine-operator", &DeleteParams::background()).await.unwrap();
    let gone = || async {
        match sets.get_opt(NAME).await.ok()? {
            None => Some(Ok(())),
            Some(set) => Some(Err(set)),
        }
    };
    until("the DaemonSet goes with the Deployment", gone).await;
}
