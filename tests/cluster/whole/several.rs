//! Images in several stores: some that fail, some that come later, some that go, and copies that rot.

use std::{
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use k8s_openapi::api::events::v1::Event;
use kube::{
    Api,
    api::{DeleteParams, ListParams},
};
use serde_json::{Value, json};
use vitrine::api::{Image, Location, LocationPhase};
use vitrine_harness::{Fault, Process, Route};

use super::site::{Site, condition, is, staffed};
use crate::node::{
    disks::{entries, raw, sha256, sha256_of},
    lab::{Node, PATIENCE, until},
};

const SIZE: usize = 16 << 20;

/// Makes the Image `name` of tenant `t` in `stores`, with `more` in its spec.
pub async fn make(site: &Site<'_>, name: &str, stores: &[&str], more: Value) {
    let stores: Vec<_> = stores.iter().map(|short| site.store_name(short)).collect();
    let mut manifest = json!({
        "apiVersion": "vitrine.dev/v1alpha1", "kind": "Image",
        "metadata": { "name": name, "namespace": site.tenant("t") },
        "spec": { "source": { "http": { "url": site.lab.server.url(&format!("/{name}")) } }, "stores": stores },
    });
    for (key, value) in more.as_object().unwrap() {
        manifest["spec"][key] = value.clone();
    }
    site.lab.plane.apply(&manifest.to_string()).await.unwrap();
}

/// Changes the stores of an Image.
pub async fn choose(site: &Site<'_>, name: &str, stores: &[&str]) {
    let stores: Vec<_> = stores.iter().map(|short| site.store_name(short)).collect();
    site.patch(name, json!({ "spec": { "stores": stores } })).await;
}

/// The copies of an Image: the short name of each store and the file.
pub fn copies(site: &Site<'_>, image: &Image) -> Vec<(String, PathBuf)> {
    let locations = image.status.iter().flat_map(|status| &status.locations);
    let copies = locations.filter(|location| location.phase.is_copy());
    let short =
        |location: &Location| location.store.strip_prefix(&format!("{}-", site.lab.namespace)).unwrap().to_owned();
    let file = |location: &Location| PathBuf::from(location.url.as_deref().unwrap().strip_prefix("file://").unwrap());
    let mut copies: Vec<_> = copies.map(|location| (short(location), file(location))).collect();
    copies.sort();
    copies
}

fn location<'i>(image: &'i Image, store: &str) -> Option<&'i Location> {
    image.status.as_ref()?.locations.iter().find(|location| location.store == store)
}

/// Reasons and notes of the events about `name`.
pub async fn events(site: &Site<'_>, namespace: &str, name: &str) -> Vec<(String, String)> {
    let api: Api<Event> = Api::namespaced(site.lab.client.clone(), namespace);
    let events = api.list(&ListParams::default()).await.unwrap().items.into_iter();
    let ours = events.filter(|event| event.regarding.as_ref().is_some_and(|about| about.name.as_deref() == Some(name)));
    ours.map(|event| (event.reason.unwrap_or_default(), event.note.unwrap_or_default())).collect()
}

fn flip(file: &Path, at: u64) {
    std::fs::File::options().write(true).open(file).unwrap().write_all_at(b"rotten", at).unwrap();
}

/// An agent whose store `b` is a volume of 8 MiB.
fn cramped(site: &Site<'_>, node: &Node) -> Process {
    let b = node.stores.join("b");
    let mount = format!("mkdir -p {0} && mount -t tmpfs -o size=8m tmpfs {0} && exec \"$@\"", b.display());
    let wrapper = ["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", &mount, "sh"];
    site.lab.start_in(node, &wrapper, &[])
}

