//! Agents that are killed in the middle of a copy: whoever goes on copies the rest, and nothing twice.

use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt as _, path::Path, time::Duration};

use serde_json::json;
use vitrine::api::Image;
use vitrine_harness::{CephCluster, Process, Route};

use super::{
    ceph::{self, POOL, assert_holds, listed, location},
    several::{choose, copies, make},
    site::Site,
};
use crate::node::{
    disks::{entries, raw, sha256, sha256_of},
    lab::{PATIENCE, until},
};

/// Three quarters of it are data.
const SIZE: usize = 128 << 20;
const DATA: u64 = SIZE as u64 / 4 * 3;
/// What is there at least when the agent is killed.
const ENOUGH: u64 = 32 << 20;
/// What was under way then, and is copied again, and what an agent writes besides: two chunks, and answers of the API server.
const SLACK: u64 = 12 << 20;
/// How long an agent may work between two looks at what it has done.
const SLICE: Duration = Duration::from_millis(2);
const GOES_ON: &str = "going on where a killed writer stopped";

/// Stops the agents, who do their work in slices, as soon as one of them has done enough.
async fn stop_in_the_middle(agents: &[&Process], has_enough: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    loop {
        agents.iter().for_each(|agent| agent.pause().unwrap());
        if has_enough() {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "nothing is copied");
        agents.iter().for_each(|agent| agent.resume().unwrap());
        tokio::time::sleep(SLICE).await;
    }
}

/// How much is there of an unfinished object in a folder.
fn unfinished(folder: &Path) -> u64 {
    let partial = entries(folder).into_iter().filter(|name| name.starts_with(".partial-"));
    let data = partial.filter_map(|name| fs::metadata(folder.join(name).join("data")).ok());
    data.map(|data| data.blocks() * 512).sum()
}

