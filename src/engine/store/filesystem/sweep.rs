//! Collects what killed writers and removers left behind, and fences of keys of which nothing is left.

use std::{collections::BTreeSet, os::fd::OwnedFd, time::Duration};

use rustix::{fs::FlockOperation, io::Errno};

use super::{
    age,
    fence::Fence,
    layout::{self, Entry},
    place::Place,
    tree,
};
use crate::{error::Result, model::ObjectKey};

/// Removes leftovers that were not changed for `older_than`; returns their names.
pub(super) fn sweep(place: &Place, older_than: Duration) -> Result<Vec<String>> {
    let root = place.enter()?;
    let names = tree::names(&root).map_err(|e| place.error("listing the folder", e))?;
    let mut removed = Vec::new();
    for name in names {
        let collected = match Entry::of(&name) {
            Entry::Partial(key) | Entry::Removed(key) => {
                let _fence = Fence::lock(place, &root, &key)?;
                !is_busy(&root, &name) && collect(place, &root, &name, older_than)?
            }
            Entry::Scratch => collect(place, &root, &name, older_than)?,
            Entry::Object(_) | Entry::Own | Entry::Foreign => false,
        };
        if collected {
            removed.push(name);
        }
    }
    sweep_fences(place, &root, older_than)?;
    Ok(removed)
}

fn collect(place: &Place, root: &OwnedFd, name: &str, older_than: Duration) -> Result<bool> {
    let failed = |errno| place.error(&format!("sweeping {name}"), errno);
    if age(root, name).map_err(failed)?.is_none_or(|age| age < older_than.as_secs()) {
        return Ok(false);
    }
    tree::remove(root, name).map_err(failed)?;
    Ok(true)
}

/// Whether a living process writes the object: it holds a lock on the data, however long ago it last wrote.
fn is_busy(root: &OwnedFd, name: &str) -> bool {
    let data = tree::open_directory(root, name).and_then(|d| tree::open_file(&d, layout::DATA));
    data.is_ok_and(|data| {
        matches!(rustix::fs::flock(&data, FlockOperation::NonBlockingLockExclusive), Err(Errno::WOULDBLOCK))
    })
}

/// A fence outlives its object, so that a writer from before a deletion cannot come back; after the grace period nobody can.
fn sweep_fences(place: &Place, root: &OwnedFd, older_than: Duration) -> Result<()> {
    let failed = |errno| place.error("listing the fences", errno);
    let fences = match tree::open_directory(root, layout::FENCES) {
        Err(Errno::NOENT) => return Ok(()),
        other => other.map_err(failed)?,
    };
    let known = known_keys(place, root)?;
    for name in tree::names(&fences).map_err(failed)? {
        let Entry::Object(key) = Entry::of(&name) else { continue };
        let old = age(&fences, &name).map_err(failed)?.is_some_and(|age| age >= older_than.as_secs());
        if old && !known.contains(&key) {
            let fence = Fence::lock(place, root, &key)?;
            // Looked at again under the lock, where nobody can begin.
            if !known_keys(place, root)?.contains(&key) {
                fence.remove()?;
            }
        }
    }
    Ok(())
}

/// The keys of which anything is there.
fn known_keys(place: &Place, root: &OwnedFd) -> Result<BTreeSet<ObjectKey>> {
    let names = tree::names(root).map_err(|e| place.error("listing the folder", e))?;
    Ok(names.iter().filter_map(|name| Entry::of(name).key().cloned()).collect())
}
