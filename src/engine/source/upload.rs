//! Bytes that somebody brings, piece by piece, when they like: what an upload is read from.
//!
//! An [`Inlet`] is where they are handed in, in order, by one at a time; [`UploadSource`] is what an import reads. Only what the import has
//! taken counts as handed in, so whoever brings the bytes is held up by what becomes of them. A pause is bounded, and how the import ended
//! is told to who brought the bytes. Nothing of it outlives the process.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore, mpsc, watch};

use super::{ByteStream, Opened, Source};
use crate::error::{Error, Kind, Result};

/// Pieces on their way from who brings them to the import.
const QUEUE: usize = 1;

/// All imports of this process that wait for bytes, or take them.
#[derive(Debug)]
pub struct Uploads {
    open: Mutex<BTreeMap<String, Arc<Inlet>>>,
    idle: Duration,
    /// Imports that take bytes at once. Those that wait for their first one cost nothing and are not counted.
    flowing: Arc<Semaphore>,
}

impl Uploads {
    /// `flowing` of them at once; each is given up when no byte has come for `idle`.
    pub fn new(flowing: usize, idle: Duration) -> Self {
        Self { open: Mutex::default(), idle, flowing: Arc::new(Semaphore::new(flowing.min(Semaphore::MAX_PERMITS))) }
    }

    /// Begins to expect bytes under the name `key`, until what is returned is dropped.
    pub fn expect(self: &Arc<Self>, key: &str) -> Expected {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let inlet = Arc::new(Inlet {
            pen: Arc::new(tokio::sync::Mutex::new(Some(sender))),
            state: watch::Sender::new(State::default()),
        });
        let source = UploadSource {
            inlet: inlet.clone(),
            receiver: Mutex::new(Some(receiver)),
            idle: self.idle,
            flowing: self.flowing.clone(),
        };
        self.lock().insert(key.to_owned(), inlet.clone());
        Expected { uploads: self.clone(), key: key.to_owned(), inlet, source: Arc::new(source) }
    }

    /// Where bytes with that name are handed in.
    pub fn find(&self, key: &str) -> Option<Arc<Inlet>> {
        self.lock().get(key).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Inlet>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An import that expects bytes.
#[derive(Debug)]
pub struct Expected {
    uploads: Arc<Uploads>,
    key: String,
    inlet: Arc<Inlet>,
    source: Arc<UploadSource>,
}

impl Expected {
    /// What the import reads.
    pub fn source(&self) -> Arc<UploadSource> {
        self.source.clone()
    }

    /// Tells who brought the bytes how it ended.
    pub fn conclude(&self, end: End) {
        self.inlet.state.send_modify(|state| state.end = state.end.take().or(Some(end)));
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.conclude(End::Failed { refused: false, message: "the import was stopped; begin anew".to_owned() });
        let mut open = self.uploads.lock();
        if open.get(&self.key).is_some_and(|inlet| Arc::ptr_eq(inlet, &self.inlet)) {
            open.remove(&self.key);
        }
    }
}

/// How the import of an upload ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It is verified and stored.
    Stored,
    /// It is not.
    Failed {
        /// Whether that is because of the bytes, so that bringing them again cannot help.
        refused: bool,
        /// What was found, where, what to do.
        message: String,
    },
}

#[derive(Clone, Debug, Default)]
struct State {
    begun: bool,
    length: Option<u64>,
    offset: u64,
    given_up: bool,
    end: Option<End>,
}

/// Where the bytes of one import are handed in.
#[derive(Debug)]
pub struct Inlet {
    pen: Arc<tokio::sync::Mutex<Option<mpsc::Sender<Bytes>>>>,
    state: watch::Sender<State>,
}

/// Why bytes are not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Somebody else is handing some in.
    Busy,
    /// Another offset is the next one.
    Offset(u64),
    /// More than was announced, or another length than before.
    Length,
    /// The import has ended; see how.
    Ended,
}

impl Inlet {
    /// How many bytes were taken.
    pub fn offset(&self) -> u64 {
        self.state.borrow().offset
    }

    /// How many there will be, if that was said.
    pub fn length(&self) -> Option<u64> {
        self.state.borrow().length
    }

    /// Whether anybody has begun to hand in anything.
    pub fn has_begun(&self) -> bool {
        self.state.borrow().begun
    }

    /// Says how many bytes there will be, once.
    ///
    /// # Errors
    /// `Length` if something else was said before.
    pub fn announce(&self, length: u64) -> Result<(), Refused> {
        let mut fits = true;
        self.state.send_modify(|state| {
            fits = state.length.is_none_or(|known| known == length) && (state.length.is_some() || state.offset == 0);
            if fits {
                state.length = Some(length);
            }
        });
        if fits { Ok(()) } else { Err(Refused::Length) }
    }

