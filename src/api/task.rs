//! `ImageTask`: one work order for one node. Internal; lives in the operator's namespace.
//!
//! # Contract
//! The operator makes and deletes tasks and writes `spec`; the agent on `spec.nodeName` writes `status`, and nobody else does.
//!
//! * **Self-contained.** The agent needs nothing but the task and the Secret named in it. `spec` never changes, but for `cancelled`,
//!   which goes from false to true once.
//! * **Taking up.** A node's agent takes every task of its node that is `Pending` (or has no status) or `Running`; a `Running` one that it
//!   does not know is its own from before a restart, and it resumes it or starts it again. It never touches one that has ended.
//!   It sets `phase: Running`, `startedAt`, `agent` (its start id) and `observedGeneration` before the first byte moves.
//! * **Progress.** At most one status write in 2 s, and none that changes nothing.
//! * **Ending.** `Succeeded` with `result` (Import, Copy) or without (Delete, Verify), `Failed` with `failure`; once either is written
//!   the status is final. `faults` tells what was found wrong with stored copies that were read, however the task ended. The operator
//!   takes over what it says and deletes the task.
//! * **Several stores.** An Import with `requireAllStores` brings a revision into all its stores or none. Else, and in a Copy, each store
//!   is for itself: it succeeds if one got the image, and `result.failures` tells of the others.
//! * **Stopping.** When `cancelled` turns true, or the task is gone (or replaced by another uid), the agent stops at once, removes what
//!   it wrote for it, and publishes nothing. It makes sure that the task is still there and not cancelled right before it commits,
//!   by a read that is not from its cache. A cancelled task that still exists ends as `Failed` with reason `Cancelled`.
//! * **Fencing.** `spec.attempt` of an Import or a Copy is the fencing token for `Store::create`, `delete.fence` of a Delete the one for
//!   `Store::delete`. The attempts at one revision of one image only ever grow; those of Deletes and Verifies count by themselves. Neither an Import nor a Copy of a revision is given to a node that has a Delete of it left to do.
//! * **Identity.** A store is marked when it is first used, and its mark is reported (`NodeCache`). From then on the agent works on
//!   nothing else that lies in its place: neither on what `storeId` does not name, nor on what it did not report itself.
//! * **Idempotence.** An Import or a Copy whose object is published already (a restart after the commit) succeeds with what the store tells of it.
//!   A Delete of what is not there succeeds.
//! * **Retries.** The agent retries single requests by itself; when it gives up it says with `retryable` whether another attempt, maybe
//!   on another node, may help. The operator waits (5 s doubling to 5 min) and counts.

#![allow(
    clippy::duplicated_attributes,
    reason = "the lint takes the columns of `kubectl get` for one attribute said twice"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vitrine_engine::model::ContainerFormat;

use super::{
    backend::{Backend, STORE_ID_PATTERN},
    content::Content,
    image::{DeclaredFormat, Output, Progress},
    schema,
    source::{DIGEST_PATTERN, is_false, is_true, yes},
};

/// The highest number of an attempt.
pub const HIGHEST_ATTEMPT: i64 = 1_000_000;

/// One work order for one node; see the module for who does what.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "vitrine.dev",
    version = "v1alpha1",
    kind = "ImageTask",
    namespaced,
    status = "ImageTaskStatus",
    derive = "PartialEq",
    doc = "One work order for one node: internal to Vitrine.",
    selectable = ".spec.nodeName",
    printcolumn(name = "Action", type_ = "string", json_path = ".spec.action"),
    printcolumn(name = "Namespace", type_ = "string", json_path = ".spec.image.namespace"),
    printcolumn(name = "Image", type_ = "string", json_path = ".spec.image.name"),
    printcolumn(name = "Revision", type_ = "integer", json_path = ".spec.revision"),
    printcolumn(name = "Attempt", type_ = "integer", json_path = ".spec.attempt"),
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.nodeName"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.failure.message", priority = 1)
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "(self.action == 'Import') == has(self.import) && (self.action == 'Delete') == has(self.delete) \
     && (self.action == 'Copy') == has(self.copy) && (self.action == 'Verify') == has(self.verify)")
    .message("a task has the order of its action and no other"))]
// Whole orders are not compared, for the API server reckons comparing objects too dear. The agent keeps to the order it took up.
#[x_kube(validation = Rule::new(
    "self.action == oldSelf.action && self.image.uid == oldSelf.image.uid && self.revision == oldSelf.revision \
     && self.nodeName == oldSelf.nodeName && self.attempt == oldSelf.attempt")
    .message("a task cannot be changed, only cancelled"))]
#[x_kube(validation = Rule::new("!(has(oldSelf.cancelled) && oldSelf.cancelled) || (has(self.cancelled) && self.cancelled)")
    .message("a cancelled task stays cancelled"))]
