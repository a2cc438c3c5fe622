//! An image being written, from its making to its publication or its end.
//!
//! Beginning: the image is made and opened under its private name, its record is made and watched, and only then the fence is moved to it.
//! Publishing: everything is made durable and recorded, and then one atomic swap of the index publishes it; what comes after that is
//! finished by whoever meets it first. Blocks; runs on threads of the place.

mod adoption;

use std::{
    ops::ControlFlow,
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
    thread,
    time::{Duration, Instant},
};

use super::{
    super::ObjectStat,
    super::{deleted, overtaken, token::Token},
    ffi::{Errno, Image, Watch},
    flight::Flight,
    index::{self, Entry, State},
    layout::{self, SNAPSHOT},
    place::Place,
    published, record, removal,
    step::Step,
};
use crate::{
    error::{Error, Kind, Result},
    model::{ObjectKey, StoredImage},
};

/// How long an image of ours may still be open when it is removed: whoever held it last closes it in the background, and it rests before.
const CLOSING: Duration = Duration::from_secs(2);
/// How often is looked.
const LOOK: Duration = Duration::from_millis(50);

/// What a sink, the library's threads and a watch see of the image.
pub(super) struct Writing {
    place: Arc<Place>,
    key: ObjectKey,
    token: Token,
    id: String,
    /// The private name: that of the writer who made it.
    name: String,
    /// `None` while it is not open.
    image: Mutex<Option<Arc<Image>>>,
    /// What the index says while this sink may publish.
    entry: OnceLock<Entry>,
    watch: OnceLock<Watch>,
    flight: Arc<Flight>,
}

impl Writing {
    /// Begins: makes the image and moves the fence to it.
    pub(super) fn begin(place: &Arc<Place>, key: &ObjectKey, attempt: u32) -> Result<Arc<Self>> {
        // Before anything is made: the usual refusals cost one look.
        check_fence(place, key, attempt, index::get(place, key)?.as_ref())?;
        let token = Token { attempt, nonce: rand::random() };
        let writing = Arc::new(Self::make(place, key, token)?);
        match writing.move_fence() {
            Ok(before) => {
                place.steps.done(Step::Begun);
                writing.take_over(before)?;
                Ok(writing)
            }
            Err(error) => {
                writing.remove();
                Err(error)
            }
        }
    }

    fn make(place: &Arc<Place>, key: &ObjectKey, token: Token) -> Result<Self> {
        let name = layout::partial(key, token);
        let failed = |errno| place.error(format!("making image {name} for {key}"), errno);
        place.pool().make(layout::TRASH).map_err(failed)?;
        place.pool().make_image(&name, place.making()).map_err(failed)?;
        let opened = Image::open_by_name(place.pool(), &name).and_then(|image| Ok((image.id()?, image)));
        let (id, image) = opened.map_err(|errno| {
            let _ = place.pool().remove_image(&name);
            failed(errno)
        })?;
        place.steps.done(Step::Made);
        Ok(Self {
            place: Arc::clone(place),
            key: key.clone(),
            token,
            id,
            name,
            image: Mutex::new(Some(Arc::new(image))),
            entry: OnceLock::new(),
            watch: OnceLock::new(),
            flight: Arc::new(Flight::new(place.hold())),
        })
    }

    /// Makes this sink the one that may publish; returns what was known before.
    fn move_fence(self: &Arc<Self>) -> Result<Option<Entry>> {
        self.listen()?;
        let (place, key, attempt) = (&self.place, &self.key, self.token.attempt);
        loop {
            let before = index::get(place, key)?;
            check_fence(place, key, attempt, before.as_ref())?;
            let entry = Entry::new(State::Writing, attempt, Some(self.token), Some(self.id.clone()));
            if index::swap(place, key, before.as_ref(), Some(&entry))? {
                let _ = self.entry.set(entry);
                return Ok(before);
            }
        }
    }

    /// Removes what the one before had, and makes sure that the public name will be free.
    fn take_over(&self, before: Option<Entry>) -> Result<()> {
        let (place, key) = (&self.place, &self.key);
        if let Some(before) = before {
            let deleted = before.state == State::Deleted;
            match removal::clear(place, key, &before) {
                // What is left of a writer bears a name of its own; sweeping will have it.
                Err(error) if !deleted => tracing::info!(store = place.name(), %key, %error, "leftovers stay for now"),
                cleared => cleared.inspect_err(|_| self.remove())?,
            }
        }
        self.check_name().inspect_err(|_| self.remove())
    }

