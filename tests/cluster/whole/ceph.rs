//! Stores in pools of real Ceph clusters, and how to look at what they hold.

use serde_json::{Value, json};
use tokio::sync::OnceCell;
use vitrine::api::{Image, ImageStore};
use vitrine_engine::store::rbd::{RbdCluster, RbdOptions, RbdStore};
use vitrine_harness::CephCluster;

use super::site::Site;
use crate::node::{
    disks::{sha256, sha256_of},
    lab::until,
};

/// The pool of the shared cluster with the tests' namespaces.
pub const POOL: &str = "images";
/// The user with Ceph's profile for RBD.
pub const USER: &str = "vitrine";

/// The cluster that the tests share, with its pool. It is in memory, and nothing of it may be killed.
pub async fn shared() -> &'static CephCluster {
    static READY: OnceCell<&'static CephCluster> = OnceCell::const_new();
    let ready = async || {
        let cluster = CephCluster::shared().await.unwrap();
        cluster.create_pool(POOL).await.unwrap();
        cluster
    };
    *READY.get_or_init(ready).await
}

/// The key of [`USER`].
pub async fn key(ceph: &CephCluster) -> String {
    let caps = [("mon", "profile rbd"), ("osd", "profile rbd"), ("mgr", "profile rbd")];
    ceph.create_user(USER, &caps).await.unwrap()
}

/// Makes the Secret `name` beside the agents.
pub async fn secret(site: &Site<'_>, name: &str, user: &str, key: &str) {
    let manifest = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name, "namespace": site.lab.namespace },
        "stringData": { "userID": user, "userKey": key },
    });
    site.lab.plane.apply(&manifest.to_string()).await.unwrap();
}

/// Makes the ImageStore `short` in a pool, without a namespace; it is reached with the Secret `ceph`.
pub async fn whole_pool(site: &Site<'_>, ceph: &CephCluster, pool: &str, short: &str) {
    declare(site, short, json!({ "monitors": [ceph.monitors()], "pool": pool, "secretRef": { "name": "ceph" } })).await;
}

/// Makes the ImageStore `short` in a namespace of `pool`, which is made too; it is reached with the Secret `ceph`. Gives the pool with its
/// namespace as `rbd` takes it.
pub async fn namespace(site: &Site<'_>, ceph: &CephCluster, pool: &str, short: &str) -> String {
    let namespace = site.store_name(short);
    ceph.create_namespace(pool, &namespace).await.unwrap();
    let spec = json!({
        "monitors": [ceph.monitors()], "pool": pool, "namespace": namespace, "secretRef": { "name": "ceph" },
    });
    declare(site, short, spec).await;
    format!("{pool}/{namespace}")
}

async fn declare(site: &Site<'_>, short: &str, rbd: Value) {
    let manifest = json!({
        "apiVersion": "vitrine.dev/v1alpha1", "kind": "ImageStore",
        "metadata": { "name": site.store_name(short), "labels": { "vitrine.dev/lab": site.lab.namespace } },
        "spec": { "rbd": rbd },
    });
    site.lab.plane.apply(&manifest.to_string()).await.unwrap();
}

/// Makes a store in a namespace of the shared pool, and what reaching it takes.
pub async fn store(site: &Site<'_>, short: &str) -> String {
    let ceph = shared().await;
    secret(site, "ceph", USER, &key(ceph).await).await;
    namespace(site, ceph, POOL, short).await
}

/// The message of a condition of the store, once it has this status and `is_so` holds of it.
pub async fn told(site: &Site<'_>, short: &str, (kind, status): (&str, &str), is_so: impl Fn(&str) -> bool) -> String {
    let (stores, name) = (site.stores(), site.store_name(short));
    until(&format!("ImageStore {name} is {kind}={status}"), async || {
        let store: ImageStore = stores.get(&name).await.ok()?;
        let conditions = store.status?.conditions.into_iter();
        let mut found = conditions.filter(|found| found.type_ == kind && found.status == status);
        found.next().map(|found| found.message).filter(|message| is_so(message))
    })
    .await
}

/// The message of the store's condition `Ready`, once it has this status.
pub async fn ready(site: &Site<'_>, short: &str, status: &str) -> String {
    told(site, short, ("Ready", status), |_| true).await
}

/// The images in a pool or a namespace of it.
pub fn listed(ceph: &CephCluster, spec: &str) -> Vec<String> {
    let text = ceph.rbd(&["ls", spec]).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// Where the Image is in `store`, and how much room it takes there.
pub fn location(image: &Image, store: &str) -> Option<(String, i64)> {
    let locations = &image.status.as_ref()?.locations;
    let found = locations.iter().find(|location| location.store == store && location.phase.is_copy())?;
    Some((found.url.clone()?, found.allocated_size?))
}

/// Makes sure that what the Image has in store `short` is `disk`, as Ceph's own tools see it.
pub fn assert_holds(site: &Site<'_>, ceph: &CephCluster, image: &Image, short: &str, disk: &[u8]) {
    let (url, _) = location(image, &site.store_name(short)).unwrap_or_else(|| panic!("not in {short}: {image:?}"));
    let snapshot = url.strip_prefix(&format!("rbd://{}/", ceph.fsid())).and_then(|rest| rest.strip_suffix("/snap"));
    let snapshot = format!("{}@snap", snapshot.unwrap_or_else(|| panic!("{url}")));
    let copy = site.lab.plane.scope().dir().join(format!("{}.export", image.metadata.uid.as_deref().unwrap()));
    let _ = std::fs::remove_file(&copy);
    ceph.rbd(&["export", "--no-progress", &snapshot, copy.to_str().unwrap()]).unwrap();
    assert_eq!(sha256_of(&copy), sha256(disk), "{url}");
    std::fs::remove_file(&copy).unwrap();
}

/// The store as this process sees it.
pub async fn open(ceph: &CephCluster, spec: &str) -> RbdStore {
    let (pool, namespace) = spec.split_once('/').map_or((spec, None), |(pool, rest)| (pool, Some(rest.to_owned())));
    let cluster = RbdCluster::Monitors(ceph.monitors());
    let options = RbdOptions { namespace, ..RbdOptions::new(cluster, USER, key(ceph).await, pool) };
    tokio::task::spawn_blocking(move || RbdStore::open("looker", &options)).await.unwrap().unwrap()
}
