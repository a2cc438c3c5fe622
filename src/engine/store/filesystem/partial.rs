//! An object that is not published yet: its private directory, and the one step that makes it public.
//!
//! Everything here blocks. Dropping a `Partial` removes the directory.

use std::{os::fd::OwnedFd, sync::Arc};

use rustix::{fs::FlockOperation, io::Errno};

use super::{
    super::{
        ObjectStat,
        data_file::{DataFile, open_direct},
    },
    fence::{Fence, Last},
    layout::{self, Entry, Token},
    leftover, owner,
    place::Place,
    record, room, tree,
};
use crate::{
    error::{Error, Kind, Result},
    model::{ObjectKey, StoredImage},
};

/// Bytes in a block as `st_blocks` counts them, whatever the file system's own block size (stat(2)).
const STAT_BLOCK: u64 = 512;

/// The unfinished object.
pub(super) struct Partial {
    place: Arc<Place>,
    key: ObjectKey,
    token: Token,
    root: OwnedFd,
    name: String,
    directory: OwnedFd,
    data: Arc<OwnedFd>,
    /// Whether the directory is published or removed already.
    settled: bool,
}

impl Partial {
    /// Takes the key over for `attempt`, removes what earlier ones left, and makes an empty object.
    pub(super) fn begin(place: &Arc<Place>, key: &ObjectKey, attempt: u32) -> Result<Self> {
        Self::take_over(place, key, attempt, false).map(|(partial, _)| partial)
    }

    /// The same, but goes on with what an earlier writer left that is dead; whether there was such a one.
    pub(super) fn resume(place: &Arc<Place>, key: &ObjectKey, attempt: u32) -> Result<(Self, bool)> {
        Self::take_over(place, key, attempt, true)
    }

    fn take_over(place: &Arc<Place>, key: &ObjectKey, attempt: u32, resume: bool) -> Result<(Self, bool)> {
        let object = layout::object_name(key);
        let root = place.enter()?;
        owner::claim(place, &root)?;
        if room::capacity(place, &root)?.available == 0 {
            return Err(room::no_space(place, &root, &object, 1));
        }
        let mut fence = Fence::lock(place, &root, key)?;
        if tree::look_up(&root, &object).map_err(|e| place.error("looking for the object", e))?.is_some() {
            return Err(exists(place, key));
        }
        if let Some(last) = fence.last()?.filter(|last| !last.admits(attempt)) {
            return Err(overtaken(place, key, attempt, last.attempt()));
        }
        let token = Token { attempt, nonce: rand::random() };
        fence.pass_to(token)?;
        let name = layout::partial_name(key, token);
        // From here on its writer cannot publish; whoever holds the lock on its data besides can be sure that nobody writes it either.
        let left = if resume { leftover::adopt(place, &root, key, &name) } else { None };
        remove_leftovers(place, &root, key, left.is_some().then_some(&name))?;
        let (place, key) = (Arc::clone(place), key.clone());
        match left {
            Some((directory, data)) => {
                let data = Arc::new(data);
                Ok((Self { place, key, token, root, name, directory, data, settled: false }, true))
            }
            None => Ok((Self::make(place, key, token, root, name)?, false)),
        }
    }

    fn make(place: Arc<Place>, key: ObjectKey, token: Token, root: OwnedFd, name: String) -> Result<Self> {
        let failed = |errno| place.error(&format!("making {name}"), errno);
        let directory = tree::make_directory(&root, &name).map_err(failed)?;
        leftover::sign(&directory);
        let data = tree::create_file(&directory, layout::DATA)
            // Tells `sweep` that somebody is at work here; the kernel gives it back when the process dies.
            .and_then(|data| rustix::fs::flock(&data, FlockOperation::NonBlockingLockExclusive).map(|()| data));
        match data {
            Ok(data) => Ok(Self { place, key, token, root, name, directory, data: Arc::new(data), settled: false }),
            Err(errno) => {
                let error = failed(errno);
                // The first error is the one to tell; a directory that stays behind is listed and swept.
                let _ = tree::remove(&root, &name);
                Err(error)
            }
        }
    }

    /// The data file.
    pub(super) fn data(&self) -> &Arc<OwnedFd> {
        &self.data
    }

    /// The data file, for writing.
    pub(super) fn writable(&self) -> DataFile {
        DataFile::new(Arc::clone(&self.data), open_direct(&self.directory, layout::DATA, &self.data))
    }

    /// The key as messages name it.
    pub(super) fn label(&self) -> String {
        self.key.to_string()
    }