    fn check_name(&self) -> Result<()> {
        let name = layout::object(&self.key);
        match Image::look_by_name(self.place.pool(), &name) {
            Err(Errno::NOENT) => Ok(()),
            Ok(_) => Err(published::in_the_way(&self.place, &self.key)),
            Err(errno) => Err(self.place.error(format!("looking for an image {name}"), errno)),
        }
    }

    /// Lets whoever takes over, or deletes, tell this sink to let go.
    fn listen(self: &Arc<Self>) -> Result<()> {
        let object = layout::record(&self.key, self.token, 0);
        let failed = |errno| self.place.error(format!("making the record of {} ({object})", self.key), errno);
        self.place.pool().make(&object).map_err(failed)?;
        let weak = Arc::downgrade(self);
        let heard = move |number| {
            let weak = Weak::clone(&weak);
            // The thread that calls belongs to the library, and this waits for it. Without a thread nobody answers, which is no harm.
            let answer = move || weak.upgrade().map_or((), |writing: Arc<Self>| writing.let_go(number));
            let _ = thread::Builder::new().name("rbd let go".to_owned()).spawn(answer);
        };
        let watch = Watch::begin(self.place.pool(), &object, heard).map_err(failed)?;
        let _ = self.watch.set(watch);
        Ok(())
    }

    /// Ends the writing if the fence has moved on, and tells who asked.
    fn let_go(&self, number: u64) {
        match index::get(&self.place, &self.key) {
            Ok(now) if now.as_ref() == self.entry.get() => {}
            Ok(now) => {
                self.flight.fail(&self.overtaken(now.as_ref()));
                let _ = self.close();
            }
            Err(_) => return,
        }
        let answered = self.watch.get().map(|watch| watch.acknowledge(number));
        tracing::debug!(key = %self.key, ?answered, "asked to let go of an image");
    }

    fn overtaken(&self, now: Option<&Entry>) -> Error {
        let (place, key, attempt) = (&self.place, &self.key, self.token.attempt);
        match now {
            Some(entry) if entry.state == State::Deleted => deleted(place.name(), key, attempt, entry.attempt),
            Some(entry) => overtaken(place.name(), key, attempt, entry.attempt),
            None => overtaken(place.name(), key, attempt, attempt),
        }
    }

    /// The place.
    pub(super) fn place(&self) -> &Arc<Place> {
        &self.place
    }

    /// The key.
    pub(super) fn key(&self) -> &ObjectKey {
        &self.key
    }

    /// The writes under way.
    pub(super) fn flight(&self) -> &Arc<Flight> {
        &self.flight
    }

    /// The private name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The image, as long as it may be written.
    pub(super) fn image(&self) -> Result<Arc<Image>> {
        self.flight.check()?;
        let image = self.image.lock().unwrap_or_else(PoisonError::into_inner);
        image.clone().ok_or_else(|| {
            let message = format!("store {}: {} is written no more; report this", self.place.name(), self.key);
            Error::new(Kind::Internal, message)
        })
    }

    /// The error for a write at `offset` that failed.
    pub(super) fn failed_write(&self, offset: u64, errno: Errno) -> Error {
        self.place.error(format!("writing image {} of {} at byte {offset}", self.name(), self.key), errno)
    }

    /// Waits for the writes under way and closes the image.
    fn close(&self) -> Result<()> {
        // As long as an operation may take, and once more for what was queued behind it.
        let patience = self.place.operation_timeout().saturating_mul(2);
        let quiet = self.flight.wait_quiet(patience);
        // Held until it is closed: whoever comes second, told to let go while this sink gives up by itself, finds it closed then and does not
        // take it for an image that somebody uses.
        let mut image = self.image.lock().unwrap_or_else(PoisonError::into_inner);
        // Where somebody else still holds it, it is closed behind them.
        match image.take().map(Arc::into_inner) {
            Some(Some(image)) if quiet => {
                image.close().map_err(|errno| self.place.error(format!("closing image {}", self.name()), errno))
            }
            _ => Ok(()),
        }
    }

