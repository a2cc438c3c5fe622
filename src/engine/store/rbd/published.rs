//! Finding and opening what is published, and finishing what a publisher that died has left to do.

use std::sync::Arc;

use super::{
    super::ObjectStat,
    ffi::{Errno, Image},
    index::{self, Entry, State},
    layout::{self, SNAPSHOT},
    place::Place,
    record,
};
use crate::{
    error::{Error, Kind, Result},
    model::{ObjectKey, StoredImage},
};

/// How an image is opened.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// So that others see it: it is not taken apart.
    Shown,
    /// For a moment.
    Hidden,
}

/// The entry of what is published under `key`.
pub(super) fn find(place: &Place, key: &ObjectKey) -> Result<Entry> {
    let entry = index::get(place, key)?.filter(|entry| entry.state == State::Published);
    entry.ok_or_else(|| {
        let message =
            format!("store {} (pool {}) holds no {key}; import it, or remove the location", place.name(), place.spec());
        Error::new(Kind::NotFound, message)
    })
}

/// Opens the snapshot of what is published under `key`. If it is deleted meanwhile, what is published then is opened, if anything.
pub(super) fn open(place: &Arc<Place>, key: &ObjectKey, how: Use) -> Result<(Entry, Image)> {
    let failed = |errno| place.error(format!("opening image {key}@{SNAPSHOT}"), errno);
    loop {
        let entry = find(place, key)?;
        let id = entry.image.as_deref().unwrap_or_default();
        let opened = match how {
            Use::Shown => Image::open(place.pool(), id, Some(SNAPSHOT)),
            Use::Hidden => Image::look(place.pool(), id, Some(SNAPSHOT)),
        };
        let opened = match opened {
            Ok(image) => {
                name(place, key, &image)?;
                Some(image)
            }
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(failed(errno)),
        };
        let still = index::get(place, key)?.as_ref() == Some(&entry);
        match opened {
            Some(image) if still => return Ok((entry, image)),
            Some(image) => image.close().map_err(failed)?,
            None if still => return Err(lost(place, key)),
            None => {}
        }
    }
}

/// Gives a published image its public name, if it does not have it: whoever published it may have died before.
pub(super) fn name(place: &Place, key: &ObjectKey, image: &Image) -> Result<()> {
    let public = layout::object(key);
    let failed = |errno| place.error(format!("naming image {public}"), errno);
    let name = image.name().map_err(failed)?;
    if name == public {
        return Ok(());
    }
    match place.pool().rename_image(&name, &public) {
        // Somebody else has just done it, or will, who may.
        Ok(()) | Err(Errno::NOENT | Errno::PERM | Errno::ACCES) => Ok(()),
        Err(Errno::EXIST) => Err(in_the_way(place, key)),
        Err(errno) => Err(failed(errno)),
    }
}

/// What is known of `key`.
pub(super) fn stat(place: &Arc<Place>, key: &ObjectKey) -> Result<ObjectStat> {
    loop {
        let (entry, image) = open(place, key, Use::Hidden)?;
        let found = describe(place, key, &entry, &image);
        image.close().map_err(|errno| place.error(format!("closing image {key}"), errno))?;
        match found {
            // What was looked at may have been deleted under our eyes.
            Err(_) if index::get(place, key)?.as_ref() != Some(&entry) => {}
            found => return found,
        }
    }
}

fn describe(place: &Place, key: &ObjectKey, entry: &Entry, image: &Image) -> Result<ObjectStat> {
    let facts = facts(place, key, entry)?;
    let allocated_size = allocated(place, key, image)?;
    Ok(ObjectStat { image: facts, url: place.url_of(&layout::object(key)), allocated_size })
}

/// What was recorded when it was published.
pub(super) fn facts(place: &Place, key: &ObjectKey, entry: &Entry) -> Result<StoredImage> {
    entry.token.map_or_else(|| Err(lost(place, key)), |token| record::read(place, key, token))
}

/// Bytes of the objects that the image has, as `rbd diff` counts them.
fn allocated(place: &Place, key: &ObjectKey, image: &Image) -> Result<u64> {
    let failed = |errno| place.error(format!("looking for data in image {key}"), errno);
    let length = image.length().map_err(failed)?;
    let data = if length == 0 { Vec::new() } else { image.data(0, length, true).map_err(failed)? };
    Ok(data.iter().map(|(start, end)| end.saturating_sub(*start)).fold(0, u64::saturating_add))
}

/// The error for an image in the way of one that is to be called `key`.
pub(super) fn in_the_way(place: &Place, key: &ObjectKey) -> Error {
    let message = format!(
        "store {}, pool {}: there is an image {key} that Vitrine does not know, where an object of that name is to be: look at it \
         with `rbd info`, and rename or remove it",
        place.name(),
        place.spec()
    );
    Error::new(Kind::AlreadyExists, message)
}

/// The error for an object that was deleted while it was read by somebody whom nobody could see.
pub(super) fn replaced(place: &Place, key: &ObjectKey) -> Error {
    let message =
        format!("store {}, pool {}: {key} was deleted and written anew while it was read", place.name(), place.spec());
    Error::new(Kind::NotFound, message)
}

/// The error for a published object of which the image or its snapshot is gone.
fn lost(place: &Place, key: &ObjectKey) -> Error {
    let message = format!(
        "store {}, pool {}: image {key}@{SNAPSHOT} was removed by somebody else; delete the object and import it again",
        place.name(),
        place.spec()
    );
    Error::new(Kind::NotFound, message)
}