/// Bytes that a process has written so far, by all its calls.
fn written(process: &Process) -> u64 {
    let io = fs::read_to_string(format!("/proc/{}/io", process.id())).unwrap();
    io.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_agent_costs_a_copy_between_folders_only_what_was_under_way() {
    let site = Site::shared("resumed").await;
    let node = site.lab.node("n").await;
    let (_operator, mut agent) = (site.operator(&[]), site.lab.start(&node, &[]));
    let folders = site.three_folders(&node).await;
    let disk = raw(7, SIZE);
    site.lab.server.put("/disk", Route::bytes(disk.clone()));
    make(&site, "disk", &["a"], json!({})).await;
    site.active("t", "disk").await;
    let sent = site.lab.server.sent("/disk");
    for (stores, folder) in [(&["a", "b"][..], &folders[1]), (&["a", "b", "c"], &folders[2])] {
        choose(&site, "disk", stores).await;
        stop_in_the_middle(&[&agent], || unfinished(folder) >= ENOUGH).await;
        agent.kill();
        let left = unfinished(folder);
        agent = site.lab.start(&node, &[]);
        let image = site.active("t", "disk").await;
        let (again, rest) = (written(&agent), DATA.saturating_sub(left));
        assert!(again >= rest / 2 && again <= rest + SLACK, "{again} bytes written, and {left} of {DATA} were there");
        assert!(agent.log().contains(GOES_ON), "{stores:?}");
        let held = copies(&site, &image);
        assert_eq!(held.len(), stores.len());
        assert!(held.iter().all(|(_, file)| sha256_of(file) == sha256(&disk)), "{held:?}");
        assert_eq!(entries(folder).len(), 1, "{:?}", entries(folder));
    }
    assert_eq!(site.lab.server.sent("/disk"), sent, "nothing was fetched again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agent_of_another_node_goes_on_in_a_shared_folder() {
    let site = Site::shared("resumed-wide").await;
    let nodes = [site.lab.node("one").await, site.lab.node("two").await];
    let root = site.lab.plane.scope().dir().join("resumed-wide-shared");
    fs::create_dir_all(&root).unwrap();
    let _operator = site.operator(&[]);
    let agents = nodes.each_ref().map(|node| site.lab.start(node, &["--store-root", root.to_str().unwrap()]));
    let folders = ["a", "b"].map(|name| root.join(name));
    for (name, folder) in ["a", "b"].iter().zip(&folders) {
        site.store(name, folder, true, None).await;
    }
    let disk = raw(8, SIZE);
    site.lab.server.put("/disk", Route::bytes(disk.clone()));
    make(&site, "disk", &["a"], json!({})).await;
    site.active("t", "disk").await;
    choose(&site, "disk", &["a", "b"]).await;
    stop_in_the_middle(&agents.each_ref(), || unfinished(&folders[1]) >= ENOUGH).await;
    let worker = site.images("t").get("disk").await.unwrap().status.unwrap().attempt.unwrap().node.unwrap();
    let [killed, heir] = if worker == nodes[0].name { [&agents[0], &agents[1]] } else { [&agents[1], &agents[0]] };
    killed.kill();
    let (left, before) = (unfinished(&folders[1]), written(heir));
    heir.resume().unwrap();
    let both = |image: &Image| copies(&site, image).len() == 2;
    let image = site.wait_for("t", "disk", "is in both stores", both).await;
    let (again, rest) = (written(heir) - before, DATA.saturating_sub(left));
    assert!(again >= rest / 2 && again <= rest + SLACK, "{again} bytes written, and {left} of {DATA} were there");
    assert!(heir.log().contains(GOES_ON));
    assert!(copies(&site, &image).iter().all(|(_, file)| sha256_of(file) == sha256(&disk)));
}

/// When each object with data in a namespace was last written.
fn objects(cluster: &CephCluster, spec: &str) -> BTreeMap<String, String> {
    let (pool, namespace) = spec.split_once('/').unwrap();
    let place = ["--pool", pool, "--namespace", namespace];
    let listed = cluster.rados(&[&place[..], &["ls"]].concat()).unwrap();
    let data = listed.lines().filter(|name| name.starts_with("rbd_data."));
    data.map(|name| (name.to_owned(), cluster.rados(&[&place[..], &["stat", name]].concat()).unwrap())).collect()
}

fn has_objects(cluster: &CephCluster, spec: &str, count: usize) -> bool {
    let (pool, namespace) = spec.split_once('/').unwrap();
    let listed = cluster.rados(&["--pool", pool, "--namespace", namespace, "ls"]).unwrap();
    listed.lines().filter(|name| name.starts_with("rbd_data.")).count() >= count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_agent_costs_a_copy_into_a_pool_only_what_was_under_way() {
    let (site, cluster) = (Site::shared("resumed-pool").await, ceph::shared().await);
    let node = site.lab.node("n").await;
    let (_operator, agent) = (site.operator(&[]), site.lab.start(&node, &[]));
    let spec = ceph::store(&site, "ceph").await;
    assert!(spec.starts_with(POOL));
    site.store("folder", &node.store(), false, None).await;
    ceph::ready(&site, "ceph", "True").await;
    let disk = raw(9, SIZE);
    site.lab.server.put("/disk", Route::bytes(disk.clone()));
    make(&site, "disk", &["folder"], json!({})).await;
    site.active("t", "disk").await;
    choose(&site, "disk", &["folder", "ceph"]).await;
    stop_in_the_middle(&[&agent], || has_objects(cluster, &spec, 8)).await;
    agent.kill();
    // Ceph keeps the watch of a client that is dead for half a minute, which is waited for only where there is more to lose.
    let image = format!("{spec}/{}", listed(cluster, &spec)[0]);
    until("Ceph knows that the agent is dead", async || {
        let text = cluster.rbd(&["status", "--format", "json", &image]).unwrap();
        let status: serde_json::Value = serde_json::from_str(&text).unwrap();
        status["watchers"].as_array().is_some_and(Vec::is_empty).then_some(())
    })
    .await;
    let left = objects(cluster, &spec);
    let agent = site.lab.start(&node, &[]);
    let there = |image: &Image| location(image, &site.store_name("ceph")).is_some();
    let image = site.wait_for("t", "disk", "is in the pool", there).await;
    assert_holds(&site, cluster, &image, "ceph", &disk);
    assert!(agent.log().contains(GOES_ON));
    let now = objects(cluster, &spec);
    let kept = left.iter().filter(|(name, written)| now.get(*name) == Some(written)).count();
    // Those that were under way are written again: as many as there may be at once, and one by one as they come.
    assert!(kept * 2 >= left.len() && now.len() == SIZE / (4 << 20), "{kept} of {} kept: {now:?}", left.len());
}
