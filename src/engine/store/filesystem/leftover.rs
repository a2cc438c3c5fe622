//! What a writer that was killed left in the folder, for the next attempt at the same object.
//!
//! A writer holds a lock on its data (flock) as long as it lives, so whoever gets it knows that nothing is written there any more. That is
//! certain among the processes of one start of one machine, and where the file system is no network's: then another start's processes are
//! gone, or have lost the disk. On a network file system a lock may be lost, or reach no further than the machine, while its holder
//! lives; what another machine left there is not gone on with.

use std::{
    io::{Read as _, Write as _},
    os::fd::OwnedFd,
    sync::Arc,
};

use async_trait::async_trait;
use bytes::Bytes;
use rustix::{
    fs::{Advice, FallocateFlags, FlockOperation},
    io::Errno,
};

use super::{
    super::Leftover,
    blocking,
    layout::{self, Entry},
    place::Place,
    reader::find_data,
    tree,
};
use crate::{
    error::{Error, Kind, Result},
    model::ObjectKey,
};

/// Drawn by the kernel when it starts.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Longer than any of them, in bytes.
const MAX_ID: u64 = 64;
/// File systems that one machine has for itself, by their numbers (statfs(2), linux/magic.h): ext2 to ext4, XFS, Btrfs, F2FS, bcachefs, ZFS,
/// tmpfs and overlayfs.
const OWN: [u64; 8] =
    [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, 0xca45_1a4e, 0x2fc1_2fc1, 0x0102_1994, 0x794c_7630];

/// Notes in the directory of a new object who writes it. Without the note, others begin again.
pub(super) fn sign(directory: &OwnedFd) {
    let Some(id) = boot_id() else { return };
    let written = tree::create_file(directory, layout::WRITER).map(std::fs::File::from);
    let written = written.map_err(std::io::Error::from).and_then(|mut file| file.write_all(id.as_bytes()));
    if let Err(error) = written {
        tracing::debug!(%error, "who writes an object was not noted");
    }
}

fn boot_id() -> Option<String> {
    let id = std::fs::read_to_string(BOOT_ID).ok()?;
    Some(id.trim().to_owned()).filter(|id| !id.is_empty())
}

/// Takes what a dead writer left of `key`, which is to be called `name`: its directory and its data, locked. The caller holds the key's lock,
/// and the fence has passed on. Whatever stands in the way, nothing is taken.
pub(super) fn adopt(place: &Place, root: &OwnedFd, key: &ObjectKey, name: &str) -> Option<(OwnedFd, OwnedFd)> {
    let names = tree::names(root).ok()?;
    let leftovers = names.into_iter().filter(|name| matches!(Entry::of(name), Entry::Partial(found) if found == *key));
    let held = leftovers.filter_map(|old| Some((open(root, &old)?, old)));
    // There is one, as a rule: whoever begins removes the others.
    let ((directory, data, _), old) = held.max_by_key(|((_, _, size), _)| *size)?;
    match rename(root, &old, name, &directory, &data) {
        Ok(()) => Some((directory, data)),
        Err(errno) => {
            let error = place.error(&format!("taking over {old}"), errno);
            tracing::info!(%error, "what a killed writer left is not used");
            None
        }
    }
}

/// The directory, the data and how much of that there is, if its writer is surely dead.
fn open(root: &OwnedFd, name: &str) -> Option<(OwnedFd, OwnedFd, u64)> {
    let directory = tree::open_directory(root, name).ok()?;
    let data = tree::open_to_write(&directory, layout::DATA).ok()?;
    rustix::fs::flock(&data, FlockOperation::NonBlockingLockExclusive).ok()?;
    let size = super::partial::allocated(&data).ok().filter(|size| *size > 0)?;
    (is_of_this_start(&directory) || is_own(&data)).then_some((directory, data, size))
}

fn is_of_this_start(directory: &OwnedFd) -> bool {
    let read = || {
        let mut text = String::new();
        let file = std::fs::File::from(tree::open_file(directory, layout::WRITER).ok()?);
        file.take(MAX_ID).read_to_string(&mut text).ok()?;
        Some(text)
    };
    read().is_some_and(|text| boot_id().is_some_and(|id| text == id))
}

fn is_own(data: &OwnedFd) -> bool {
    // The number's type differs between machines; all of ours fit the smallest.
    rustix::fs::fstatfs(data).is_ok_and(|stat| u64::try_from(stat.f_type).is_ok_and(|number| OWN.contains(&number)))
}

/// Gives it the name of its new owner, and that owner's note.
fn rename(root: &OwnedFd, old: &str, new: &str, directory: &OwnedFd, data: &OwnedFd) -> std::result::Result<(), Errno> {
    // What the disk refused is told now, to whoever opened the file last, and never again. What is read then must come from the disk.
    rustix::fs::fsync(data)?;
    let _ = rustix::fs::fadvise(data, 0, None, Advice::DontNeed);
    tree::remove(directory, layout::WRITER)?;
    for name in [layout::RECORD, layout::MANIFEST] {
        tree::remove(directory, name)?;
    }
    tree::rename_to_new(root, old, new)?;
    sign(directory);
    Ok(())
}

/// The data of a dead writer.
pub(super) struct FilesystemLeftover {
    place: Arc<Place>,
    key: ObjectKey,
    data: Arc<OwnedFd>,
}

impl FilesystemLeftover {
    /// What is in `data`.
    pub(super) fn of(place: &Arc<Place>, key: &ObjectKey, data: &Arc<OwnedFd>) -> Self {
        Self { place: Arc::clone(place), key: key.clone(), data: Arc::clone(data) }
    }

    async fn ask<T: Send + 'static>(
        &self,
        doing: &str,
        work: impl FnOnce(&OwnedFd) -> std::result::Result<T, Errno> + Send + 'static,
    ) -> Result<T> {
        let data = Arc::clone(&self.data);
        let done = blocking(move || Ok(work(&data))).await?;
        done.map_err(|errno| match errno {
            Errno::OPNOTSUPP | Errno::NOSYS => {
                let message = format!("store {}: its file system cannot make holes", self.place.name());
                Error::new(Kind::InvalidInput, message)
            }
            errno => self.place.error(&format!("{doing} what is left of {}", self.key), errno),
        })
    }
}

#[async_trait]
impl Leftover for FilesystemLeftover {
    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes> {
        let read = move |data: &OwnedFd| {
            let mut buffer = vec![0; length];
            let count = loop {
                match rustix::io::pread(data, buffer.as_mut_slice(), offset) {
                    Err(Errno::INTR) => {}
                    done => break done?,
                }
            };
            buffer.truncate(count);
            Ok(Bytes::from(buffer))
        };
        self.ask("reading", read).await
    }

    async fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>> {
        self.ask("looking for data in", move |data| find_data(data, offset)).await
    }

    async fn clear(&self, start: u64, end: u64) -> Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let length = end.saturating_sub(start);
        self.ask("clearing", move |data| rustix::fs::fallocate(data, flags, start, length)).await
    }
}
