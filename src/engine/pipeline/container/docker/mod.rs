//! Images of containers: archives of `docker save` and in the OCI layout, and root filesystems as `docker export` writes them.
//!
//! ```text
//! index (documents) ─► flatten ─► tree (what the layers come to) ─► the disk of a containerDisk, or one flat archive
//!                         └─► blob (layers, held against their digests)
//! rootfs (an archive that is kept as it is)
//! ```
//! Layers are read twice: what becomes of a file shows only in the last one. No name is ever opened.

mod blob;
mod flatten;
mod index;
mod rootfs;
mod tree;

pub(super) use rootfs::RootFs;

use bytes::Bytes;

use super::contents::Contents;
use crate::{
    error::Result,
    format::Shape,
    io::{Feed, ReadAt, Window},
    model::{ContainerFormat, Limits, Rule, Violation},
    unpack::tar::{Entry, Scan, next_entry},
};
use blob::Shared;
use flatten::{Flat, Plan};

/// What an image is.
pub(super) struct Unwrapped {
    pub feed: Box<dyn Feed>,
    /// How many bytes that has, if it is known.
    pub length: Option<u64>,
    pub shape: Shape,
    /// Its layers, and the disk's name.
    pub parts: Vec<String>,
}

/// The image in `archive`, all of whose headers are in `contents`.
///
/// # Errors
/// A violation if it breaks a rule, or is to be kept as files and that was not declared; else what the archive says.
pub(super) fn unwrap(
    contents: &Contents,
    mut archive: Window<Box<dyn Feed>>,
    wanted: Option<&str>,
    declared: Option<ContainerFormat>,
    limits: &Limits,
) -> Result<Unwrapped> {
    let layers = index::layers(contents, &mut archive.tables(), wanted)?;
    let archive = Shared::new(archive);
    let mut parts: Vec<_> = layers.iter().map(|layer| layer.member.name.clone()).collect();
    let (plan, length, shape) = match Plan::of_disk(flatten::read(&archive, &layers, limits)?) {
        Ok((plan, name, size)) => {
            parts.push(name);
            (plan, Some(size), Shape::Whole)
        }
        Err(plan) if declared == Some(ContainerFormat::Docker) => (plan, None, Shape::Opaque),
        Err(_) => {
            let message = "a container image whose files no guest can boot: declare containerFormat docker to keep them as an archive, \
                           or publish a containerDisk, which has one disk below /disk";
            return Err(Violation::new(Rule::UnsupportedFormat, "containerFormat", "docker", message).into());
        }
    };
    let feed = Box::new(Flat::new(archive, layers, limits.clone(), plan));
    Ok(Unwrapped { feed, length, shape, parts })
}

/// How the headers of a root filesystem are read.
pub(super) fn rootfs_scan() -> Scan {
    Scan::new(flatten::MAX_ENTRIES)
}

/// Bytes at the beginning of an archive in which its first name stands.
pub(super) const HEAD: usize = 64 << 10;

/// Whether an archive that begins with `head` is one of an image, by its first name.
pub(super) fn is_image(head: &[u8]) -> bool {
    let (mut scan, mut input) = (Scan::default(), Head(head));
    let entries = std::iter::from_fn(|| next_entry(&mut scan, &mut input).ok().flatten());
    let names = entries.map(|entry| String::from_utf8_lossy(&entry.name).into_owned());
    let first = names.take(8).find(|name| !name.is_empty());
    first.is_some_and(|name| matches!(name.as_str(), "index.json" | "manifest.json") || is_image_member(&name))
}

/// Whether a name is one that only archives of container images have.
pub(super) fn is_image_member(name: &str) -> bool {
    matches!(name, "oci-layout" | "repositories" | "blobs") || name.starts_with("blobs/") || is_digest(name)
}

/// A digest as a folder, a layer or a configuration is called in archives of Docker, podman and crane.
fn is_digest(name: &str) -> bool {
    let name = name.strip_suffix("/layer.tar").unwrap_or(name);
    let ends = [".json", ".tar", ".tar.gz"];
    let name = ends.into_iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
    let hex = name.strip_prefix("sha256:").unwrap_or(name);
    hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// A layer that stands there as a link to an equal one, as Docker before version 25 saves it: its name, and that of the other.
pub(super) fn link(entry: &Entry) -> Option<(String, String)> {
    let folder = |name: &str| name.strip_suffix("/layer.tar").filter(|name| is_digest(name)).map(str::to_owned);
    let (name, target) = (std::str::from_utf8(&entry.name).ok()?, std::str::from_utf8(&entry.link).ok()?);
    let (_, other) = (folder(name).filter(|_| entry.typeflag == b'2')?, folder(target.strip_prefix("../")?)?);
    Some((name.to_owned(), format!("{other}/layer.tar")))
}

struct Head<'a>(&'a [u8]);

impl ReadAt for Head<'_> {
    fn length(&self) -> Option<u64> {
        None
    }

    fn read_up_to(&mut self, offset: u64, length: usize) -> Result<Bytes> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.0.len());
        let end = start.saturating_add(length).min(self.0.len());
        Ok(Bytes::copy_from_slice(self.0.get(start..end).unwrap_or_default()))
    }
}
