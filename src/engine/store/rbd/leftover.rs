//! What a dead writer left in an image, for the sink that goes on with it.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{OnceCell, oneshot};

use super::{super::Leftover, place::Place, writing::Writing};
use crate::error::{Error, Kind, Result};

/// The image, which is the sink's now.
pub(super) struct RbdLeftover {
    writing: Arc<Writing>,
    length: u64,
    /// Which objects there are, as joined stretches, once that was asked for.
    objects: OnceCell<Vec<(u64, u64)>>,
}

impl RbdLeftover {
    /// What is in the image of `writing`, `length` bytes long.
    pub(super) fn of(writing: &Arc<Writing>, length: u64) -> Self {
        Self { writing: Arc::clone(writing), length, objects: OnceCell::new() }
    }

    fn place(&self) -> &Arc<Place> {
        self.writing.place()
    }

    async fn objects(&self) -> Result<Vec<(u64, u64)>> {
        let (writing, length) = (Arc::clone(&self.writing), self.length);
        let doing = format!("looking for data in image {}", self.writing.name());
        let work = move |place: &Arc<Place>| {
            let data = writing.image()?.data(0, length, true);
            data.map_err(|errno| place.error(format!("looking for data in image {}", writing.name()), errno))
        };
        self.place().call(doing, work).await
    }
}

#[async_trait]
impl Leftover for RbdLeftover {
    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes> {
        let left = usize::try_from(self.length.saturating_sub(offset)).unwrap_or(usize::MAX);
        let wanted = length.min(left);
        if wanted == 0 {
            return Ok(Bytes::new());
        }
        let doing = || format!("reading image {} at byte {offset}", self.writing.name());
        let (reply, answer) = oneshot::channel();
        // Whoever asked may have gone away when the bytes come.
        let begun = self.writing.image()?.read(offset, wanted, move |bytes| drop(reply.send(bytes)));
        begun.map_err(|errno| self.place().error(doing(), errno))?;
        let answer = tokio::time::timeout(self.place().deadline(), answer).await;
        let answer = answer.ok().and_then(std::result::Result::ok).ok_or_else(|| self.place().overdue(doing()))?;
        answer.map(Bytes::from).map_err(|errno| self.place().error(doing(), errno))
    }

    async fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>> {
        let objects = self.objects.get_or_try_init(|| self.objects()).await?;
        let index = objects.partition_point(|(_, end)| *end <= offset);
        Ok(objects.get(index).map(|(start, end)| ((*start).max(offset), *end)))
    }

    async fn clear(&self, start: u64, end: u64) -> Result<()> {
        let (writing, length) = (Arc::clone(&self.writing), self.length);
        let doing = format!("clearing a part of image {}", self.writing.name());
        let work = move |place: &Arc<Place>| {
            let failed = |errno| place.error(format!("clearing a part of image {}", writing.name()), errno);
            let image = writing.image()?;
            let object = image.object_size().map_err(failed)?;
            // librbd leaves parts of objects as they are.
            if !start.is_multiple_of(object) || !(end.is_multiple_of(object) || end >= length) {
                let message = format!("store {}: objects of {object} bytes are longer than a chunk", place.name());
                return Err(Error::new(Kind::InvalidInput, message));
            }
            image.discard(start, end.min(length).saturating_sub(start)).map_err(failed)
        };
        self.place().call(doing, work).await
    }
}