#[tokio::test]
async fn one_store_is_enough_and_a_full_one_is_filled_later_without_the_source() {
    let site = Site::shared("enough").await;
    let node = site.lab.node("n").await;
    let (_operator, agent) = (site.operator(&[]), cramped(&site, &node));
    let b = node.stores.join("b");
    site.store("a", &node.stores.join("a"), false, None).await;
    site.store("b", &b, false, None).await;
    let disk = raw(1, SIZE);
    site.lab.server.put("/disk", Route::bytes(disk.clone()));
    make(&site, "disk", &["a", "b"], json!({ "requireAllStores": false })).await;
    let image = site.active("t", "disk").await;
    assert_eq!(copies(&site, &image).iter().map(|(store, _)| store.as_str()).collect::<Vec<_>>(), ["a"]);
    assert_eq!(sha256_of(&copies(&site, &image)[0].1), sha256(&disk));
    let missing = location(&image, &site.store_name("b")).unwrap();
    assert_eq!(missing.phase, LocationPhase::Missing);
    assert!(missing.message.as_ref().unwrap().contains("no room for"), "{missing:?}");
    assert!(condition(&image, "Ready").unwrap().message.contains(&site.store_name("b")), "{image:?}");

    // The source is no more; and there is room now.
    site.lab.server.put("/disk", Route::bytes(disk.clone()).always(Fault::Status(410)));
    let (namespace, room) = (format!("--mount=/proc/{}/ns/mnt", agent.id()), "remount,size=64m");
    let status = std::process::Command::new("nsenter").arg(&namespace).args(["mount", "-o", room]).arg(&b).status();
    assert!(status.unwrap().success());
    let image = site.wait_for("t", "disk", "is in both stores", |image| copies(&site, image).len() == 2).await;
    let inside = PathBuf::from(format!("/proc/{}/root{}", agent.id(), copies(&site, &image)[1].1.display()));
    assert_eq!(sha256_of(&inside), sha256(&disk));
    let image = site.active("t", "disk").await;
    assert!(location(&image, &site.store_name("b")).unwrap().allocated_size.unwrap() < 15 << 20);
}

#[tokio::test]
async fn a_store_that_is_added_is_filled_from_another_and_one_that_is_left_is_emptied() {
    let site = Site::shared("added").await;
    let nodes = [site.lab.node("one").await, site.lab.node("two").await];
    let root = site.lab.plane.scope().dir().join("added-shared");
    std::fs::create_dir_all(&root).unwrap();
    let _operator = site.operator(&[]);
    let _agents = nodes.each_ref().map(|node| site.lab.start(node, &["--store-root", root.to_str().unwrap()]));
    // On the disk of one node; on that of the other; and where both reach it.
    site.store("one", &nodes[0].store(), false, Some(&nodes[0])).await;
    site.store("two", &nodes[1].store(), false, Some(&nodes[1])).await;
    site.store("wide", &root.join("s"), true, None).await;
    let disk = raw(2, SIZE);
    site.lab.server.put("/disk", Route::bytes(disk.clone()));
    make(&site, "disk", &["one"], json!({ "properties": { "os": "x" } })).await;
    let first = site.active("t", "disk").await;
    let sent = site.lab.server.sent("/disk");
    for stores in [&["one", "wide"][..], &["one", "wide", "two"], &["two"]] {
        choose(&site, "disk", stores).await;
        let image = site.active("t", "disk").await;
        let held = copies(&site, &image);
        assert_eq!(held.len(), stores.len(), "{held:?}");
        assert!(held.iter().all(|(_, file)| sha256_of(file) == sha256(&disk)), "{held:?}");
        assert_eq!(image.status.unwrap().content, first.status.as_ref().unwrap().content);
    }
    assert_eq!(site.lab.server.sent("/disk"), sent, "nothing was fetched again");
    for folder in [nodes[0].store(), root.join("s")] {
        until("what was left is emptied", async || entries(&folder).is_empty().then_some(())).await;
    }
    let told = events(&site, &site.tenant("t"), "disk").await;
    assert!(told.iter().filter(|(reason, _)| reason == "CopySucceeded").count() >= 1, "{told:?}");
}

#[tokio::test]
async fn where_no_node_reaches_both_the_source_is_fetched_again_and_that_is_told() {
    let site = Site::shared("apart").await;
    let nodes = [site.lab.node("one").await, site.lab.node("two").await];
    let _operator = site.operator(&[]);
    let _agents = nodes.each_ref().map(|node| site.lab.start(node, &[]));
    site.store("one", &nodes[0].store(), false, Some(&nodes[0])).await;
    site.store("two", &nodes[1].store(), false, Some(&nodes[1])).await;
    let disk = raw(3, 2 << 20);
    site.lab.server.put("/disk", Route::bytes(disk.clone()));
    make(&site, "disk", &["one"], json!({})).await;
    site.active("t", "disk").await;
    choose(&site, "disk", &["one", "two"]).await;
    let image = site.active("t", "disk").await;
    assert_eq!(copies(&site, &image).len(), 2);
    let told = events(&site, &site.tenant("t"), "disk").await;
    assert!(told.iter().any(|(_, note)| note.contains("from its source again")), "{told:?}");
}

