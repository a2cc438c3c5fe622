//! Nodes that are lost and come back, an API server that goes away, and one that has forgotten.

use std::{collections::BTreeSet, time::Duration};

use kube::{
    ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use vitrine::api::{Image, ImagePhase};
use vitrine_harness::{ControlPlane, Fault, Route};

use super::site::{Site, file, phase};
use crate::node::{
    disks::{entries, raw, sha256, sha256_of},
    lab::{PATIENCE, until},
};

const SHORT: [&str; 4] = ["--lease-duration", "4", "--lease-renew", "1"];
/// Longer than the operator's lease holds in this test, which is 3 s.
const OUTAGE: Duration = Duration::from_secs(5);

#[tokio::test]
async fn work_of_a_lost_node_is_done_by_another_and_its_remains_are_removed_when_it_returns() {
    let site = Site::shared("lost").await;
    let nodes = [site.lab.node("one").await, site.lab.node("two").await];
    let _operator = site.operator(&[]);
    let mut agents = nodes
        .each_ref()
        .map(|node| Some(site.lab.start(node, &[&SHORT[..], &["--store-root", site_root(&site)]].concat())));
    // One path on both nodes must be two folders, so each agent would need a root of its own; the store is shared instead.
    let folder = site.lab.plane.scope().dir().join("lost-shared/s");
    site.store("s", &folder, true, None).await;
    let disk = raw(1, 4 << 20);
    site.lab.server.put("/disk", Route::bytes(disk.clone()).always(Fault::Rate(1 << 20)));
    site.image("t", "disk", "/disk", "s").await;
    site.lab.receiving("/disk", &folder).await;
    let image = site.wait_for("t", "disk", "is worked on", |image| attempt(image).is_some()).await;
    let (number, busy) = attempt(&image).unwrap();
    assert_eq!(number, 1);
    let lost = nodes.iter().position(|node| node.name == busy).unwrap();
    agents[lost].take().unwrap().kill();
    let image = site.active("t", "disk").await;
    assert_eq!(sha256_of(&file(&image)), sha256(&disk));
    assert!(image.status.as_ref().unwrap().revisions[0].attempts >= 2, "{:?}", image.status);
    assert_eq!(entries(&folder).len(), 1, "{:?}", entries(&folder));
    // It comes back, learns that its work was given to another, and changes nothing.
    let back = site.lab.start(&nodes[lost], &[&SHORT[..], &["--store-root", site_root(&site)]].concat());
    until("no tasks are left", async || {
        site.lab.tasks().list(&kube::api::ListParams::default()).await.ok()?.items.is_empty().then_some(())
    })
    .await;
    assert_eq!(sha256_of(&file(&image)), sha256(&disk));
    assert_eq!(entries(&folder).len(), 1);
    assert!(back.ended().is_none());
}

fn site_root(site: &Site<'_>) -> &'static str {
    let root = site.lab.plane.scope().dir().join("lost-shared");
    std::fs::create_dir_all(&root).unwrap();
    Box::leak(root.display().to_string().into_boxed_str())
}

/// Number and node of the attempt under way.
fn attempt(image: &vitrine::api::Image) -> Option<(i64, String)> {
    let attempt = image.status.as_ref()?.attempt.as_ref()?;
    Some((attempt.number, attempt.node.clone()?))
}

#[tokio::test]
async fn imports_are_spread_over_the_nodes() {
    let site = Site::shared("spread").await;
    let nodes = [site.lab.node("one").await, site.lab.node("two").await];
    let root = site.lab.plane.scope().dir().join("spread-shared");
    std::fs::create_dir_all(&root).unwrap();
    let _operator = site.operator(&[]);
    let _agents = nodes.each_ref().map(|node| site.lab.start(node, &["--store-root", root.to_str().unwrap()]));
    site.store("s", &root.join("s"), true, None).await;
    for node in &nodes {
        let leases = kube::Api::<k8s_openapi::api::coordination::v1::Lease>::namespaced(
            site.lab.client.clone(),
            &site.lab.namespace,
        );
        let name = vitrine::api::identity::agent_lease_name(&node.name);
        until("both agents are known", async || leases.get_opt(&name).await.ok().flatten()).await;
    }
    let mut seen = BTreeSet::new();
    for number in 0..4 {
        let path = format!("/{number}");
        site.lab.server.put(&path, Route::bytes(raw(number, 2 << 20)).always(Fault::Rate(512 << 10)));
        site.image("t", &format!("disk{number}"), &path, "s").await;
    }
    for number in 0..4 {
        let image =
            site.wait_for("t", &format!("disk{number}"), "is worked on", |image| attempt(image).is_some()).await;
        seen.insert(attempt(&image).unwrap().1);
    }
    assert_eq!(seen.len(), 2, "{seen:?}");
    for number in 0..4 {
        site.active("t", &format!("disk{number}")).await;
    }
    assert_eq!(entries(&root.join("s")).len(), 4);
}

#[tokio::test]
async fn an_api_server_that_is_away_in_the_middle_of_an_import_delays_it_at_most() {
    let plane = ControlPlane::start().await.unwrap();
    let site = Site::open(&plane, "midway").await;
    let node = site.lab.node("n").await;
    let (operator, _agent) = (site.operator(&["--leader-lease", "3"]), site.lab.start(&node, &[]));
    site.store("s", &node.store(), false, None).await;
    let disk = raw(1, 4 << 20);
    site.lab.server.put("/disk", Route::bytes(disk.clone()).always(Fault::Rate(512 << 10)));
    site.image("t", "disk", "/disk", "s").await;
    site.lab.receiving("/disk", &node.store()).await;
    plane.stop_apiserver().await.unwrap();
    // It goes on asking for a while, and then acts no more: another might lead by now, for all it knows.
    operator.wait_for_log("leadership lost", PATIENCE).await.unwrap();
    tokio::time::sleep(OUTAGE).await;
    plane.start_apiserver().await.unwrap();
    let image = site.active("t", "disk").await;
    assert_eq!(sha256_of(&file(&image)), sha256(&disk));
    assert_eq!(image.status.unwrap().revisions[0].attempts, 1, "nobody is to blame");
    assert_eq!(entries(&node.store()).len(), 1);
    node.assert_clean();
    assert!(operator.ended().is_none(), "it needs nobody to start it again: {}", operator.log_tail());
    assert!(operator.log().matches("leading").count() >= 2, "{}", operator.log_tail());
    // And it is as it was: it hears of what is new, and of what goes.
    site.lab.server.put("/more", Route::bytes(disk));
    site.image("t", "more", "/more", "s").await;
    site.active("t", "more").await;
    for name in ["disk", "more"] {
        site.delete("t", name).await;
    }
    assert_eq!(entries(&node.store()), [""; 0]);
    assert!(operator.terminate(PATIENCE).await.unwrap().success());
}

/// What a snapshot of etcd does to an Image whose source was changed since, and is changed again: the number of its next revision is one
/// under which the store holds what came from somewhere else.
#[tokio::test]
async fn a_revision_that_was_forgotten_is_not_taken_for_another() {
    let site = Site::shared("forgotten").await;
    let node = site.lab.node("n").await;
    let operator = site.operator(&[]);
    let _agent = site.lab.start(&node, &["--list-interval", "1"]);
    site.store("s", &node.store(), false, None).await;
    let disks = [1, 2, 3].map(|seed| raw(seed, 1 << 20));
    for (path, disk) in ["/one", "/two", "/three"].iter().zip(&disks) {
        site.lab.server.put(path, Route::bytes(disk.clone()));
    }
    site.image("t", "disk", "/one", "s").await;
    let older = site.active("t", "disk").await;
    let images = site.images("t");
    let change = async |path: &str| {
        let http = json!({ "http": { "url": site.lab.server.url(path) } });
        let spec = json!({ "spec": { "source": http, "revisionHistoryLimit": 2 } });
        images.patch("disk", &PatchParams::default(), &Patch::Merge(spec)).await.unwrap();
    };
    let serves = |number: i64| {
        move |image: &Image| {
            phase(image) == Some(ImagePhase::Active) && image.status.as_ref().unwrap().revision == Some(number)
        }
    };
    change("/two").await;
    let image = site.wait_for("t", "disk", "has its second revision", serves(2)).await;
    assert_eq!(sha256_of(&file(&image)), sha256(&disks[1]));
    operator.terminate(PATIENCE).await.unwrap();
    change("/three").await;
    let restored = Image { status: older.status, ..images.get("disk").await.unwrap() };
    images.replace_status("disk", &PostParams::default(), &restored).await.unwrap();

    let _operator = site.operator(&["--sweep-interval", "1"]);
    let image = site.wait_for("t", "disk", "has another revision", serves(3)).await;
    assert_eq!(sha256_of(&file(&image)), sha256(&disks[2]));
    let uid = image.uid().unwrap();
    // What nobody knows any more is told of, and kept for as long as such things are.
    until("the forgotten revision is listed", async || {
        let store = site.stores().get(&site.store_name("s")).await.ok()?;
        let orphans = serde_json::to_string(&store.status?.orphans).unwrap();
        orphans.contains(&format!("{uid}-r2")).then_some(())
    })
    .await;
    let kept: BTreeSet<_> = entries(&node.store()).into_iter().collect();
    assert_eq!(kept, (1..=3).map(|number| format!("{uid}-r{number}")).collect());
}
