//! Stores in pools of a real Ceph cluster: declared, imported into, copied to, left, and held by clones.

use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use vitrine::api::Image;
use vitrine_harness::{Process, Route};

use super::{
    ceph::{self, POOL, USER, assert_holds, listed, location, ready, secret, told},
    several::{choose, events, make},
    site::{Site, condition, is},
};
use crate::node::{disks::raw, lab::until};

const SIZE: usize = 24 << 20;

/// An operator and an agent, and two stores: `ceph` in a pool, as which it is given, and `folder` on the node.
async fn pool_and_folder(site: &Site<'_>) -> (String, [Process; 2]) {
    let node = site.lab.node("n").await;
    let running = [site.operator(&[]), site.lab.start(&node, &[])];
    let spec = ceph::store(site, "ceph").await;
    site.store("folder", &node.store(), false, None).await;
    ready(site, "ceph", "True").await;
    (spec, running)
}

#[tokio::test]
async fn an_image_goes_into_a_pool_and_a_folder_at_once_and_is_a_snapshot_to_clone_from() {
    let (site, cluster) = (Site::shared("pools").await, ceph::shared().await);
    let (spec, _running) = pool_and_folder(&site).await;
    // Data in objects 0 and 4 of 6.
    let mut disk = vec![0; SIZE];
    disk[..1 << 20].copy_from_slice(&raw(7, 1 << 20));
    disk[17 << 20..18 << 20].copy_from_slice(&raw(8, 1 << 20));
    site.lab.server.put("/disk", Route::bytes(disk.clone()));
    make(&site, "disk", &["ceph", "folder"], json!({})).await;
    let image = site.active("t", "disk").await;
    let (url, allocated) = location(&image, &site.store_name("ceph")).unwrap();
    assert!(url.starts_with(&format!("rbd://{}/{spec}/", cluster.fsid())), "{url}");
    assert!(allocated <= 8 << 20, "{allocated} bytes in two objects");
    assert_holds(&site, cluster, &image, "ceph", &disk);

    // It is left, and filled again from the folder.
    let sent = site.lab.server.sent("/disk");
    choose(&site, "disk", &["folder"]).await;
    until("the pool is empty", async || listed(cluster, &spec).is_empty().then_some(())).await;
    choose(&site, "disk", &["ceph", "folder"]).await;
    let there = |image: &Image| location(image, &site.store_name("ceph")).is_some();
    let image = site.wait_for("t", "disk", "is in the pool", there).await;
    assert_holds(&site, cluster, &image, "ceph", &disk);
    assert_eq!(site.lab.server.sent("/disk"), sent, "nothing was fetched again");
}

#[tokio::test]
async fn an_image_with_clones_waits_for_them_and_says_which() {
    let (site, cluster) = (Site::shared("clones").await, ceph::shared().await);
    let node = site.lab.node("n").await;
    let (_operator, _agent) = (site.operator(&[]), site.lab.start(&node, &[]));
    let spec = ceph::store(&site, "ceph").await;
    site.lab.server.put("/disk", Route::bytes(raw(9, 5 << 20)));
    make(&site, "disk", &["ceph"], json!({})).await;
    site.active("t", "disk").await;
    let name = listed(cluster, &spec).into_iter().find(|name| !name.starts_with('.')).unwrap();
    cluster.rbd(&["clone", &format!("{spec}/{name}@snap"), &format!("{spec}/volume-1")]).unwrap();
    site.images("t").delete("disk", &DeleteParams::default()).await.unwrap();
    let told = |image: &Image| {
        condition(image, "Reconciling").is_some_and(|c| c.message.contains("volume-1"))
            || condition(image, "Ready").is_some_and(|c| c.message.contains("volume-1"))
    };
    site.wait_for("t", "disk", "says who holds it", told).await;
    cluster.rbd(&["rm", &format!("{spec}/volume-1")]).unwrap();
    let images = site.images("t");
    until("the Image is gone", async || images.get_opt("disk").await.ok()?.is_none().then_some(())).await;
    assert_eq!(listed(cluster, &spec), Vec::<String>::new());
}

#[tokio::test]
async fn an_object_that_rots_in_a_pool_is_found_and_the_copy_made_anew_from_a_folder() {
    let (site, cluster) = (Site::shared("rot").await, ceph::shared().await);
    let (spec, _running) = pool_and_folder(&site).await;
    let disk = raw(10, 9 << 20);
    site.lab.server.put("/disk", Route::bytes(disk.clone()));
    make(&site, "disk", &["ceph", "folder"], json!({})).await;
    site.active("t", "disk").await;
    let sent = site.lab.server.sent("/disk");
    let name = listed(cluster, &spec).into_iter().find(|name| !name.starts_with('.')).unwrap();
    let info: Value =
        serde_json::from_str(&cluster.rbd(&["info", "--format", "json", &format!("{spec}/{name}")]).unwrap()).unwrap();
    let object = format!("{}.0000000000000001", info["block_name_prefix"].as_str().unwrap());
    let rotten = site.lab.plane.scope().dir().join("rotten-object");
    std::fs::write(&rotten, raw(11, 4 << 20)).unwrap();
    let (pool, namespace) = spec.split_once('/').unwrap();
    cluster.rados(&["-p", pool, "-N", namespace, "put", &object, rotten.to_str().unwrap()]).unwrap();

    site.patch("disk", json!({ "metadata": { "annotations": { "vitrine.dev/verify": "now" } } })).await;
    until("the rot is told", async || {
        let told = events(&site, &site.tenant("t"), "disk").await;
        told.into_iter().find(|(reason, note)| reason == "LocationCorrupt" && note.contains(&site.store_name("ceph")))
    })
    .await;
    let sound = |image: &Image| location(image, &site.store_name("ceph")).is_some() && is(image, "Ready", "True");
    let image = site.wait_for("t", "disk", "is sound again", sound).await;
    assert_holds(&site, cluster, &image, "ceph", &disk);
    assert_eq!(site.lab.server.sent("/disk"), sent, "nothing was fetched again");
}

#[tokio::test]
async fn a_wrong_key_is_told_and_the_right_one_found_by_itself() {
    let site = Site::shared("keys").await;
    let node = site.lab.node("n").await;
    let (_operator, _agent) = (site.operator(&[]), site.lab.start(&node, &["--probe-interval", "1"]));
    let cluster = ceph::shared().await;
    ceph::namespace(&site, cluster, POOL, "ceph").await;
    let message = ready(&site, "ceph", "False").await;
    assert!(message.contains("Secret ceph is not there") && message.contains("userKey"), "{message}");
    secret(&site, "ceph", USER, "AQDYtRlnAAAAABAAtTb6Qd9Qw2iXW1yQ0m0XZw==").await;
    let wrong = |message: &str| message.contains("key") && !message.contains("is not there");
    let message = told(&site, "ceph", ("Ready", "False"), wrong).await;
    assert!(message.contains("vitrine") && !message.contains("AQDYtRl"), "{message}");
    secret(&site, "ceph", USER, &ceph::key(cluster).await).await;
    ready(&site, "ceph", "True").await;
    // Another pool in its place is refused.
    let other: Value = json!({ "spec": { "rbd": { "pool": "other" } } });
    let refused = site.stores().patch(&site.store_name("ceph"), &PatchParams::default(), &Patch::Merge(other)).await;
    assert!(refused.unwrap_err().to_string().contains("cannot be changed"));
}