#[tokio::test]
async fn a_rotten_copy_is_found_and_made_anew_from_a_good_one() {
    let site = Site::shared("rotten").await;
    let node = site.lab.node("n").await;
    let (_operator, _agent) = (site.operator(&[]), site.lab.start(&node, &[]));
    site.store("a", &node.stores.join("a"), false, None).await;
    site.store("b", &node.stores.join("b"), false, None).await;
    let disk = raw(4, SIZE);
    site.lab.server.put("/disk", Route::bytes(disk.clone()));
    make(&site, "disk", &["a", "b"], json!({})).await;
    let image = site.active("t", "disk").await;
    site.lab.server.put("/disk", Route::bytes(disk.clone()).always(Fault::Status(410)));
    site.patch("disk", json!({ "metadata": { "annotations": { "vitrine.dev/verify": "now" } } })).await;
    let verified = |image: &Image| image.status.as_ref().unwrap().locations.iter().all(|l| l.verified_at.is_some());
    site.wait_for("t", "disk", "is verified", verified).await;
    let file = copies(&site, &image)[0].1.clone();
    flip(&file, 5 << 20);
    site.patch("disk", json!({ "metadata": { "annotations": { "vitrine.dev/verify": "again" } } })).await;
    let name = site.store_name("a");
    let sound = |image: &Image| {
        let anew = location(image, &name).is_some_and(|l| l.phase == LocationPhase::Active && l.verified_at.is_none());
        anew && is(image, "Ready", "True")
    };
    site.wait_for("t", "disk", "is sound again", sound).await;
    assert_eq!(sha256_of(&file), sha256(&disk));
    let told = events(&site, &site.tenant("t"), "disk").await;
    let corrupt = told.iter().find(|(reason, _)| reason == "LocationCorrupt");
    assert!(corrupt.is_some_and(|(_, note)| note.contains(&name) && note.contains("blake3:")), "{told:?}");
}

#[tokio::test]
async fn a_schedule_finds_rot_and_without_a_good_copy_the_source_must_give_the_same() {
    let (site, node, _staff) = staffed("lonely", &[]).await;
    let schedule = json!({ "spec": { "verify": { "interval": "1s" } } });
    let merge = kube::api::Patch::Merge(&schedule);
    site.stores().patch(&site.store_name("s"), &kube::api::PatchParams::default(), &merge).await.unwrap();
    let (disk, other) = (raw(5, 2 << 20), raw(6, 2 << 20));
    site.lab.server.put("/disk", Route::bytes(disk.clone()));
    make(&site, "disk", &["s"], json!({})).await;
    let image = site.active("t", "disk").await;
    let file = copies(&site, &image)[0].1.clone();
    site.lab.server.put("/disk", Route::bytes(other));
    flip(&file, 1 << 20);
    let image = site.stalled("t", "disk").await;
    let message = &condition(&image, "Stalled").unwrap().message;
    assert!(message.contains("every copy of revision 1 is lost or corrupt"), "{message}");
    // It is not served, and not removed either: nothing has taken its place.
    let kept = &image.status.as_ref().unwrap().revisions[0].locations[0];
    assert_eq!(
        (kept.phase, kept.url.as_deref()),
        (LocationPhase::Corrupt, Some(format!("file://{}", file.display()).as_str()))
    );
    assert!(copies(&site, &image).is_empty() && file.exists());
    // The publisher brings back what it was.
    site.lab.server.put("/disk", Route::bytes(disk.clone()));
    site.patch("disk", json!({ "metadata": { "annotations": { "vitrine.dev/retry": "1" } } })).await;
    let image = site.active("t", "disk").await;
    let [(_, anew)] = &copies(&site, &image)[..] else { panic!("one copy: {image:?}") };
    assert_eq!((sha256_of(anew), anew == &file), (sha256(&disk), false));
    until("what was rotten is gone", async || (entries(&node.store()).len() == 1 && !file.exists()).then_some(()))
        .await;
}