pub struct ImageTaskSpec {
    /// What to do.
    pub action: Action,
    /// For which Image.
    pub image: ImageIdentity,
    /// Which revision of it.
    #[schemars(range(min = 1))]
    pub revision: i64,
    /// The node whose agent does it.
    #[schemars(length(min = 1, max = 253))]
    pub node_name: String,
    /// Number of the attempt, from 1: the fencing token.
    #[schemars(range(min = 1, max = HIGHEST_ATTEMPT))]
    pub attempt: i64,
    /// The order, if action is Import.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub import: Option<ImportOrder>,
    /// The order, if action is Copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy: Option<CopyOrder>,
    /// The order, if action is Verify.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<VerifyOrder>,
    /// The order, if action is Delete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delete: Option<DeleteOrder>,
    /// Stop, and leave nothing behind.
    #[serde(default, skip_serializing_if = "is_false")]
    pub cancelled: bool,
}

impl ImageTaskSpec {
    /// The stores that it writes to.
    pub fn targets(&self) -> &[StoreTarget] {
        let import = self.import.as_ref().map(|order| order.stores.as_slice());
        import.or(self.copy.as_ref().map(|order| order.stores.as_slice())).unwrap_or_default()
    }

    /// The names of all stores that it has to do with.
    pub fn stores(&self) -> impl Iterator<Item = &str> {
        let removed = self.delete.iter().flat_map(|order| &order.stores);
        let read = self.copy.iter().flat_map(|order| &order.from).chain(self.verify.iter().map(|order| &order.store));
        let referred = removed.chain(read).map(|store| store.name.as_str());
        self.targets().iter().map(|target| target.name.as_str()).chain(referred)
    }
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Action {
    /// Bring a revision from its source into stores.
    Import,
    /// Bring a revision from stores that have it into others.
    Copy,
    /// Remove a revision from stores, unfinished writes included.
    Delete,
    /// Read what a store holds of a revision, and hold it against its digest.
    Verify,
}

impl Action {
    /// Whether it is an attempt to bring a revision into stores.
    pub const fn brings(self) -> bool {
        match self {
            Self::Import | Self::Copy => true,
            Self::Delete | Self::Verify => false,
        }
    }
}

/// An Image, and which state of its spec was looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageIdentity {
    /// Its namespace.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its uid: with the revision, this names the object in stores (`model::ObjectKey`).
    #[schemars(length(min = 1, max = 64))]
    pub uid: String,
    /// Its generation when the task was made.
    pub generation: i64,
}

/// Bring a revision from its source into stores.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImportOrder {
    /// Where the bytes come from: exactly one member.
    pub source: TaskSource,
    /// What the bytes as received must hash to, all of them; `algorithm:hex`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4), inner(length(max = 140), regex(pattern = DIGEST_PATTERN)))]
    pub checksums: Vec<String>,
    /// URL of a checksum file; the line that names the source URL's last path segment counts.
    #[serde(default, rename = "checksumURL", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub checksum_url: Option<String>,
    /// What must be found.
    #[serde(default)]
    pub disk_format: DeclaredFormat,
    /// What must be found; absent takes any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::container_format")]
    pub container_format: Option<ContainerFormat>,
    /// Which disk of a container with several is meant; absent takes the one that the machine boots from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub container_disk: Option<String>,
    /// Names what spec asks for (`Revision.specHash`): what a store holds of the revision and was made for another request is not taken
    /// over. Absent takes anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub request: Option<String>,
    /// Whether the task fails if one store does.
    #[serde(default = "default_require_all")]
    pub require_all_stores: bool,
    /// Into which stores.
    #[schemars(length(min = 1, max = 16))]
    pub stores: Vec<StoreTarget>,
}

fn default_require_all() -> bool {
    true
}

/// Bring a revision from stores that have it into others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CopyOrder {
    /// Where it is, best first: the next is read where one cannot be.
    #[schemars(length(min = 1, max = 16))]
    pub from: Vec<StoreRef>,
    /// What the guest must see there, `blake3:hex`.
    #[schemars(length(max = 140))]
    pub content_digest: String,
    /// Into which stores, each for itself.
    #[schemars(length(min = 1, max = 16))]
    pub stores: Vec<StoreTarget>,
}

/// Read what a store holds of a revision, and hold it against its digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VerifyOrder {
    /// Which store.
    pub store: StoreRef,
    /// What the guest must see there, `blake3:hex`.
    #[schemars(length(max = 140))]
    pub content_digest: String,
}

/// Where the bytes come from: exactly one member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskSource {
    /// Bytes behind a URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<TaskHttp>,
    /// Bytes that somebody sends to the agents' data API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<TaskUpload>,
}