    /// Begins to hand in bytes from `offset` on. Nobody else can until what is returned is dropped.
    ///
    /// # Errors
    /// Why not.
    pub fn write_from(self: &Arc<Self>, offset: u64) -> Result<Pen, Refused> {
        let held = self.pen.clone().try_lock_owned().map_err(|_| Refused::Busy)?;
        let state = self.state.borrow().clone();
        if state.end.is_some() || held.is_none() {
            return Err(Refused::Ended);
        }
        if state.offset != offset {
            return Err(Refused::Offset(state.offset));
        }
        self.state.send_modify(|state| state.begun = true);
        Ok(Pen { inlet: self.clone(), held })
    }

    /// Has the import give up: nothing more will come.
    pub fn give_up(&self) {
        self.state.send_modify(|state| {
            state.begun = true;
            state.given_up = true;
        });
    }

    /// Waits until the import has ended.
    pub async fn ended(&self) -> End {
        let mut states = self.state.subscribe();
        let lost = || End::Failed { refused: false, message: "the import is gone; begin anew".to_owned() };
        // The sender is in `self`, so this ends with an end.
        let end = states.wait_for(|state| state.end.is_some()).await.ok().and_then(|state| state.end.clone());
        end.unwrap_or_else(lost)
    }
}

/// The right to hand in bytes.
#[derive(Debug)]
pub struct Pen {
    inlet: Arc<Inlet>,
    held: OwnedMutexGuard<Option<mpsc::Sender<Bytes>>>,
}

impl Pen {
    /// Hands in the next bytes, and waits until the import has taken what was before them.
    ///
    /// # Errors
    /// `Length` if they are more than was announced, `Ended` if nobody takes them any more.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), Refused> {
        if bytes.is_empty() {
            return Ok(());
        }
        let length = bytes.len() as u64;
        let next = self.inlet.offset().saturating_add(length);
        if self.inlet.length().is_some_and(|all| next > all) {
            return Err(Refused::Length);
        }
        let sender = self.held.as_ref().ok_or(Refused::Ended)?;
        sender.send(bytes).await.map_err(|_| Refused::Ended)?;
        self.inlet.state.send_modify(|state| state.offset = next);
        Ok(())
    }

    /// Whether everything that was announced was taken.
    pub fn is_complete(&self) -> bool {
        self.inlet.length() == Some(self.inlet.offset())
    }

    /// Says that all of it was handed in.
    pub fn finish(mut self) {
        let offset = self.inlet.offset();
        self.inlet.state.send_modify(|state| state.length = Some(offset));
        *self.held = None;
    }
}

/// What an import of an upload reads.
#[derive(Debug)]
pub struct UploadSource {
    inlet: Arc<Inlet>,
    receiver: Mutex<Option<mpsc::Receiver<Bytes>>>,
    idle: Duration,
    flowing: Arc<Semaphore>,
}

#[async_trait]
impl Source for UploadSource {
    fn describe(&self) -> String {
        "the upload".to_owned()
    }

    /// Waits for somebody to begin, however long that takes.
    async fn open(&self) -> Result<Opened> {
        let receiver = self.receiver.lock().unwrap_or_else(PoisonError::into_inner).take();
        let once = || Error::new(Kind::InvalidInput, "an upload can be read only once: upload it again");
        let receiver = receiver.ok_or_else(once)?;
        let mut states = self.inlet.state.subscribe();
        let gone = |_| Error::new(Kind::Cancelled, "nobody can upload any more");
        states.wait_for(|state| state.begun).await.map_err(gone)?;
        let flow =
            self.flowing.clone().acquire_owned().await.map_err(|_| Error::new(Kind::Cancelled, "the agent ends"))?;
        let flow = Flow { receiver, states, idle: self.idle, inlet: self.inlet.clone(), _permit: flow };
        Ok(Opened { length: self.inlet.length(), shows_cuts: true, stream: flow.stream(), ranges: None })
    }

    fn reopens(&self) -> bool {
        false
    }
}

/// Bytes as they come.
struct Flow {
    receiver: mpsc::Receiver<Bytes>,
    states: watch::Receiver<State>,
    idle: Duration,
    inlet: Arc<Inlet>,
    _permit: OwnedSemaphorePermit,
}

impl Flow {
    fn stream(self) -> ByteStream {
        stream::try_unfold(self, async |mut flow| Ok(flow.next().await?.map(|bytes| (bytes, flow)))).boxed()
    }

