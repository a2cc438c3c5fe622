//! Clusters that fail under agents at work: OSDs and monitors that die, rights, pools and room that are missing. What is in the way is told
//! in the store's status and to whoever waits; when it is mended, the Image becomes Active by itself, and nothing else is left.

use std::time::Duration;

use serde_json::{Value, json};
use vitrine::api::{Image, ImagePhase};
use vitrine_engine::store::Store as _;
use vitrine_harness::{CephCluster, CephOptions, Fault, Route};

use super::{
    ceph::{self, POOL, USER, assert_holds, listed, ready, secret, told},
    several::{events, make},
    site::{Site, condition, is, phase},
};
use crate::node::{disks::raw, lab::until};

const SIZE: usize = 24 << 20;
/// So that an import of `SIZE` takes some seconds.
const RATE: u64 = 6 << 20;

/// What the Image says of why it is not there.
fn waits(image: &Image) -> String {
    condition(image, "Ready").map(|ready| ready.message.clone()).unwrap_or_default()
}

/// The last failure, by reason and message.
fn failure(image: &Image) -> Option<(String, String)> {
    let failure = image.status.as_ref()?.attempt.as_ref()?.last_failure.clone()?;
    Some((failure.reason, failure.message))
}

fn assert_names(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "{word} is not in: {message}");
    }
}

/// Waits until `path` is being imported into the pool.
async fn under_way(site: &Site<'_>, path: &str, sent: u64) {
    until(&format!("{path} is being sent"), async || (site.lab.server.sent(path) > sent).then_some(())).await;
}

/// Makes sure that a pool holds so many images, and nothing that is not published, once Ceph knows who is dead.
async fn assert_clean(ceph: &CephCluster, spec: &str, images: usize) {
    let store = ceph::open(ceph, spec).await;
    until(&format!("nothing is left in {spec}"), async || {
        store.sweep(Duration::ZERO).await.ok()?;
        store.list().await.ok()?.iter().all(|entry| entry.published).then_some(())
    })
    .await;
    assert_eq!(listed(ceph, spec).len(), images, "{:?}", listed(ceph, spec));
}

/// A site with one agent, for one cluster that the steps of a test break one after the other.
struct Broken<'a> {
    site: &'a Site<'a>,
    cluster: &'a CephCluster,
}

