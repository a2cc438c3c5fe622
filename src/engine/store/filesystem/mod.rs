//! A folder as a store: the embedded default, and what a mounted volume is used through.
//!
//! ```text
//! ROOT/.vitrine-store                       identity marker: layout version and store id (JSON)
//! ROOT/.vitrine-owner                       which installation writes here                     (see owner)
//! ROOT/.fences/KEY                          who may publish KEY; carries KEY's lock           (see fence)
//! ROOT/.partial-KEY-aATTEMPT-NONCE/data     an object being written, or left by a writer that died
//! ROOT/.partial-KEY-aATTEMPT-NONCE/writer   on which start of which machine it is written      (see leftover)
//! ROOT/KEY/data                             a published object's bytes, sparse
//! ROOT/KEY/image.json                       its facts (StoredImage without the chunk digests)  (see record)
//! ROOT/KEY/manifest                         its chunk digests, 40 bytes each
//! ROOT/.removed-KEY-NONCE/                  an object being removed
//! ROOT/.scratch-NONCE                       lives for a moment (new marker, probe)
//! ```
//!
//! Publishing: everything in the partial directory is made durable (data, manifest, image.json, the directory), then under the
//! key's lock the fence and the marker are checked, the directory is renamed to KEY, and ROOT is made durable. Deleting renames
//! first and removes then. So KEY is there whole or not at all, after any crash.
//!
//! Knows nothing of formats or sources. Must not write anything below a ROOT whose marker it has not just seen.

mod fence;
mod fill;
mod layout;
mod leftover;
mod object;
mod owner;
mod partial;
mod place;
mod reader;
mod record;
mod room;
mod sink;
mod sweep;
mod tree;
mod writer;

use std::{collections::BTreeSet, os::fd::OwnedFd, path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use rustix::io::Errno;

pub use place::StoreId;

use self::{
    fence::Fence, layout::Entry, leftover::FilesystemLeftover, partial::Partial, place::Place,
    reader::FilesystemReader, sink::FilesystemSink,
};
use super::{Capacity, Leftover, ObjectEntry, ObjectReader, ObjectStat, Resumed, Sink, Store};
use crate::{
    error::{Error, Kind, Result},
    model::{ObjectKey, OutputFormat},
};

/// How a folder is used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilesystemOptions {
    /// Bytes of the volume that are never used.
    pub min_free: u64,
    /// Which store the folder must hold. Without it, an empty folder is made a store, which is right only the first time:
    /// later an empty folder is a volume that is not mounted.
    pub expected: Option<StoreId>,
    /// Whose the folder must be that is written to, or becomes. Without it, nobody asks.
    pub owner: Option<String>,
}

/// The store.
#[derive(Clone, Debug)]
pub struct FilesystemStore {
    place: Arc<Place>,
}

impl FilesystemStore {
    /// Opens the store in the folder `root`, which must exist. Blocks for a few small reads and writes.
    ///
    /// # Errors
    /// `Unavailable` if the folder is missing or holds another store than expected, `InvalidInput` if it is no folder or holds
    /// something else than a store.
    pub fn open(name: &str, root: &Path, options: &FilesystemOptions) -> Result<Self> {
        Ok(Self { place: Arc::new(Place::open(name, root, options)?) })
    }

    /// Which store it is, to be named in `FilesystemOptions::expected` from now on.
    pub fn id(&self) -> &StoreId {
        self.place.id()
    }

    /// Removes what `sweep` removes, but nothing of the keys in `spared`, with which somebody will go on.
    ///
    /// # Errors
    /// As `sweep`.
    pub async fn sweep_but(&self, older_than: Duration, spared: BTreeSet<ObjectKey>) -> Result<Vec<String>> {
        self.with_place(move |place| sweep::sweep(place, older_than, &spared)).await
    }

    async fn with_place<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<Place>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let place = Arc::clone(&self.place);
        blocking(move || work(&place)).await
    }
}

#[async_trait]
impl Store for FilesystemStore {
    fn name(&self) -> &str {
        self.place.name()
    }

    fn id(&self) -> Option<String> {
        Some(self.place.id().to_string())
    }

    async fn claim(&self) -> Result<()> {
        self.with_place(|place| owner::claim(place, &place.enter()?)).await
    }

    async fn create(&self, key: &ObjectKey, attempt: u32, format: OutputFormat) -> Result<Box<dyn Sink>> {
        let key = key.clone();
        self.with_place(move |place| {
            let partial = Partial::begin(place, &key, attempt)?;
            Ok(Box::new(FilesystemSink::start(Arc::clone(place), key, format, partial)?) as Box<dyn Sink>)
        })
        .await
    }

