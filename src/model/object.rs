//! Names and facts of stored objects.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Compression, ContainerFormat, ContentManifest, Digest, DiskFormat};

/// Which stored object is meant: one revision of one image.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectKey {
    /// The Image's uid: never reused, so two Images with one name in two namespaces (or one after the other) never meet.
    pub uid: String,
    /// The revision's number, from 1.
    pub revision: u64,
}

impl ObjectKey {
    /// The key, if `uid` can be part of an object name on every back end: 1 to 64 of `a-z`, `0-9` and `-`,
    /// beginning with a letter or digit.
    pub fn new(uid: &str, revision: u64) -> Option<Self> {
        let fits = (1..=64).contains(&uid.len())
            && !uid.starts_with('-')
            && uid.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        fits.then(|| Self { uid: uid.to_owned(), revision })
    }

    /// Reads a name that `Display` wrote.
    pub fn parse(name: &str) -> Option<Self> {
        let (uid, revision) = name.rsplit_once("-r")?;
        Self::new(uid, revision.parse().ok()?)
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-r{}", self.uid, self.revision)
    }
}

/// How an image is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OutputFormat {
    /// `Raw` or `Qcow2`.
    pub disk_format: DiskFormat,
    /// Of the clusters; `None` with `Raw`.
    pub compression: Compression,
    /// In bytes; ignored with `Raw`. A power of two from 512 to 2 MiB (qcow2 specification, `cluster_bits`).
    pub cluster_size: u32,
}

impl OutputFormat {
    /// Raw, the format every consumer takes.
    pub const RAW: Self = Self { disk_format: DiskFormat::Raw, compression: Compression::None, cluster_size: 64 << 10 };
}

/// What a store tells of a published object. Written beside the data when it is published, so it survives every crash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredImage {
    /// Format of the stored bytes.
    pub format: OutputFormat,
    /// Length of the stored object in bytes, holes included.
    pub length: u64,
    /// Bytes received from the source.
    pub source_size: u64,
    /// Digests of the bytes received.
    pub source_digests: Vec<Digest>,
    /// What was found in the source.
    pub source_format: DiskFormat,
    /// What was around it.
    pub container_format: ContainerFormat,
    /// What the guest sees.
    pub manifest: ContentManifest,
}
