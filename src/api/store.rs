//! `ImageStore`: a back end that keeps image data. Cluster-scoped; made by administrators.

#![allow(
    clippy::duplicated_attributes,
    reason = "the lint takes the columns of `kubectl get` for one attribute said twice"
)]

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    backend::{Backend, STORE_ID_PATTERN},
    image::Conversion,
    schema,
    source::{is_false, yes},
};

/// A back end that keeps image data.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "vitrine.dev",
    version = "v1alpha1",
    kind = "ImageStore",
    status = "ImageStoreStatus",
    derive = "PartialEq",
    derive = "Default",
    shortname = "imgstore",
    shortname = "imgstores",
    category = "vitrine",
    doc = "A back end that keeps image data.",
    printcolumn(name = "Type", type_ = "string", json_path = ".status.type"),
    printcolumn(name = "Default", type_ = "boolean", json_path = ".status.default"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(
        name = "Writable",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Writable")].status"#
    ),
    printcolumn(name = "Images", type_ = "integer", json_path = ".status.images"),
    printcolumn(name = "Available", type_ = "string", json_path = ".status.capacity.display"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#,
        priority = 1
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#,
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.filesystem), has(self.rbd), has(self.s3)].filter(x, x).size() == 1")
    .message("name exactly one back end: filesystem, rbd or s3"))]
#[x_kube(validation = Rule::new(
    "has(self.filesystem) == has(oldSelf.filesystem) && has(self.rbd) == has(oldSelf.rbd) && has(self.s3) == has(oldSelf.s3)")
    .message("the back end of a store cannot be changed, for its images would not move: make a new ImageStore"))]
// `namespace` is a word of CEL's own, and written like this where it names a field.
#[x_kube(validation = Rule::new(
    "!has(self.rbd) || !has(oldSelf.rbd) || (self.rbd.pool == oldSelf.rbd.pool && has(self.rbd.__namespace__) == has(oldSelf.rbd.__namespace__) \
     && (!has(self.rbd.__namespace__) || self.rbd.__namespace__ == oldSelf.rbd.__namespace__))")
    .message("pool and namespace of a store cannot be changed, for its images would not move: make a new ImageStore"))]
#[x_kube(validation = Rule::new(
    "!has(self.s3) || !has(oldSelf.s3) || (self.s3.endpoint == oldSelf.s3.endpoint && self.s3.bucket == oldSelf.s3.bucket \
     && has(self.s3.prefix) == has(oldSelf.s3.prefix) && (!has(self.s3.prefix) || self.s3.prefix == oldSelf.s3.prefix))")
    .message("endpoint, bucket and prefix of a store cannot be changed, for its images would not move: make a new ImageStore"))]
#[x_kube(validation = Rule::new("!has(self.filesystem) || !has(oldSelf.filesystem) || self.filesystem.path == oldSelf.filesystem.path")
    .message("the path of a store cannot be changed, for its images would not move: make a new ImageStore"))]
#[x_kube(validation = Rule::new(
    "!has(self.filesystem) || !has(oldSelf.filesystem) || \
     (has(self.filesystem.shared) && self.filesystem.shared) == (has(oldSelf.filesystem.shared) && oldSelf.filesystem.shared)")
    .message("shared cannot be changed, for the nodes of its images are recorded or not: make a new ImageStore"))]
#[x_kube(validation = Rule::new("!has(self.thinProvisioning) || self.thinProvisioning || has(self.filesystem) || has(self.rbd)")
    .message("thinProvisioning can be false for filesystem and rbd only: other back ends have nowhere to put zeros, leave it out"))]
pub struct ImageStoreSpec {
    /// Keeps Images that name no store. If several stores say so, the oldest is it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub default: bool,
    /// Which store is preferred where an image is in several: the higher first. It orders `status.locations` of Images and says where
    /// copies are read from. It has no part in which store is the default.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(range(min = -1000, max = 1000))]
    pub weight: i64,
    /// When what is kept here is read again and held against its digests. Absent means only when somebody asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<VerifySchedule>,
    /// Take no new images; what is kept stays and can be removed.
    #[serde(default, skip_serializing_if = "is_false")]
    pub read_only: bool,
    /// How images are stored here that do not say it themselves. Absent means raw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preferred_format: Option<Conversion>,
    /// Whether zeros and holes of images stored from now on are left out. If not, the store holds every byte for real, so that no guest
    /// ever finds it full: `rbd` and `filesystem` can do that.
    #[serde(default = "yes")]
    pub thin_provisioning: bool,
    /// Labels of the nodes that reach it; empty means all.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::node_selector")]
    pub node_selector: BTreeMap<String, String>,
    /// What stands behind it.
    #[serde(flatten)]
    pub backend: Backend,
}

