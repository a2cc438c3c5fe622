//! What a pool holds, and collecting what killed writers and removers left in it.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use super::{
    super::ObjectEntry,
    super::token::Token,
    ffi::{Errno, Image},
    index::{self, Entry, State},
    layout,
    place::Place,
    published, record, removal,
};
use crate::{error::Result, model::ObjectKey};

/// An image and what its name says.
struct Found {
    id: String,
    name: String,
    kind: layout::Entry,
}

type Index = HashMap<ObjectKey, Entry>;

/// Everything there is: images first and the index then, so that what is published in between shows as published.
fn look(place: &Place) -> Result<(Vec<Found>, Index)> {
    let images = place.pool().images().map_err(|errno| place.error("listing images", errno))?;
    let found = |(id, name): (String, String)| Found { id, kind: layout::Entry::of(&name), name };
    Ok((images.into_iter().map(found).collect(), index::all(place)?.into_iter().collect()))
}

/// Seconds since an image was last changed, by its header; `None` if it is gone.
fn age(place: &Place, id: &str) -> Result<Option<u64>> {
    match place.pool().changed(&format!("rbd_header.{id}")) {
        Ok(changed) => Ok(Some(index::now().saturating_sub(changed))),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(place.error(format!("looking at image {id}"), errno)),
    }
}

/// All images in the pool, also those that Vitrine did not make.
pub(super) fn list(place: &Arc<Place>) -> Result<Vec<ObjectEntry>> {
    let (images, index) = look(place)?;
    let mut entries = Vec::new();
    for Found { id, name, kind } in images {
        let Some(age_seconds) = age(place, &id)? else { continue };
        let key = kind.key().cloned();
        let published = key.as_ref().and_then(|key| index.get(key)).is_some_and(|entry| entry.publishes(&id));
        entries.push(ObjectEntry { key, name, published, age_seconds });
    }
    Ok(entries)
}

/// Removes leftovers that were not changed for `older_than`; returns their names. One that cannot be removed does not keep the others;
/// the error is told at the end.
pub(super) fn sweep(place: &Arc<Place>, older_than: Duration) -> Result<Vec<String>> {
    let (images, index) = look(place)?;
    let (mut removed, mut failures, mut left) = (Vec::new(), Vec::new(), HashSet::new());
    for found in images {
        let Some(key) = found.kind.key().cloned() else { continue };
        match sweep_image(place, &found, &key, index.get(&key), older_than) {
            Ok(true) => removed.push(found.name),
            Ok(false) => drop(left.insert(key)),
            Err(error) => {
                left.insert(key);
                failures.push(error);
            }
        }
    }
    let needless = index.iter().filter(|(key, entry)| {
        entry.state != State::Published && entry.age() >= older_than.as_secs() && !left.contains(*key)
    });
    failures.extend(needless.filter_map(|(key, entry)| forget(place, key, entry).err()));
    let count = failures.len();
    match failures.into_iter().next() {
        None => Ok(removed),
        Some(first) => Err(first.context(format!("{count} leftovers could not be removed, the first"))),
    }
}

/// Whether the image was removed.
fn sweep_image(
    place: &Arc<Place>,
    found: &Found,
    key: &ObjectKey,
    entry: Option<&Entry>,
    older_than: Duration,
) -> Result<bool> {
    if entry.is_some_and(|entry| entry.publishes(&found.id)) {
        return finish_name(place, found, key).map(|()| false);
    }
    let token = match &found.kind {
        layout::Entry::Partial(_, token) | layout::Entry::Removed(_, token) => *token,
        // With a public name only what the index knows to be deleted is ours for certain.
        _ => match entry.filter(|entry| entry.image.as_deref() == Some(&found.id)).and_then(|entry| entry.token) {
            Some(token) => token,
            None => return Ok(false),
        },
    };
    match age(place, &found.id)? {
        None => return finish_removal(place, found),
        Some(age) if age < older_than.as_secs() || is_used(place, found)? => return Ok(false),
        Some(_) => {}
    }
    // Its name says who made it; who writes it may be another one, who went on with it.
    let writes = |entry: &&Entry| entry.token == Some(token) || entry.image.as_deref() == Some(&found.id);
    if let Some(entry) = entry.filter(|entry| entry.state == State::Writing).filter(writes) {
        // Its writer may be cut off from the cluster and come back: first it is fenced off.
        let nobody = Token { nonce: rand::random(), ..token };
        let fenced = Entry::new(State::Writing, entry.attempt, Some(nobody), None);
        if !index::swap(place, key, Some(entry), Some(&fenced))? {
            return Ok(false);
        }
        entry.token.map_or(Ok(()), |token| record::remove(place, key, token))?;
    }
    removal::discard(place, key, token, &found.id)
}

/// Removes what is left of an image without a header: its removal stopped just before the end.
fn finish_removal(place: &Place, found: &Found) -> Result<bool> {
    match place.pool().remove_image(&found.name) {
        Ok(()) => Ok(true),
        // Somebody else has done it, or is at it.
        Err(Errno::NOENT | Errno::BUSY) => Ok(false),
        Err(errno) => Err(place.error(format!("removing image {}", found.name), errno)),
    }
}

/// Gives a published image its public name, if its publisher died before it did.
fn finish_name(place: &Arc<Place>, found: &Found, key: &ObjectKey) -> Result<()> {
    if found.name == layout::object(key) {
        return Ok(());
    }
    let failed = |errno| place.error(format!("opening image {}", found.name), errno);
    let image = match Image::look(place.pool(), &found.id, None) {
        Ok(image) => image,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(failed(errno)),
    };
    published::name(place, key, &image)?;
    image.close().map_err(failed)
}

fn is_used(place: &Arc<Place>, found: &Found) -> Result<bool> {
    let failed = |errno| place.error(format!("looking who uses image {}", found.name), errno);
    let image = match Image::look(place.pool(), &found.id, None) {
        Ok(image) => image,
        Err(Errno::NOENT) => return Ok(true),
        Err(errno) => return Err(failed(errno)),
    };
    let users = image.users().map_err(failed)?;
    image.close().map_err(failed)?;
    Ok(users > 0)
}

/// Removes the entry of a key of which there is no image, with its record. An entry outlives its object, so that a writer from before a
/// deletion cannot come back; after the grace period nobody can.
fn forget(place: &Arc<Place>, key: &ObjectKey, entry: &Entry) -> Result<()> {
    if index::swap(place, key, Some(entry), None)? {
        entry.token.map_or(Ok(()), |token| record::remove(place, key, token))
    } else {
        Ok(())
    }
}
