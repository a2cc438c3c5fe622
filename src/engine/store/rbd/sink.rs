//! The asynchronous side of an image that is being written: keeps several writes under way, lets the image grow before them, and writes
//! zeros where nothing may be left out.

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;

use super::{
    super::{ObjectStat, Sink, cut_off, describe},
    coverage::Coverage,
    leftover::RbdLeftover,
    place::Place,
    writing::Writing,
};
use crate::{
    error::{Error, Kind, Result},
    model::{ObjectKey, OutputFormat, Verified},
};

/// A longer piece is written in parts of this length, the usual size of an object, so that several are under way.
pub(super) const MAX_PIECE: u64 = 4 << 20;
/// What is written where nothing may be left out, `MAX_PIECE` long.
static ZEROS: [u8; 4 << 20] = [0; 4 << 20];
/// How many stretches of zeros, of `MAX_PIECE` at most, are written in one part of the work before publishing.
const PREPARED: usize = 16;
/// By how much an image grows at least: it must be longer than what is written, and changing its length takes some milliseconds. At
/// the end it is cut to its length, which costs nothing for objects that do not exist.
const MIN_GROWTH: u64 = 1 << 30;
/// A long image grows by its length divided by this, so that 100 TiB take a hundred steps.
const GROWTH: u64 = 8;

/// The sink.
pub(super) struct RbdSink {
    /// `None` once it has ended.
    writing: Option<Arc<Writing>>,
    format: OutputFormat,
    /// How long the image is now.
    length: u64,
    /// Where the furthest write ended.
    end: u64,
    /// Whether a write was begun and its future dropped: then nobody knows whether its bytes arrived.
    interrupted: bool,
    /// What was written; `None` where something may be left out.
    coverage: Option<Coverage>,
    /// The most writes that any sink of the store had under way.
    peak: Arc<Mutex<usize>>,
}

impl RbdSink {
    /// Begins to write `key`.
    pub(super) async fn begin(
        place: &Arc<Place>,
        key: &ObjectKey,
        attempt: u32,
        format: OutputFormat,
        peak: Arc<Mutex<usize>>,
    ) -> Result<Self> {
        let doing = format!("beginning to write {key}");
        let key = key.clone();
        let begun = place.call(doing, move |place| {
            // Within the work: if nobody waits for it any more, the sink is dropped, which removes what was made.
            Ok(Self::of(Writing::begin(place, &key, attempt)?, format, peak))
        });
        begun.await
    }

    /// Goes on with what a dead writer left of `key`, if there is something.
    pub(super) async fn resume(
        place: &Arc<Place>,
        key: &ObjectKey,
        attempt: u32,
        format: OutputFormat,
        peak: Arc<Mutex<usize>>,
    ) -> Result<Option<(Self, RbdLeftover)>> {
        let doing = format!("going on with {key}");
        let key = key.clone();
        let resumed = place.call(doing, move |place| {
            let Some(writing) = Writing::resume(place, &key, attempt)? else { return Ok(None) };
            let mut sink = Self::of(Arc::clone(&writing), format, peak);
            sink.length = writing.length()?;
            let left = RbdLeftover::of(&writing, sink.length);
            Ok(Some((sink, left)))
        });
        resumed.await
    }

    /// Nothing is written yet.
    fn of(writing: Arc<Writing>, format: OutputFormat, peak: Arc<Mutex<usize>>) -> Self {
        Self { writing: Some(writing), format, length: 0, end: 0, interrupted: false, coverage: None, peak }
    }

    fn writing(&self) -> Result<&Arc<Writing>> {
        self.writing.as_ref().ok_or_else(|| Error::new(Kind::Internal, "a sink was used after its end; report this"))
    }

    /// Makes the image at least `end` bytes long.
    async fn grow(&mut self, end: u64) -> Result<()> {
        if end <= self.length {
            return Ok(());
        }
        let writing = Arc::clone(self.writing()?);
        let length = end.saturating_add(MIN_GROWTH.max(end / GROWTH)).min(i64::MAX.unsigned_abs());
        let doing = format!("enlarging image {} to {length} bytes", writing.name());
        let work = move |place: &Arc<Place>| {
            let resized = writing.image()?.resize(length);
            resized.map_err(|errno| place.error(format!("enlarging image {} to {length} bytes", writing.name()), errno))
        };
        let place = Arc::clone(self.writing()?.place());
        let grown = place.call(doing, work).await;
        // The first error ends the writing, whatever it was.
        grown.inspect_err(|error| self.writing.iter().for_each(|writing| writing.flight().fail(error)))?;
        self.length = length;
        Ok(())
    }

    /// Begins one write and returns when the library has taken it.
    async fn launch(writing: &Arc<Writing>, offset: u64, bytes: Bytes) -> Result<()> {
        let end = offset.saturating_add(bytes.len() as u64);
        let seat = writing.flight().board(offset, end).await?;
        let (image, watched) = (writing.image()?, Arc::downgrade(writing));
        let done = move |result: std::result::Result<(), _>| {
            if let (Err(errno), Some(writing)) = (result, watched.upgrade()) {
                writing.flight().fail(&writing.failed_write(offset, errno));
            }
            drop(seat);
        };
        image.write(offset, bytes, done).map_err(|errno| writing.failed_write(offset, errno))
    }

