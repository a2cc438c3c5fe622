//! An object being written, from its first sign of life to its publication or its end.
//!
//! Beginning: a sign of life is given in the sink's own folder, and then the key's entry is made to name the sink. Publishing: when all
//! pieces and the record are there, one conditional write of the entry publishes them.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::{
    super::ObjectStat,
    super::{deleted, overtaken, token::Token},
    index::{self, Entry, Found, State},
    lease::{self, Lease},
    place::{Place, Put},
    record::{self, Record},
    removal,
    step::Step,
};
use crate::{
    error::{Error, Kind, Result},
    model::ObjectKey,
};

/// What a sink and its uploads see of the object.
pub(super) struct Writing {
    place: Arc<Place>,
    key: ObjectKey,
    token: Token,
    /// The entry while this sink may publish.
    entry: OnceLock<Found>,
    lease: Mutex<Option<Lease>>,
    /// The first error, which ended the writing.
    failure: Mutex<Option<(Kind, String)>>,
}

impl Writing {
    /// Begins.
    pub(super) async fn begin(place: &Arc<Place>, key: &ObjectKey, attempt: u32) -> Result<Arc<Self>> {
        place.trial().pass(place).await?;
        // Before anything is made: the usual refusals cost one look.
        check_fence(place, key, attempt, index::get(place, key).await?.as_ref())?;
        let token = Token { attempt, nonce: rand::random() };
        lease::give(place, &place.layout().lease(key, token)).await?;
        place.steps.done(Step::Made);
        let writing = Arc::new(Self {
            place: Arc::clone(place),
            key: key.clone(),
            token,
            entry: OnceLock::new(),
            lease: Mutex::default(),
            failure: Mutex::default(),
        });
        match writing.move_fence().await {
            Ok(before) => {
                place.steps.done(Step::Begun);
                writing.take_over(before).await;
                writing.keep_alive();
                Ok(writing)
            }
            Err(error) => {
                writing.discard().await;
                Err(error)
            }
        }
    }

    /// Makes this sink the one that may publish; returns what was known before.
    async fn move_fence(&self) -> Result<Option<Found>> {
        let (place, key, attempt) = (&self.place, &self.key, self.token.attempt);
        loop {
            let before = index::get(place, key).await?;
            check_fence(place, key, attempt, before.as_ref())?;
            let entry = Entry::new(State::Writing, attempt, Some(self.token));
            let swapped = index::swap(place, key, before.as_ref(), &entry).await;
            if !swapped.map_err(|put| put.into_error(place, &format!("beginning to write {key}")))? {
                continue;
            }
            return match index::get(place, key).await? {
                Some(found) if found.entry == entry => {
                    let _ = self.entry.set(found);
                    Ok(before)
                }
                now => Err(self.overtaken(now.as_ref())),
            };
        }
    }

    /// Removes what the one before had. It bears names of its own, so what cannot be removed is swept later.
    async fn take_over(&self, before: Option<Found>) {
        let Some(token) = before.and_then(|before| before.entry.token) else { return };
        if let Err(error) = removal::clear(&self.place, &self.key, token).await {
            tracing::info!(store = self.place.name(), key = %self.key, %error, "leftovers stay for now");
        }
    }

    /// Gives signs of life, and looks now and then whether another one has taken over.
    fn keep_alive(self: &Arc<Self>) {
        let (path, weak) = (self.place.layout().lease(&self.key, self.token), Arc::downgrade(self));
        let wanted = move || {
            let writing = weak.upgrade();
            async move {
                let Some(writing) = writing else { return false };
                match index::get(&writing.place, &writing.key).await {
                    Ok(now) if now.as_ref().is_some_and(|now| now.entry.lets_publish(writing.token)) => true,
                    Ok(now) => {
                        writing.fail(&writing.overtaken(now.as_ref()));
                        false
                    }
                    Err(_) => true,
                }
            }
        };
        *self.lease.lock().unwrap_or_else(PoisonError::into_inner) = Some(Lease::keep(&self.place, path, wanted));
    }

    /// The place.
    pub(super) fn place(&self) -> &Arc<Place> {
        &self.place
    }

    /// The key.
    pub(super) fn key(&self) -> &ObjectKey {
        &self.key
    }

    /// Which sink it is.
    pub(super) fn token(&self) -> Token {
        self.token
    }

    /// The error that ended the writing, told again to everybody who asks.
    pub(super) fn check(&self) -> Result<()> {
        match &*self.failure.lock().unwrap_or_else(PoisonError::into_inner) {
            Some((kind, message)) => Err(Error::new(*kind, message.clone())),
            None => Ok(()),
        }
    }