#[tokio::test]
async fn a_store_that_loses_its_back_end_and_gets_it_back_says_so() {
    let (site, node, _staff) = staffed("backend", &[]).await;
    let name = site.store_name("s");
    let ready = async |wanted: &str| {
        let stores = site.stores();
        until(&format!("the store's Ready is {wanted}"), async || {
            let conditions = stores.get(&name).await.ok()?.status?.conditions;
            conditions.iter().any(|c| c.type_ == "Ready" && c.status == wanted).then_some(())
        })
        .await;
    };
    ready("True").await;
    let away = node.stores.join("away");
    std::fs::rename(node.store(), &away).unwrap();
    ready("False").await;
    std::fs::rename(&away, node.store()).unwrap();
    ready("True").await;
    until("all of it is told", async || {
        let told = events(&site, "default", &name).await;
        let has = |wanted: &str| told.iter().any(|(reason, _)| reason == wanted);
        (has("StoreReady") && has("StoreNotReady")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn data_that_no_image_knows_is_told_and_removed_when_it_is_old_and_what_is_foreign_stays() {
    let site = Site::shared("orphans").await;
    let nodes = [site.lab.node("one").await, site.lab.node("two").await];
    let root = site.lab.plane.scope().dir().join("orphans-shared");
    std::fs::create_dir_all(&root).unwrap();
    let patient = site.operator(&["--sweep-interval", "1"]);
    let extra = ["--store-root", root.to_str().unwrap(), "--list-interval", "1", "--probe-interval", "1"];
    let _agents = nodes.each_ref().map(|node| site.lab.start(node, &extra));
    site.store("disk", &nodes[0].store(), false, Some(&nodes[0])).await;
    site.store("wide", &root.join("s"), true, None).await;
    site.lab.server.put("/kept", Route::bytes(raw(8, 1 << 20)));
    site.lab.server.put("/lost", Route::bytes(raw(9, 1 << 20)));
    make(&site, "kept", &["disk", "wide"], json!({})).await;
    make(&site, "lost", &["disk", "wide"], json!({})).await;
    let kept = site.active("t", "kept").await;
    let lost = site.active("t", "lost").await.metadata.uid.unwrap();
    let folders = [nodes[0].store(), root.join("s")];
    for folder in &folders {
        std::fs::create_dir(folder.join("lost+found")).unwrap();
        std::fs::write(folder.join("notes.txt"), "not Vitrine's").unwrap();
    }
    // Somebody takes the finalizer off, and deletes it; the operator is away.
    patient.terminate(PATIENCE).await.unwrap();
    site.patch("lost", json!({ "metadata": { "finalizers": null } })).await;
    site.images("t").delete("lost", &DeleteParams::default()).await.unwrap();
    let waits = site.operator(&["--sweep-interval", "1"]);
    let orphans = async |short: &str| {
        let store = site.stores().get(&site.store_name(short)).await.ok()?;
        store.status?.orphans
    };
    for short in ["disk", "wide"] {
        let told = until(&format!("{short} tells of what no Image knows"), async || orphans(short).await).await;
        assert_eq!((told.count, told.names[0].starts_with(&format!("{lost}-r1"))), (1, true), "{told:?}");
    }
    let all = |folder: &PathBuf| entries(folder).len();
    assert_eq!(folders.each_ref().map(all), [4, 4], "a day has not passed");
    // The next leader goes on counting where this one was.
    let since = orphans("wide").await.unwrap().since;
    waits.terminate(PATIENCE).await.unwrap();
    let next = site.operator(&["--sweep-interval", "1"]);
    until("the next operator leads", async || next.log().contains("leading").then_some(())).await;
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert_eq!((orphans("wide").await.unwrap().since, since.is_some()), (since, true));
    next.terminate(PATIENCE).await.unwrap();
    let _operator = site.operator(&["--sweep-interval", "1", "--orphan-grace", "1"]);
    for (short, folder) in ["disk", "wide"].iter().zip(&folders) {
        until(&format!("{short} is rid of it"), async || (all(folder) == 3).then_some(())).await;
        until(&format!("{short} says so"), async || orphans(short).await.is_none().then_some(())).await;
        let left = entries(folder);
        assert!(["lost+found", "notes.txt"].iter().all(|name| left.contains(&(*name).to_owned())), "{left:?}");
    }
    assert_eq!(copies(&site, &kept).len(), 2);
    assert!(copies(&site, &kept).iter().all(|(_, file)| sha256_of(file) == sha256(&raw(8, 1 << 20))));
    let tasks = site.lab.tasks();
    until("no orders are left", async || tasks.list(&ListParams::default()).await.ok()?.items.is_empty().then_some(()))
        .await;
}
