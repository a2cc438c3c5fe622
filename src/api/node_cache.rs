//! `NodeCache`: what one node's agent reports. Internal; cluster-scoped; named after its node.
//!
//! # Contract
//! The agent makes the object named after its node when it starts (with an owner reference to the Node, so that it goes with it), and
//! writes `status` by server-side apply as field manager `vitrine-agent`. Nobody else writes it. A policy lets a node's agent touch no
//! other node's object. The part of it that serves data writes `status.data` as field manager `vitrine-agent-data`, and the operator answers
//! with `spec.certificate`: see `docs/decisions/0024-the-operator-signs-what-agents-serve-with.md`. `spec` is the operator's.

#![allow(
    clippy::duplicated_attributes,
    reason = "the lint takes the columns of `kubectl get` for one attribute said twice"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::backend::STORE_ID_PATTERN;

/// What one node shall have at hand; see the module for who writes what.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "vitrine.dev",
    version = "v1alpha1",
    kind = "NodeCache",
    status = "NodeCacheStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "What one node's agent reports: internal to Vitrine.",
    printcolumn(name = "Agent", type_ = "string", json_path = ".status.agent.version"),
    printcolumn(name = "Since", type_ = "date", json_path = ".status.agent.startedAt"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct NodeCacheSpec {
    /// The certificate for the key in `status.data.publicKey`, as PEM. It names the node, and the names by which all agents are reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8192))]
    pub certificate: Option<String>,
}

/// What the agent reports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeCacheStatus {
    /// The generation of spec that the rest of status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1))]
    pub observed_generation: Option<i64>,
    /// Who reports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentInfo>,
    /// Where and with which key it serves images' data; absent if it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<DataEndpoint>,
    /// One entry for each ImageStore whose nodeSelector fits the node. Written when an entry's `ready` or `message` changes, and else
    /// at most every 30 s.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub stores: Vec<StoreReport>,
}

/// Who reports.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentInfo {
    /// Made anew with each start of the agent; also the holder identity of its Lease.
    #[schemars(length(max = 128))]
    pub id: String,
    /// The program's version.
    #[schemars(length(max = 64))]
    pub version: String,
    /// When it started.
    pub started_at: Time,
}

/// Where an agent serves images' data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DataEndpoint {
    /// Address and port, as other agents reach it: `10.0.0.1:8443` or `[fd00::1]:8443`.
    #[schemars(length(max = 64))]
    pub address: String,
    /// The namespace of the operator that it belongs to, which is to sign its key.
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// The public key (SubjectPublicKeyInfo, PEM) to be signed. The private one never leaves the agent's memory.
    #[schemars(length(max = 2048))]
    pub public_key: String,
}

/// How a node sees a store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StoreReport {
    /// The ImageStore.
    #[schemars(length(max = 253))]
    pub name: String,
    /// The generation of its spec that was probed.
    #[serde(default)]
    pub observed_generation: i64,
    /// The uid of the ImageStore: one that was deleted and made anew is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub uid: Option<String>,
    /// Which store the back end is, by its own mark, as last seen from here. Kept while it cannot be reached, so that what is found in
    /// its place is not taken for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = STORE_ID_PATTERN))]
    pub id: Option<String>,
    /// Whether it can be read from here now, and written unless it is full or `readOnly` is set.
    pub ready: bool,
    /// Whether it can be read from here and not written, though there may be room: its user may not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// Why it is not ready, or takes nothing: what was found, where, what to do. Else empty.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub message: String,
    /// Size in bytes, where the back end tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<i64>,
    /// Room left in bytes, where the back end tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available: Option<i64>,
    /// When it was probed.
    pub probed_at: Time,
    /// The value of the store's probe annotation then, its first 64 characters: who asked sees that this is the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub asked: Option<String>,
    /// A page of what it holds, if this node is to list it. The next one has what follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listing: Option<Listing>,
}

/// A page of what a store holds, in the order of names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Listing {
    /// When it was listed.
    pub taken_at: Time,
    /// How many objects it holds in all.
    pub objects: i64,
    /// Those of this page.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub entries: Vec<Held>,
}

/// One published object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    /// The Image's uid.
    #[schemars(length(max = 64))]
    pub uid: String,
    /// Its revision.
    pub revision: i64,
    /// Seconds since it was last changed.
    pub age_seconds: i64,
}
