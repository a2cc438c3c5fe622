//! The asynchronous side of an object that is written: fills parts, hands them to uploads, and keeps the memory that they take bounded.
//!
//! What is written is appended to a log in the order in which it comes (see `extents`), so writes may come in any order.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
};

use super::{
    super::{ObjectStat, Sink, cut_off, describe},
    extents::{Extent, Extents},
    place::Place,
    record::Record,
    upload::{self, Message, PART, PARTS},
    writing::Writing,
};
use crate::{
    error::{Error, Kind, Result},
    model::{ObjectKey, OutputFormat, Verified},
};

/// The sink.
pub(super) struct S3Sink {
    /// `None` once it has ended.
    writing: Option<Arc<Writing>>,
    format: OutputFormat,
    extents: Extents,
    /// Length of the log.
    stored: u64,
    /// The part that is being filled.
    part: Option<(Vec<u8>, OwnedSemaphorePermit)>,
    /// Where the parts of the piece under way go.
    piece: Option<mpsc::UnboundedSender<Message>>,
    uploads: JoinSet<()>,
    /// One permit for each part in memory.
    room: Arc<Semaphore>,
    /// Whether a write was begun and its future dropped: then nobody knows how much of it was taken.
    interrupted: bool,
    /// Where cleaning up runs if the sink is dropped elsewhere.
    runtime: Handle,
}

impl S3Sink {
    /// Begins to write `key`.
    pub(super) async fn begin(place: &Arc<Place>, key: &ObjectKey, attempt: u32, format: OutputFormat) -> Result<Self> {
        let (own, key, runtime) = (Arc::clone(place), key.clone(), Handle::current());
        let begun = async move {
            // Within the work: if nobody waits for it any more, the sink is dropped, which removes what was made.
            let writing = Some(Writing::begin(&own, &key, attempt).await?);
            Ok(Self {
                writing,
                format,
                extents: Extents::default(),
                stored: 0,
                part: None,
                piece: None,
                uploads: JoinSet::new(),
                room: Arc::new(Semaphore::new(PARTS)),
                interrupted: false,
                runtime,
            })
        };
        place.call("beginning to write an object", begun).await
    }

    fn writing(&self) -> Result<&Arc<Writing>> {
        self.writing.as_ref().ok_or_else(ended)
    }

    /// Appends to the log.
    async fn append(&mut self, mut offset: u64, mut bytes: Bytes) -> Result<()> {
        let object_size = self.writing()?.place().options().object_size.max(1);
        while !bytes.is_empty() {
            let (mut part, room) = match self.part.take() {
                Some(part) => part,
                None => self.begin_part().await?,
            };
            let left = object_size.saturating_sub(self.stored % object_size);
            let free = PART.saturating_sub(part.len()).min(usize::try_from(left).unwrap_or(usize::MAX));
            let now = bytes.split_to(bytes.len().min(free));
            let length = now.len() as u64;
            part.extend_from_slice(&now);
            self.extents.insert(Extent { offset, length, at: self.stored });
            (offset, self.stored) = (offset.saturating_add(length), self.stored.saturating_add(length));
            let last = self.stored.is_multiple_of(object_size);
            if last || part.len() >= PART {
                self.send(Message::Part { bytes: part.into(), last, room })?;
            } else {
                self.part = Some((part, room));
            }
            if last {
                self.piece = None;
            }
        }
        Ok(())
    }

    async fn begin_part(&mut self) -> Result<(Vec<u8>, OwnedSemaphorePermit)> {
        let closed = |_| Error::new(Kind::Internal, "a queue that is never closed is closed; report this");
        let room = Arc::clone(&self.room).acquire_owned().await.map_err(closed)?;
        self.writing()?.check()?;
        if self.piece.is_none() {
            self.begin_piece()?;
        }
        Ok((Vec::with_capacity(PART), room))
    }

    fn begin_piece(&mut self) -> Result<()> {
        let writing = Arc::clone(self.writing()?);
        let place = Arc::clone(writing.place());
        let number = self.stored.checked_div(place.options().object_size).unwrap_or_default();
        let path = place.layout().piece(writing.key(), writing.token(), number);
        let (sender, messages) = mpsc::unbounded_channel();
        self.piece = Some(sender);
        while self.uploads.try_join_next().is_some() {}
        self.uploads.spawn(async move {
            if let Err(error) = upload::upload(place, path, messages).await {
                writing.fail(&error);
            }
        });
        Ok(())
    }

