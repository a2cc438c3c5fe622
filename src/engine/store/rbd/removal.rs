//! Deleting, and removing images that nobody needs any more.
//!
//! An image that somebody has open is never taken apart: what is gone from under a reader reads as zeros. It gives up its public name,
//! and sweeping removes it when its last reader is gone. Readers open first and look at the index then, deleting writes the index first
//! and looks for readers then, so neither misses the other.

use std::{sync::Arc, time::Duration};

use super::{
    super::{overtaken, token::Token},
    clones,
    ffi::{Errno, Image},
    index::{self, Entry, State},
    layout::{self, SNAPSHOT},
    place::Place,
    record,
    step::Step,
};
use crate::{
    error::{Error, Kind, Result},
    model::ObjectKey,
};

/// How long a writer may take to let go of an image: until its writes under way have ended. One that was killed never answers.
pub(super) const LETTING_GO: Duration = Duration::from_secs(5);

/// Removes what `attempt` or an earlier one published or wrote.
pub(super) fn delete(place: &Arc<Place>, key: &ObjectKey, attempt: u32) -> Result<()> {
    let found = loop {
        let found = index::get(place, key)?;
        if let Some(latest) = found.as_ref().map(|entry| entry.attempt).filter(|latest| *latest > attempt) {
            return Err(overtaken(place.name(), key, attempt, latest));
        }
        if let Some(image) =
            found.as_ref().filter(|entry| entry.state == State::Published).and_then(|e| e.image.as_ref())
        {
            clones::release(place, key, image)?;
            place.steps.done(Step::Unprotected);
        }
        let gone = match &found {
            Some(entry) => entry.next(State::Deleted, attempt),
            None => Entry::new(State::Deleted, attempt, None, None),
        };
        if index::swap(place, key, found.as_ref(), Some(&gone))? {
            break found;
        }
    };
    place.steps.done(Step::Deleted);
    found.map_or(Ok(()), |entry| clear(place, key, &entry))
}

/// Removes what an entry speaks of that is published no more: its writer is told to let go, its image and its record are removed.
pub(super) fn clear(place: &Arc<Place>, key: &ObjectKey, entry: &Entry) -> Result<()> {
    let Some(token) = entry.token else { return Ok(()) };
    if entry.state == State::Writing {
        // One that does not answer is fenced off all the same; its image is swept when Ceph knows that it is dead.
        if let Err(Errno::TIMEDOUT) = place.pool().notify(&layout::record(key, token, 0), LETTING_GO) {
            tracing::info!(store = place.name(), %key, %token, "its last writer does not answer");
        }
    }
    match &entry.image {
        Some(image) => discard(place, key, token, image).map(drop),
        None => record::remove(place, key, token),
    }
}

/// Removes an image that is not published, with its record. False if somebody has it open: then it stays, without the public name.
pub(super) fn discard(place: &Arc<Place>, key: &ObjectKey, token: Token, id: &str) -> Result<bool> {
    let failed = |errno| place.error(format!("removing image {id} of {key}"), errno);
    let look = match Image::look(place.pool(), id, None) {
        Ok(look) => look,
        Err(Errno::NOENT) => return record::remove(place, key, token).map(|()| true),
        Err(errno) => return Err(failed(errno)),
    };
    let name = look.name().map_err(failed)?;
    let users = look.users().map_err(failed)?;
    look.close().map_err(failed)?;
    if users > 0 {
        return move_aside(place, key, token, &name).map(|()| false);
    }
    // The image last: as long as it is there, what else is left is found by its name.
    record::remove(place, key, token)?;
    // Of the writer who made it, if another one went on with it.
    if let layout::Entry::Partial(_, first) = layout::Entry::of(&name)
        && first != token
    {
        record::remove(place, key, first)?;
    }
    place.steps.done(Step::Forgotten);
    remove_image(place, key, id, &name)
}

/// Frees the public name of an image that somebody still reads.
fn move_aside(place: &Place, key: &ObjectKey, token: Token, name: &str) -> Result<()> {
    if name != layout::object(key) {
        return Ok(());
    }
    match place.pool().rename_image(name, &layout::removed(key, token)) {
        // A name takes room. Where there is none, nobody needs this one either.
        Ok(()) | Err(Errno::NOENT | Errno::EXIST | Errno::NOSPC | Errno::DQUOT) => {}
        Err(errno) => return Err(place.error(format!("renaming image {name}, which is deleted and still read"), errno)),
    }
    place.steps.done(Step::MovedAside);
    Ok(())
}

fn remove_image(place: &Arc<Place>, key: &ObjectKey, id: &str, name: &str) -> Result<bool> {
    let failed = |errno| place.error(format!("removing image {name}"), errno);
    let image = match Image::open(place.pool(), id, None) {
        Ok(image) => image,
        Err(Errno::NOENT) => return Ok(true),
        Err(errno) => return Err(failed(errno)),
    };
    match image.unprotect(SNAPSHOT) {
        // No such snapshot, or not protected.
        Ok(()) | Err(Errno::NOENT | Errno::INVAL) => {}
        Err(Errno::BUSY) => return Err(clones::in_use(place, key, &clones::of(place, id)?)),
        Err(errno) => return Err(failed(errno)),
    }
    match image.remove_snapshot(SNAPSHOT) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(failed(errno)),
    }
    image.close().map_err(failed)?;
    place.steps.done(Step::Bare);
    match place.pool().remove_image(name) {
        Ok(()) => Ok(true),
        // Somebody else removed it; or the library found no room for its own notes, which it tells like this.
        Err(Errno::NOENT) => match Image::look(place.pool(), id, None) {
            Err(Errno::NOENT) => Ok(true),
            Err(errno) => Err(failed(errno)),
            Ok(_) => Err(failed(Errno::NOSPC)),
        },
        Err(Errno::BUSY) => Ok(false),
        Err(Errno::NOTEMPTY) => {
            let message = format!(
                "store {}, pool {}: image {name} has snapshots or clones that Vitrine did not make (`rbd snap ls --all`, `rbd children \
                 --all`): remove them; deleting it again finishes then",
                place.name(),
                place.spec()
            );
            Err(Error::new(Kind::InUse, message))
        }
        Err(errno) => Err(failed(errno)),
    }
}
