//! kill -9 of agents and of the operator at random moments: every Image becomes Active with the right content, there is one copy in each
//! store, and nothing else.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api,
    api::{DeleteParams, ListParams, PostParams},
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::json;
use vitrine::{
    api::{Image, ImagePhase},
    controller::LEADER_LEASE_NAME,
};
use vitrine_harness::{Fault, Process, Route, qemu};

use super::site::{Site, phase};
use crate::node::{
    disks::{entries, raw, sha256, sha256_of},
    lab::{Node, until},
};

/// What agents do that are killed side by side, and how often each is killed at least.
const LANES: [Lane; 5] = [Lane::Raw, Lane::Raw, Lane::Qcow2, Lane::TwoStores, Lane::Shared];
const ROUNDS: u64 = 10;
/// How often the operator is killed at least while an import is under way.
const OPERATOR_KILLS: u64 = 50;
/// Several chunks of 4 MiB, and an import that takes about a second, so that kills fall on all of its stages.
const SIZE: usize = 12 << 20;
const RATE: u64 = 8 << 20;
const LATEST_KILL: u64 = 1500;

#[derive(Clone, Copy, PartialEq)]
enum Lane {
    Raw,
    /// From qcow2 to qcow2.
    Qcow2,
    TwoStores,
    /// Into a store that others could reach as well, and beside each Image one that is deleted before it is there.
    Shared,
}

/// A lane at work.
struct Track<'a> {
    site: &'a Site<'a>,
    number: usize,
    lane: Lane,
    node: Node,
    operator_kills: &'a AtomicU64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_kills_of_agents_and_of_the_operator_leave_only_active_images() {
    let seed = rand::random::<u64>();
    eprintln!("seed {seed}");
    let site = Site::shared("hard-life").await;
    let kills = AtomicU64::new(0);
    let mut tracks = Vec::new();
    for (number, lane) in LANES.into_iter().enumerate() {
        let node = site.lab.node(&format!("n{number}")).await;
        let track = Track { site: &site, number, lane, node, operator_kills: &kills };
        for (short, folder) in track.stores() {
            site.store(&short, &folder, lane == Lane::Shared, Some(&track.node)).await;
        }
        tracks.push(track);
    }
    let work = tracks.iter().zip(0..).map(|(track, n)| track.run(StdRng::seed_from_u64(seed ^ n)));
    let work = futures::future::join_all(work);
    let (ends, operator) = kill_operators(&site, &kills, StdRng::seed_from_u64(!seed), work).await;
    let rounds: u64 = ends.iter().map(|(rounds, _)| rounds).sum();
    eprintln!(
        "{rounds} kills of agents, {} of the operator while Images were not Active",
        kills.load(Ordering::Relaxed)
    );
    clean_end(&tracks, ends.iter().map(|(rounds, _)| *rounds)).await;
    drop((operator, ends));
}

/// Kills one operator after the other until `work` is done. Gives back what came of it, and the last operator.
async fn kill_operators<T>(
    site: &Site<'_>,
    kills: &AtomicU64,
    mut random: StdRng,
    work: impl Future<Output = T>,
) -> (T, Process) {
    let start = || site.operator(&["--leader-lease", "1"]);
    let leases: Api<Lease> = Api::namespaced(site.lab.client.clone(), &site.lab.namespace);
    let images = site.images("t");
    let mut operator = start();
    tokio::pin!(work);
    loop {
        let pause = Duration::from_millis(random.random_range(200..1500));
        tokio::select! {
            done = &mut work => return (done, operator),
            () = tokio::time::sleep(pause) => {}
        }
        let all = images.list(&ListParams::default()).await.unwrap().items;
        operator.kill();
        let unfinished =
            |image: &Image| matches!(phase(image), None | Some(ImagePhase::Queued | ImagePhase::Importing));
        if all.iter().any(unfinished) {
            kills.fetch_add(1, Ordering::Relaxed);
        }
        // Waiting for the lease to expire is another test's business.
        let _ = leases.delete(LEADER_LEASE_NAME, &DeleteParams::default()).await;
        operator = start();
    }
}

