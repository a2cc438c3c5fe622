//! The store on a real Ceph cluster: the conformance suite, and what only this store promises. All tests share one cluster, each in a
//! namespace of its own, unless they break something.

mod access;
mod cloned;
mod copies;
mod faults;
mod late;
mod resuming;
mod room;
mod several;
mod sinks;
mod steps;

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::sync::OnceCell;
use vitrine_engine::{
    error::Error,
    store::rbd::{RbdCluster, RbdOptions, RbdStore},
};
use vitrine_harness::{CephCluster, CephOptions};

use crate::conformance::{self, Subject};

/// The pool with the tests' namespaces.
pub const POOL: &str = "images";
/// The user with Ceph's profile for RBD.
const USER: &str = "vitrine";

/// The shared cluster with its pool.
pub async fn cluster() -> &'static CephCluster {
    static READY: OnceCell<&'static CephCluster> = OnceCell::const_new();
    *READY
        .get_or_init(|| async {
            let cluster = CephCluster::shared().await.unwrap();
            cluster.create_pool(POOL).await.unwrap();
            cluster
        })
        .await
}

/// A user who may do what Ceph's profile for RBD lets it; returns its key.
pub async fn user(cluster: &CephCluster) -> String {
    let caps = [("mon", "profile rbd"), ("osd", "profile rbd"), ("mgr", "profile rbd")];
    cluster.create_user(USER, &caps).await.unwrap()
}

/// Options for the pool of a cluster.
pub async fn options_for(cluster: &CephCluster, pool: &str) -> RbdOptions {
    let key = user(cluster).await;
    let mut options = RbdOptions::new(RbdCluster::Monitors(cluster.monitors()), USER, key, pool);
    options.connect_timeout = Duration::from_secs(60);
    options
}

/// Options for a fresh namespace of the shared cluster.
pub async fn options() -> RbdOptions {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let cluster = cluster().await;
    let namespace = format!("test-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    cluster.create_namespace(POOL, &namespace).await.unwrap();
    let mut options = options_for(cluster, POOL).await;
    options.namespace = Some(namespace);
    options
}

/// Opens a store; it blocks.
pub async fn open(options: &RbdOptions) -> Arc<RbdStore> {
    let options = options.clone();
    Arc::new(tokio::task::spawn_blocking(move || RbdStore::open("ceph", &options)).await.unwrap().unwrap())
}

/// What opening with these options says.
pub async fn refusal(options: &RbdOptions) -> Error {
    let options = options.clone();
    tokio::task::spawn_blocking(move || RbdStore::open("ceph", &options)).await.unwrap().unwrap_err()
}

/// A cluster of its own with the pool, for a test that breaks it.
pub async fn own_cluster(options: &CephOptions) -> CephCluster {
    let cluster = CephCluster::start_with(options).await.unwrap();
    cluster.create_pool(POOL).await.unwrap();
    cluster
}

/// A fresh store, twice.
async fn subject() -> Subject {
    let options = options().await;
    let (store, again) = (open(&options).await, open(&options).await);
    // An object of an image.
    Subject { store, again, granularity: 4 << 20, keep: Box::new(()) as Box<dyn Any + Send> }
}

conformance::suite!(conforms, subject().await);