/// Bytes that somebody sends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskUpload {}

/// Bytes behind a URL.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskHttp {
    /// The URL.
    #[schemars(length(min = 1, max = 2048))]
    pub url: String,
    /// Name of a Secret beside the task, made for it and gone with it. Key `ca.crt` holds certificate authorities to trust besides the
    /// system's; a key `header.NAME` holds the value of request header NAME.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub secret_ref: Option<String>,
    /// Do not check the server's certificate.
    #[serde(default, skip_serializing_if = "is_false")]
    pub insecure_skip_verify: bool,
}

/// A store to write to: its name, what it is (exactly one member), and what to write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StoreTarget {
    /// The ImageStore.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// How the image is stored there.
    pub output: Output,
    /// Which store the agent must find there, by its own mark; absent if none was seen there yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = STORE_ID_PATTERN))]
    pub store_id: Option<String>,
    /// Whether zeros and holes are left out there. If not, the store holds every byte for real.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub thin_provisioning: bool,
    /// What stands behind it.
    #[serde(flatten)]
    pub backend: Backend,
}

/// Remove a revision from stores.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeleteOrder {
    /// From which.
    #[schemars(length(min = 1, max = 16))]
    pub stores: Vec<StoreRef>,
    /// The fencing token for `Store::delete`: the highest attempt at an Import of the revision that is meant. What a later one has
    /// brought stays.
    #[schemars(range(min = 1, max = HIGHEST_ATTEMPT))]
    pub fence: i64,
}

/// A store to read or remove from: its name and what it is (exactly one member).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StoreRef {
    /// The ImageStore.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Which store the agent must find there, by its own mark; absent if none was seen there yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = STORE_ID_PATTERN))]
    pub store_id: Option<String>,
    /// What stands behind it.
    #[serde(flatten)]
    pub backend: Backend,
}

/// What the agent says of a task.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageTaskStatus {
    /// The generation of spec that the agent has seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1))]
    pub observed_generation: Option<i64>,
    /// How far it is; absent means `Pending`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<TaskPhase>,
    /// The start id of the agent that works on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub agent: Option<String>,
    /// When work first began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// How far an Import is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// What an Import or a Copy brought, once `Succeeded`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<ImportResult>,
    /// What was found wrong with stored copies that a Copy or a Verify read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub faults: Vec<StoreFault>,
    /// Why it is `Failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<TaskFailure>,
}

/// How far a task is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TaskPhase {
    /// Not taken up.
    #[default]
    Pending,
    /// Taken up.
    Running,
    /// Done; final.
    Succeeded,
    /// Given up; final.
    Failed,
}

impl TaskPhase {
    /// Whether the status is final.
    pub const fn is_final(self) -> bool {
        match self {
            Self::Pending | Self::Running => false,
            Self::Succeeded | Self::Failed => true,
        }
    }
}

/// What an Import brought.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImportResult {
    /// What was found in the source.
    #[serde(flatten)]
    pub content: Content,
    /// One for each store of the order that has it.
    #[schemars(length(min = 1, max = 16))]
    pub locations: Vec<TaskLocation>,
    /// One for each store of the order that does not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub failures: Vec<StoreFailure>,
}

/// A store that did not get the image while others did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StoreFailure {
    /// The ImageStore.
    #[schemars(length(max = 253))]
    pub store: String,
    /// Why not.
    pub failure: TaskFailure,
}

/// What was found wrong with a stored copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StoreFault {
    /// The ImageStore.
    #[schemars(length(max = 253))]
    pub store: String,
    /// What was found.
    #[schemars(length(max = 4096))]
    pub message: String,
    /// Whether what is there is not what was stored. Else it could not be read, which may pass.
    pub rotten: bool,
}

/// One stored copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskLocation {
    /// The ImageStore.
    #[schemars(length(max = 253))]
    pub store: String,
    /// Where it is, without credentials.
    #[schemars(length(max = 2048))]
    pub url: String,
    /// How it is stored.
    pub format: Output,
    /// Length of the stored object in bytes, holes included.
    #[schemars(range(min = 0))]
    pub size: i64,
    /// Bytes that the store really holds.
    #[schemars(range(min = 0))]
    pub allocated_size: i64,
}

/// Why a task failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskFailure {
    /// The kind of the error: the name of `error::Kind`'s variant, as `Refused` or `Unavailable`.
    #[schemars(length(min = 1, max = 128))]
    pub reason: String,
    /// The rule that the image broke, as `backing-file`, if it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub rule: Option<String>,
    /// What was found, where, and what to do.
    #[schemars(length(max = 4096))]
    pub message: String,
    /// Whether another attempt may help.
    pub retryable: bool,
}
