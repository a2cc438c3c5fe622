//! The documents of an image archive: which layers make up the image (OCI Image Layout 1.1; `docker save`, Docker Image Spec 1.2).
//!
//! Knows JSON, and that a digest is the name of a blob; must not read layers.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, de::DeserializeOwned};

use super::super::{
    contents::{Contents, base_name},
    manifest::digest,
};
use crate::{
    error::Result,
    io::ReadAt,
    model::{Digest, Rule, Violation},
    unpack::tar::Member,
};

/// Length of a document in bytes; registries take manifests of 4 MiB at most.
const MAX_DOCUMENT: u64 = 4 << 20;
/// Indexes inside of indexes. One is what tools write.
const MAX_DEPTH: usize = 4;
/// Manifests and indexes of one archive: an image of every platform there is has some twenty.
const MAX_MANIFESTS: usize = 128;
/// Layers of an image. Docker makes 127 at most.
const MAX_LAYERS: usize = 256;
/// What is taken of an image for several platforms.
const PLATFORM: &str = "linux/amd64";

const INDEXES: &[&str] =
    &["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const MANIFESTS: &[&str] =
    &["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];

/// A layer, and what it must be.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub member: Member,
    /// Of its bytes as they are, where that is told.
    pub digest: Option<Digest>,
    /// Of the archive in it.
    pub diff: Digest,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Clone, Deserialize)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    variant: Option<String>,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Config {
    #[serde(flatten)]
    platform: Platform,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// One image of `docker save`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// A manifest that may be meant.
struct Leaf {
    descriptor: Descriptor,
    /// What it may be called by.
    names: Vec<String>,
}

/// The layers, lowest first, of the image called `wanted`, or the one that there is.
///
/// # Errors
/// A violation if a document is not what it should be, or it cannot be told which image is meant; else what `input` says.
pub(super) fn layers(contents: &Contents, input: &mut dyn ReadAt, wanted: Option<&str>) -> Result<Vec<Layer>> {
    let mut documents = Documents { contents, input };
    if contents.find("oci-layout").is_some() || contents.find("index.json").is_some() {
        return documents.by_index(wanted);
    }
    documents.by_saved(wanted)
}

struct Documents<'a> {
    contents: &'a Contents,
    input: &'a mut dyn ReadAt,
}

impl Documents<'_> {
    fn by_index(&mut self, wanted: Option<&str>) -> Result<Vec<Layer>> {
        let index: Index = parse("index.json", &self.named("index.json")?)?;
        let mut leaves = Vec::new();
        self.collect(index, 0, &mut 0, &mut leaves)?;
        let leaf = self.choose(leaves, wanted)?;
        let manifest: Manifest = parse("manifest", &self.blob(&leaf.descriptor)?)?;
        let config: Config = parse("config", &self.blob(&manifest.config)?)?;
        let diffs = diffs(&config, manifest.layers.len())?;
        let mut layers = Vec::with_capacity(diffs.len());
        for (descriptor, diff) in manifest.layers.iter().zip(diffs) {
            if descriptor.media_type.contains("+encrypted") {
                let message = "encrypted layers cannot be checked: publish the image without encryption";
                return Err(Violation::new(Rule::Encrypted, "mediaType", shown(&descriptor.media_type), message).into());
            }
            let (member, digest) = self.find_blob(descriptor)?;
            layers.push(Layer { member, digest: Some(digest), diff });
        }
        self.check_saved(&manifest)?;
        Ok(layers)
    }

    /// The manifests that `index` leads to.
    fn collect(&mut self, index: Index, depth: usize, seen: &mut usize, leaves: &mut Vec<Leaf>) -> Result<()> {
        for descriptor in index.manifests {
            *seen = seen.saturating_add(1);
            if *seen > MAX_MANIFESTS || depth > MAX_DEPTH {
                let (field, value) = if depth > MAX_DEPTH { ("index depth", depth) } else { ("manifests", *seen) };
                let message = format!("up to {MAX_MANIFESTS} manifests in indexes of {MAX_DEPTH} levels are read");
                return Err(Violation::new(Rule::SizeLimit, field, value, message).into());
            }
            if INDEXES.contains(&descriptor.media_type.as_str()) {
                let inner: Index = parse("index", &self.blob(&descriptor)?)?;
                self.collect(inner, depth.saturating_add(1), seen, leaves)?;
            } else if MANIFESTS.contains(&descriptor.media_type.as_str()) {
                add(leaves, descriptor);
            } else {
                let message = "an index names manifests of images and other indexes";
                let found = shown(&descriptor.media_type);
                return Err(Violation::new(Rule::UnsupportedFormat, "mediaType", found, message).into());
            }
        }
        Ok(())
    }

    fn choose(&mut self, mut leaves: Vec<Leaf>, wanted: Option<&str>) -> Result<Leaf, crate::error::Error> {
        for leaf in &mut leaves {
            if leaf.descriptor.platform.is_none() {
                let manifest: Manifest = parse("manifest", &self.blob(&leaf.descriptor)?)?;
                let config: Config = parse("config", &self.blob(&manifest.config)?)?;
                leaf.descriptor.platform = Some(config.platform);
            }
            leaf.names.push(platform(&leaf.descriptor));
        }
        let called = |leaf: &Leaf| wanted.is_none_or(|name| leaf.names.iter().any(|own| own == name));
        // Attestations beside the images have a platform that is not known.
        leaves.retain(|leaf| !platform(&leaf.descriptor).starts_with("unknown/"));
        let names: Vec<_> = leaves.iter().map(|leaf| shown(&leaf.names.join(" "))).collect();
        leaves.retain(called);
        if leaves.len() > 1 {
            leaves.retain(|leaf| platform(&leaf.descriptor) == PLATFORM);
        }
        match leaves.pop() {
            Some(leaf) if leaves.is_empty() => Ok(leaf),
            _ => Err(undecided(wanted, &names).into()),
        }
    }

    fn by_saved(&mut self, wanted: Option<&str>) -> Result<Vec<Layer>> {
        let mut images: Vec<Saved> = parse("manifest.json", &self.named("manifest.json")?)?;
        let tags = |image: &Saved| image.repo_tags.clone().unwrap_or_default();
        let names: Vec<_> = images.iter().map(|image| shown(&tags(image).join(" "))).collect();
        images.retain(|image| wanted.is_none_or(|name| tags(image).iter().any(|tag| tag == name)));
        let image = images.pop().filter(|_| images.is_empty());
        let image = image.ok_or_else(|| undecided(wanted, &names))?;
        let bytes = self.named(&image.config)?;
        if let Some(expected) = digest_in(&image.config) {
            check_digest(&bytes, &expected)?;
        }
        let config: Config = parse("config", &bytes)?;
        let diffs = diffs(&config, image.layers.len())?;
        let layers = image.layers.iter().zip(diffs).map(|(name, diff)| {
            let member = self.member(name)?;
            Ok(Layer { member, digest: None, diff })
        });
        layers.collect()
    }

    /// If the archive says twice what the image is, it must say the same, or tools would see two images.
    fn check_saved(&mut self, manifest: &Manifest) -> Result<()> {
        if self.contents.find("manifest.json").is_none() {
            return Ok(());
        }
        let images: Vec<Saved> = parse("manifest.json", &self.named("manifest.json")?)?;
        let same = |image: &Saved| {
            names_blob(&image.config, &manifest.config)
                && image.layers.len() == manifest.layers.len()
                && image.layers.iter().zip(&manifest.layers).all(|(name, layer)| names_blob(name, layer))
        };
        if images.iter().any(same) {
            return Ok(());
        }
        let found = images.first().map(|image| shown(&image.config)).unwrap_or_default();
        let message = "index.json leads to another image than manifest.json, so that programs would take different ones: save it again";
        Err(Violation::new(Rule::InvalidField, "manifest.json", found, message).into())
    }

    fn member(&self, name: &str) -> Result<Member, Violation> {
        let clean = name.trim_start_matches("./");
        match self.contents.find_layer(clean) {
            Some(stored) => Ok(stored.member.clone()),
            None => Err(missing(name)),
        }
    }

    /// The bytes of a document.
    fn named(&mut self, name: &str) -> Result<Bytes> {
        let member = self.member(name)?;
        self.read(&member)
    }

    fn read(&mut self, member: &Member) -> Result<Bytes> {
        if member.size > MAX_DOCUMENT {
            let message = format!("{} may have up to {MAX_DOCUMENT} bytes", member.name);
            return Err(Violation::new(Rule::SizeLimit, "size", member.size, message).into());
        }
        self.input.peek(member.offset, usize::try_from(member.size).unwrap_or(usize::MAX))
    }

    /// The bytes of a document that is a blob.
    fn blob(&mut self, descriptor: &Descriptor) -> Result<Bytes> {
        let (member, expected) = self.find_blob(descriptor)?;
        let bytes = self.read(&member)?;
        check_digest(&bytes, &expected)?;
        Ok(bytes)
    }

    fn find_blob(&self, descriptor: &Descriptor) -> Result<(Member, Digest), Violation> {
        let digest = parse_digest("digest", &descriptor.digest)?;
        let stored = self.contents.find(&format!("blobs/{}/{}", digest.algorithm(), digest.hex()));
        let member = stored.ok_or_else(|| missing(&descriptor.digest))?.member.clone();
        if member.size == descriptor.size {
            return Ok((member, digest));
        }
        let message = format!("the blob {digest} has {} bytes: the archive was damaged or changed", member.size);
        Err(Violation::new(Rule::InvalidField, "size", descriptor.size, message))
    }
}

