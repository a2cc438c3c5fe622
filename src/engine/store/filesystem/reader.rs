//! Reading a published object. The files stay open, so a reader goes on when the object is deleted.

use std::{
    fs::File,
    io,
    os::{fd::AsFd, unix::fs::FileExt},
    sync::Arc,
};

use async_trait::async_trait;
use bytes::Bytes;
use rustix::{fs::SeekFrom, io::Errno};

use super::{super::ObjectReader, blocking, object, place::Place, record};
use crate::{
    error::{Error, Kind, Result},
    model::{ObjectKey, StoredImage},
};

/// The reader.
pub(super) struct FilesystemReader {
    place: Arc<Place>,
    key: ObjectKey,
    image: StoredImage,
    data: Arc<File>,
}

impl FilesystemReader {
    /// Opens the object; blocks.
    pub(super) fn open(place: &Arc<Place>, key: &ObjectKey) -> Result<Self> {
        let (data, image) = object::open(place, key)?;
        Ok(Self { place: Arc::clone(place), key: key.clone(), image, data: Arc::new(data.into()) })
    }
}

#[async_trait]
impl ObjectReader for FilesystemReader {
    fn image(&self) -> &StoredImage {
        &self.image
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes> {
        let left = usize::try_from(self.image.length.saturating_sub(offset)).unwrap_or(usize::MAX);
        let (data, wanted) = (Arc::clone(&self.data), length.min(left));
        let read = move || {
            let mut buffer = vec![0; wanted];
            data.read_exact_at(&mut buffer, offset).map(|()| Bytes::from(buffer))
        };
        blocking(move || Ok(read())).await?.map_err(|error| {
            let doing = format!("reading {} at byte {offset}", self.key);
            if error.kind() == io::ErrorKind::UnexpectedEof {
                let message = format!("store {}: {doing}: the file is shorter than recorded", self.place.name());
                return Error::with_source(Kind::Io, message, error);
            }
            self.place.error(&doing, record::errno(&error))
        })
    }

    async fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>> {
        let (data, length) = (Arc::clone(&self.data), self.image.length);
        if offset >= length {
            return Ok(None);
        }
        let found = blocking(move || Ok(find_data(&*data, offset))).await?;
        let found = found.map_err(|e| self.place.error(&format!("looking for data in {}", self.key), e))?;
        Ok(found.map(|(start, end)| (start, end.min(length))).filter(|(start, end)| start < end))
    }
}

/// The answers do not depend on the file's position, so several may ask at once.
pub(super) fn find_data(file: impl AsFd + Copy, offset: u64) -> std::result::Result<Option<(u64, u64)>, Errno> {
    let start = match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    Ok(Some((start, rustix::fs::seek(file, SeekFrom::Hole(start))?)))
}
