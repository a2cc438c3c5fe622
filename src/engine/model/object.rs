//! Names and facts of stored objects.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use super::{Compression, ContainerFormat, ContentManifest, Digest, DiskFormat, Subformat};

/// Which stored object is meant: one revision of one image. Every key there is can name an object on every back end; what is read
/// from elsewhere is checked too.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Parts")]
pub struct ObjectKey {
    uid: String,
    revision: u64,
}

/// A key as it is read, before it is checked.
#[derive(Deserialize)]
struct Parts {
    uid: String,
    revision: u64,
}

impl TryFrom<Parts> for ObjectKey {
    type Error = String;

    fn try_from(Parts { uid, revision }: Parts) -> Result<Self, String> {
        Self::new(&uid, revision).ok_or_else(|| {
            format!("uid {uid:?} cannot name an object in a store; it must be 1 to 64 of a-z, 0-9 and -, and not begin with -")
        })
    }
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

    /// The Image's uid: never reused, so two Images with one name in two namespaces (or one after the other) never meet.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// The revision's number, from 1.
    pub const fn revision(&self) -> u64 {
        self.revision
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

/// What an image's container says of the machine that the disk is for, by the names that image services use.
pub type Properties = BTreeMap<String, String>;

/// How an image is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OutputFormat {
    /// The format.
    pub disk_format: DiskFormat,
    /// Its variant, where it has some; `None` for the usual one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subformat: Option<Subformat>,
    /// Of the clusters; `None` with `Raw`.
    pub compression: Compression,
    /// In bytes; ignored with `Raw`. A power of two from 512 to 2 MiB (qcow2 specification, `cluster_bits`).
    pub cluster_size: u32,
}

impl OutputFormat {
    /// Raw, the format every consumer takes.
    pub const RAW: Self =
        Self { disk_format: DiskFormat::Raw, subformat: None, compression: Compression::None, cluster_size: 64 << 10 };
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
    /// What that said of the machine.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: Properties,
    /// Names what was asked for when it was made; `None` if whoever asked gave that no name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// What the guest sees.
    pub manifest: ContentManifest,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_way_leads_to_a_key_that_cannot_name_an_object() {
        let long = "u".repeat(65);
        for uid in ["../up", "a/b", "", ".", "a\0b", "-a", "A", &long] {
            assert_eq!(ObjectKey::new(uid, 1), None, "{uid:?}");
            let text = serde_json::json!({ "uid": uid, "revision": 1 }).to_string();
            let error = serde_json::from_str::<ObjectKey>(&text).unwrap_err();
            assert!(error.to_string().contains("cannot name an object"), "{uid:?}: {error}");
        }
        let key = ObjectKey::new(&"u".repeat(64), 7).unwrap();
        assert_eq!(serde_json::from_str::<ObjectKey>(&serde_json::to_string(&key).unwrap()).unwrap(), key);
        assert_eq!(ObjectKey::parse(&key.to_string()), Some(key));
    }
}