    /// Makes everything durable and then public. Whatever fails, nothing is left.
    pub(super) fn publish(mut self, image: StoredImage) -> Result<ObjectStat> {
        // Asked before the work, to spare it, and again after a failure: that its directory is gone is how an overtaken
        // sink fails. What counts is the answer under the lock below.
        self.check_owner()?;
        if let Err(error) = self.make_durable(&image) {
            self.check_owner()?;
            return Err(error);
        }
        let object = layout::object_name(&self.key);
        {
            let mut fence = Fence::lock(&self.place, &self.root, &self.key)?;
            self.require(fence.last()?)?;
            self.place.confirm(&self.root)?;
            tree::rename_to_new(&self.root, &self.name, &object).map_err(|errno| match errno {
                Errno::EXIST => exists(&self.place, &self.key),
                errno => self.place.error(&format!("publishing {object}"), errno),
            })?;
            if let Err(errno) = rustix::fs::fsync(&self.root) {
                // Not known to be durable, so not published: it gets its private name back and goes.
                let _ = rustix::fs::renameat(&self.root, &object, &self.root, &self.name);
                return Err(self.place.error(&format!("publishing {object}"), errno));
            }
            self.settled = true;
        }
        let allocated_size = allocated(&self.data).map_err(|e| self.place.error(&format!("measuring {object}"), e))?;
        Ok(ObjectStat { image, url: self.place.url_of(&self.key), allocated_size })
    }

    /// Removes the directory and says whether that worked.
    pub(super) fn remove(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.settled, true) {
            return Ok(());
        }
        // Gives the room back at once: blocks of a removed file stay taken while it is open. The removal tells of errors.
        let _ = rustix::fs::ftruncate(&*self.data, 0);
        tree::remove(&self.root, &self.name).map_err(|e| self.place.error(&format!("removing {}", self.name), e))
    }

    fn make_durable(&self, image: &StoredImage) -> Result<()> {
        let failed = |errno| self.place.error(&format!("making {} durable", self.name), errno);
        let fail = |errno| match errno {
            Errno::NOSPC | Errno::DQUOT => room::no_space(&self.place, &self.root, &self.label(), 1),
            errno => failed(errno),
        };
        rustix::fs::ftruncate(&*self.data, image.length).map_err(fail)?;
        rustix::fs::fsync(&*self.data).map_err(fail)?;
        tree::remove(&self.directory, layout::WRITER).map_err(fail)?;
        record::write(&self.directory, image).map_err(|e| fail(record::errno(&e)))?;
        rustix::fs::fsync(&self.directory).map_err(fail)
    }

    fn check_owner(&self) -> Result<()> {
        let last = Fence::lock(&self.place, &self.root, &self.key)?.last()?;
        self.require(last)
    }

    fn require(&self, last: Option<Last>) -> Result<()> {
        match last {
            Some(Last::Sink(owner)) if owner == self.token => Ok(()),
            last => {
                let latest = last.map_or(self.token.attempt, Last::attempt);
                Err(overtaken(&self.place, &self.key, self.token.attempt, latest))
            }
        }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tracing::warn!(%error, "an unfinished object stays behind until it is swept");
        }
    }
}

/// Bytes the file system really holds for `data`.
pub(super) fn allocated(data: &OwnedFd) -> std::result::Result<u64, Errno> {
    let blocks = rustix::fs::fstat(data)?.st_blocks;
    Ok(u64::try_from(blocks).unwrap_or_default().saturating_mul(STAT_BLOCK))
}

/// Removes every unfinished or half removed object of `key`, but for the one called `but`. The caller holds its lock.
pub(super) fn remove_leftovers(place: &Place, root: &OwnedFd, key: &ObjectKey, but: Option<&String>) -> Result<()> {
    for name in tree::names(root).map_err(|e| place.error("listing the folder", e))? {
        if but != Some(&name)
            && matches!(Entry::of(&name), Entry::Partial(found) | Entry::Removed(found) if found == *key)
        {
            tree::remove(root, &name).map_err(|e| place.error(&format!("removing the leftover {name}"), e))?;
        }
    }
    Ok(())
}

fn exists(place: &Place, key: &ObjectKey) -> Error {
    Error::new(
        Kind::AlreadyExists,
        format!("store {} already holds {key}; delete it before it is written anew", place.name()),
    )
}

pub(super) fn overtaken(place: &Place, key: &ObjectKey, attempt: u32, latest: u32) -> Error {
    let message = format!(
        "store {}: attempt {attempt} at {key} was overtaken by attempt {latest}, or {key} was deleted meanwhile",
        place.name()
    );
    Error::new(Kind::Conflict, message)
}
