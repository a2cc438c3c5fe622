//! Reading a published image at its snapshot. It is open so that others see it, so it is not taken apart while it is read, also when it
//! is deleted meanwhile. Whoever may only read the pool cannot be seen; then it is looked after each read whether it is still published.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{OnceCell, oneshot};

use super::{
    super::ObjectReader,
    ffi::Image,
    index::Entry,
    place::Place,
    published::{self, Use},
};
use crate::{
    error::{Kind, Result},
    model::{ObjectKey, StoredImage},
};

/// The reader.
pub(super) struct RbdReader {
    place: Arc<Place>,
    key: ObjectKey,
    facts: StoredImage,
    /// `None` once it is dropped.
    image: Option<Arc<Image>>,
    /// What published it, if nobody can see that it is read.
    unseen: Option<Entry>,
    /// Length of the image's objects.
    object_size: u64,
    /// Which objects there are, as joined stretches, once that was asked for.
    objects: OnceCell<Vec<(u64, u64)>>,
}

impl RbdReader {
    /// Opens the image; blocks.
    pub(super) fn open(place: &Arc<Place>, key: &ObjectKey) -> Result<Self> {
        loop {
            let (how, (entry, image)) = match published::open(place, key, Use::Shown) {
                Err(error) if error.kind() == Kind::Denied => (Use::Hidden, published::open(place, key, Use::Hidden)?),
                opened => (Use::Shown, opened?),
            };
            // From here on the image is not taken apart; its record is, if it is deleted.
            match published::facts(place, key, &entry) {
                Ok(facts) => {
                    let object_size = image.object_size();
                    let object_size =
                        object_size.map_err(|errno| place.error(format!("looking at image {key}"), errno))?;
                    let (place, key, image) = (Arc::clone(place), key.clone(), Some(Arc::new(image)));
                    let unseen = Some(entry).filter(|_| how == Use::Hidden);
                    return Ok(Self { place, key, facts, image, unseen, object_size, objects: OnceCell::new() });
                }
                Err(error) => {
                    image.close().map_err(|errno| place.error(format!("closing image {key}"), errno))?;
                    if published::find(place, key)? == entry {
                        return Err(error);
                    }
                }
            }
        }
    }

    fn image(&self) -> Option<Arc<Image>> {
        self.image.clone()
    }

    /// What is taken apart while it is read reads as zeros, so these are not given to anybody.
    async fn check_still_there(&self) -> Result<()> {
        let Some(entry) = self.unseen.clone() else { return Ok(()) };
        let key = self.key.clone();
        let work = move |place: &Arc<Place>| {
            if published::find(place, &key)? == entry { Ok(()) } else { Err(published::replaced(place, &key)) }
        };
        self.place.call(format!("looking whether {} is still there", self.key), work).await
    }

    async fn data(&self, start: u64, end: u64, whole_objects: bool) -> Result<Vec<(u64, u64)>> {
        let (image, key) = (self.image(), self.key.clone());
        let work = move |place: &Arc<Place>| {
            let data = image.map_or_else(|| Ok(Vec::new()), |image| image.data(start, end, whole_objects));
            data.map_err(|errno| place.error(format!("looking for data in image {key}"), errno))
        };
        let data = self.place.call(format!("looking for data in image {}", self.key), work).await?;
        self.check_still_there().await?;
        Ok(data)
    }
}

#[async_trait]
impl ObjectReader for RbdReader {
    fn image(&self) -> &StoredImage {
        &self.facts
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes> {
        let left = usize::try_from(self.facts.length.saturating_sub(offset)).unwrap_or(usize::MAX);
        let wanted = length.min(left);
        let Some(image) = self.image().filter(|_| wanted > 0) else { return Ok(Bytes::new()) };
        let doing = || format!("reading image {} at byte {offset}", self.key);
        let (reply, answer) = oneshot::channel();
        // Whoever asked may have gone away when the bytes come.
        let begun = image.read(offset, wanted, move |bytes| drop(reply.send(bytes)));
        drop(image);
        begun.map_err(|errno| self.place.error(doing(), errno))?;
        let answer = tokio::time::timeout(self.place.deadline(), answer).await;
        let answer = answer.ok().and_then(std::result::Result::ok).ok_or_else(|| self.place.overdue(doing()))?;
        let bytes = answer.map(Bytes::from).map_err(|errno| self.place.error(doing(), errno))?;
        self.check_still_there().await?;
        Ok(bytes)
    }

    async fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>> {
        let length = self.facts.length;
        if offset >= length {
            return Ok(None);
        }
        let objects = self.objects.get_or_try_init(|| self.data(0, length, true)).await?;
        let index = objects.partition_point(|(_, end)| *end <= offset);
        for (start, end) in objects.get(index..).unwrap_or_default() {
            let start = (*start).max(offset);
            // Which objects there are is known for all at once. How far they are filled each must be asked; the last one of a stretch
            // is, as the others join the next.
            let last =
                end.saturating_sub(1).checked_div(self.object_size).map_or(0, |n| n.saturating_mul(self.object_size));
            let last = last.max(start);
            let filled = self.data(last, *end, false).await?;
            let end = filled.last().map_or(last, |(_, end)| (*end).min(length));
            if start < end {
                return Ok(Some((start, end)));
            }
        }
        Ok(None)
    }
}

impl Drop for RbdReader {
    fn drop(&mut self) {
        if let Some(image) = self.image.take() {
            // Reads that nobody waits for any more keep it open; then it is closed behind them.
            self.place.clean_up(move |_| {
                let _ = Arc::into_inner(image).map(Image::close);
            });
        }
    }
}
