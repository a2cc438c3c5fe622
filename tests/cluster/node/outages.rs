//! The API server goes away in the middle of an import. Each test has a control plane of its own.

use std::time::Duration;

use vitrine_harness::{ControlPlane, Fault, Route};

use super::{
    disks::{entries, raw, sha256, sha256_of, stored},
    lab::{Lab, until},
};

#[tokio::test]
async fn a_restarted_api_server_interrupts_no_import() {
    let plane = ControlPlane::start().await.unwrap();
    let lab = Lab::open(&plane, "restart").await;
    let node = lab.node("n").await;
    let _agent = lab.start(&node, &[]);
    let disk = raw(1, 4 << 20);
    lab.server.put("/disk", Route::bytes(disk.clone()).always(Fault::Rate(512 << 10)));
    let name = lab.import(&node.order("a", &lab.server.url("/disk"))).await;
    lab.receiving("/disk", &node.store()).await;
    plane.kill_apiserver();
    plane.start_apiserver().await.unwrap();
    let task = lab.succeeded(&name).await;
    assert_eq!(sha256_of(&stored(&task)), sha256(&disk));
    assert_eq!(lab.server.sent("/disk"), 4 << 20, "it is fetched once");
    // And the agent still hears of new work.
    lab.succeeded(&lab.delete(&node.order("a", "http://unused/")).await).await;
    assert_eq!(entries(&node.store()), [""; 0]);
}

#[tokio::test]
async fn an_import_that_ends_during_an_outage_is_neither_lost_nor_published_unasked() {
    let plane = ControlPlane::start().await.unwrap();
    let lab = Lab::open(&plane, "outage").await;
    let node = lab.node("n").await;
    let agent = lab.start(&node, &["--lease-duration", "3", "--lease-renew", "1"]);
    let disk = raw(1, 2 << 20);
    lab.server.put("/disk", Route::bytes(disk.clone()).always(Fault::Rate(1 << 20)));
    let name = lab.import(&node.order("a", &lab.server.url("/disk"))).await;
    lab.receiving("/disk", &node.store()).await;
    plane.stop_apiserver().await.unwrap();
    until("all was sent", async || (lab.server.sent("/disk") == 2 << 20).then_some(())).await;
    // The read before publishing may have begun while the Lease still held; then it is that which waits.
    let waits = |log: &str| log.contains("publishing waits") || log.contains("reading the task failed");
    until("publishing waits", async || waits(&agent.log()).then_some(())).await;
    // Longer than the Lease holds: nothing may happen in this time, so there is nothing to wait for.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(!entries(&node.store()).contains(&"a-r1".to_owned()), "published without asking");
    plane.start_apiserver().await.unwrap();
    let task = lab.succeeded(&name).await;
    assert_eq!(sha256_of(&stored(&task)), sha256(&disk));
    assert_eq!(lab.server.sent("/disk"), 2 << 20, "it is fetched once");
    node.assert_clean();
}
