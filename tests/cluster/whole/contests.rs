//! Who is killed or overtaken at the worst moment, with stores in pools: agents around their publishing, operators that both believe to
//! lead, and people who clone what is being deleted. Of each Image there is one copy, and nothing else.

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api,
    api::{DeleteParams, ListParams},
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::json;
use vitrine::{
    api::{Image, ImagePhase},
    controller::LEADER_LEASE_NAME,
};
use vitrine_engine::store::{Store as _, rbd::RbdStore};
use vitrine_harness::{CephCluster, Fault, Route};

use super::{
    ceph::{self, POOL, assert_holds, listed, location, ready},
    several::make,
    site::{Site, condition, phase},
};
use crate::node::{
    disks::{raw, sha256, sha256_of},
    lab::{self, until},
};

/// When an agent is killed, as seen from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    /// The image has its snapshot, which is not protected.
    Snapshot,
    /// The image is published, and the task does not say so.
    Published,
}

/// How often an agent is killed at each moment.
const HITS: usize = 1;
/// In how many rounds that must be done. Moments are milliseconds long, and a busy machine may miss some.
const MOST_ROUNDS: u64 = 60;

/// What a test knows of a store that an agent writes to.
struct View<'a> {
    site: &'a Site<'a>,
    cluster: &'static CephCluster,
    spec: String,
    store: RbdStore,
}

