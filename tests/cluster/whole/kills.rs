//! kill -9 of agents and of the operator at random moments: every Image becomes Active with the right content, there is one copy, and
//! nothing else.

use std::time::Duration;

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use vitrine::api::ImagePhase;
use vitrine_harness::{Fault, Process, Route};

use super::site::{Site, file, phase};
use crate::node::{
    disks::{entries, raw, sha256, sha256_of},
    lab::{Node, until},
};

/// Agents that are killed side by side, and how often each; the operator is killed as often as all of them together.
const LANES: u64 = 5;
const ROUNDS: u64 = 10;
/// An import takes about a second, so that kills fall on all of its stages.
const SIZE: usize = 1 << 20;
const RATE: u64 = 1 << 20;
const LATEST_KILL: u64 = 1500;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_kills_of_agents_and_operator_leave_fifty_active_images() {
    let seed = rand::random::<u64>();
    eprintln!("seed {seed}");
    let site = Site::shared("hard-life").await;
    let mut nodes = Vec::new();
    for lane in 0..LANES {
        let node = site.lab.node(&format!("n{lane}")).await;
        site.store(&format!("s{lane}"), &node.store(), false, Some(&node)).await;
        nodes.push(node);
    }
    let lanes = nodes.iter().zip(0..).map(|(node, lane)| rounds(&site, node, lane, StdRng::seed_from_u64(seed ^ lane)));
    let work = futures::future::join_all(lanes);
    tokio::pin!(work);
    let mut random = StdRng::seed_from_u64(!seed);
    let (mut operator, mut kills) = (site.operator(&["--leader-lease", "1"]), 0);
    let agents: Vec<Process> = loop {
        // Far enough apart for a new operator to take over and do something in between.
        let pause = Duration::from_millis(random.random_range(1500..5000));
        tokio::select! {
            agents = &mut work => break agents,
            () = tokio::time::sleep(pause) => {
                operator.kill();
                operator = site.operator(&["--leader-lease", "1"]);
                kills += 1;
            }
        }
    };
    eprintln!("{} kills of agents, {kills} of the operator", LANES * ROUNDS);
    assert!(kills > 0);
    clean_end(&site, &nodes).await;
    drop((operator, agents));
}

/// Imports one Image after the other while the agent is killed, and gives back the last agent.
async fn rounds(site: &Site<'_>, node: &Node, lane: u64, mut random: StdRng) -> Process {
    let mut agent = site.lab.start(node, &[]);
    for round in 0..ROUNDS {
        let (name, disk) = (format!("l{lane}i{round}"), raw(lane * ROUNDS + round, SIZE));
        let path = format!("/{name}");
        site.lab.server.put(&path, Route::bytes(disk.clone()).always(Fault::Rate(RATE)));
        site.image("t", &name, &path, &format!("s{lane}")).await;
        // Half of the kills wait for the import to begin, so that not all fall on the time before it.
        if random.random() {
            let images = site.images("t");
            let begun = async || {
                let image = images.get(&name).await.ok()?;
                matches!(phase(&image), Some(ImagePhase::Importing | ImagePhase::Active)).then_some(())
            };
            until(&format!("{name} is begun"), begun).await;
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..LATEST_KILL))).await;
        agent.kill();
        agent = site.lab.start(node, &[]);
        let image = site.active("t", &name).await;
        assert_eq!(sha256_of(&file(&image)), sha256(&disk), "{name}");
        assert_eq!(image.status.unwrap().digests, [sha256(&disk)], "{name}");
    }
    agent
}

/// One copy of each; and once the Images are deleted, nothing.
async fn clean_end(site: &Site<'_>, nodes: &[Node]) {
    for node in nodes {
        let kept = entries(&node.store());
        assert_eq!(kept.len() as u64, ROUNDS, "{kept:?}");
        assert!(kept.iter().all(|name| name.ends_with("-r1")), "{kept:?}");
        node.assert_clean();
    }
    let names = (0..LANES).flat_map(|lane| (0..ROUNDS).map(move |round| format!("l{lane}i{round}")));
    let names: Vec<_> = names.collect();
    futures::future::join_all(names.iter().map(|name| site.delete("t", name))).await;
    for node in nodes {
        assert_eq!(entries(&node.store()), [""; 0]);
    }
}
