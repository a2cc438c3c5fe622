//! Volumes that are not mounted: an empty folder in a store's place is never taken for it, whatever the agent has forgotten.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use vitrine::api::{FilesystemBackend, ImageStore, ImageStoreSpec, NodeCache, StoreReport};
use vitrine_harness::{Process, Route};

use super::{
    disks::{entries, raw},
    lab::{Lab, Node, Order, until},
};

const MARKER: &str = ".vitrine-store";

/// Makes the ImageStore `name` for the folder of `node`'s store, reached by the nodes with this host name, or by all if it is shared.
async fn create(lab: &Lab<'_>, name: &str, node: &Node, shared: bool) {
    let filesystem = FilesystemBackend { path: node.store().display().to_string(), shared };
    let mut spec = ImageStoreSpec { backend: filesystem.into(), ..ImageStoreSpec::default() };
    if !shared {
        spec.node_selector.insert("kubernetes.io/hostname".to_owned(), node.name.clone());
    }
    stores(lab).create(&PostParams::default(), &ImageStore::new(name, spec)).await.unwrap();
}

fn stores(lab: &Lab<'_>) -> Api<ImageStore> {
    Api::all(lab.client.clone())
}

/// What `node` reports of the store, once it is `ready` or not.
async fn report(lab: &Lab<'_>, node: &Node, store: &str, ready: bool) -> StoreReport {
    reported(lab, node, store, |report| report.ready == ready).await
}

/// What the agent on `node` reports of `store`, once `is_so` holds of it.
async fn reported(lab: &Lab<'_>, node: &Node, store: &str, is_so: impl Fn(&StoreReport) -> bool) -> StoreReport {
    let caches = Api::<NodeCache>::all(lab.client.clone());
    until(&format!("{} reports {store} as expected", node.name), async || {
        let reports = caches.get_opt(&node.name).await.ok()??.status?.stores;
        reports.into_iter().find(|report| report.name == store && is_so(report))
    })
    .await
}

/// Starts an agent that sees an empty file system in memory over `folder`, with an empty folder for the store in it. Gives the
/// store's folder as the agent sees it.
fn start_on_an_empty_volume(lab: &Lab<'_>, node: &Node, over: &Node) -> (Process, PathBuf) {
    let (root, store) = (over.stores.display(), over.store());
    let mount = format!("mount -t tmpfs tmpfs {root} && mkdir {} && exec \"$@\"", store.display());
    let wrapper = ["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", &mount, "sh"];
    let root = root.to_string();
    let agent = lab.start_in(node, &wrapper, &["--store-root", &root]);
    let inside = PathBuf::from(format!("/proc/{}/root{}", agent.id(), store.display()));
    (agent, inside)
}

fn is_untouched(folder: &Path) -> bool {
    std::fs::read_dir(folder).unwrap().count() == 0
}

#[tokio::test]
async fn an_agent_that_forgot_everything_does_not_take_an_empty_mount_point_for_its_store() {
    let lab = Lab::shared("forgetful").await;
    let node = lab.node("n").await;
    std::fs::create_dir(node.store()).unwrap();
    create(&lab, "forgetful", &node, false).await;
    let (agent, inside) = start_on_an_empty_volume(&lab, &node, &node);
    let before = report(&lab, &node, "forgetful", true).await;
    assert!(before.id.is_some() && inside.join(MARKER).exists(), "{before:?}");
    drop(agent);
    std::fs::remove_dir_all(&node.work).unwrap();
    // The volume went with the agent: what is left is the folder that it was mounted on.
    let agent = lab.start(&node, &[]);
    let after = report(&lab, &node, "forgetful", false).await;
    assert!(after.message.contains("is its volume mounted"), "{after:?}");
    assert_eq!(after.id, before.id, "what is missed is still known");
    // Nor does a task that knows no better.
    lab.server.put("/disk", Route::bytes(raw(1, 1 << 20)));
    let mut order = node.order("a", &lab.server.url("/disk"));
    order.import.stores[0].name = "forgetful".to_owned();
    let failure = lab.failure(&lab.import(&order).await).await;
    assert_eq!((failure.reason.as_str(), failure.retryable), ("Unavailable", true), "{}", failure.message);
    assert!(failure.message.contains(&node.name) && failure.message.contains(&before.id.unwrap()), "{failure:?}");
    let failure = lab.failure(&lab.delete(&order).await).await;
    assert!(failure.retryable, "what cannot be seen is not removed: {failure:?}");
    assert!(is_untouched(&node.store()));

    // Deleted and made anew, it is another store, which begins with an empty folder.
    stores(&lab).delete("forgetful", &DeleteParams::default()).await.unwrap();
    create(&lab, "forgetful", &node, false).await;
    let anew = report(&lab, &node, "forgetful", true).await;
    assert!(anew.id.is_some() && anew.id != after.id, "{anew:?}");
    stores(&lab).delete("forgetful", &DeleteParams::default()).await.unwrap();
    drop(agent);
}

