//! kill -9 of the agent and of the operator in the middle of copies: every store gets the right content, nothing is fetched again, and
//! nothing stays where it is not wanted.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, api::DeleteParams};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::json;
use vitrine::controller::LEADER_LEASE_NAME;
use vitrine_harness::Route;

use super::{
    several::{choose, copies, make},
    site::Site,
};
use crate::node::{
    disks::{entries, raw, sha256, sha256_of},
    lab::until,
};

/// Large enough that a copy is seldom over before the kill.
const SIZE: usize = 48 << 20;
const ROUNDS: usize = 12;
const LATEST_KILL: u64 = 700;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_in_the_middle_of_copies_cost_nothing_but_time() {
    let seed = rand::random::<u64>();
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let site = Site::shared("copy-kills").await;
    let node = site.lab.node("n").await;
    let (mut operator, mut agent) = (site.operator(&["--leader-lease", "1"]), site.lab.start(&node, &[]));
    let leases: Api<Lease> = Api::namespaced(site.lab.client.clone(), &site.lab.namespace);
    let folders = site.three_folders(&node).await;
    let disk = raw(7, SIZE);
    site.lab.server.put("/disk", Route::bytes(disk.clone()));
    make(&site, "disk", &["a"], json!({})).await;
    site.active("t", "disk").await;
    let sent = site.lab.server.sent("/disk");
    // Each round adds what the one before has left.
    let rounds = [&["a", "b", "c"][..], &["b"], &["b", "c"], &["a", "c"]];
    for round in 0..ROUNDS {
        let stores = rounds[round % rounds.len()];
        choose(&site, "disk", stores).await;
        tokio::time::sleep(Duration::from_millis(random.random_range(0..LATEST_KILL))).await;
        if random.random() {
            agent.kill();
            agent = site.lab.start(&node, &[]);
        } else {
            operator.kill();
            // Waiting for the lease to expire is another test's business.
            let _ = leases.delete(LEADER_LEASE_NAME, &DeleteParams::default()).await;
            operator = site.operator(&["--leader-lease", "1"]);
        }
        let image = site.active("t", "disk").await;
        let held = copies(&site, &image);
        assert_eq!(held.iter().map(|(store, _)| store.as_str()).collect::<Vec<_>>(), stores, "round {round}");
        assert!(held.iter().all(|(_, file)| sha256_of(file) == sha256(&disk)), "round {round}: {held:?}");
    }
    assert_eq!(site.lab.server.sent("/disk"), sent, "nothing was fetched again");
    for (name, folder) in ["a", "b", "c"].iter().zip(&folders) {
        let kept = usize::from(rounds[(ROUNDS - 1) % rounds.len()].contains(name));
        until(&format!("{name} holds what it shall"), async || (entries(folder).len() == kept).then_some(())).await;
    }
    site.delete("t", "disk").await;
    for folder in &folders {
        assert_eq!(entries(folder), [""; 0], "{}", folder.display());
    }
    drop((operator, agent));
}