    fn send(&mut self, message: Message) -> Result<()> {
        let sent = self.piece.as_ref().is_some_and(|piece| piece.send(message).is_ok());
        // An upload that has ended has failed, and said why.
        if sent { Ok(()) } else { self.writing()?.check() }
    }

    /// Ends the last piece and waits for all of them.
    async fn land(&mut self) -> Result<()> {
        if let Some((part, room)) = self.part.take() {
            self.send(Message::Part { bytes: part.into(), last: true, room })?;
        } else if self.piece.is_some() {
            self.send(Message::End)?;
        }
        self.piece = None;
        let writing = Arc::clone(self.writing()?);
        let all = async { while self.uploads.join_next().await.is_some() {} };
        let landed = tokio::time::timeout(writing.place().options().deadline, all).await;
        landed.map_err(|_| writing.place().overdue(&format!("uploading {}", writing.key())))?;
        writing.check()
    }

    fn check_commit(&self, length: u64) -> Result<()> {
        let writing = self.writing()?;
        writing.check()?;
        let (store, key) = (writing.place().name(), writing.key());
        let end = self.extents.end();
        if end > length {
            return Err(cut_off(store, key, length, end));
        }
        if self.interrupted {
            let message = format!("store {store}: a write of {key} was cancelled, so it cannot be published");
            return Err(Error::new(Kind::Internal, message));
        }
        Ok(())
    }

    /// Ends the uploads and takes what is to be removed then.
    fn give_up(&mut self) -> Option<(Arc<Writing>, JoinSet<()>)> {
        (self.part, self.piece) = (None, None);
        Some((self.writing.take()?, std::mem::take(&mut self.uploads)))
    }
}

#[async_trait]
impl Sink for S3Sink {
    async fn write_at(&mut self, offset: u64, bytes: Bytes) -> Result<()> {
        let length = bytes.len() as u64;
        offset.checked_add(length).ok_or_else(|| {
            Error::new(Kind::InvalidInput, format!("{length} bytes at {offset} end past the largest offset"))
        })?;
        self.writing()?.check()?;
        if bytes.is_empty() {
            return Ok(());
        }
        let interrupted = std::mem::replace(&mut self.interrupted, true);
        let filling = self.extents.filling(offset);
        if filling > 0 {
            let zeros = vec![0; usize::try_from(filling).unwrap_or_default()];
            self.append(offset.saturating_sub(filling), zeros.into()).await?;
        }
        self.append(offset, bytes).await?;
        self.interrupted = interrupted;
        Ok(())
    }

    async fn commit(mut self: Box<Self>, length: u64, proof: &Verified) -> Result<ObjectStat> {
        self.check_commit(length)?;
        self.land().await?;
        let record = Record {
            image: describe(self.format, length, proof),
            table: std::mem::take(&mut self.extents).into_table(),
            object_size: self.writing()?.place().options().object_size.max(1),
            stored: self.stored,
        };
        let writing = self.writing.take().ok_or_else(ended)?;
        // From here on the work cleans up by itself, also when nobody waits for it any more.
        let place = Arc::clone(writing.place());
        let doing = format!("publishing {}", writing.key());
        place.call(&doing, async move { writing.publish(&record).await }).await
    }

    async fn abort(mut self: Box<Self>) -> Result<()> {
        let Some((writing, mut uploads)) = self.give_up() else { return Ok(()) };
        let place = Arc::clone(writing.place());
        let doing = format!("removing what was written of {}", writing.key());
        let work = async move {
            while uploads.join_next().await.is_some() {}
            writing.try_discard().await
        };
        place.call(&doing, work).await
    }
}

fn ended() -> Error {
    Error::new(Kind::Internal, "a sink was used after its end; report this")
}

impl Drop for S3Sink {
    fn drop(&mut self) {
        if let Some((writing, mut uploads)) = self.give_up() {
            let place = Arc::clone(writing.place());
            place.clean_up(&self.runtime, async move {
                while uploads.join_next().await.is_some() {}
                writing.discard().await;
            });
        }
    }
}
