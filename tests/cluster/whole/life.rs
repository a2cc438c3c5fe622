//! The life of Images: imported, changed, one of two with the same name, deleted; and that of the store they are in.

use kube::api::DeleteParams;
use serde_json::json;
use vitrine_harness::{Fault, Route};

use super::site::{Site, file, is, staffed};
use crate::node::{
    disks::{entries, raw, sha256, sha256_of},
    lab::until,
};

#[tokio::test]
async fn an_image_is_imported_changed_and_deleted() {
    let site = Site::shared("life").await;
    let node = site.lab.node("n").await;
    let (_operator, _agent) = (site.operator(&[]), site.lab.start(&node, &[]));
    let folder = node.store();
    site.store("s", &folder, false, None).await;
    let (one, two) = (raw(1, 2 << 20), raw(2, 3 << 20));
    site.lab.server.put("/one", Route::bytes(one.clone()));
    site.lab.server.put("/two", Route::bytes(two.clone()).always(Fault::Rate(1 << 20)));
    site.image("t", "disk", "/one", "s").await;
    let first = site.active("t", "disk").await;
    let status = first.status.clone().unwrap();
    let content = status.content.unwrap();
    assert_eq!((status.revision, content.digests), (Some(1), vec![sha256(&one)]));
    assert_eq!((content.size, content.virtual_size), (2 << 20, 2 << 20));
    assert_eq!(status.locations[0].node.as_deref(), Some(node.name.as_str()));
    assert_eq!(sha256_of(&file(&first)), sha256(&one));

    // While the next revision comes, the first one serves.
    site.patch("disk", json!({ "spec": { "source": { "http": { "url": site.lab.server.url("/two") } } } })).await;
    let between = site.wait_for("t", "disk", "is Reconciling", |image| is(image, "Reconciling", "True")).await;
    assert_eq!(between.status.as_ref().unwrap().revision, Some(1));
    assert_eq!(sha256_of(&file(&between)), sha256(&one));
    let changed = |image: &vitrine::api::Image| image.status.as_ref().is_some_and(|status| status.revision == Some(2));
    let second = site.wait_for("t", "disk", "has revision 2", changed).await;
    assert_eq!(sha256_of(&file(&second)), sha256(&two));
    let only = format!("{}-r2", second.metadata.uid.as_deref().unwrap());
    until("the old revision is removed", async || (entries(&folder) == [only.clone()]).then_some(())).await;
    site.active("t", "disk").await;
    site.delete("t", "disk").await;
    assert_eq!(entries(&folder), [""; 0]);
    node.assert_clean();
}

#[tokio::test]
async fn two_images_of_one_name_in_two_namespaces_never_meet() {
    let (site, node, _staff) = staffed("namesakes", &[]).await;
    let (mine, yours) = (raw(1, 1 << 20), raw(2, 1 << 20));
    site.lab.server.put("/mine", Route::bytes(mine.clone()));
    site.lab.server.put("/yours", Route::bytes(yours.clone()));
    site.image("t", "disk", "/mine", "s").await;
    site.image("u", "disk", "/yours", "s").await;
    assert_eq!(sha256_of(&file(&site.active("t", "disk").await)), sha256(&mine));
    let other = site.active("u", "disk").await;
    assert_eq!(entries(&node.store()).len(), 2);
    site.delete("t", "disk").await;
    assert_eq!(sha256_of(&file(&other)), sha256(&yours));
    assert_eq!(entries(&node.store()).len(), 1);
}

#[tokio::test]
async fn a_store_in_use_stays_until_its_last_image_is_gone() {
    let (site, node, _staff) = staffed("in-use", &[]).await;
    let disk = raw(1, 1 << 20);
    site.lab.server.put("/disk", Route::bytes(disk.clone()));
    site.image("t", "disk", "/disk", "s").await;
    let image = site.active("t", "disk").await;
    let (stores, name) = (site.stores(), site.store_name("s"));
    stores.delete(&name, &DeleteParams::default()).await.unwrap();
    let in_use = async || {
        let store = stores.get(&name).await.unwrap();
        store.status?.conditions.into_iter().find(|condition| condition.reason == "InUse")
    };
    until("the store says that it is in use", in_use).await;
    assert_eq!(sha256_of(&file(&image)), sha256(&disk));
    site.delete("t", "disk").await;
    until("the store is gone", async || stores.get_opt(&name).await.unwrap().is_none().then_some(())).await;
    assert_eq!(entries(&node.store()), [""; 0]);
}
