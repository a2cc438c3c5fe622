//! Work that is not wanted any more, and agents that are asked to end.

use vitrine::api::TaskPhase;
use vitrine_harness::{Fault, Route};

use super::{
    disks::{entries, raw, sha256, sha256_of, stored},
    lab::{Lab, PATIENCE, phase, until},
};

/// A route that takes a minute.
fn slow(seed: u64) -> Route {
    Route::bytes(raw(seed, 8 << 20)).always(Fault::Rate(128 << 10))
}

#[tokio::test]
async fn a_cancelled_import_ends_at_once_and_leaves_nothing() {
    let lab = Lab::shared("cancelled").await;
    let node = lab.node("n").await;
    let _agent = lab.start(&node, &[]);
    lab.server.put("/disk", slow(1));
    let name = lab.import(&node.order("a", &lab.server.url("/disk"))).await;
    lab.receiving("/disk", &node.store()).await;
    lab.cancel(&name).await;
    let failure = lab.failure(&name).await;
    assert_eq!(failure.reason, "Cancelled", "{}", failure.message);
    assert_eq!(entries(&node.store()), [""; 0]);
    node.assert_clean();
}

#[tokio::test]
async fn an_import_whose_task_is_deleted_stops_and_leaves_nothing() {
    let lab = Lab::shared("vanished").await;
    let node = lab.node("n").await;
    let agent = lab.start(&node, &[]);
    lab.server.put("/disk", slow(1));
    let name = lab.import(&node.order("a", &lab.server.url("/disk"))).await;
    lab.receiving("/disk", &node.store()).await;
    lab.drop_task(&name).await;
    agent.wait_for_log("stopped", PATIENCE).await.unwrap();
    assert_eq!(entries(&node.store()), [""; 0]);
    node.assert_clean();
}

#[tokio::test]
async fn what_was_cancelled_while_no_agent_ran_is_brought_to_its_end() {
    let lab = Lab::shared("cancelled-idle").await;
    let node = lab.node("n").await;
    let agent = lab.start(&node, &[]);
    lab.server.put("/disk", slow(1));
    let name = lab.import(&node.order("a", &lab.server.url("/disk"))).await;
    lab.receiving("/disk", &node.store()).await;
    agent.kill();
    assert_ne!(entries(&node.store()), [""; 0], "a killed agent cannot clean up");
    lab.cancel(&name).await;
    let _agent = lab.start(&node, &[]);
    assert_eq!(lab.failure(&name).await.reason, "Cancelled");
    assert_eq!(entries(&node.store()), [""; 0]);
}

#[tokio::test]
async fn an_agent_that_is_asked_to_end_leaves_its_work_to_the_next() {
    let lab = Lab::shared("terminated").await;
    let node = lab.node("n").await;
    let agent = lab.start(&node, &[]);
    lab.server.put("/disk", slow(1));
    let name = lab.import(&node.order("a", &lab.server.url("/disk"))).await;
    lab.receiving("/disk", &node.store()).await;
    let status = agent.terminate(PATIENCE).await.unwrap();
    assert!(status.success(), "{status}");
    assert_eq!(phase(&lab.tasks().get(&name).await.unwrap()), TaskPhase::Running);
    assert_eq!(entries(&node.store()), [""; 0]);
    node.assert_clean();

    let disk = raw(2, 1 << 20);
    lab.server.put("/disk", Route::bytes(disk.clone()));
    let _agent = lab.start(&node, &[]);
    let task = lab.succeeded(&name).await;
    assert_eq!(sha256_of(&stored(&task)), sha256(&disk));
}

#[tokio::test]
async fn a_second_agent_on_one_node_waits_for_the_end_of_the_first() {
    let lab = Lab::shared("second").await;
    let node = lab.node("n").await;
    let first = lab.start(&node, &[]);
    first.wait_for_log("the agent runs", PATIENCE).await.unwrap();
    let second = lab.start(&node, &[]);
    second.wait_for_log("another agent uses this folder", PATIENCE).await.unwrap();
    assert!(first.ended().is_none());
    first.kill();
    until("the second agent runs", async || second.log().contains("the agent runs").then_some(())).await;
}
