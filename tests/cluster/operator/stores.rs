//! The life of an ImageStore.

use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;
use vitrine::api::ImageStore;

use super::{
    agent::Script,
    lab::{Lab, condition, kstatus},
};

fn ready(store: &vitrine::api::ImageStore) -> (String, String, String) {
    condition(&store.status.clone().unwrap_or_default().conditions, "Ready")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_is_ready_when_agents_reach_it() {
    let mut lab = Lab::new("reach").await;
    lab.local_store("fast").await;
    lab.operator().await;
    let lonely = lab.until_store("fast", "waits", |store| ready(store).1 == "Waiting").await;
    assert!(ready(&lonely).2.contains("DaemonSet"));
    lab.agent("n1").await;
    lab.agent("n2").await;
    let store = lab.until_store("fast", "is reached by both", |store| ready(store).2.contains("2 of 2 agents")).await;
    let status = store.status.unwrap();
    assert_eq!(condition(&status.conditions, "Writable").0, "True");
    assert_eq!((status.capacity.unwrap().available, status.nodes.unwrap().reachable), (800 << 20, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_default_stores_the_older_is_used_and_the_newer_says_so() {
    let mut lab = Lab::new("default").await;
    let spec = |path: &str| json!({ "default": true, "filesystem": { "path": path } });
    lab.store("old", spec("/srv/old")).await;
    // Creation times have whole seconds.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    lab.store("new", spec("/srv/new")).await;
    lab.operator().await;
    lab.agent("n1").await.script(Script::Succeed("one"));
    let new = lab
        .until_store("new", "says who is the default", |store| ready(store).2.contains("default-old says so too"))
        .await;
    assert!(!new.status.unwrap().default);
    lab.image("debian", "old").await;
    lab.patch_image("debian", json!({ "spec": { "stores": [] } })).await;
    let image = lab.until_image("debian", "is active", |image| kstatus(image) == "Current").await;
    assert_eq!(image.status.unwrap().locations[0].store, "default-old");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_in_use_is_not_let_go() {
    let (lab, agent, _) = Lab::active("inuse").await;
    lab.stores().delete("inuse-fast", &DeleteParams::default()).await.unwrap();
    let held = lab.until_store("fast", "says who uses it", |store| ready(store).1 == "InUse").await;
    assert!(ready(&held).2.contains("1 Images") && ready(&held).2.contains("inuse/debian"), "{:?}", ready(&held));
    assert_eq!(agent.disk().len(), 1, "the data is untouched");
    let image = lab.until_image("debian", "says that its store goes", |image| kstatus(image) == "Failed").await;
    let status = image.status.unwrap();
    assert!(condition(&status.conditions, "Ready").2.contains("is being deleted"));
    assert_eq!(status.locations.len(), 1, "it still serves");
    lab.delete_image("debian").await;
    lab.until_image_gone("debian").await;
    assert!(agent.disk().is_empty(), "the data was removed before the store went");
    let start = std::time::Instant::now();
    while lab.stores().get_opt("inuse-fast").await.unwrap().is_some() {
        assert!(start.elapsed() < super::lab::PATIENCE, "the store stays");
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
}

/// By an operator that may not yet, and by one that finds that somebody has changed it.
#[tokio::test(flavor = "multi_thread")]
async fn the_store_to_begin_with_is_made_if_it_is_not_there_and_never_changed() {
    let mut lab = Lab::new("first").await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("store.yaml");
    let metadata = json!({ "name": lab.store_name("local"), "labels": { "vitrine.dev/lab": lab.name } });
    let spec = json!({ "weight": 1, "filesystem": { "path": "/srv/first" } });
    let store =
        json!({ "apiVersion": "vitrine.dev/v1alpha1", "kind": "ImageStore", "metadata": metadata, "spec": spec });
    std::fs::write(&file, store.to_string()).unwrap();
    lab.default_store = Some(file);
    lab.operator().await;
    lab.agent("n1").await;
    lab.local_store("other").await;
    lab.until_store("other", "is ready", |store| ready(store).0 == "True").await;
    let stores = Api::<ImageStore>::all(lab.client.clone());
    assert!(stores.get_opt(&lab.store_name("local")).await.unwrap().is_none(), "it has no right to");
    let role = ["create", "clusterrole", "first-makes", "--verb=create", "--resource=imagestores.vitrine.dev"];
    let account = format!("--serviceaccount={}:vitrine-operator", lab.system());
    let bind = ["create", "clusterrolebinding", "first-makes", "--clusterrole=first-makes", &account];
    for line in [&role[..], &bind] {
        lab.plane.kubectl(line).await.unwrap().success().unwrap();
    }
    lab.until_store("local", "is made", |store| ready(store).0 == "True" && store.spec.weight == 1).await;
    let change = Patch::Merge(json!({ "spec": { "weight": 7 } }));
    stores.patch(&lab.store_name("local"), &PatchParams::default(), &change).await.unwrap();
    lab.dismiss();
    lab.operator().await;
    lab.local_store("another").await;
    lab.until_store("another", "is ready", |store| ready(store).0 == "True").await;
    assert_eq!(stores.get(&lab.store_name("local")).await.unwrap().spec.weight, 7);
}