    /// Ends the writing with an error. The first one stays.
    pub(super) fn fail(&self, error: &Error) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert_with(|| (error.kind(), error.to_string()));
    }

    fn overtaken(&self, now: Option<&Found>) -> Error {
        let (place, key, attempt) = (&self.place, &self.key, self.token.attempt);
        match now.map(|now| &now.entry) {
            Some(entry) if entry.state == State::Deleted => deleted(place.name(), key, attempt, entry.attempt),
            Some(entry) => overtaken(place.name(), key, attempt, entry.attempt),
            None => overtaken(place.name(), key, attempt, attempt),
        }
    }

    async fn end_lease(&self) {
        let lease = self.lease.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(lease) = lease {
            lease.end().await;
        }
    }

    /// Removes everything that this sink made; the entry stays. What cannot be removed is left to sweeping.
    pub(super) async fn discard(&self) {
        if let Err(error) = self.try_discard().await {
            tracing::warn!(store = self.place.name(), key = %self.key, %error, "an unfinished object stays until it is swept");
        }
    }

    /// The same, telling what stood in the way.
    pub(super) async fn try_discard(&self) -> Result<()> {
        self.end_lease().await;
        removal::remove_folder(&self.place, &self.key, self.token).await
    }

    /// Publishes the object of which all pieces are there.
    pub(super) async fn publish(&self, record: &Record) -> Result<ObjectStat> {
        let (place, key) = (&self.place, &self.key);
        place.steps.done(Step::Uploaded);
        match self.try_publish(record).await {
            Ok(()) => {}
            // Known not to be published: nothing is left.
            Err(Put::Unfulfilled) => {
                let now = index::get(place, key).await;
                self.discard().await;
                return Err(now.map_or_else(|error| error, |now| self.overtaken(now.as_ref())));
            }
            Err(Put::Refused(error)) => {
                self.discard().await;
                return Err(error);
            }
            // It may be published, so nothing is removed: if it is not, the next attempt or a sweep will do that.
            Err(Put::Unknown(error)) => {
                self.end_lease().await;
                return Err(error);
            }
        }
        place.steps.done(Step::Published);
        self.end_lease().await;
        let lease = place.layout().lease(key, self.token);
        if let Err(error) = place.remove(vec![lease], &format!("publishing {key}")).await {
            tracing::info!(store = place.name(), %key, %error, "the last sign of life of a writer stays");
        }
        Ok(stat(place, key, record))
    }

    async fn try_publish(&self, record: &Record) -> Result<(), Put> {
        let (place, key, token) = (&self.place, &self.key, self.token);
        let Some(entry) = self.entry.get() else { return Err(Put::Unfulfilled) };
        // Cheaper than finding out at the end.
        let now = index::get(place, key).await.map_err(Put::Refused)?;
        if now.is_none_or(|now| !now.entry.lets_publish(token)) {
            return Err(Put::Unfulfilled);
        }
        record::write(place, key, token, record).await.map_err(Put::Refused)?;
        place.steps.done(Step::Recorded);
        let published = Entry::new(State::Published, token.attempt, Some(token));
        if index::swap(place, key, Some(entry), &published).await? { Ok(()) } else { Err(Put::Unfulfilled) }
    }
}

/// What is known of a published object.
pub(super) fn stat(place: &Place, key: &ObjectKey, record: &Record) -> ObjectStat {
    let url = place.url_of(&place.layout().entry(key));
    ObjectStat { image: record.image.clone(), url, allocated_size: record.stored }
}

/// Whether `attempt` may begin.
fn check_fence(place: &Place, key: &ObjectKey, attempt: u32, found: Option<&Found>) -> Result<()> {
    let Some(entry) = found.map(|found| &found.entry) else { return Ok(()) };
    let store = place.name();
    match entry.state {
        State::Published => Err(Error::new(
            Kind::AlreadyExists,
            format!(
                "store {store} (bucket {}) already holds {key}; delete it before it is written anew",
                place.bucket()
            ),
        )),
        State::Closing => removal::check_closing(place, key, entry),
        _ if entry.attempt > attempt => Err(overtaken(place.name(), key, attempt, entry.attempt)),
        State::Deleted if entry.attempt == attempt => Err(Error::new(
            Kind::Conflict,
            format!("store {store}: {key} was deleted with attempt {attempt}; a later one can write it"),
        )),
        State::Writing | State::Deleted => Ok(()),
    }
}
