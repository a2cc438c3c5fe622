//! Nodes that are lost and come back, and an API server that goes away.

use std::collections::BTreeSet;

use vitrine::api::ImagePhase;
use vitrine_harness::{ControlPlane, Fault, Route};

use super::site::{Site, file, phase};
use crate::node::{
    disks::{entries, raw, sha256, sha256_of},
    lab::until,
};

const SHORT: [&str; 4] = ["--lease-duration", "4", "--lease-renew", "1"];

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
async fn an_api_server_that_restarts_in_the_middle_of_an_import_delays_it_at_most() {
    let plane = ControlPlane::start().await.unwrap();
    let site = Site::open(&plane, "midway").await;
    let node = site.lab.node("n").await;
    let (mut operator, _agent) = (site.operator(&[]), site.lab.start(&node, &[]));
    site.store("s", &node.store(), false, None).await;
    let disk = raw(1, 4 << 20);
    site.lab.server.put("/disk", Route::bytes(disk.clone()).always(Fault::Rate(512 << 10)));
    site.image("t", "disk", "/disk", "s").await;
    site.lab.receiving("/disk", &node.store()).await;
    plane.restart_apiserver().await.unwrap();
    let images = site.images("t");
    let active = async || {
        // An operator that cannot prove that it leads ends, and kubelet starts it again: the test is kubelet here.
        if operator.ended().is_some() {
            operator = site.operator(&[]);
        }
        images.get("disk").await.ok().filter(|image| phase(image) == Some(ImagePhase::Active))
    };
    let image = until("Image disk is Active", active).await;
    assert_eq!(sha256_of(&file(&image)), sha256(&disk));
    assert_eq!(entries(&node.store()).len(), 1);
    node.assert_clean();
}