impl Broken<'_> {
    /// Makes the Image `name`, which comes slowly; gives its disk.
    async fn begin(&self, name: &str, seed: u64, store: &str, rate: u64) -> Vec<u8> {
        let disk = raw(seed, SIZE);
        self.site.lab.server.put(&format!("/{name}"), Route::bytes(disk.clone()).always(Fault::Rate(rate)));
        make(self.site, name, &[store], json!({})).await;
        disk
    }

    async fn assert_active(&self, name: &str, store: &str, disk: &[u8]) {
        let image = self.site.active("t", name).await;
        assert_holds(self.site, self.cluster, &image, store, disk);
    }

    async fn osd_dies_and_comes_back(&self, spec: &str) {
        let disk = self.begin("osd", 1, "ceph", RATE).await;
        under_way(self.site, "/osd", SIZE as u64 / 4).await;
        self.cluster.kill_osd();
        // Until nothing more can be taken in, and the store says why.
        let message = ready(self.site, "ceph", "False").await;
        assert_names(&message, &[&self.site.store_name("ceph"), "pool images", "ceph -s"]);
        self.cluster.start_osd().unwrap();
        self.assert_active("osd", "ceph", &disk).await;
        ready(self.site, "ceph", "True").await;
        assert_clean(self.cluster, spec, 1).await;
    }

    async fn monitor_is_away(&self, spec: &str) {
        // In the middle of one import, and at the beginning of another.
        let middle = self.begin("middle", 2, "ceph", RATE).await;
        under_way(self.site, "/middle", SIZE as u64 / 4).await;
        self.cluster.kill_monitor();
        let precise = |message: &str| message.contains(&format!("the monitors at {}", self.cluster.monitors()));
        let message = told(self.site, "ceph", ("Ready", "False"), precise).await;
        assert_names(&message, &[&self.site.store_name("ceph"), "pool images", "are they up"]);
        let beginning = self.begin("beginning", 3, "ceph", RATE).await;
        let told = |image: &Image| waits(image).contains("monitors") && phase(image) != Some(ImagePhase::Active);
        let image = self.site.wait_for("t", "beginning", "says what it waits for", told).await;
        assert_names(&waits(&image), &[&self.site.store_name("ceph"), "pool images"]);
        self.cluster.start_monitor().unwrap();
        self.assert_active("middle", "ceph", &middle).await;
        self.assert_active("beginning", "ceph", &beginning).await;
        ready(self.site, "ceph", "True").await;
        let name = self.site.store_name("ceph");
        until("its coming and going is told", async || {
            let told = events(self.site, "default", &name).await;
            let has = |reason: &str, word: &str| told.iter().any(|(r, note)| r == reason && note.contains(word));
            (has("StoreReady", "") && has("StoreNotReady", "monitors")).then_some(())
        })
        .await;
        assert_clean(self.cluster, spec, 3).await;
    }

    async fn quota(&self, bytes: u64) {
        let quota = json!({
            "prefix": "osd pool set-quota", "pool": "small", "field": "max_bytes", "val": bytes.to_string(),
        });
        self.cluster.command(&quota.to_string()).await.unwrap();
    }

    /// The quota is noticed in the middle of an import that is slow enough for that.
    async fn quota_is_reached(&self) {
        self.cluster.create_pool("small").await.unwrap();
        ceph::whole_pool(self.site, self.cluster, "small", "small").await;
        ready(self.site, "small", "True").await;
        let disk = self.begin("quota", 4, "small", 1 << 20).await;
        self.quota(1 << 20).await;
        let full = |image: &Image| failure(image).is_some_and(|(reason, _)| reason == "NoSpace");
        let image = self.site.wait_for("t", "quota", "met the quota", full).await;
        let (_, message) = failure(&image).unwrap();
        let uid = image.metadata.uid.clone().unwrap();
        assert_names(&message, &[&self.site.store_name("small"), "pool small", &uid, "set-quota"]);
        assert!(!is(&image, "Stalled", "True"), "room may come: {:?}", image.status);
        let message = told(self.site, "small", ("Writable", "False"), |_| true).await;
        assert_names(&message, &["no room is left in small", "set-quota"]);
        assert_eq!(listed(self.cluster, "small"), Vec::<String>::new());
        self.site.lab.server.put("/quota", Route::bytes(disk.clone()));
        self.quota(0).await;
        self.assert_active("quota", "small", &disk).await;
        assert_clean(self.cluster, "small", 1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_fails_in_the_middle_of_imports_delays_them_at_most() {
    let options = CephOptions { statistics: true, on_disk: true, ..CephOptions::default() };
    let cluster = async {
        let cluster = CephCluster::start_with(&options).await.unwrap();
        cluster.create_pool(POOL).await.unwrap();
        cluster
    };
    let (site, cluster) = tokio::join!(Site::shared("broken-cluster"), cluster);
    let node = site.lab.node("n").await;
    let (_operator, _agent) = (site.operator(&[]), site.lab.start(&node, &["--probe-interval", "1"]));
    secret(&site, "ceph", USER, &ceph::key(&cluster).await).await;
    let spec = ceph::namespace(&site, &cluster, POOL, "ceph").await;
    ready(&site, "ceph", "True").await;
    let broken = Broken { site: &site, cluster: &cluster };
    broken.osd_dies_and_comes_back(&spec).await;
    broken.monitor_is_away(&spec).await;
    broken.quota_is_reached().await;
    for name in ["osd", "middle", "beginning", "quota"] {
        site.delete("t", name).await;
    }
    for spec in [&spec, "small"] {
        assert_eq!(listed(&cluster, spec), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_may_only_read_is_told_what_is_missing_and_reads_on() {
    let (site, cluster) = (Site::shared("read-only-user").await, ceph::shared().await);
    let node = site.lab.node("n").await;
    let quick = ["--probe-interval", "1"];
    let (_operator, agent) = (site.operator(&[]), site.lab.start(&node, &quick));
    let spec = ceph::store(&site, "ceph").await;
    let disks = [raw(1, 5 << 20), raw(2, 5 << 20)];
    for (name, disk) in ["/disk", "/more"].iter().zip(&disks) {
        site.lab.server.put(name, Route::bytes(disk.clone()));
    }
    make(&site, "disk", &["ceph"], json!({})).await;
    site.active("t", "disk").await;
    let caps = [("mon", "profile rbd"), ("osd", "profile rbd-read-only")];
    let reader = cluster.create_user("reader", &caps).await.unwrap();
    secret(&site, "ceph", "reader", &reader).await;
    // Whoever is connected keeps what it had; who begins anew does not.
    agent.kill();
    let _agent = site.lab.start(&node, &quick);
    let message = told(&site, "ceph", ("Writable", "False"), |message| message.contains("client.reader")).await;
    assert_names(&message, &[&site.store_name("ceph"), "pool images", "profile rbd pool=images", "ceph auth caps"]);
    ready(&site, "ceph", "True").await;

    // What is there can be read, all of it.
    site.patch("disk", json!({ "metadata": { "annotations": { "vitrine.dev/verify": "now" } } })).await;
    let verified = |image: &Image| image.status.as_ref().unwrap().locations.iter().all(|l| l.verified_at.is_some());
    site.wait_for("t", "disk", "is verified", verified).await;
    make(&site, "more", &["ceph"], json!({})).await;
    let told = |image: &Image| waits(image).contains("client.reader");
    let image = site.wait_for("t", "more", "says what it waits for", told).await;
    assert_names(&waits(&image), &[&site.store_name("ceph"), "pool images", "ceph auth caps"]);
    assert_eq!(listed(cluster, &spec).len(), 1, "nothing was begun");

    // Its rights are mended, and nothing else.
    let mend = json!({
        "prefix": "auth caps", "entity": "client.reader", "caps": ["mon", "profile rbd", "osd", "profile rbd"],
    });
    cluster.command(&mend.to_string()).await.unwrap();
    let image = site.active("t", "more").await;
    assert_holds(&site, cluster, &image, "ceph", &disks[1]);
    for name in ["disk", "more"] {
        site.delete("t", name).await;
    }
    assert_eq!(listed(cluster, &spec), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_is_missing_is_told_and_used_when_it_is_there() {
    let (site, cluster) = (Site::shared("missing-pool").await, ceph::shared().await);
    let node = site.lab.node("n").await;
    let (_operator, _agent) = (site.operator(&[]), site.lab.start(&node, &["--probe-interval", "1"]));
    secret(&site, "ceph", USER, &ceph::key(cluster).await).await;
    ceph::whole_pool(&site, cluster, "late", "late").await;
    let message = ready(&site, "late", "False").await;
    assert_names(&message, &[&site.store_name("late"), "no pool late", "rbd pool init late"]);
    let disk = raw(1, 5 << 20);
    site.lab.server.put("/disk", Route::bytes(disk.clone()));
    make(&site, "disk", &["late"], json!({})).await;
    let told = |image: &Image| waits(image).contains("no pool late");
    let image = site.wait_for("t", "disk", "says what it waits for", told).await;
    assert!(!is(&image, "Stalled", "True"), "{:?}", image.status);
    cluster.create_pool("late").await.unwrap();
    let image = site.active("t", "disk").await;
    assert_holds(&site, cluster, &image, "late", &disk);
    assert_clean(cluster, "late", 1).await;
    ready(&site, "late", "True").await;

    // It goes, with all that is in it, and another one comes.
    let remove: Value = json!({
        "prefix": "osd pool delete", "pool": "late", "pool2": "late", "yes_i_really_really_mean_it": true,
    });
    cluster.command(&remove.to_string()).await.unwrap();
    let message = ready(&site, "late", "False").await;
    assert_names(&message, &[&site.store_name("late"), "pool late"]);
    cluster.create_pool("late").await.unwrap();
    ready(&site, "late", "True").await;
    site.delete("t", "disk").await;
}
