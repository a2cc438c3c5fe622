//! kill -9 of the agent at random moments of imports: each import ends with the right content, there is one copy, and nothing else.

use std::time::Duration;

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use vitrine_harness::{Fault, Route};

use super::{
    disks::{entries, raw, sha256, sha256_of, stored},
    lab::{Lab, Node},
};

/// Agents that are killed side by side, and how often each.
const LANES: u64 = 5;
const ROUNDS: u64 = 10;
/// An import takes about a second, so that kills fall on all of its stages.
const SIZE: usize = 1 << 20;
const RATE: u64 = 1 << 20;
const LATEST_KILL: u64 = 1500;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_kills_leave_fifty_good_images() {
    let seed = rand::random::<u64>();
    eprintln!("seed {seed}");
    let lab = Lab::shared("kills").await;
    let lanes = (0..LANES).map(|lane| kill_rounds(&lab, lane, StdRng::seed_from_u64(seed.wrapping_add(lane))));
    futures::future::join_all(lanes).await;
}

async fn kill_rounds(lab: &Lab<'_>, lane: u64, mut random: StdRng) {
    let node = lab.node(&format!("n{lane}")).await;
    let mut agent = lab.start(&node, &[]);
    for round in 0..ROUNDS {
        let (image, disk) = (format!("l{lane}i{round}"), raw(lane * ROUNDS + round, SIZE));
        let path = format!("/{image}");
        lab.server.put(&path, Route::bytes(disk.clone()).always(Fault::Rate(RATE)));
        let name = lab.import(&node.order(&image, &lab.server.url(&path))).await;
        tokio::time::sleep(Duration::from_millis(random.random_range(0..LATEST_KILL))).await;
        agent.kill();
        agent = lab.start(&node, &[]);
        let task = lab.succeeded(&name).await;
        assert_eq!(sha256_of(&stored(&task)), sha256(&disk), "{image}");
        assert_eq!(task.status.unwrap().result.unwrap().content.digests, [sha256(&disk)], "{image}");
    }
    drop(agent);
    assert_images(&node, lane);
}

fn assert_images(node: &Node, lane: u64) {
    let mut expected: Vec<_> = (0..ROUNDS).map(|round| format!("l{lane}i{round}-r1")).collect();
    expected.sort();
    assert_eq!(entries(&node.store()), expected);
    node.assert_clean();
}