fn add(leaves: &mut Vec<Leaf>, descriptor: Descriptor) {
    let name = descriptor.annotations.get("org.opencontainers.image.ref.name").cloned();
    let name = name.into_iter().chain(descriptor.annotations.get("io.containerd.image.name").cloned());
    match leaves.iter_mut().find(|leaf| leaf.descriptor.digest == descriptor.digest) {
        Some(leaf) => leaf.names.extend(name),
        None => leaves.push(Leaf { names: name.chain([descriptor.digest.clone()]).collect(), descriptor }),
    }
}

fn platform(descriptor: &Descriptor) -> String {
    let platform = descriptor.platform.as_ref();
    platform.map_or_else(String::new, |platform| match platform.variant.as_deref() {
        // The first generation of 64-bit processors has no name of its own in some indexes.
        None | Some("v1" | "") => format!("{}/{}", platform.os, platform.architecture),
        Some(variant) => format!("{}/{}/{variant}", platform.os, platform.architecture),
    })
}

/// What each layer unpacks to.
fn diffs(config: &Config, layers: usize) -> Result<Vec<Digest>, Violation> {
    let ids = &config.rootfs.diff_ids;
    if layers > MAX_LAYERS {
        let message = format!("an image of up to {MAX_LAYERS} layers is read");
        return Err(Violation::new(Rule::SizeLimit, "layers", layers, message));
    }
    if ids.len() != layers {
        let message = format!("the manifest has {layers} layers: one of them is of another image");
        return Err(Violation::new(Rule::InvalidField, "diff_ids", ids.len(), message));
    }
    ids.iter().map(|id| parse_digest("diff_ids", id)).collect()
}

