//! `Image`: the declared thing. Namespaced; a namespace is a tenant.

#![allow(
    clippy::duplicated_attributes,
    reason = "the lint takes the columns of `kubectl get` for one attribute said twice"
)]
#![allow(clippy::struct_excessive_bools, reason = "each is a field of spec that people set or leave out by itself")]

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vitrine_engine::model::{Compression, ContainerFormat, DiskFormat, Subformat};

use super::{
    content::Content,
    revision::{Cleanup, FailureReport, Location, Revision},
    schema,
    source::{Source, is_false},
};

/// A virtual machine image: a source of bytes, and the stores that shall keep them once they are verified.
///
/// Its content is a sequence of immutable, numbered revisions. Changing `source`, `diskFormat`, `containerFormat`, `containerDisk` or `convertTo` starts
/// the next one, and the current one goes on serving until the new one is verified. Everything else changes in place.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "vitrine.dev",
    version = "v1alpha1",
    kind = "Image",
    namespaced,
    status = "ImageStatus",
    derive = "PartialEq",
    derive = "Default",
    shortname = "img",
    category = "vitrine",
    doc = "A virtual machine image: where its bytes come from, and the stores that keep them once they are verified.",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Format", type_ = "string", json_path = ".status.diskFormat"),
    printcolumn(name = "Virtual", type_ = "string", json_path = ".status.display.virtualSize"),
    printcolumn(name = "Size", type_ = "string", json_path = ".status.display.size"),
    printcolumn(name = "Stores", type_ = "string", json_path = ".status.display.stores"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Progress", type_ = "string", json_path = ".status.display.progress", priority = 1),
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
#[x_kube(validation = Rule::new("!(has(self.allStores) && self.allStores && has(self.stores) && self.stores.size() > 0)")
    .message("stores and allStores exclude each other: name the stores, or ask for all"))]
pub struct ImageSpec {
    /// Where the bytes come from: exactly one.
    pub source: Source,
    /// How the guest's disk is laid out in the source. `auto` takes what is found; anything else must be what is found.
    #[serde(default)]
    pub disk_format: DeclaredFormat,
    /// What the disk is wrapped in. Absent takes what is found; anything else must be what is found. `docker` also keeps the files of a
    /// container image without a disk, as one archive that no guest can boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::container_format")]
    pub container_format: Option<ContainerFormat>,
    /// Which disk of a container with several is meant: its file's name there, or its id; of a container image its platform, such as
    /// `linux/arm64/v8`, its name or its digest. Absent takes the one that the machine boots from, and `linux/amd64`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub container_disk: Option<String>,
    /// How the image is stored. Absent leaves it to each store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub convert_to: Option<Conversion>,
    /// Names of the ImageStores that shall keep it. Empty means the default store.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 253)), extend("x-kubernetes-list-type" = "set"))]
    pub stores: Vec<String>,
    /// Keep it in every ImageStore that is not read-only, those made later included.
    #[serde(default, skip_serializing_if = "is_false")]
    pub all_stores: bool,
    /// Serve only what is in all of these stores. If not, one is enough: the others are told in status, and filled when they can be.
    #[serde(default = "default_require_all")]
    pub require_all_stores: bool,
    /// Refuse to delete the Image.
    #[serde(default, skip_serializing_if = "is_false")]
    pub protected: bool,
    /// Serve its data to nobody, for as long as this is set. Nothing of it is removed.
    #[serde(default, skip_serializing_if = "is_false")]
    pub deactivated: bool,
    /// How many verified revisions are kept, the current one included.
    #[serde(default = "default_history")]
    #[schemars(range(min = 1, max = 10))]
    pub revision_history_limit: i64,
    /// Free metadata, in glance's vocabulary.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::properties")]
    pub properties: BTreeMap<String, String>,
    /// Free labels, in glance's vocabulary.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::tags")]
    pub tags: Vec<String>,
}

fn default_require_all() -> bool {
    true
}

fn default_history() -> i64 {
    1
}

/// The disk format that the source is declared to have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DeclaredFormat {
    /// What is found, if it is accepted at all.
    #[default]
    Auto,
    /// The guest's bytes as they are.
    Raw,
    /// An ISO 9660 or UDF file system.
    Iso,
    /// QEMU copy-on-write, versions 2 and 3.
    Qcow2,
    /// VMware.
    Vmdk,
    /// Virtual PC, Hyper-V and Azure.
    Vhd,
    /// Hyper-V.
    Vhdx,
    /// VirtualBox.
    Vdi,
    /// Parallels and Virtuozzo.
    Ploop,
    /// Amazon machine image: a disk or a file system.
    Ami,
    /// Amazon ramdisk image.
    Ari,
    /// Amazon kernel image.
    Aki,
}

impl DeclaredFormat {
    /// The model's word for it; `None` for `auto`.
    pub const fn disk_format(self) -> Option<DiskFormat> {
        match self {
            Self::Auto => None,
            Self::Raw => Some(DiskFormat::Raw),
            Self::Iso => Some(DiskFormat::Iso),
            Self::Qcow2 => Some(DiskFormat::Qcow2),
            Self::Vmdk => Some(DiskFormat::Vmdk),
            Self::Vhd => Some(DiskFormat::Vhd),
            Self::Vhdx => Some(DiskFormat::Vhdx),
            Self::Vdi => Some(DiskFormat::Vdi),
            Self::Ploop => Some(DiskFormat::Ploop),
            Self::Ami => Some(DiskFormat::Ami),
            Self::Ari => Some(DiskFormat::Ari),
            Self::Aki => Some(DiskFormat::Aki),
        }
    }
}

/// How an image is to be stored. What is left out is chosen: no compression, and clusters of 64 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.diskFormat == 'qcow2' || !has(self.compression) || self.compression == 'none'")
    .message("only qcow2 has compressed clusters: use diskFormat qcow2, or leave compression out"))]
