//! Stores in pools of a real Ceph cluster: declared, imported into, copied to, left, and held by clones.

use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use vitrine::api::{Image, ImageStore};
use vitrine_harness::{CephCluster, Route};

use super::{
    several::{choose, make},
    site::{Site, condition},
};
use crate::node::{
    disks::{raw, sha256, sha256_of},
    lab::until,
};

const SIZE: usize = 24 << 20;
const POOL: &str = "images";

/// The cluster that all tests share, with its pool.
async fn ceph() -> &'static CephCluster {
    static READY: OnceCell<&'static CephCluster> = OnceCell::const_new();
    let ready = async || {
        let cluster = CephCluster::shared().await.unwrap();
        cluster.create_pool(POOL).await.unwrap();
        cluster
    };
    *READY.get_or_init(ready).await
}

/// Makes the Secret `name` beside the agents.
async fn secret(site: &Site<'_>, name: &str, key: &str) {
    let manifest = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name, "namespace": site.lab.namespace },
        "stringData": { "userID": "vitrine", "userKey": key },
    });
    site.lab.plane.apply(&manifest.to_string()).await.unwrap();
}

/// Makes the ImageStore `short` in a namespace of the pool, which is made too.
async fn pool(site: &Site<'_>, short: &str, secret: &str) -> String {
    let (ceph, namespace) = (ceph().await, site.store_name(short));
    ceph.create_namespace(POOL, &namespace).await.unwrap();
    let manifest = json!({
        "apiVersion": "vitrine.dev/v1alpha1", "kind": "ImageStore",
        "metadata": { "name": site.store_name(short), "labels": { "vitrine.dev/lab": site.lab.namespace } },
        "spec": { "rbd": { "monitors": [ceph.monitors()], "pool": POOL, "namespace": namespace, "secretRef": { "name": secret } } },
    });
    site.lab.plane.apply(&manifest.to_string()).await.unwrap();
    format!("{POOL}/{namespace}")
}

async fn key() -> String {
    let caps = [("mon", "profile rbd"), ("osd", "profile rbd"), ("mgr", "profile rbd")];
    ceph().await.create_user("vitrine", &caps).await.unwrap()
}

/// The message of the store's condition `Ready`, once that has this status.
async fn ready(site: &Site<'_>, short: &str, status: &str) -> String {
    let (stores, name) = (site.stores(), site.store_name(short));
    until(&format!("ImageStore {name} is Ready={status}"), async || {
        let store: ImageStore = stores.get(&name).await.ok()?;
        let conditions = store.status?.conditions;
        let found =
            conditions.into_iter().find(|condition| condition.type_ == "Ready" && condition.status == status)?;
        Some(found.message)
    })
    .await
}