/// The digest that a file's name is.
fn digest_in(name: &str) -> Option<Digest> {
    let hex = base_name(name).trim_start_matches("sha256:").split('.').next().unwrap_or_default();
    format!("sha256:{hex}").parse().ok()
}

fn names_blob(name: &str, descriptor: &Descriptor) -> bool {
    digest_in(name).is_some_and(|digest| digest.to_string() == descriptor.digest)
}

fn parse_digest(field: &str, text: &str) -> Result<Digest, Violation> {
    text.parse().map_err(|_| {
        let message = "a digest is an algorithm and hexadecimal digits, such as `sha256:…`";
        Violation::new(Rule::InvalidField, field, shown(text), message)
    })
}

fn check_digest(bytes: &[u8], expected: &Digest) -> Result<(), Violation> {
    match digest(bytes, expected.algorithm()) {
        Some(found) if found == *expected => Ok(()),
        found => Err(differs("digest", expected, &found.map_or_else(String::new, |found| found.to_string()))),
    }
}

/// What has another digest than it is called by.
pub(super) fn differs(field: &str, expected: &Digest, found: &str) -> Violation {
    let message = format!("it must have {expected}: the archive was damaged or changed; fetch or save it again");
    Violation::new(Rule::ChecksumMismatch, field, found, message)
}

fn missing(name: &str) -> Violation {
    let message = "the archive does not hold it, and nothing outside of it is read: save the whole image";
    Violation::new(Rule::ExternalDataFile, "blob", shown(name), message)
}

fn undecided(wanted: Option<&str>, names: &[String]) -> Violation {
    let there = if names.is_empty() { "none".to_owned() } else { names.join("; ") };
    if let Some(wanted) = wanted {
        let message = format!("the archive holds no such image, or several; there are: {there}");
        return Violation::new(Rule::InvalidField, "containerDisk", shown(wanted), message);
    }
    let message = format!("the archive does not hold one image, nor one for {PLATFORM}: name the one that is meant");
    Violation::new(Rule::InvalidField, "platform", there, message)
}

fn parse<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, Violation> {
    serde_json::from_slice(bytes).map_err(|error| {
        let place = format!("line {}, column {}", error.line(), error.column());
        Violation::new(Rule::InvalidField, what, place, format!("the document cannot be read: {error}"))
    })
}

fn shown(text: &str) -> String {
    text.chars().take(120).flat_map(char::escape_debug).collect()
}