#[x_kube(validation = Rule::new("!has(self.subformat) || (self.diskFormat == 'vmdk' && self.subformat in ['monolithicSparse', 'streamOptimized']) || (self.diskFormat in ['vhd', 'vhdx'] && self.subformat in ['dynamic', 'fixed']) || (self.diskFormat == 'vdi' && self.subformat in ['dynamic', 'static'])")
    .message("that format has no such subformat: vmdk has monolithicSparse and streamOptimized, vhd and vhdx have dynamic and fixed, vdi has dynamic and static"))]
#[x_kube(validation = Rule::new("self.diskFormat == 'qcow2' || !has(self.clusterSize)")
    .message("only qcow2 has clusters: use diskFormat qcow2, or leave clusterSize out"))]
pub struct Conversion {
    /// The format.
    #[schemars(schema_with = "schema::output_disk_format")]
    pub disk_format: DiskFormat,
    /// Its variant, by qemu-img's names: `monolithicSparse` or `streamOptimized` of vmdk, `dynamic` or `fixed` of vhd and vhdx,
    /// `dynamic` or `static` of vdi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::subformat")]
    pub subformat: Option<Subformat>,
    /// Of the clusters of a qcow2 image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::compression")]
    pub compression: Option<Compression>,
    /// Size of the clusters of a qcow2 image, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 512, max = 2_097_152))]
    #[x_kube(validation = Rule::new("self in [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072, 262144, 524288, 1048576, 2097152]")
        .message("the cluster size must be a power of two from 512 to 2097152 (2 MiB)"))]
    pub cluster_size: Option<i64>,
}

/// A format that something is stored in: nothing is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// The format.
    #[schemars(schema_with = "schema::output_disk_format")]
    pub disk_format: DiskFormat,
    /// Its variant, where it has some; absent for the usual one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::subformat")]
    pub subformat: Option<Subformat>,
    /// Of the clusters; `none` but for `qcow2`.
    #[schemars(schema_with = "schema::compression")]
    pub compression: Compression,
    /// In bytes, a power of two from 512 to 2 MiB; meaningless but for `qcow2`.
    #[schemars(range(min = 512, max = 2_097_152))]
    pub cluster_size: i64,
}

/// What is known of an Image.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageStatus {
    /// The generation of spec that the rest of status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1))]
    pub observed_generation: Option<i64>,
    /// One word for people. Programs read the conditions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<ImagePhase>,
    /// `Ready`, and while they hold `Reconciling` and `Stalled`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
    /// Number of the revision that serves; absent until one is verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<i64>,
    /// The highest revision number given out, for no number is used twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latest_revision: Option<i64>,
    /// Every revision that is wanted or kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["number"]))]
    pub revisions: Vec<Revision>,
    /// Where the bytes are to be sent that it waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<UploadPoint>,
    /// The import under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// The attempts at the import under way, or at the last one that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<Attempt>,
    /// The facts of the serving revision.
    #[serde(flatten)]
    pub content: Option<Content>,
    /// Data to be removed: of old revisions, from stores no longer named, and what nodes that were lost in the middle of an import may
    /// have left behind.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub cleanup: Vec<Cleanup>,
    /// Where the serving revision is kept, best first by the weight of the stores; and which stores shall keep it and do not, with why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    pub locations: Vec<Location>,
    /// The value of the retry annotation that was last acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub last_handled_retry: Option<String>,
    /// The value of the verify annotation that was last acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub last_handled_verify: Option<String>,
    /// Texts for `kubectl get`; never parse these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display: Option<Display>,
}

/// Where bytes are to be sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UploadPoint {
    /// Within the cluster; the path is the same by whatever name the data API is reached.
    #[schemars(length(max = 1024))]
    pub url: String,
}

/// One word for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ImagePhase {
    /// Nothing serves yet and no node works on it.
    Queued,
    /// Nothing serves yet and a node works on it.
    Importing,
    /// A verified revision serves; a newer one may be on its way.
    Active,
    /// One is there, and is served to nobody, as spec says.
    Deactivated,
    /// Nothing serves, and nothing will until something is changed.
    Failed,
    /// Its data is being removed.
    Deleting,
}

/// How far work is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// What is being done, in a word or two.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub stage: String,
    /// Bytes of the source dealt with.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub bytes_done: i64,
    /// All of them, where the source tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub bytes_total: Option<i64>,
    /// Bytes in the last seconds, per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub rate: Option<i64>,
    /// Seconds until all is done at this rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub eta_seconds: Option<i64>,
}

/// Where the attempts at an import stand.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    /// The revision that is imported.
    pub revision: i64,
    /// Number of the attempt under way or of the last one.
    pub number: i64,
    /// The generation of the Image for which the failures are counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// The stores that it copies the revision from; none if it comes from its source.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 253)))]
    pub from: Vec<String>,
    /// Why it comes from its source though there are copies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub why: Option<String>,
    /// The stores whose copies could not be read since the count began.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 253)))]
    pub unreadable: Vec<String>,
    /// The stores it brings the revision into.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 253)))]
    pub stores: Vec<String>,
    /// Failures since the count began: with the revision, or with a request to retry.
    #[serde(default)]
    pub failures: i64,
    /// The node that works on it; absent between attempts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub node: Option<String>,
    /// The last failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<FailureReport>,
    /// When the next attempt may begin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<Time>,
}

/// Texts for `kubectl get`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Display {
    /// As `10 GiB`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub virtual_size: Option<String>,
    /// As `612.5 MiB`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub size: Option<String>,
    /// Names, separated by commas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub stores: Option<String>,
    /// As `34%`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub progress: Option<String>,
}
