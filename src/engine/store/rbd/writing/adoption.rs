//! Going on with the image of a writer that is dead.
//!
//! First the fence moves, and takes the image along: from then on the other one can neither publish it nor remove it. Then it is asked to let
//! go, as one is that lives. One that does not answer is dead for certain when Ceph has given up its watch on the image; its lock is broken
//! then, which shuts it out of the cluster, so that nothing it still has under way arrives. Where any of that cannot be had, the image
//! is left to sweeping.

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use super::{Writing, check_fence};
use crate::{
    error::{Error, Result},
    model::ObjectKey,
    store::{
        rbd::{
            ffi::{Errno, Image},
            flight::Flight,
            index::{self, Entry, State},
            layout,
            place::Place,
            record, removal,
        },
        token::Token,
    },
};

/// How long Ceph keeps the watch of a client that is dead (`osd_client_watch_timeout`, 30 s), and some seconds more.
const WATCHED: Duration = Duration::from_secs(40);
/// How often to look.
const PAUSE: Duration = Duration::from_millis(500);
/// What there must be for that to be waited for, in bytes: less is copied again sooner.
const WORTH_WAITING: u64 = 256 << 20;

impl Writing {
    /// Takes over the image of an earlier writer that is dead. `None` if there is none, or that is not certain: `begin` begins anew then.
    pub(in crate::store::rbd) fn resume(
        place: &Arc<Place>,
        key: &ObjectKey,
        attempt: u32,
    ) -> Result<Option<Arc<Self>>> {
        let Some(before) = index::get(place, key)? else { return Ok(None) };
        check_fence(place, key, attempt, Some(&before))?;
        let (State::Writing, Some(old), Some(id)) = (before.state, before.token, before.image.clone()) else {
            return Ok(None);
        };
        let failed = |errno| place.error(format!("looking at image {id} of {key}"), errno);
        let Some((name, data)) = look(place, &id).map_err(failed)? else { return Ok(None) };
        let writing = Arc::new(Self {
            place: Arc::clone(place),
            key: key.clone(),
            token: Token { attempt, nonce: rand::random() },
            id,
            name,
            image: Mutex::new(None),
            entry: OnceLock::new(),
            watch: OnceLock::new(),
            flight: Arc::new(Flight::new(place.hold())),
        });
        match writing.adopt(&before, old, data) {
            Ok(true) => return Ok(Some(writing)),
            Ok(false) => {
                tracing::info!(store = place.name(), %key, "an unfinished image may still be written; beginning anew");
            }
            Err(error) => {
                tracing::info!(store = place.name(), %key, %error, "an unfinished image cannot be taken over");
            }
        }
        writing.close()?;
        record::remove(place, key, writing.token)?;
        Ok(None)
    }

    /// Whether the image is this writer's now, and nobody else's.
    fn adopt(self: &Arc<Self>, before: &Entry, old: Token, data: u64) -> Result<bool> {
        let (place, key) = (&self.place, &self.key);
        self.listen()?;
        let entry = Entry::new(State::Writing, self.token.attempt, Some(self.token), Some(self.id.clone()));
        if !index::swap(place, key, Some(before), Some(&entry))? {
            return Ok(false);
        }
        let _ = self.entry.set(entry);
        // Whether it answers shows by its watch.
        let _ = place.pool().notify(&layout::record(key, old, 0), removal::LETTING_GO);
        let failed = |errno| self.cannot_adopt(errno);
        if !self.is_left_alone(if data < WORTH_WAITING { Duration::ZERO } else { WATCHED }).map_err(failed)? {
            return Ok(false);
        }
        let image = Image::open(place.pool(), &self.id, None).map_err(failed)?;
        image.lock().map_err(failed)?;
        // One that came back before its lock was broken would be seen, and was not shut out.
        if image.users().map_err(failed)? != 1 || index::get(place, key)?.as_ref() != self.entry.get() {
            image.close().map_err(failed)?;
            return Ok(false);
        }
        *self.image.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(image));
        record::remove(place, key, old)?;
        self.check_name().map(|()| true)
    }

    /// Waits until nobody has the image open.
    fn is_left_alone(&self, patience: Duration) -> Result<bool, Errno> {
        let start = Instant::now();
        loop {
            let image = Image::look(self.place.pool(), &self.id, None)?;
            let users = image.users()?;
            image.close()?;
            if users == 0 {
                return Ok(true);
            }
            if start.elapsed() >= patience {
                return Ok(false);
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn cannot_adopt(&self, errno: Errno) -> Error {
        self.place.error(format!("taking over image {} of {}", self.name, self.key), errno)
    }

    /// Gives the image up before it is removed, so that nobody goes on with it meanwhile. False if somebody does already.
    pub(super) fn disown(&self) -> Result<bool> {
        let Some(entry) = self.entry.get() else { return Ok(true) };
        let nobody = Token { nonce: rand::random(), ..self.token };
        let nobody = Entry::new(State::Writing, entry.attempt, Some(nobody), None);
        if index::swap(&self.place, &self.key, Some(entry), Some(&nobody))? {
            return Ok(true);
        }
        let now = index::get(&self.place, &self.key)?;
        Ok(now.is_none_or(|now| now.state == State::Deleted || now.image.as_ref() != Some(&self.id)))
    }

    /// How long the image is, in bytes.
    pub(in crate::store::rbd) fn length(&self) -> Result<u64> {
        self.image()?.length().map_err(|errno| self.cannot_adopt(errno))
    }
}

/// The name of an image of which there is something to go on with, and how much that is in bytes.
fn look(place: &Place, id: &str) -> Result<Option<(String, u64)>, Errno> {
    let image = match Image::look(place.pool(), id, None) {
        Ok(image) => image,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    let found = look_at(&image);
    image.close()?;
    found
}

fn look_at(image: &Image) -> Result<Option<(String, u64)>, Errno> {
    let length = image.length()?;
    // Who has written had the lock, which is what it is shut out by.
    if length == 0 || !image.has_exclusive_lock()? {
        return Ok(None);
    }
    let data = image.data(0, length, true)?;
    let size = data.iter().map(|(start, end)| end.saturating_sub(*start)).fold(0, u64::saturating_add);
    Ok(if size == 0 { None } else { Some((image.name()?, size)) })
}