    /// Removes everything that this sink made; the fence stays. What cannot be removed is left to sweeping.
    pub(super) fn remove(&self) {
        if let Err(error) = self.try_remove() {
            tracing::warn!(store = self.place.name(), key = %self.key, %error, "an unfinished image stays until it is swept");
        }
    }

    /// The same, telling what stood in the way.
    pub(super) fn try_remove(&self) -> Result<()> {
        self.close()?;
        if self.disown()? {
            let began = Instant::now();
            while !removal::discard(&self.place, &self.key, self.token, &self.id)? && began.elapsed() < CLOSING {
                thread::sleep(LOOK);
            }
        }
        Ok(())
    }

    /// Publishes the image, `image.length` bytes long.
    pub(super) fn publish(&self, image: &StoredImage) -> Result<ObjectStat> {
        match self.try_publish(image) {
            ControlFlow::Continue(()) => {}
            // Known not to be published: nothing is left.
            ControlFlow::Break(Ok(error)) => {
                self.remove();
                return Err(error);
            }
            // It may be published, so nothing is removed: if it is not, the next attempt or a sweep will do that.
            ControlFlow::Break(Err(error)) => {
                let _ = self.close();
                return Err(error);
            }
        }
        self.place.steps.done(Step::Published);
        self.close()?;
        let stat = published::stat(&self.place, &self.key)?;
        self.place.steps.done(Step::Named);
        Ok(stat)
    }

    fn try_publish(&self, image: &StoredImage) -> ControlFlow<Result<Error>> {
        let Some(entry) = self.entry.get() else { return ControlFlow::Break(Ok(self.overtaken(None))) };
        if let Err(error) = self.prepare(image, entry) {
            return ControlFlow::Break(Ok(error));
        }
        let published = entry.next(State::Published, self.token.attempt);
        match index::swap(&self.place, &self.key, Some(entry), Some(&published)) {
            Ok(true) => ControlFlow::Continue(()),
            Ok(false) => {
                let now = index::get(&self.place, &self.key);
                ControlFlow::Break(Ok(now.map_or_else(|error| error, |now| self.overtaken(now.as_ref()))))
            }
            Err(error) => ControlFlow::Break(Err(error)),
        }
    }

    /// Everything before the point of no return.
    fn prepare(&self, image: &StoredImage, entry: &Entry) -> Result<()> {
        let (place, key, name) = (&self.place, &self.key, self.name());
        let failed = |what: &'static str| move |errno| place.error(format!("{what} image {name} of {key}"), errno);
        let handle = self.image()?;
        handle.flush().map_err(failed("making durable"))?;
        handle.resize(image.length).map_err(failed("setting the length of"))?;
        place.steps.done(Step::Sized);
        // Cheaper than finding out at the end.
        let now = index::get(place, key)?;
        if now.as_ref() != Some(entry) {
            return Err(self.overtaken(now.as_ref()));
        }
        handle.make_snapshot(SNAPSHOT).map_err(failed("making a snapshot of"))?;
        place.steps.done(Step::Snapshot);
        handle.protect(SNAPSHOT).map_err(failed("protecting the snapshot of"))?;
        place.steps.done(Step::Protected);
        record::write(place, key, self.token, image)?;
        place.steps.done(Step::Recorded);
        self.check_name().map_err(|error| match index::get(place, key) {
            // It is the image of whoever overtook this one.
            Ok(now) if now.as_ref() != Some(entry) => self.overtaken(now.as_ref()),
            _ => error,
        })
    }
}

/// Whether `attempt` may begin.
fn check_fence(place: &Place, key: &ObjectKey, attempt: u32, entry: Option<&Entry>) -> Result<()> {
    let Some(entry) = entry else { return Ok(()) };
    let store = place.name();
    match entry.state {
        State::Published => Err(Error::new(
            Kind::AlreadyExists,
            format!("store {store} (pool {}) already holds {key}; delete it before it is written anew", place.spec()),
        )),
        _ if entry.attempt > attempt => Err(overtaken(place.name(), key, attempt, entry.attempt)),
        State::Deleted if entry.attempt == attempt => Err(Error::new(
            Kind::Conflict,
            format!("store {store}: {key} was deleted with attempt {attempt}; a later one can write it"),
        )),
        State::Writing | State::Deleted => Ok(()),
    }
}