    async fn next(&mut self) -> Result<Option<Bytes>> {
        let given_up = self.states.wait_for(|state| state.given_up);
        let next = tokio::select! {
            biased;
            _ = given_up => return Err(Error::new(Kind::Unavailable, "the upload was given up by who began it")),
            next = tokio::time::timeout(self.idle, self.receiver.recv()) => next,
        };
        match next {
            Ok(Some(bytes)) => Ok(Some(bytes)),
            Ok(None) if self.inlet.length() == Some(self.inlet.offset()) => Ok(None),
            Ok(None) => Err(Error::new(Kind::Unavailable, "the upload ended before all of it was there")),
            Err(_) => {
                let (idle, offset) = (self.idle.as_secs(), self.inlet.offset());
                let message = format!(
                    "no byte has come for {idle} s after the first {offset}: upload it again from the beginning"
                );
                Err(Error::new(Kind::Unavailable, message))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt as _;

    use super::*;

    const IDLE: Duration = Duration::from_secs(60);

    fn expected() -> (Arc<Uploads>, Expected, Arc<Inlet>) {
        let uploads = Arc::new(Uploads::new(1, IDLE));
        let expected = uploads.expect("k");
        let inlet = uploads.find("k").unwrap();
        (uploads, expected, inlet)
    }

    async fn read(source: Arc<UploadSource>) -> Result<Vec<u8>> {
        let opened = source.open().await?;
        opened
            .stream
            .try_fold(Vec::new(), async |mut all, piece| {
                Ok({
                    all.extend_from_slice(&piece);
                    all
                })
            })
            .await
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_are_handed_in_in_order_by_one_at_a_time_with_pauses() {
        let (uploads, expected, inlet) = expected();
        let reading = tokio::spawn(read(expected.source()));
        tokio::time::sleep(IDLE * 10).await;
        inlet.announce(6).unwrap();
        assert_eq!(inlet.announce(7), Err(Refused::Length));
        let mut pen = inlet.write_from(0).unwrap();
        assert_eq!(inlet.write_from(0).unwrap_err(), Refused::Busy);
        pen.write(Bytes::from_static(b"abc")).await.unwrap();
        drop(pen);
        tokio::time::sleep(IDLE * 9 / 10).await;
        assert_eq!(inlet.write_from(0).unwrap_err(), Refused::Offset(3));
        let mut pen = inlet.write_from(3).unwrap();
        assert_eq!(pen.write(Bytes::from_static(b"defg")).await, Err(Refused::Length));
        pen.write(Bytes::from_static(b"def")).await.unwrap();
        assert!(pen.is_complete());
        pen.finish();
        assert_eq!(reading.await.unwrap().unwrap(), b"abcdef");
        assert_eq!(inlet.write_from(6).unwrap_err(), Refused::Ended);
        expected.conclude(End::Stored);
        assert_eq!(inlet.ended().await, End::Stored);
        drop(expected);
        assert!(uploads.find("k").is_none());
        assert_eq!(inlet.ended().await, End::Stored);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_that_is_too_long_ends_it() {
        let (_uploads, expected, inlet) = expected();
        let reading = tokio::spawn(read(expected.source()));
        inlet.write_from(0).unwrap().write(Bytes::from_static(b"abc")).await.unwrap();
        let error = reading.await.unwrap().unwrap_err();
        assert!(error.is_retryable() && error.to_string().contains("the first 3"), "{error}");
        assert_eq!(inlet.write_from(3).unwrap().write(Bytes::from_static(b"d")).await, Err(Refused::Ended));
        drop(expected);
        assert!(matches!(inlet.ended().await, End::Failed { refused: false, .. }));
    }

    #[tokio::test(start_paused = true)]
    async fn who_began_may_give_up() {
        let (_uploads, expected, inlet) = expected();
        let reading = tokio::spawn(read(expected.source()));
        inlet.give_up();
        assert_eq!(reading.await.unwrap().unwrap_err().kind(), Kind::Unavailable);
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_wait_hold_up_nobody_and_those_that_flow_take_turns() {
        let (uploads, waiting, _) = expected();
        let (one, two) = (uploads.expect("1"), uploads.expect("2"));
        let reading: Vec<_> = [&waiting, &one, &two].map(|expected| tokio::spawn(read(expected.source()))).into();
        let mut pen = uploads.find("1").unwrap().write_from(0).unwrap();
        pen.write(Bytes::from_static(b"a")).await.unwrap();
        // The second is begun, and its bytes wait.
        let second = uploads.find("2").unwrap();
        let writing = tokio::spawn(async move {
            let mut pen = second.write_from(0).unwrap();
            for _ in 0..3 {
                pen.write(Bytes::from_static(b"b")).await.unwrap();
            }
            pen.finish();
        });
        tokio::time::sleep(IDLE / 2).await;
        assert!(!writing.is_finished());
        pen.finish();
        writing.await.unwrap();
        let mut reading = reading.into_iter();
        assert!(!reading.next().unwrap().is_finished());
        assert_eq!(reading.next().unwrap().await.unwrap().unwrap(), b"a");
        assert_eq!(reading.next().unwrap().await.unwrap().unwrap(), b"bbb");
    }
}