impl View<'_> {
    fn namespace(&self) -> &str {
        self.spec.split_once('/').unwrap().1
    }

    async fn snapshots(&self) -> usize {
        self.cluster.snapshots(POOL, self.namespace()).await.unwrap()
    }

    async fn published(&self) -> usize {
        self.store.list().await.unwrap().iter().filter(|entry| entry.published).count()
    }

    /// Waits for a change, as often as a core can look.
    async fn until_more(&self, moment: Moment, before: usize) {
        until(&format!("{moment:?}"), async || {
            let now = match moment {
                Moment::Snapshot => self.snapshots().await,
                Moment::Published => self.published().await,
            };
            (now > before).then_some(())
        })
        .await;
    }

    /// The images that are not published.
    async fn unpublished(&self) -> BTreeSet<String> {
        let entries = self.store.list().await.unwrap().into_iter();
        entries.filter(|entry| !entry.published).map(|entry| entry.name).collect()
    }

    /// Whether it is `moment`, while the agent stands still. `published` images were there before, and those that `left` names were not
    /// published.
    async fn is(&self, moment: Moment, published: usize, left: &BTreeSet<String>) -> bool {
        match moment {
            Moment::Snapshot => {
                let unprotected = |name: &String| {
                    let listed =
                        self.cluster.rbd(&["snap", "ls", "--format", "json", &format!("{}/{name}", self.spec)]);
                    let listed: serde_json::Value = serde_json::from_str(&listed.unwrap()).unwrap();
                    listed.as_array().unwrap().iter().any(|snapshot| snapshot["protected"] == "false")
                };
                self.unpublished().await.difference(left).any(unprotected)
            }
            Moment::Published => {
                let tasks = self.site.lab.tasks().list(&ListParams::default()).await.unwrap().items;
                let unfinished = tasks.iter().any(|task| !lab::phase(task).is_final());
                self.published().await > published && unfinished
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_killed_around_its_publishing_leaves_one_copy() {
    let (site, cluster) = (Site::shared("publishing").await, ceph::shared().await);
    let node = site.lab.node("n").await;
    let _operator = site.operator(&[]);
    let mut agent = site.lab.start(&node, &[]);
    let spec = ceph::store(&site, "ceph").await;
    ready(&site, "ceph", "True").await;
    let view = View { site: &site, cluster, store: ceph::open(cluster, &spec).await, spec };
    let disk = raw(1, 5 << 20);
    let (mut hits, mut round) = (Vec::new(), 0);
    let count = |hits: &[Moment], moment| hits.iter().filter(|hit| **hit == moment).count();
    while let Some(moment) =
        [Moment::Snapshot, Moment::Published].into_iter().find(|moment| count(&hits, *moment) < HITS)
    {
        assert!(round < MOST_ROUNDS, "only {hits:?} in {round} rounds");
        let (name, published) = (format!("disk-{round}"), view.published().await);
        let left = view.unpublished().await;
        let before = if moment == Moment::Snapshot { view.snapshots().await } else { published };
        site.lab.server.put(&format!("/{name}"), Route::bytes(disk.clone()));
        make(&site, &name, &["ceph"], json!({})).await;
        view.until_more(moment, before).await;
        agent.pause().unwrap();
        if view.is(moment, published, &left).await {
            hits.push(moment);
        }
        agent.kill();
        agent = site.lab.start(&node, &[]);
        let image = site.active("t", &name).await;
        assert_holds(&site, cluster, &image, "ceph", &disk);
        assert_eq!(image.status.unwrap().revisions[0].attempts, 1, "{name}");
        round += 1;
    }
    eprintln!("{hits:?} in {round} rounds");
    let is_swept = async || {
        view.store.sweep(Duration::ZERO).await.ok()?;
        view.store.list().await.ok()?.iter().all(|entry| entry.published).then_some(())
    };
    until("what the dead have left is swept", is_swept).await;
    let names: BTreeSet<_> = listed(cluster, &view.spec).into_iter().collect();
    let images = site.images("t").list(&ListParams::default()).await.unwrap().items;
    let wanted: BTreeSet<_> =
        images.iter().map(|image| format!("{}-r1", image.metadata.uid.as_ref().unwrap())).collect();
    assert_eq!(names, wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_that_both_believe_to_lead_bring_one_copy_of_each_image() {
    const IMAGES: usize = 6;
    let seed = rand::random::<u64>();
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (site, cluster) = (Site::shared("rivals").await, ceph::shared().await);
    let node = site.lab.node("n").await;
    let operators = [(); 2].map(|()| site.operator(&["--leader-lease", "1"]));
    let _agent = site.lab.start(&node, &["--max-concurrent", "4"]);
    let spec = ceph::store(&site, "ceph").await;
    let leases: Api<Lease> = Api::namespaced(site.lab.client.clone(), &site.lab.namespace);
    let disks: Vec<_> = (0..IMAGES as u64).map(|seed| raw(seed, 4 << 20)).collect();
    for (number, disk) in disks.iter().enumerate() {
        let route = Route::bytes(disk.clone()).always(Fault::Rate(3 << 20));
        site.lab.server.put(&format!("/disk-{number}"), route);
        make(&site, &format!("disk-{number}"), &["ceph"], json!({})).await;
    }
    let images = site.images("t");
    let all_active = async || {
        let all = images.list(&ListParams::default()).await.ok()?.items;
        all.iter().all(|image| phase(image) == Some(ImagePhase::Active)).then_some(())
    };
    until("all are Active", async || {
        // The lease is gone, and whoever comes first has it, while the other one has not heard of that.
        let _ = leases.delete(LEADER_LEASE_NAME, &DeleteParams::default()).await;
        tokio::time::sleep(Duration::from_millis(random.random_range(0..600))).await;
        all_active().await
    })
    .await;
    for (number, disk) in disks.iter().enumerate() {
        let image = site.active("t", &format!("disk-{number}")).await;
        let status = image.status.as_ref().unwrap();
        assert_eq!((status.locations.len(), status.revisions.len()), (1, 1), "{status:?}");
        assert_eq!(status.revisions[0].attempts, 1, "{status:?}");
        assert!(location(&image, &site.store_name("ceph")).is_some(), "{status:?}");
        assert_holds(&site, cluster, &image, "ceph", disk);
    }
    assert_eq!(listed(cluster, &spec).len(), IMAGES);
    let led = operators.each_ref().map(|operator| operator.log().matches("leading").count());
    eprintln!("led {led:?} times");
    assert!(led.iter().all(|led| *led > 0), "both have led");
    for number in 0..IMAGES {
        images.delete(&format!("disk-{number}"), &DeleteParams::default()).await.unwrap();
    }
    until("all are gone", async || {
        let _ = leases.delete(LEADER_LEASE_NAME, &DeleteParams::default()).await;
        tokio::time::sleep(Duration::from_millis(random.random_range(0..600))).await;
        images.list(&ListParams::default()).await.ok()?.items.is_empty().then_some(())
    })
    .await;
    assert_eq!(listed(cluster, &spec), Vec::<String>::new());
}

/// What is said of why the Image is still there.
fn held_by(image: &Image, names: &[&str]) -> bool {
    let told =
        ["Reconciling", "Ready"].map(|kind| condition(image, kind).map(|c| c.message.clone()).unwrap_or_default());
    told.iter().any(|message| names.iter().all(|name| message.contains(name)))
}

#[tokio::test(flavor = "multi_thread")]
async fn clones_that_are_made_of_what_is_being_deleted_are_named_and_waited_for() {
    let (site, cluster) = (Site::shared("late-clones").await, ceph::shared().await);
    let node = site.lab.node("n").await;
    let (_operator, agent) = (site.operator(&[]), site.lab.start(&node, &[]));
    let spec = ceph::store(&site, "ceph").await;
    let disk = raw(3, 5 << 20);
    site.lab.server.put("/disk", Route::bytes(disk.clone()));
    make(&site, "disk", &["ceph"], json!({})).await;
    let image = site.active("t", "disk").await;
    let parent = format!("{spec}/{}-r1@snap", image.metadata.uid.as_deref().unwrap());
    // The order to remove it is given, and not carried out yet.
    agent.pause().unwrap();
    site.images("t").delete("disk", &DeleteParams::default()).await.unwrap();
    let tasks = site.lab.tasks();
    let ordered = async || (!tasks.list(&ListParams::default()).await.ok()?.items.is_empty()).then_some(());
    until("its removal is ordered", ordered).await;
    let clone = |name: &str| cluster.rbd(&["clone", &parent, &format!("{spec}/{name}")]);
    clone("volume-1").unwrap();
    agent.resume().unwrap();
    let store = site.store_name("ceph");
    site.wait_for("t", "disk", "names the clone", |image| held_by(image, &[&store, "pool images", "volume-1"])).await;
    // Another one while it waits; it does not go with the first.
    clone("volume-2").unwrap();
    cluster.rbd(&["rm", &format!("{spec}/volume-1")]).unwrap();
    site.wait_for("t", "disk", "names the other", |image| {
        held_by(image, &["volume-2"]) && !held_by(image, &["volume-1"])
    })
    .await;
    let copy = site.lab.plane.scope().dir().join("volume-2");
    cluster.rbd(&["export", "--no-progress", &format!("{spec}/volume-2"), copy.to_str().unwrap()]).unwrap();
    assert_eq!(sha256_of(&copy), sha256(&disk), "it has its parent");
    std::fs::remove_file(copy).unwrap();
    cluster.rbd(&["rm", &format!("{spec}/volume-2")]).unwrap();
    let images = site.images("t");
    until("the Image is gone", async || images.get_opt("disk").await.ok()?.is_none().then_some(())).await;
    assert_eq!(listed(cluster, &spec), Vec::<String>::new());
    // Nothing can be made of it any more.
    assert!(clone("volume-3").is_err());
}
