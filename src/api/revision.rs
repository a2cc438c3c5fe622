//! One content of an Image: what was found in it, where it is kept, where it is not and why, and what of it is to be removed.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{content::Content, image::Output, source::is_false};

/// One immutable content of an Image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Revision {
    /// Counts from 1 and is never used twice.
    #[schemars(range(min = 1))]
    pub number: i64,
    /// Hash of the fields of spec that it was made from.
    #[schemars(length(max = 64))]
    pub spec_hash: String,
    /// How far it is.
    pub phase: RevisionPhase,
    /// The number of the last attempt to bring it into stores. Stores take it as fencing token, so it only grows.
    #[serde(default)]
    pub attempts: i64,
    /// The stores reached from several nodes that an attempt may have written to without saying so. What it left there is nobody's but
    /// this revision's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 253)))]
    pub tried: Vec<String>,
    /// What was found; absent until it is verified.
    #[serde(flatten)]
    pub content: Option<Content>,
    /// When it was verified and stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imported_at: Option<Time>,
    /// Where its data is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub locations: Vec<Location>,
    /// The stores that shall keep it and failed to take it, or lost what they had.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["store"]))]
    pub gaps: Vec<Gap>,
}

impl Revision {
    /// Where it can be had.
    pub fn copies(&self) -> impl Iterator<Item = &Location> {
        self.locations.iter().filter(|location| location.phase.is_copy())
    }

    /// Digests of the bytes as received; none until they are known.
    pub fn digests(&self) -> Vec<String> {
        self.content.as_ref().map(|content| content.digests.clone()).unwrap_or_default()
    }
}

/// How far a revision is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RevisionPhase {
    /// Wanted, not there yet.
    Importing,
    /// Verified and stored.
    Active,
}

/// A store that shall keep a revision, and does not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Gap {
    /// The ImageStore.
    #[schemars(length(max = 253))]
    pub store: String,
    /// How often it failed in a row.
    #[serde(default)]
    pub failures: i64,
    /// The last failure.
    pub last_failure: FailureReport,
    /// When it may be tried again; absent if that cannot help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<Time>,
}

/// Data that is to be removed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Cleanup {
    /// Of which revision.
    pub revision: i64,
    /// From which ImageStore.
    #[schemars(length(max = 253))]
    pub store: String,
    /// From which node's disk; absent if the store is reached from several nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub node: Option<String>,
    /// The highest attempt at the revision when it was put down here: what a later one brings stays.
    #[serde(default = "highest_attempt")]
    #[schemars(range(min = 1))]
    pub attempt: i64,
}

fn highest_attempt() -> i64 {
    super::task::HIGHEST_ATTEMPT
}

/// One stored copy, or the lack of one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Location {
    /// The ImageStore.
    #[schemars(length(max = 253))]
    pub store: String,
    /// The node whose disk holds it; absent if the store is reached from several nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub node: Option<String>,
    /// Where it is, without credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub url: Option<String>,
    /// How it is stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Output>,
    /// Length of the stored object in bytes, holes included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<i64>,
    /// Bytes that the store really holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocated_size: Option<i64>,
    /// How it stands.
    #[serde(default)]
    pub phase: LocationPhase,
    /// Why it is not Active.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub message: Option<String>,
    /// When it was stored, verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored_at: Option<Time>,
    /// When it was last read from end to end and found to be what was stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified_at: Option<Time>,
    /// Somebody has asked for it to be verified, and it was not yet.
    #[serde(default, skip_serializing_if = "is_false")]
    pub verify: bool,
}

/// How a location stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LocationPhase {
    /// What was stored is there, as far as is known.
    #[default]
    Active,
    /// When it was last looked at it could not be read, which may pass. It is used only where there is no other.
    Unreadable,
    /// What is there is not what was stored. It is not used any more, and made anew.
    Corrupt,
    /// The store shall keep it, and does not yet.
    Missing,
}

impl LocationPhase {
    /// Whether there is something to read.
    pub const fn is_copy(self) -> bool {
        match self {
            Self::Active | Self::Unreadable => true,
            Self::Corrupt | Self::Missing => false,
        }
    }
}

/// Why an attempt failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FailureReport {
    /// The kind of failure, in one word.
    #[schemars(length(max = 128))]
    pub reason: String,
    /// The rule that the image broke, if it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub rule: Option<String>,
    /// What was found, where, and what to do.
    #[schemars(length(max = 4096))]
    pub message: String,
    /// Whether trying again may help.
    pub retryable: bool,
    /// The node it happened on.
    #[schemars(length(max = 253))]
    pub node: String,
    /// When it was noticed.
    pub at: Time,
}
