//! Agents that were thought dead.

use rustix::process::Signal;
use vitrine::api::TaskPhase;
use vitrine_harness::{Fault, Route};

use super::{
    disks::{entries, raw, sha256, sha256_of, stored},
    lab::{Lab, Order, PATIENCE, phase},
};

const SHORT: [&str; 4] = ["--lease-duration", "3", "--lease-renew", "1"];

/// What both tests begin with: an import into a store that two nodes share, on an agent that is stopped in the middle, and the same
/// import done by the other node as the second attempt.
#[tokio::test]
async fn a_returning_zombie_publishes_nothing() {
    let lab = Lab::shared("zombie").await;
    let (one, two) = (lab.node("one").await, lab.node("two").await);
    let shared = lab.plane.scope().dir().join("zombie-shared");
    std::fs::create_dir_all(&shared).unwrap();
    let folder = shared.join("s");
    let root = ["--store-root", shared.to_str().unwrap()];
    let args: Vec<_> = SHORT.into_iter().chain(root).collect();
    let (zombie, _heir) = (lab.start(&one, &args), lab.start(&two, &args));
    let disk = raw(1, 4 << 20);
    lab.server.put("/slow", Route::bytes(disk.clone()).always(Fault::Rate(1 << 20)));
    lab.server.put("/fast", Route::bytes(disk.clone()));
    let first = lab.import(&Order::new(&one.name, "a", &lab.server.url("/slow"), &folder, true)).await;
    lab.receiving("/slow", &folder).await;
    zombie.signal(Signal::STOP).unwrap();

    let mut order = Order::new(&two.name, "a", &lab.server.url("/fast"), &folder, true);
    order.attempt = 2;
    lab.cancel(&first).await;
    let task = lab.succeeded(&lab.import(&order).await).await;
    let before = std::fs::metadata(stored(&task)).unwrap();
    assert_eq!(entries(&folder), ["a-r1"], "the second attempt removed what the first one had written");

    zombie.signal(Signal::CONT).unwrap();
    assert_eq!(lab.failure(&first).await.reason, "Cancelled");
    assert_eq!(entries(&folder), ["a-r1"]);
    let after = std::fs::metadata(stored(&task)).unwrap();
    assert_eq!(
        (std::os::unix::fs::MetadataExt::ino(&before), sha256_of(&stored(&task))),
        (std::os::unix::fs::MetadataExt::ino(&after), sha256(&disk))
    );
}

/// Even if the first task was not cancelled (the operator was slow), the store lets only the later attempt publish.
#[tokio::test]
async fn the_store_fences_off_an_earlier_attempt() {
    let lab = Lab::shared("fenced").await;
    let (one, two) = (lab.node("one").await, lab.node("two").await);
    let shared = lab.plane.scope().dir().join("fenced-shared");
    std::fs::create_dir_all(&shared).unwrap();
    let folder = shared.join("s");
    let args = ["--store-root", shared.to_str().unwrap()];
    let (_zombie, _heir) = (lab.start(&one, &args), lab.start(&two, &args));
    let disk = raw(1, 2 << 20);
    lab.server.put("/slow", Route::bytes(disk.clone()).always(Fault::Rate(512 << 10)));
    lab.server.put("/slower", Route::bytes(disk.clone()).always(Fault::Rate(256 << 10)));
    let first = lab.import(&Order::new(&one.name, "a", &lab.server.url("/slow"), &folder, true)).await;
    lab.receiving("/slow", &folder).await;
    let mut order = Order::new(&two.name, "a", &lab.server.url("/slower"), &folder, true);
    order.attempt = 2;
    let second = lab.import(&order).await;
    let failure = lab.failure(&first).await;
    // The operator knows the later attempt; had there been none, the next one would be right.
    assert_eq!((failure.reason.as_str(), failure.retryable), ("Conflict", true), "{}", failure.message);
    assert_eq!(phase(&lab.tasks().get(&second).await.unwrap()), TaskPhase::Running, "the later attempt goes on");
    let task = lab.succeeded(&second).await;
    assert_eq!(sha256_of(&stored(&task)), sha256(&disk));
    assert_eq!(entries(&folder), ["a-r1"]);
}

#[tokio::test]
async fn an_agent_whose_lease_was_taken_ends() {
    let lab = Lab::shared("superseded").await;
    let (mut node, same) = (lab.node("n").await, lab.node("other").await);
    let first = lab.start(&node, &SHORT);
    first.wait_for_log("the agent runs", PATIENCE).await.unwrap();
    // Another one on the same node with a folder of its own, so that no lock keeps them apart.
    node.work.clone_from(&same.work);
    let _second = lab.start(&node, &SHORT);
    let status = first.wait(PATIENCE).await.unwrap();
    assert!(!status.success());
    assert!(first.log().contains("only one may run on a node"), "{}", first.log_tail());
}
