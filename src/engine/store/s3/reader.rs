//! Reading a published object. It gives signs of life, so what it reads stays, also when it is deleted meanwhile.

use std::{io, ops::Range, sync::Arc};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use tokio::runtime::Handle;

use super::{
    super::ObjectReader,
    super::token::Token,
    extents::Extent,
    fault::Fault,
    index::{self, Found, State},
    lease::{self, Lease},
    place::Place,
    record::{self, Record},
};
use crate::{
    error::{Error, Kind, Result},
    model::{ObjectKey, StoredImage},
};

/// Requests of one read that are under way at once.
const READS: usize = 4;

/// The reader.
pub(super) struct S3Reader {
    place: Arc<Place>,
    key: ObjectKey,
    token: Token,
    record: Record,
    /// Dropped with it, which ends the signs of life and takes the last one away.
    _reading: Option<Reading>,
}

/// The signs of life of a reader.
struct Reading {
    place: Arc<Place>,
    path: Path,
    lease: Option<Lease>,
    runtime: Handle,
}

/// Bytes of one piece that are read at once, and where on the disk they belong.
struct Span {
    piece: u64,
    range: Range<u64>,
    extents: Vec<Extent>,
}

/// The entry of what is published under `key`, and which sink wrote it.
pub(super) async fn find(place: &Place, key: &ObjectKey) -> Result<(Found, Token)> {
    let found = index::get(place, key).await?.filter(|found| found.entry.state == State::Published);
    found.and_then(|found| found.entry.token.map(|token| (found, token))).ok_or_else(|| {
        let (store, bucket) = (place.name(), place.bucket());
        Error::new(
            Kind::NotFound,
            format!("store {store} (bucket {bucket}) holds no {key}; import it, or remove the location"),
        )
    })
}

/// The record of what is published under `key`. If it is deleted meanwhile, that of what is published then, if anything.
pub(super) async fn read_record(place: &Place, key: &ObjectKey) -> Result<Record> {
    loop {
        let (found, token) = find(place, key).await?;
        if let Some(record) = record::read(place, key, token).await? {
            return Ok(record);
        }
        if find(place, key).await?.0.entry == found.entry {
            return Err(lost(place, key, &place.layout().record(key, token), &Fault::NoObject));
        }
    }
}

impl S3Reader {
    /// Opens the object.
    pub(super) async fn open(place: &Arc<Place>, key: &ObjectKey) -> Result<Self> {
        loop {
            let (found, token) = find(place, key).await?;
            let reading = Reading::begin(place, key, token).await?;
            if find(place, key).await?.0.entry != found.entry {
                continue;
            }
            // From here on nothing of it is removed.
            let record = record::read(place, key, token).await?;
            let record =
                record.ok_or_else(|| lost(place, key, &place.layout().record(key, token), &Fault::NoObject))?;
            return Ok(Self { place: Arc::clone(place), key: key.clone(), token, record, _reading: reading });
        }
    }

    /// What is to be read for these bytes of the disk: neighbours in a piece at once, however far they are apart on the disk.
    fn spans(&self, start: u64, end: u64) -> Vec<Span> {
        let mut spans: Vec<Span> = Vec::new();
        for extent in self.record.table.within(start, end) {
            let mut rest = extent;
            while rest.length > 0 {
                let (piece, skip) = (rest.at / self.record.object_size, rest.at % self.record.object_size);
                let length = rest.length.min(self.record.object_size.saturating_sub(skip));
                let now = Extent { length, ..rest };
                let range = skip..skip.saturating_add(length);
                match spans.last_mut() {
                    Some(last) if last.piece == piece && last.range.end == range.start => {
                        last.range.end = range.end;
                        last.extents.push(now);
                    }
                    _ => spans.push(Span { piece, range, extents: vec![now] }),
                }
                rest = rest.within(rest.offset.saturating_add(length), u64::MAX);
            }
        }
        spans
    }

    async fn read_span(&self, span: Span) -> Result<(Span, Bytes)> {
        let path = self.place.layout().piece(&self.key, self.token, span.piece);
        let doing = format!("reading {path} of {}", self.key);
        match self.place.get_range(&path, span.range.clone(), &doing).await {
            Ok(bytes) if bytes.len() as u64 == span.range.end.saturating_sub(span.range.start) => Ok((span, bytes)),
            Ok(_) => Err(lost(&self.place, &self.key, &path, &Fault::TooShort)),
            Err(fault @ (Fault::NoObject | Fault::TooShort)) => Err(lost(&self.place, &self.key, &path, &fault)),
            Err(fault) => Err(self.place.fault(&doing, &fault)),
        }
    }
}

/// The error for a part of a published object that is not as it was written.
fn lost(place: &Place, key: &ObjectKey, path: &Path, fault: &Fault) -> Error {
    let (what, kind) = match fault {
        Fault::TooShort => ("shorter than it was written", io::ErrorKind::UnexpectedEof),
        _ => ("gone", io::ErrorKind::NotFound),
    };
    let message = format!(
        "store {}, bucket {}: {path}, a part of {key}, is {what}: somebody else removed or overwrote it; delete the object and import it \
         again",
        place.name(),
        place.bucket()
    );
    Error::with_source(Kind::Io, message, io::Error::from(kind))
}

#[async_trait]
impl ObjectReader for S3Reader {
    fn image(&self) -> &StoredImage {
        &self.record.image
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes> {
        let left = usize::try_from(self.record.image.length.saturating_sub(offset)).unwrap_or(usize::MAX);
        let wanted = length.min(left);
        let mut out = BytesMut::zeroed(wanted);
        let spans = self.spans(offset, offset.saturating_add(wanted as u64));
        let read = futures::stream::iter(spans).map(|span| self.read_span(span)).buffer_unordered(READS);
        read.try_for_each(|(span, mut bytes)| {
            for extent in &span.extents {
                let from = usize::try_from(extent.offset.saturating_sub(offset)).unwrap_or(usize::MAX);
                let now = bytes.split_to(bytes.len().min(usize::try_from(extent.length).unwrap_or(usize::MAX)));
                let to = out.get_mut(from..).unwrap_or_default();
                to.iter_mut().zip(now).for_each(|(to, from)| *to = from);
            }
            std::future::ready(Ok(()))
        })
        .await?;
        Ok(out.freeze())
    }

    async fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>> {
        Ok(self.record.table.next(offset))
    }
}

impl Reading {
    /// Gives the first sign of life, and others from then on. Who may only read reads without.
    async fn begin(place: &Arc<Place>, key: &ObjectKey, token: Token) -> Result<Option<Self>> {
        let path = place.layout().reader(key, token, rand::random());
        match lease::give(place, &path).await {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), Kind::Denied | Kind::NoSpace) => {
                tracing::debug!(store = place.name(), %key, %error, "is read without being seen");
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
        let lease = Some(Lease::keep(place, path.clone(), || std::future::ready(true)));
        Ok(Some(Self { place: Arc::clone(place), path, lease, runtime: Handle::current() }))
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let (place, path, lease) = (Arc::clone(&self.place), self.path.clone(), self.lease.take());
        self.place.clean_up(&self.runtime, async move {
            if let Some(lease) = lease {
                lease.end().await;
            }
            if let Err(error) = place.remove(vec![path], "taking a sign of life away").await {
                tracing::info!(store = place.name(), %error, "the last sign of life of a reader stays until it is swept");
            }
        });
    }
}