/// What `rbd` says of the images in a pool.
async fn listed(spec: &str) -> Vec<String> {
    let text = ceph().await.rbd(&["ls", spec]).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn url(image: &Image, store: &str) -> Option<(String, i64)> {
    let locations = &image.status.as_ref()?.locations;
    let found = locations.iter().find(|location| location.store == store && location.phase.is_copy())?;
    Some((found.url.clone()?, found.allocated_size?))
}

#[tokio::test]
async fn an_image_goes_into_a_pool_and_a_folder_at_once_and_is_a_snapshot_to_clone_from() {
    let (site, ceph) = (Site::shared("pools").await, ceph().await);
    let node = site.lab.node("n").await;
    let (_operator, _agent) = (site.operator(&[]), site.lab.start(&node, &[]));
    secret(&site, "ceph", &key().await).await;
    let spec = pool(&site, "ceph", "ceph").await;
    site.store("folder", &node.store(), false, None).await;
    ready(&site, "ceph", "True").await;
    // Data in objects 0 and 4 of 6.
    let mut disk = vec![0; SIZE];
    disk[..1 << 20].copy_from_slice(&raw(7, 1 << 20));
    disk[17 << 20..18 << 20].copy_from_slice(&raw(8, 1 << 20));
    site.lab.server.put("/disk", Route::bytes(disk.clone()));
    make(&site, "disk", &["ceph", "folder"], json!({})).await;
    let image = site.active("t", "disk").await;
    let (found, allocated) = url(&image, &site.store_name("ceph")).unwrap();
    let name =
        found.strip_prefix(&format!("rbd://{}/{spec}/", ceph.fsid())).and_then(|rest| rest.strip_suffix("/snap"));
    let name = format!("{spec}/{}", name.unwrap_or_else(|| panic!("{found}")));
    assert!(allocated <= 8 << 20, "{allocated} bytes in two objects");
    let copy = node.stores.join("exported");
    ceph.rbd(&["export", &format!("{name}@snap"), copy.to_str().unwrap()]).unwrap();
    assert_eq!(sha256_of(&copy), sha256(&disk));

    // It is left, and filled again from the folder.
    let sent = site.lab.server.sent("/disk");
    choose(&site, "disk", &["folder"]).await;
    until("the pool is empty", async || listed(&spec).await.is_empty().then_some(())).await;
    choose(&site, "disk", &["ceph", "folder"]).await;
    site.wait_for("t", "disk", "is in the pool", |image| url(image, &site.store_name("ceph")).is_some()).await;
    let again = node.stores.join("again");
    ceph.rbd(&["export", &format!("{name}@snap"), again.to_str().unwrap()]).unwrap();
    assert_eq!(sha256_of(&again), sha256(&disk));
    assert_eq!(site.lab.server.sent("/disk"), sent, "nothing was fetched again");
}

#[tokio::test]
async fn an_image_with_clones_waits_for_them_and_says_which() {
    let (site, ceph) = (Site::shared("clones").await, ceph().await);
    let node = site.lab.node("n").await;
    let (_operator, _agent) = (site.operator(&[]), site.lab.start(&node, &[]));
    secret(&site, "ceph", &key().await).await;
    let spec = pool(&site, "ceph", "ceph").await;
    site.lab.server.put("/disk", Route::bytes(raw(9, 5 << 20)));
    make(&site, "disk", &["ceph"], json!({})).await;
    site.active("t", "disk").await;
    let name = listed(&spec).await.into_iter().find(|name| !name.starts_with('.')).unwrap();
    ceph.rbd(&["clone", &format!("{spec}/{name}@snap"), &format!("{spec}/volume-1")]).unwrap();
    site.images("t").delete("disk", &DeleteParams::default()).await.unwrap();
    let told = |image: &Image| {
        condition(image, "Reconciling").is_some_and(|c| c.message.contains("volume-1"))
            || condition(image, "Ready").is_some_and(|c| c.message.contains("volume-1"))
    };
    site.wait_for("t", "disk", "says who holds it", told).await;
    ceph.rbd(&["rm", &format!("{spec}/volume-1")]).unwrap();
    let images = site.images("t");
    until("the Image is gone", async || images.get_opt("disk").await.ok()?.is_none().then_some(())).await;
    assert_eq!(listed(&spec).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_wrong_key_is_told_and_the_right_one_found_by_itself() {
    let site = Site::shared("keys").await;
    let node = site.lab.node("n").await;
    let (_operator, _agent) = (site.operator(&[]), site.lab.start(&node, &["--probe-interval", "1"]));
    pool(&site, "ceph", "ceph").await;
    let message = ready(&site, "ceph", "False").await;
    assert!(message.contains("Secret ceph is not there") && message.contains("userKey"), "{message}");
    secret(&site, "ceph", "AQDYtRlnAAAAABAAtTb6Qd9Qw2iXW1yQ0m0XZw==").await;
    let wrong = async || Some(ready(&site, "ceph", "False").await).filter(|message| message.contains("key"));
    let told = until("the wrong key is told", async || wrong().await.filter(|m| !m.contains("is not there"))).await;
    assert!(told.contains("vitrine") && !told.contains("AQDYtRl"), "{told}");
    secret(&site, "ceph", &key().await).await;
    ready(&site, "ceph", "True").await;
    // Another pool in its place is refused.
    let other: Value = json!({ "spec": { "rbd": { "pool": "other" } } });
    let refused = site.stores().patch(&site.store_name("ceph"), &PatchParams::default(), &Patch::Merge(other)).await;
    assert!(refused.unwrap_err().to_string().contains("cannot be changed"));
}
