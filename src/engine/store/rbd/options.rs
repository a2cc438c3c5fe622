//! How a pool is reached and used.

use std::{fmt, time::Duration};

/// How the cluster is found.
#[derive(Clone, PartialEq, Eq)]
pub enum RbdCluster {
    /// Addresses of its monitors, as `mon_host` takes them: `10.0.0.1,10.0.0.2` or `[v2:10.0.0.1:3300]`.
    Monitors(String),
    /// The text of a `ceph.conf`. Files that it names are those of the machine where the store is opened.
    Config(String),
}

/// How a pool is used.
#[derive(Clone, PartialEq, Eq)]
pub struct RbdOptions {
    /// How the cluster is found.
    pub cluster: RbdCluster,
    /// The cephx user, without `client.`.
    pub user: String,
    /// Its key, as `ceph auth get-key` prints it.
    pub key: String,
    /// The pool.
    pub pool: String,
    /// The namespace in it; `None` for the pool's own.
    pub namespace: Option<String>,
    /// The pool that keeps the images' data, if it is another one: erasure-coded pools keep nothing else.
    pub data_pool: Option<String>,
    /// Size of an image's objects as a power of two, from 12 to 25; `None` for Ceph's own, 22 (4 MiB).
    pub object_order: Option<u8>,
    /// The images' features, as bits of `RBD_FEATURE_*`; `None` for those that Ceph gives every image. Without object-map and
    /// fast-diff, looking for data asks for every object of an image.
    pub features: Option<u64>,
    /// How long the monitors may take to answer, when connecting and afterwards.
    pub connect_timeout: Duration,
    /// How long an OSD may take for one operation. An OSD that fails is replaced by another, or comes back, within half a minute.
    pub operation_timeout: Duration,
    /// How long a whole piece of work may take: opening, publishing, deleting.
    pub deadline: Duration,
    /// Whether deleting an image that has clones makes these independent of it first; else deletion waits until they are gone.
    pub flatten_clones: bool,
    /// Whose the pool must be that is written to, or becomes. Without it, nobody asks.
    pub owner: Option<String>,
}

impl RbdOptions {
    /// The usual options for `pool`.
    pub fn new(cluster: RbdCluster, user: impl Into<String>, key: impl Into<String>, pool: impl Into<String>) -> Self {
        Self {
            cluster,
            user: user.into(),
            key: key.into(),
            pool: pool.into(),
            namespace: None,
            data_pool: None,
            object_order: None,
            features: None,
            connect_timeout: Duration::from_secs(15),
            operation_timeout: Duration::from_secs(60),
            deadline: Duration::from_mins(4),
            flatten_clones: false,
            owner: None,
        }
    }
}

/// Without the key, and without a `ceph.conf` in which one may stand.
impl fmt::Debug for RbdOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RbdOptions")
            .field("user", &self.user)
            .field("pool", &self.pool)
            .field("namespace", &self.namespace)
            .field("data_pool", &self.data_pool)
            .field("flatten_clones", &self.flatten_clones)
            .finish_non_exhaustive()
    }
}
