//! Deleting, and removing what nobody needs any more.
//!
//! Who reads gives signs of life first and looks at the entry then; deleting writes the entry first and looks for readers then. So
//! neither misses the other, and nothing is removed from under a reader: what is still read is left to sweeping.

use super::{
    super::{overtaken, token::Token},
    index::{self, Entry, Found, State},
    lease,
    place::{Place, Put},
    step::Step,
    uploads::{self, Upload},
};
use crate::{
    error::{Error, Kind, Result},
    model::ObjectKey,
};

/// For how long an entry that is about to be removed is left alone, in seconds: longer than removing it may take (4 minutes, the
/// deadline of a piece of work) with clocks that differ as much as servers allow (15 minutes).
pub(super) const CLOSING: u64 = 20 * 60;

/// Removes what `attempt` or an earlier one published or wrote.
pub(super) async fn delete(place: &Place, key: &ObjectKey, attempt: u32) -> Result<()> {
    let before = close(place, key, attempt).await?;
    place.steps.done(Step::Deleted);
    if let Some(token) = before.and_then(|before| before.entry.token) {
        clear(place, key, token).await?;
        place.steps.done(Step::Removed);
    }
    Ok(())
}

/// Has the entry say that it is deleted; returns what it said before.
async fn close(place: &Place, key: &ObjectKey, attempt: u32) -> Result<Option<Found>> {
    loop {
        let found = index::get(place, key).await?;
        if let Some(latest) = found.as_ref().map(|found| found.entry.attempt).filter(|latest| *latest > attempt) {
            return Err(overtaken(place.name(), key, attempt, latest));
        }
        if let Some(entry) = found.as_ref().map(|found| &found.entry) {
            match entry.state {
                State::Deleted if entry.attempt == attempt => return Ok(found),
                State::Closing => check_closing(place, key, entry)?,
                _ => {}
            }
        }
        let token = found.as_ref().and_then(|found| found.entry.token);
        let gone = Entry::new(State::Deleted, attempt, token);
        match index::swap(place, key, found.as_ref(), &gone).await {
            Ok(true) => return Ok(found),
            Ok(false) => {}
            // Where there is no room for an entry there is some once its data is gone.
            Err(Put::Refused(error)) if error.kind() == Kind::NoSpace => make_room(place, key, token, error).await?,
            Err(put) => return Err(put.into_error(place, &format!("deleting {key}"))),
        }
    }
}

async fn make_room(place: &Place, key: &ObjectKey, token: Option<Token>, error: Error) -> Result<()> {
    let Some(token) = token else { return Err(error) };
    let folder = place.layout().folder(key, token);
    if place.list(&folder, &format!("listing {folder}")).await?.is_empty() {
        return Err(error);
    }
    remove_folder(place, key, token).await
}

/// Removes what a sink wrote that is published no more. False if somebody reads it.
pub(super) async fn clear(place: &Place, key: &ObjectKey, token: Token) -> Result<bool> {
    let folder = place.layout().folder(key, token);
    let uploads = uploads::list(place, &folder).await?;
    if is_read(place, key, token, uploads.now).await? {
        return Ok(false);
    }
    empty_folder(place, key, token, &uploads.uploads).await?;
    Ok(true)
}

/// Whether somebody reads what a sink wrote.
pub(super) async fn is_read(place: &Place, key: &ObjectKey, token: Token, now: u64) -> Result<bool> {
    let readers = place.layout().readers(key, token);
    let readers = place.list(&readers, &format!("looking who reads {key}")).await?;
    Ok(readers.iter().any(|reader| lease::counts(place, reader, now)))
}

/// Removes what a sink wrote, whoever reads it.
pub(super) async fn remove_folder(place: &Place, key: &ObjectKey, token: Token) -> Result<()> {
    let uploads = uploads::list(place, &place.layout().folder(key, token)).await?;
    empty_folder(place, key, token, &uploads.uploads).await
}

/// Removes the objects of a sink, and ends its uploads.
pub(super) async fn empty_folder(place: &Place, key: &ObjectKey, token: Token, uploads: &[Upload]) -> Result<()> {
    let folder = place.layout().folder(key, token);
    for upload in uploads {
        uploads::abort(place, upload).await?;
    }
    let doing = format!("removing {folder} of {key}");
    let objects = place.list(&folder, &doing).await?;
    place.remove(objects.into_iter().map(|meta| meta.location).collect(), &doing).await
}

/// Whether an entry that is about to be removed has been so for too long for anybody to be at it.
pub(super) fn check_closing(place: &Place, key: &ObjectKey, entry: &Entry) -> Result<()> {
    if index::now().saturating_sub(entry.since) > CLOSING {
        return Ok(());
    }
    let message = format!(
        "store {}, bucket {}: the entry of {key} is being removed; try again in {} minutes at most",
        place.name(),
        place.bucket(),
        CLOSING / 60
    );
    Err(Error::new(Kind::Unavailable, message))
}
