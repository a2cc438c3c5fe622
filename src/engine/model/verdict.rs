//! What inspection says of an image: accepted, or refused and by which rule.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{ContainerFormat, DiskFormat, Properties};

/// A rule an image can break. The names are part of the interface: they appear in status, on the command line and in metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// The file names another file that holds part of the disk.
    BackingFile,
    /// The data lies in another file.
    ExternalDataFile,
    /// The content is encrypted, so it cannot be checked.
    Encrypted,
    /// A feature bit that this version does not know and that changes the meaning of the file.
    UnknownIncompatibleFeature,
    /// The file was not closed properly; its tables may be stale.
    Dirty,
    /// The file marks itself as corrupt.
    Corrupt,
    /// A table or cluster lies outside the file or is not aligned.
    TableOutOfRange,
    /// Two structures claim the same bytes.
    TableOverlap,
    /// The guest's disk would be larger than allowed.
    VirtualSizeLimit,
    /// More bytes came than allowed.
    SizeLimit,
    /// A cluster size that the format does not have.
    ClusterSize,
    /// The file ends before its content does.
    Truncated,
    /// A compressed cluster that does not unpack to a cluster.
    CompressedCluster,
    /// A header whose own length makes no sense.
    HeaderLength,
    /// A version of the format that is not read.
    Version,
    /// Far more comes out than went in.
    Bomb,
    /// A format that is recognised and not accepted.
    UnsupportedFormat,
    /// The declared format is not the found one.
    FormatMismatch,
    /// The bytes are of two formats at once.
    AmbiguousFormat,
    /// The bytes are no disk at all.
    NotADisk,
    /// A compressed stream that does not unpack.
    CompressedStream,
    /// A compressed stream inside a compressed stream.
    NestedCompression,
    /// The digest of what came is not the declared one.
    ChecksumMismatch,
    /// A field holds a value that its specification does not allow.
    InvalidField,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // serde's kebab-case is the one spelling; unit variants always serialize to a string.
        match serde_json::to_value(self) {
            Ok(serde_json::Value::String(name)) => f.write_str(&name),
            _ => f.write_str("unknown"),
        }
    }
}

/// One broken rule: which, where, what stood there, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// The rule.
    pub rule: Rule,
    /// The field of the format, by its name in the specification, for example `incompatible_features`.
    pub field: String,
    /// The value found, as a person would write it.
    pub value: String,
    /// What it means and what to do.
    pub message: String,
}

impl Violation {
    /// A violation of `rule` by `value` in `field`.
    pub fn new(rule: Rule, field: impl Into<String>, value: impl fmt::Display, message: impl Into<String>) -> Self {
        Self { rule, field: field.into(), value: value.to_string(), message: message.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} = {}): {}", self.rule, self.field, self.value, self.message)
    }
}

/// The outcome of an inspection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// May be imported.
    Accepted,
    /// May not.
    Refused,
}

/// What inspection found. Serialized, this is the output of `vitrine inspect`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Inspection {
    /// The format found; absent if the bytes are of none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_format: Option<DiskFormat>,
    /// What it is wrapped in.
    pub container_format: ContainerFormat,
    /// Size of the guest's disk in bytes, where it could be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtual_size: Option<u64>,
    /// Bytes as received.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// What of the container was taken: the files that the disk is made of, or the layers of an image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<String>,
    /// Whether it is kept as an archive: a guest sees bytes, not a disk.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub opaque: bool,
    /// What the container says of the machine that the disk is for.
    #[serde(default, skip_serializing_if = "Properties::is_empty")]
    pub properties: Properties,
    /// Accepted or refused.
    pub verdict: Verdict,
    /// Why refused; empty if accepted.
    pub reasons: Vec<Violation>,
}

impl Inspection {
    /// Nothing is known but the format, and nothing speaks against it.
    pub fn new(disk_format: Option<DiskFormat>) -> Self {
        Self {
            disk_format,
            container_format: ContainerFormat::Bare,
            virtual_size: None,
            size: None,
            parts: Vec::new(),
            opaque: false,
            properties: Properties::new(),
            verdict: Verdict::Accepted,
            reasons: Vec::new(),
        }
    }

    /// Adds a reason to refuse it.
    pub fn refuse(&mut self, violation: Violation) {
        self.verdict = Verdict::Refused;
        self.reasons.push(violation);
    }
}