    /// Writes zeros to `gap`, which is no longer than `MAX_PIECE`.
    async fn write_zeros(&mut self, gap: Range<u64>) -> Result<()> {
        self.grow(gap.end).await?;
        let length = usize::try_from(gap.end.saturating_sub(gap.start)).unwrap_or(usize::MAX);
        let zeros = Bytes::from_static(ZEROS.get(..length).unwrap_or(&ZEROS));
        let writing = Arc::clone(self.writing()?);
        Self::launch(&writing, gap.start, zeros).await.inspect_err(|error| writing.flight().fail(error))
    }

    fn check_commit(&self, length: u64) -> Result<()> {
        let writing = self.writing()?;
        writing.flight().check()?;
        let (store, key) = (writing.place().name(), writing.key());
        if self.end > length {
            return Err(cut_off(store, key, length, self.end));
        }
        if self.interrupted {
            let message = format!("store {store}: a write of {key} was cancelled, so it cannot be published");
            return Err(Error::new(Kind::Internal, message));
        }
        Ok(())
    }

    /// Waits until every write has ended, and tells whether all went well.
    async fn land(&self) -> Result<()> {
        let writing = self.writing()?;
        let flight = Arc::clone(writing.flight());
        let landed = tokio::time::timeout(writing.place().deadline(), flight.land()).await;
        landed.map_err(|_| writing.place().overdue(format!("writing image {}", writing.name())))?;
        flight.check()
    }
}

#[async_trait]
impl Sink for RbdSink {
    async fn write_at(&mut self, offset: u64, bytes: Bytes) -> Result<()> {
        let writing = Arc::clone(self.writing()?);
        writing.flight().check()?;
        let end =
            offset.checked_add(bytes.len() as u64).filter(|end| i64::try_from(*end).is_ok()).ok_or_else(|| {
                let message =
                    format!("{} bytes at {offset} of {} end past the longest image", bytes.len(), writing.key());
                Error::new(Kind::InvalidInput, message)
            })?;
        self.interrupted = true;
        if !bytes.is_empty() {
            self.grow(end).await?;
        }
        let (mut offset, mut bytes) = (offset, bytes);
        while !bytes.is_empty() {
            // Up to the next multiple, so that no part crosses an object's end without need.
            let room = MAX_PIECE.saturating_sub(offset % MAX_PIECE);
            let piece = bytes.split_to(bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
            let length = piece.len() as u64;
            let beside = self.coverage.as_mut().map(|known| known.wrote(&(offset..offset.saturating_add(length))));
            for gap in beside.into_iter().flatten() {
                self.write_zeros(gap).await?;
            }
            Self::launch(&writing, offset, piece).await.inspect_err(|error| writing.flight().fail(error))?;
            offset = offset.saturating_add(length);
        }
        self.interrupted = false;
        self.end = self.end.max(end);
        Ok(())
    }

    fn hold_all(&mut self) -> Result<()> {
        self.coverage = Some(Coverage::default());
        Ok(())
    }

    async fn prepare(&mut self, length: u64) -> Result<bool> {
        for _ in 0..PREPARED {
            let missing = self.coverage.as_mut().and_then(|known| known.missing(length));
            let Some(gap) = missing else { return Ok(false) };
            // One whose future is dropped is not known to have been written, and is not asked for again.
            self.interrupted = true;
            self.write_zeros(gap).await?;
            self.interrupted = false;
        }
        Ok(true)
    }

    async fn commit(mut self: Box<Self>, length: u64, proof: &Verified) -> Result<ObjectStat> {
        self.check_commit(length)?;
        while self.prepare(length).await? {}
        self.land().await?;
        let image = describe(self.format, length, proof);
        let writing = Arc::clone(self.writing()?);
        self.note_peak();
        // From here on the work cleans up by itself, also when nobody waits for it any more.
        self.writing = None;
        let place = Arc::clone(writing.place());
        place.call(format!("publishing {}", writing.key()), move |_| writing.publish(&image)).await
    }

    async fn abort(mut self: Box<Self>) -> Result<()> {
        let Some(writing) = self.writing.take() else { return Ok(()) };
        let place = Arc::clone(writing.place());
        place.call(format!("removing image {}", writing.name()), move |_| writing.try_remove()).await
    }
}

impl RbdSink {
    fn note_peak(&self) {
        let seen = self.writing.as_ref().map_or(0, |writing| writing.flight().peak());
        let mut peak = self.peak.lock().unwrap_or_else(PoisonError::into_inner);
        *peak = peak.max(seen);
    }
}

impl Drop for RbdSink {
    fn drop(&mut self) {
        self.note_peak();
        if let Some(writing) = self.writing.take() {
            let place = Arc::clone(writing.place());
            place.clean_up(move |_| writing.remove());
        }
    }
}