#[tokio::test]
async fn a_node_without_the_shared_volume_does_not_make_a_store_of_its_own() {
    let lab = Lab::shared("shared-volume").await;
    let (first, second) = (lab.node("a").await, lab.node("b").await);
    create(&lab, "shared-volume", &first, true).await;
    let _agent = lab.start(&first, &[]);
    let id = report(&lab, &first, "shared-volume", true).await.id.unwrap();
    // As the operator writes it.
    let status = Patch::Merge(json!({ "status": { "id": id } }));
    stores(&lab).patch_status("shared-volume", &PatchParams::default(), &status).await.unwrap();
    let (other, inside) = start_on_an_empty_volume(&lab, &second, &first);
    let refused = report(&lab, &second, "shared-volume", false).await;
    assert!(refused.message.contains(&id), "{refused:?}");
    lab.server.put("/disk", Route::bytes(raw(1, 1 << 20)));
    let mut order = Order::new(&second.name, "a", &lab.server.url("/disk"), &first.store(), true);
    order.import.stores[0].name = "elsewhere".to_owned();
    order.import.stores[0].store_id = Some(id.clone());
    let failure = lab.failure(&lab.import(&order).await).await;
    assert!(failure.retryable && failure.message.contains(&id), "{failure:?}");
    assert!(is_untouched(&inside));
    assert_eq!(entries(&first.store()), [""; 0]);
    stores(&lab).delete("shared-volume", &DeleteParams::default()).await.unwrap();
    drop(other);
}

#[tokio::test]
async fn a_store_of_another_cluster_is_read_at_most() {
    let lab = Lab::shared("foreign").await;
    let node = lab.node("n").await;
    let mark = node.store().join(".vitrine-owner");
    std::fs::create_dir(node.store()).unwrap();
    std::fs::write(&mark, "1f3c-of-another").unwrap();
    create(&lab, "foreign", &node, false).await;
    let _agent = lab.start(&node, &["--probe-interval", "1"]);
    let foreign = |report: &StoreReport| report.ready && report.read_only;
    let own = |report: &StoreReport| report.ready && !report.read_only;
    let told = reported(&lab, &node, "foreign", foreign).await.message;
    assert!(told.contains("another cluster, 1f3c-of-another") && told.contains("readOnly"), "{told}");
    // Nor does a task write there.
    lab.server.put("/disk", Route::bytes(raw(1, 1 << 20)));
    let mut order = node.order("a", &lab.server.url("/disk"));
    order.import.stores[0].name = "foreign".to_owned();
    let failure = lab.failure(&lab.import(&order).await).await;
    assert!(failure.reason == "Denied" && failure.message.contains("1f3c-of-another"), "{failure:?}");
    assert_eq!(entries(&node.store()), [""; 0]);

    let read_only = |value: bool| Patch::Merge(json!({ "spec": { "readOnly": value } }));
    stores(&lab).patch("foreign", &PatchParams::default(), &read_only(true)).await.unwrap();
    reported(&lab, &node, "foreign", own).await;
    assert_eq!(std::fs::read_to_string(&mark).unwrap(), "1f3c-of-another");
    stores(&lab).patch("foreign", &PatchParams::default(), &read_only(false)).await.unwrap();
    reported(&lab, &node, "foreign", foreign).await;
    // Handed over.
    std::fs::remove_file(&mark).unwrap();
    reported(&lab, &node, "foreign", own).await;
    let cluster = Api::<Namespace>::all(lab.client.clone()).get("kube-system").await.unwrap().metadata.uid.unwrap();
    assert_eq!(std::fs::read_to_string(&mark).unwrap(), cluster);
    stores(&lab).delete("foreign", &DeleteParams::default()).await.unwrap();
}