    async fn resume(&self, key: &ObjectKey, attempt: u32, format: OutputFormat) -> Result<Resumed> {
        let key = key.clone();
        self.with_place(move |place| {
            let (partial, found) = Partial::resume(place, &key, attempt)?;
            let left = found.then(|| FilesystemLeftover::of(place, &key, partial.data()));
            let sink = Box::new(FilesystemSink::start(Arc::clone(place), key, format, partial)?);
            Ok(Resumed { sink, left: left.map(|left| Box::new(left) as Box<dyn Leftover>) })
        })
        .await
    }

    async fn open(&self, key: &ObjectKey) -> Result<Arc<dyn ObjectReader>> {
        let key = key.clone();
        self.with_place(move |place| Ok(Arc::new(FilesystemReader::open(place, &key)?) as Arc<dyn ObjectReader>)).await
    }

    async fn stat(&self, key: &ObjectKey) -> Result<ObjectStat> {
        let key = key.clone();
        self.with_place(move |place| stat(place, &key)).await
    }

    async fn delete(&self, key: &ObjectKey, attempt: u32) -> Result<()> {
        let key = key.clone();
        self.with_place(move |place| delete(place, &key, attempt)).await
    }

    async fn list(&self) -> Result<Vec<ObjectEntry>> {
        self.with_place(|place| list(place)).await
    }

    async fn sweep(&self, older_than: Duration) -> Result<Vec<String>> {
        self.sweep_but(older_than, BTreeSet::new()).await
    }

    async fn probe(&self) -> Result<()> {
        self.with_place(|place| probe(place)).await
    }

    async fn capacity(&self) -> Result<Option<Capacity>> {
        self.with_place(|place| room::capacity(place, &place.enter()?).map(Some)).await
    }
}

/// Runs `work` where it may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        let kind = if error.is_cancelled() { Kind::Cancelled } else { Kind::Internal };
        Err(Error::with_source(kind, "a store's work did not finish", error))
    })
}

fn stat(place: &Place, key: &ObjectKey) -> Result<ObjectStat> {
    let (data, image) = object::open(place, key)?;
    let allocated_size = partial::allocated(&data).map_err(|errno| place.error(&format!("measuring {key}"), errno))?;
    Ok(ObjectStat { image, url: place.url_of(key), allocated_size })
}

fn delete(place: &Place, key: &ObjectKey, attempt: u32) -> Result<()> {
    let name = layout::object_name(key);
    let root = place.enter()?;
    let failed = |errno| place.error(&format!("deleting {key}"), errno);
    owner::check(place, &root)?;
    let mut fence = Fence::lock(place, &root, key)?;
    fence.require_latest(attempt)?;
    match rustix::fs::renameat(&root, &name, &root, layout::removed_name(key, rand::random())) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(failed(errno)),
    }
    rustix::fs::fsync(&root).map_err(failed)?;
    partial::remove_leftovers(place, &root, key, None)?;
    // Last, so that a full volume has room for it. Until then nobody can publish, for that takes the lock which is held here.
    fence.close(attempt)
}

fn list(place: &Place) -> Result<Vec<ObjectEntry>> {
    let root = place.enter()?;
    let failed = |errno| place.error("listing the folder", errno);
    let mut entries = Vec::new();
    for name in tree::names(&root).map_err(failed)? {
        let kind = Entry::of(&name);
        if kind == Entry::Own {
            continue;
        }
        // Between the listing and this look it may have been published or removed.
        let Some(age_seconds) = age(&root, &name).map_err(failed)? else { continue };
        let published = matches!(kind, Entry::Object(_)) && is_whole(&root, &name);
        entries.push(ObjectEntry { key: kind.key().cloned(), name, published, age_seconds });
    }
    Ok(entries)
}

/// Whether the directory holds a record, which is the last thing written before it gets its public name.
fn is_whole(root: &OwnedFd, name: &str) -> bool {
    tree::open_directory(root, name).is_ok_and(|d| tree::open_file(&d, layout::RECORD).is_ok())
}

/// Seconds since the entry or the data in it was last changed; `None` if it is gone.
fn age(root: &OwnedFd, name: &str) -> std::result::Result<Option<u64>, Errno> {
    let Some(stat) = tree::look_up(root, name)? else { return Ok(None) };
    let inner = tree::open_directory(root, name).and_then(|d| tree::look_up(&d, layout::DATA)).unwrap_or(None);
    let age = tree::age_seconds(&stat);
    Ok(Some(inner.map_or(age, |data| age.min(tree::age_seconds(&data)))))
}

/// Writes and removes a small file, because permission bits and mount flags do not tell the whole truth.
fn probe(place: &Place) -> Result<()> {
    let root = place.enter()?;
    if room::capacity(place, &root)?.available == 0 {
        return Err(room::no_space(place, &root, "any object", 1));
    }
    let name = layout::scratch_name(rand::random());
    let file = tree::create_file(&root, &name).map_err(|e| place.error("writing a probe", e))?;
    let written = rustix::io::pwrite(&file, b"probe", 0);
    tree::remove(&root, &name).map_err(|e| place.error("removing a probe", e))?;
    written.map(|_| ()).map_err(|e| place.error("writing a probe", e))
}
