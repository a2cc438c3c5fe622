//! Collects what killed writers and removers left behind, and fences of keys of which nothing is left.

use std::{collections::BTreeSet, os::fd::OwnedFd, time::Duration};

use rustix::{fs::FlockOperation, io::Errno};

use super::{
    age,
    fence::Fence,
    layout::{self, Entry},
    owner,
    place::Place,
    tree,
};
use crate::{
    error::{Error, Result},
    model::ObjectKey,
};

/// Removes leftovers that were not changed for `older_than`, but for those of the keys in `spared`; returns their names. One that cannot
/// be removed does not keep the others; the error is told at the end.
pub(super) fn sweep(place: &Place, older_than: Duration, spared: &BTreeSet<ObjectKey>) -> Result<Vec<String>> {
    let root = place.enter()?;
    owner::check(place, &root)?;
    let names = tree::names(&root).map_err(|e| place.error("listing the folder", e))?;
    let (mut removed, mut failures) = (Vec::new(), Vec::new());
    let is_spared = |name: &str| matches!(Entry::of(name), Entry::Partial(key) if spared.contains(&key));
    for name in names.into_iter().filter(|name| !is_spared(name)) {
        match sweep_entry(place, &root, &name, older_than) {
            Ok(true) => removed.push(name),
            Ok(false) => {}
            Err(error) => failures.push(error),
        }
    }
    failures.extend(sweep_fences(place, &root, older_than)?);
    let count = failures.len();
    match failures.into_iter().next() {
        None => Ok(removed),
        Some(first) => Err(first.context(format!("{count} leftovers could not be removed, the first"))),
    }
}

fn sweep_entry(place: &Place, root: &OwnedFd, name: &str, older_than: Duration) -> Result<bool> {
    match Entry::of(name) {
        Entry::Partial(key) | Entry::Removed(key) => {
            let _fence = Fence::lock(place, root, &key)?;
            if is_busy(root, name) { Ok(false) } else { collect(place, root, name, older_than) }
        }
        Entry::Scratch => collect(place, root, name, older_than),
        Entry::Object(_) | Entry::Own | Entry::Foreign => Ok(false),
    }
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
/// Returns what went wrong with single ones.
fn sweep_fences(place: &Place, root: &OwnedFd, older_than: Duration) -> Result<Vec<Error>> {
    let failed = |errno| place.error("listing the fences", errno);
    let fences = match tree::open_directory(root, layout::FENCES) {
        Err(Errno::NOENT) => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    // Before the keys: whoever begins later makes the fence longer, and that shows under the lock.
    let mut old = Vec::new();
    for name in tree::names(&fences).map_err(failed)? {
        let Some(stat) = tree::look_up(&fences, &name).map_err(failed)? else { continue };
        if let Entry::Object(key) = Entry::of(&name)
            && tree::age_seconds(&stat) >= older_than.as_secs()
        {
            old.push((key, stat.st_size));
        }
    }
    let known = known_keys(place, root)?;
    let needless = old.into_iter().filter(|(key, _)| !known.contains(key));
    Ok(needless.filter_map(|(key, length)| remove_fence(place, root, &key, length).err()).collect())
}

fn remove_fence(place: &Place, root: &OwnedFd, key: &ObjectKey, length: i64) -> Result<()> {
    let fence = Fence::lock(place, root, key)?;
    if fence.length()? == length { fence.remove() } else { Ok(()) }
}

/// The keys of which anything is there.
fn known_keys(place: &Place, root: &OwnedFd) -> Result<BTreeSet<ObjectKey>> {
    let names = tree::names(root).map_err(|e| place.error("listing the folder", e))?;
    Ok(names.iter().filter_map(|name| Entry::of(name).key().cloned()).collect())
}
