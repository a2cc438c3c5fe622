//! What an import found: the same facts in a task's result, in the revision made of it, and in the status of its Image.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vitrine_engine::model::{ContainerFormat, DiskFormat};

use super::schema;

/// The facts of one verified content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Content {
    /// Format found in the source.
    #[schemars(schema_with = "schema::disk_format")]
    pub disk_format: DiskFormat,
    /// What it was wrapped in.
    #[schemars(schema_with = "schema::container_format")]
    pub container_format: ContainerFormat,
    /// What the container says of the machine that the disk is for: firmware, operating system, hardware.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::properties")]
    pub properties: BTreeMap<String, String>,
    /// Size of the guest's disk, in bytes.
    #[schemars(range(min = 0))]
    pub virtual_size: i64,
    /// Bytes as received.
    #[schemars(range(min = 0))]
    pub size: i64,
    /// Digests of the bytes as received, `algorithm:hex`; sha256 always.
    #[schemars(length(min = 1, max = 8), inner(length(max = 140)))]
    pub digests: Vec<String>,
    /// Digest of what the guest sees, `blake3:hex`.
    #[schemars(length(max = 140))]
    pub content_digest: String,
}
