//! What stands behind an ImageStore: one struct with a member for each kind of back end, which ImageStores and orders to nodes share.
//!
//! A further kind of back end is one more member here, and one more arm where agents open stores.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::source::{SecretRef, is_false};

/// How a back end's own mark looks.
pub(super) const STORE_ID_PATTERN: &str = "^[0-9a-f]{32}$";

/// What a store is: exactly one member. It stands among the fields of what has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Backend {
    /// A folder on the agents' nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filesystem: Option<FilesystemBackend>,
    /// A pool of a Ceph cluster: every image is an RBD image with a protected snapshot `snap`, as Cinder and ceph-csi clone from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rbd: Option<RbdBackend>,
    /// A bucket of an S3 server: every image is pieces of data that are published together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3Backend>,
}

impl Backend {
    /// Its name in spec; `None` if it is of a kind that this version does not know.
    pub fn kind(&self) -> Option<&'static str> {
        let filesystem = self.filesystem.as_ref().map(|_| "filesystem");
        filesystem.or_else(|| self.rbd.as_ref().map(|_| "rbd")).or_else(|| self.s3.as_ref().map(|_| "s3"))
    }

    /// What of it people know it by: its folder, pool or bucket.
    pub fn place(&self) -> Option<&str> {
        let folder = self.filesystem.as_ref().map(|folder| folder.path.as_str());
        let pool = || self.rbd.as_ref().map(|pool| pool.pool.as_str());
        folder.or_else(pool).or_else(|| self.s3.as_ref().map(|bucket| bucket.bucket.as_str()))
    }

    /// Whether each node has such a store for itself, so that a copy in it can be read on one node only.
    pub fn is_local(&self) -> bool {
        self.filesystem.as_ref().is_some_and(|folder| !folder.shared)
    }

    /// Whether it is one and the same from wherever it is reached.
    pub fn is_shared(&self) -> bool {
        self.kind().is_some() && !self.is_local()
    }
}

/// A folder. It cannot be changed: what is kept would be somewhere else from one moment to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct FilesystemBackend {
    /// Absolute, without `.` and `..`.
    #[schemars(length(min = 2, max = 512), regex(pattern = "^(/[A-Za-z0-9._-]+)+$"))]
    #[x_kube(validation = Rule::new("!self.matches('/[.]{1,2}(/|$)')")
        .message("the path must not have . or .. in it: write it out"))]
    pub path: String,
    /// The folder is one and the same on every node, as on a network file system mounted by the nodes. If not, each node has its own,
    /// and every image is on the node that imported it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub shared: bool,
}

/// A pool of a Ceph cluster. Pool and namespace cannot be changed: what is kept would be somewhere else from one moment to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RbdBackend {
    /// Addresses of the monitors: `10.0.0.1`, `mon.example:6789` or `[v2:10.0.0.1:3300,v1:10.0.0.1:6789]`. Left out if the Secret has a
    /// `ceph.conf`, which names them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 256), regex(pattern = r"^[A-Za-z0-9.:,\[\]-]+$")))]
    pub monitors: Vec<String>,
    /// The pool.
    #[schemars(length(min = 1, max = 128), regex(pattern = "^[A-Za-z0-9_.-]+$"))]
    pub pool: String,
    /// The RADOS namespace in it, which must exist. Absent means the pool's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128), regex(pattern = "^[A-Za-z0-9_.-]+$"))]
    pub namespace: Option<String>,
    /// The pool that keeps the data of images stored from now on, if it is another one, such as an erasure-coded one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128), regex(pattern = "^[A-Za-z0-9_.-]+$"))]
    pub data_pool: Option<String>,
    /// A Secret in Vitrine's own namespace, with the keys that ceph-csi knows: `userID`, without `client.`, and `userKey`. A key
    /// `ceph.conf` holds the cluster's configuration, if `monitors` is left out.
    pub secret_ref: SecretRef,
    /// Size of the RADOS objects of images stored from now on, in bytes, a power of two. Absent means Ceph's own, 4 MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 4096, max = 33_554_432))]
    #[x_kube(validation = Rule::new("self in [4096, 8192, 16384, 32768, 65536, 131072, 262144, 524288, 1048576, 2097152, 4194304, 8388608, 16777216, 33554432]")
        .message("the object size must be a power of two from 4096 to 33554432 (32 MiB)"))]
    pub object_size: Option<i64>,
    /// Make clones independent of an image that is to be removed. Else removing it waits until its clones are gone.
    #[serde(default, skip_serializing_if = "is_false")]
    pub flatten_clones: bool,
}

/// A bucket of an S3 server. Endpoint, bucket and prefix cannot be changed: what is kept would be somewhere else from one moment to the
/// next.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.caBundle) || self.endpoint.startsWith('https://')")
    .message("caBundle is for https endpoints; remove it, or use https"))]
pub struct S3Backend {
    /// The server, as `https://s3.example` or `http://10.0.0.1:7480`. It must honour conditional writes, as Amazon's, Ceph's RADOS gateway
    /// and MinIO do.
    #[schemars(length(min = 8, max = 512), regex(pattern = "^https?://[A-Za-z0-9.:\\[\\]_-]+/?$"))]
    pub endpoint: String,
    /// The bucket, which must exist.
    #[schemars(length(min = 3, max = 63), regex(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*[A-Za-z0-9]$"))]
    pub bucket: String,
    /// What all names in the bucket begin with, as `images/here`. Absent means that the bucket is for Vitrine alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 256),
        regex(pattern = "^[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$")
    )]
    pub prefix: Option<String>,
    /// The region that requests are signed for. Most servers other than Amazon's take any.
    #[serde(default = "default_region")]
    #[schemars(length(min = 1, max = 64), regex(pattern = "^[A-Za-z0-9_-]+$"))]
    pub region: String,
    /// Name the bucket in the path, and not in the host's name. Amazon's newer buckets want it in the host's name.
    #[serde(default = "yes")]
    pub path_style: bool,
    /// Certificate authorities to trust besides the system's, in PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 65_536))]
    #[x_kube(validation = Rule::new("self.contains('-----BEGIN CERTIFICATE-----')")
        .message("the CA bundle must hold certificates in PEM, each beginning with -----BEGIN CERTIFICATE-----"))]
    pub ca_bundle: Option<String>,
    /// A Secret in Vitrine's own namespace with the access key: `accessKeyID` and `secretAccessKey`, or `AWS_ACCESS_KEY_ID` and
    /// `AWS_SECRET_ACCESS_KEY`.
    pub secret_ref: SecretRef,
    /// Bytes of data that one object keeps at most, of images stored from now on. Absent means 32 MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1_048_576, max = 1_073_741_824))]
    pub object_size: Option<i64>,
}

fn default_region() -> String {
    "us-east-1".to_owned()
}

const fn yes() -> bool {
    true
}

impl From<FilesystemBackend> for Backend {
    fn from(folder: FilesystemBackend) -> Self {
        Self { filesystem: Some(folder), ..Self::default() }
    }
}

impl From<RbdBackend> for Backend {
    fn from(pool: RbdBackend) -> Self {
        Self { rbd: Some(pool), ..Self::default() }
    }
}

impl From<S3Backend> for Backend {
    fn from(bucket: S3Backend) -> Self {
        Self { s3: Some(bucket), ..Self::default() }
    }
}