impl Track<'_> {
    /// The lane's stores: their short names and folders.
    fn stores(&self) -> Vec<(String, PathBuf)> {
        let mut stores = vec![(format!("s{}", self.number), self.node.store())];
        if self.lane == Lane::TwoStores {
            stores.push((format!("s{}b", self.number), self.node.stores.join("b")));
        }
        stores
    }

    /// Imports one Image after the other while the agent is killed; gives back how many, and the last agent.
    async fn run(&self, mut random: StdRng) -> (u64, Process) {
        let mut agent = self.site.lab.start(&self.node, &[]);
        let mut round = 0;
        while round < ROUNDS || self.operator_kills.load(Ordering::Relaxed) < OPERATOR_KILLS {
            let (name, disk) = (self.name(round), raw(self.number as u64 * 1000 + round, SIZE));
            let source = self.source(&name, &disk);
            let path = format!("/{name}");
            self.site.lab.server.put(&path, Route::bytes(source.clone()).always(Fault::Rate(RATE)));
            self.make(&name, &path).await;
            if self.lane == Lane::Shared {
                self.make(&format!("{name}-doomed"), &path).await;
            }
            // Half of the kills wait for the import to begin, so that not all fall on the time before it.
            if random.random() {
                self.begun(&name).await;
            }
            tokio::time::sleep(Duration::from_millis(random.random_range(0..LATEST_KILL))).await;
            agent.kill();
            if self.lane == Lane::Shared {
                let doomed = format!("{name}-doomed");
                self.site.images("t").delete(&doomed, &DeleteParams::default()).await.unwrap();
            }
            agent = self.site.lab.start(&self.node, &[]);
            let image = self.site.active("t", &name).await;
            self.check(&image, &source, &disk);
            round += 1;
        }
        (round, agent)
    }

    fn name(&self, round: u64) -> String {
        format!("l{}i{round}", self.number)
    }

    /// The bytes to serve for `disk`.
    fn source(&self, name: &str, disk: &[u8]) -> Vec<u8> {
        if self.lane != Lane::Qcow2 {
            return disk.to_vec();
        }
        let [raw, qcow2] = ["raw", "qcow2"].map(|end| self.node.stores.with_file_name(format!("{name}.{end}")));
        std::fs::write(&raw, disk).unwrap();
        convert("raw", &raw, "qcow2", &qcow2);
        let bytes = std::fs::read(&qcow2).unwrap();
        [raw, qcow2].iter().for_each(|file| std::fs::remove_file(file).unwrap());
        bytes
    }

    async fn make(&self, name: &str, path: &str) {
        let stores: Vec<_> = self.stores().iter().map(|(short, _)| self.site.store_name(short)).collect();
        let mut manifest = json!({
            "apiVersion": "vitrine.dev/v1alpha1", "kind": "Image", "metadata": { "name": name },
            "spec": { "source": { "http": { "url": self.site.lab.server.url(path) } }, "stores": stores },
        });
        if self.lane == Lane::Qcow2 {
            manifest["spec"]["convertTo"] = json!({ "diskFormat": "qcow2" });
        }
        let image: Image = serde_json::from_value(manifest).unwrap();
        self.site.images("t").create(&PostParams::default(), &image).await.unwrap();
    }

    async fn begun(&self, name: &str) {
        let images = self.site.images("t");
        let begun = async || {
            let image = images.get(name).await.ok()?;
            matches!(phase(&image), Some(ImagePhase::Importing | ImagePhase::Active)).then_some(())
        };
        until(&format!("{name} is begun"), begun).await;
    }

    /// Every store has the right content.
    fn check(&self, image: &Image, source: &[u8], disk: &[u8]) {
        let (status, name) = (image.status.as_ref().unwrap(), image.metadata.name.as_ref().unwrap());
        assert_eq!(status.content.as_ref().unwrap().digests, [sha256(source)], "{name}");
        assert_eq!(status.locations.len(), self.stores().len(), "{name}: {:?}", status.locations);
        for location in &status.locations {
            let file = PathBuf::from(location.url.as_deref().unwrap().strip_prefix("file://").unwrap());
            if self.lane != Lane::Qcow2 {
                assert_eq!(sha256_of(&file), sha256(disk), "{name}");
                continue;
            }
            let back = self.node.stores.with_file_name(format!("{name}.back"));
            convert("qcow2", &file, "raw", &back);
            assert_eq!(sha256_of(&back), sha256(disk), "{name}");
            std::fs::remove_file(&back).unwrap();
        }
    }
}

fn convert(from: &str, source: &Path, to: &str, target: &Path) {
    let [source, target] = [source, target].map(|path| path.to_str().unwrap());
    qemu::qemu_img(&["convert", "-f", from, "-O", to, source, target]).unwrap();
}

/// One copy of each in each store; and once the Images are deleted, nothing.
async fn clean_end(tracks: &[Track<'_>], rounds: impl Iterator<Item = u64>) {
    let (site, mut names) = (tracks[0].site, Vec::new());
    let images = site.images("t");
    until("the doomed are gone", async || {
        let all = images.list(&ListParams::default()).await.ok()?.items;
        all.iter().all(|image| !image.metadata.name.as_ref().unwrap().ends_with("-doomed")).then_some(())
    })
    .await;
    for (track, rounds) in tracks.iter().zip(rounds) {
        for (_, folder) in track.stores() {
            let kept = entries(&folder);
            assert_eq!(kept.len() as u64, rounds, "{}: {kept:?}", folder.display());
            assert!(kept.iter().all(|name| name.ends_with("-r1")), "{}: {kept:?}", folder.display());
        }
        track.node.assert_clean();
        names.extend((0..rounds).map(|round| track.name(round)));
    }
    futures::future::join_all(names.iter().map(|name| site.delete("t", name))).await;
    for (_, folder) in tracks.iter().flat_map(Track::stores) {
        assert_eq!(entries(&folder), [""; 0], "{}", folder.display());
    }
}
