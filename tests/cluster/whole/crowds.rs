//! Many imports at once, and imports into many stores at once, with pools that take nothing for a while: an agent's memory is bounded.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use futures::future::join_all;
use serde_json::json;
use tokio::sync::Mutex;
use vitrine::api::{Image, ImageStore};
use vitrine_engine::store::Store as _;
use vitrine_harness::{CephCluster, Process, Route};

use super::{
    ceph::{self, assert_holds, listed, ready},
    several::make,
    site::Site,
};
use crate::node::{
    disks::{raw, sha256, sha256_of},
    lab::{PATIENCE, until},
};

/// What an agent may have at any time.
const MOST: u64 = 256 << 20;
/// Larger than what an import may have under way, so that it is not the source's end that bounds it.
const LARGE: usize = 96 << 20;
const SMALL: usize = 2 << 20;
/// More than what is on its way between two programs: so much was sent only if an import takes it in.
const UNDER_WAY: u64 = 16 << 20;
/// How long nothing must have been sent to say that nothing more is taken in. If more would be, the test shows less.
const QUIET: Duration = Duration::from_millis(500);
const LARGE_ONES: usize = 4;
const ALL: usize = 20;

/// Whose turn it is to stop the cluster.
static TURN: Mutex<()> = Mutex::const_new(());

/// Stops the cluster while all of `paths` are being imported, until nothing more is taken in.
async fn hold_up(site: &Site<'_>, cluster: &CephCluster, paths: &[String]) {
    let sent = || paths.iter().map(|path| site.lab.server.sent(path)).collect::<Vec<_>>();
    let _turn = TURN.lock().await;
    let begun = async || sent().iter().all(|sent| *sent > UNDER_WAY).then_some(());
    until("all imports are under way", begun).await;
    cluster.pause_osd().unwrap();
    let (start, mut last) = (Instant::now(), (sent(), Instant::now()));
    while last.1.elapsed() < QUIET && start.elapsed() < PATIENCE {
        tokio::time::sleep(QUIET / 20).await;
        let now = sent();
        if now != last.0 {
            last = (now, Instant::now());
        }
    }
    cluster.resume_osd().unwrap();
}

fn assert_bounded(agent: &Process) {
    let peak = agent.peak_rss().unwrap();
    eprintln!("peak: {} MiB", peak >> 20);
    assert!(peak <= MOST, "{} MiB", peak >> 20);
}

/// How many RADOS objects of each sort there are in a namespace, by the beginnings of their names.
fn objects(cluster: &CephCluster, spec: &str) -> BTreeMap<String, usize> {
    let (pool, namespace) = spec.split_once('/').unwrap();
    let mut counts = BTreeMap::new();
    for name in cluster.rados(&["--pool", pool, "--namespace", namespace, "ls"]).unwrap().lines() {
        *counts.entry(name.split('.').next().unwrap().to_owned()).or_default() += 1;
    }
    counts
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_images_at_once_become_active_within_the_memory_of_an_agent() {
    let (site, cluster) = (Site::shared("twenty").await, ceph::shared().await);
    let node = site.lab.node("n").await;
    let _operator = site.operator(&[]);
    // As many workers as there are buffers: what a machine with many processors does.
    let agent = site.lab.start(&node, &["--max-concurrent", "4", "--workers", "16"]);
    let spec = ceph::store(&site, "ceph").await;
    ready(&site, "ceph", "True").await;
    let name = |number: usize| format!("disk-{number:02}");
    let large = raw(1, LARGE);
    let disk = |number: usize| if number < LARGE_ONES { large.clone() } else { raw(number as u64, SMALL) };
    let route = Route::bytes(large.clone());
    for number in 0..ALL {
        let route = if number < LARGE_ONES { route.clone() } else { Route::bytes(disk(number)) };
        site.lab.server.put(&format!("/{}", name(number)), route);
    }
    let begin = async |number: usize| make(&site, &name(number), &["ceph"], json!({})).await;
    for number in 0..LARGE_ONES {
        begin(number).await;
    }
    let paths: Vec<_> = (0..LARGE_ONES).map(|number| format!("/{}", name(number))).collect();
    let others = async { join_all((LARGE_ONES..ALL).map(begin)).await };
    tokio::join!(hold_up(&site, cluster, &paths), others);
    let names: Vec<_> = (0..ALL).map(name).collect();
    let images = join_all(names.iter().map(|name| site.active("t", name))).await;
    assert_bounded(&agent);
    for number in [0, LARGE_ONES, ALL - 1] {
        assert_holds(&site, cluster, &images[number], "ceph", &disk(number));
    }
    let tries = |image: &Image| image.status.as_ref().unwrap().revisions[0].attempts;
    assert!(images.iter().all(|image| tries(image) == 1), "{:?}", images.iter().map(tries).collect::<Vec<_>>());
    // What the pool holds, and what is said of it.
    let held = ceph::open(cluster, &spec).await.list().await.unwrap();
    assert!(held.len() == ALL && held.iter().all(|entry| entry.published), "{held:?}");
    let counts = objects(cluster, &spec);
    for sort in ["rbd_id", "rbd_header"] {
        assert_eq!(counts.get(sort), Some(&ALL), "{counts:?}");
    }
    let stores = site.stores();
    until("the store tells how many it holds", async || {
        let store: ImageStore = stores.get(&site.store_name("ceph")).await.ok()?;
        (usize::try_from(store.status?.images) == Ok(ALL)).then_some(())
    })
    .await;
    join_all(names.iter().map(|name| site.delete("t", name))).await;
    assert_eq!(listed(cluster, &spec), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_into_two_pools_and_a_folder_stays_within_the_memory_of_an_agent() {
    let (site, cluster) = (Site::shared("three").await, ceph::shared().await);
    let node = site.lab.node("n").await;
    let _operator = site.operator(&[]);
    let agent = site.lab.start(&node, &["--workers", "16"]);
    ceph::store(&site, "one").await;
    cluster.create_pool("images-too").await.unwrap();
    ceph::namespace(&site, cluster, "images-too", "two").await;
    site.store("folder", &node.store(), false, None).await;
    for store in ["one", "two", "folder"] {
        ready(&site, store, "True").await;
    }
    let disk = raw(2, 2 * LARGE);
    site.lab.server.put("/disk", Route::bytes(disk.clone()));
    make(&site, "disk", &["one", "two", "folder"], json!({})).await;
    hold_up(&site, cluster, &["/disk".to_owned()]).await;
    let image = site.active("t", "disk").await;
    assert_bounded(&agent);
    for store in ["one", "two"] {
        assert_holds(&site, cluster, &image, store, &disk);
    }
    let status = image.status.as_ref().unwrap();
    let folder = status.locations.iter().find(|location| location.store == site.store_name("folder")).unwrap();
    let file = folder.url.as_deref().and_then(|url| url.strip_prefix("file://")).unwrap();
    assert_eq!(sha256_of(file.as_ref()), sha256(&disk));
    assert!(site.lab.server.sent("/disk") < disk.len() as u64 + (1 << 20), "it was fetched once");
    site.delete("t", "disk").await;
}