impl Default for ImageStoreSpec {
    /// What the API server makes of one that says nothing.
    fn default() -> Self {
        Self {
            default: false,
            weight: 0,
            verify: None,
            read_only: false,
            preferred_format: None,
            thin_provisioning: yes(),
            node_selector: BTreeMap::new(),
            backend: Backend::default(),
        }
    }
}

/// When what is kept is verified.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VerifySchedule {
    /// How long after a copy was stored or last verified it is verified again, as `720h` or `1h30m`.
    #[schemars(length(min = 2, max = 24), regex(pattern = "^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?$"))]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s')").message("the interval must be one second or more"))]
    pub interval: String,
}

impl VerifySchedule {
    /// The interval; `None` if it makes no sense, which the schema does not let through.
    pub fn interval(&self) -> Option<Duration> {
        let (mut seconds, mut number) = (0_u64, String::new());
        for letter in self.interval.chars() {
            let unit = match letter {
                'h' => 3600,
                'm' => 60,
                's' => 1,
                digit => {
                    number.push(digit);
                    continue;
                }
            };
            seconds = seconds.checked_add(number.parse::<u64>().ok()?.checked_mul(unit)?)?;
            number.clear();
        }
        (number.is_empty() && seconds > 0).then(|| Duration::from_secs(seconds))
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// What is known of an ImageStore.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageStoreStatus {
    /// The generation of spec that the rest of status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1))]
    pub observed_generation: Option<i64>,
    /// `Ready` (at least one agent reads it), `Writable` (at least one agent may write to it), and while they hold `Reconciling` and
    /// `Stalled`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
    /// The back end's name in spec.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub type_: Option<String>,
    /// Which store it is, by its own mark, if it is one and the same on every node: as the first agent that reached it found it. A node
    /// that finds another does not reach it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = STORE_ID_PATTERN))]
    pub id: Option<String>,
    /// Which node lists what it holds, if it is one and the same on every node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub lister: Option<String>,
    /// Data that no Image knows, as far as it was listed of late; absent if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orphans: Option<Orphans>,
    /// Whether this store keeps Images that name none.
    #[serde(default)]
    pub default: bool,
    /// Room, where the back end tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<StoreCapacity>,
    /// Number of Images that have a copy here.
    #[serde(default)]
    pub images: i64,
    /// When an agent last looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_probe: Option<Time>,
    /// Who reaches it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<NodeReach>,
}

/// Data that no Image knows. It is removed when it has been that, and unchanged, for a day, or as long as the operator is told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Orphans {
    /// How many objects.
    pub count: i64,
    /// Since when the named ones have been known to be data that no Image knows: the latest of their times.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// The first of them, longest known ones first, each as the uid and the revision of its Image, and its node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10), inner(length(max = 400)))]
    pub names: Vec<String>,
}

/// Room in a store: the sum over nodes if each has its own, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StoreCapacity {
    /// All of it.
    pub total: i64,
    /// What is left.
    pub available: i64,
    /// What is left, for people.
    #[schemars(length(max = 64))]
    pub display: String,
}

/// Which agents reach a store. Names are cut off after the first 32.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeReach {
    /// How many reach it.
    pub reachable: i64,
    /// How many ought to and do not.
    pub unreachable: i64,
    /// Which do not, each with why: `node: message`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 1024)))]
    pub problems: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_what_they_say() {
        let of =
            |text: &str| VerifySchedule { interval: text.to_owned() }.interval().map(|interval| interval.as_secs());
        assert_eq!([of("720h"), of("1h30m"), of("2s")], [Some(2_592_000), Some(5400), Some(2)]);
        assert_eq!([of("0s"), of("5"), of(""), of("xh")], [None; 4]);
    }
}
