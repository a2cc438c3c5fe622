//! Goes on where a writer died: finds out what of a content its leftover holds, so that only the rest is moved.
//!
//! Nothing is taken for granted: every chunk that is kept was read and held against its digest, and everything else reads as zeros
//! afterwards. Knows chunks and digests; must not know why the writer died, nor what it read from.

use futures::{StreamExt as _, TryStreamExt as _};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use super::{Progress, publish::Placing};
use crate::{
    error::{Error, Kind, Result},
    format::{DiskMap, Mapping, Place},
    io::{ReadAt, is_zero},
    model::{CHUNK_SIZE, ChunkDigest, ContentManifest, DiskFormat, OutputFormat},
    store::{CERTAINTY, Leftover, Resumed, Sink, Store, answer_within},
};

/// What is known of the content that is to be written, so that what is left of it can be told.
#[derive(Clone, Copy)]
pub struct Known<'a> {
    /// The content.
    pub manifest: &'a ContentManifest,
    /// How many chunks are looked at at once.
    pub workers: usize,
    /// Where to tell how far it is.
    pub progress: &'a Progress,
}

/// Begins to write to `store`, over what a dead writer left there if possible; gives the chunks that need not be written, ascending.
///
/// # Errors
/// As `Store::create`.
pub async fn begin(
    job: &Placing<'_>,
    store: &dyn Store,
    output: OutputFormat,
    known: Known<'_>,
    stop: &CancellationToken,
) -> Result<(Box<dyn Sink>, Vec<ChunkDigest>)> {
    let (name, patience) = (store.name(), job.patience.saturating_add(CERTAINTY));
    let resuming = store.resume(job.key, job.attempt, output);
    let Resumed { sink, left } = answer_within(patience, name, "beginning to write", stop, resuming).await?;
    let Some(left) = left else { return Ok((sink, Vec::new())) };
    let looked = Look { job, store: name, left: &*left, known, stop }.keep().await;
    drop(left);
    match looked {
        Ok(kept) => {
            let of = known.manifest.chunks.len();
            tracing::info!(store = name, key = %job.key, kept = kept.len(), of, "going on where a killed writer stopped");
            Ok((sink, kept))
        }
        Err(error) if error.kind() == Kind::Cancelled => {
            sink.abort().await?;
            Err(error)
        }
        Err(error) => {
            tracing::warn!(store = name, key = %job.key, %error, "what a killed writer left is of no use; beginning again");
            sink.abort().await?;
            let created = store.create(job.key, job.attempt, output);
            Ok((answer_within(job.patience, name, "beginning to write", stop, created).await?, Vec::new()))
        }
    }
}

/// A look at a leftover.
struct Look<'a> {
    job: &'a Placing<'a>,
    store: &'a str,
    left: &'a dyn Leftover,
    known: Known<'a>,
    stop: &'a CancellationToken,
}

impl Look<'_> {
    /// The chunks that are right. All others are zeros then.
    async fn keep(&self) -> Result<Vec<ChunkDigest>> {
        let indices = self.with_data().await?;
        let looks = indices.into_iter().map(|index| self.look(index));
        let found = futures::stream::iter(looks).buffered(self.known.workers.max(1));
        found.try_filter_map(async |chunk| Ok(chunk)).try_collect().await
    }

    /// The chunks of which anything is there.
    async fn with_data(&self) -> Result<Vec<u64>> {
        let (mut indices, mut at) = (Vec::new(), 0);
        let size = self.known.manifest.virtual_size;
        while at < size {
            let Some((start, end)) = self.ask("looking for data", self.left.next_data(at)).await? else { break };
            let (first, last) = (start.max(at) / CHUNK_SIZE, end.min(size).div_ceil(CHUNK_SIZE));
            indices.extend(first..last);
            at = last.saturating_mul(CHUNK_SIZE).max(end);
        }
        Ok(indices)
    }

    /// The chunk if it is right; else it is cleared.
    async fn look(&self, index: u64) -> Result<Option<ChunkDigest>> {
        let bytes = self.read(index).await?;
        let chunks = &self.known.manifest.chunks;
        let found = chunks.binary_search_by_key(&index, |chunk| chunk.index);
        let wanted = found.ok().and_then(|at| chunks.get(at)).copied();
        let looked = spawn_blocking(move || {
            let right = wanted.filter(|chunk| *blake3::hash(&bytes).as_bytes() == chunk.digest);
            (right, bytes.len(), is_zero(&bytes))
        });
        let (right, length, empty) =
            looked.await.map_err(|e| Error::with_source(Kind::Internal, "looking at a chunk", e))?;
        match right {
            Some(_) => self.known.progress.receive(length as u64),
            None if empty => {}
            None => self.clear(index).await?,
        }
        Ok(right)
    }

    async fn clear(&self, index: u64) -> Result<()> {
        let start = index.saturating_mul(CHUNK_SIZE);
        let end = start.saturating_add(CHUNK_SIZE);
        self.ask("clearing a chunk", self.left.clear(start, end)).await?;
        // It is written next, or never: then what is not zero would stay.
        if is_zero(&self.read(index).await?) {
            return Ok(());
        }
        Err(Error::new(Kind::Io, format!("store {}: bytes {start} to {end} do not become zeros", self.store)))
    }

    /// All of a chunk.
    async fn read(&self, index: u64) -> Result<Vec<u8>> {
        let start = index.saturating_mul(CHUNK_SIZE);
        let length = self.known.manifest.virtual_size.saturating_sub(start).min(CHUNK_SIZE);
        let length = usize::try_from(length).unwrap_or_default();
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            let at = start.saturating_add(bytes.len() as u64);
            let reading = self.left.read_at(at, length.saturating_sub(bytes.len()));
            let more = self.ask("reading what is left", reading).await?;
            if more.is_empty() {
                bytes.resize(length, 0);
            }
            bytes.extend_from_slice(&more);
        }
        Ok(bytes)
    }

    async fn ask<T>(&self, doing: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        answer_within(self.job.patience, self.store, doing, self.stop, work).await
    }
}

/// The chunks that are in both lists, which ascend.
pub fn common(one: &[ChunkDigest], other: &[ChunkDigest]) -> Vec<ChunkDigest> {
    let is_there = |chunk: &&ChunkDigest| other.binary_search_by_key(&chunk.index, |other| other.index).is_ok();
    one.iter().filter(is_there).copied().collect()
}

/// `moved` with the chunks that were `kept`.
pub fn complete(moved: ContentManifest, kept: Vec<ChunkDigest>) -> ContentManifest {
    let ContentManifest { virtual_size, mut chunks } = moved;
    chunks.extend(kept);
    chunks.sort_unstable_by_key(|chunk| chunk.index);
    ContentManifest { virtual_size, chunks }
}

/// A map of a disk that leaves chunks out which are where they shall be.
pub struct Without<'a> {
    inner: &'a mut dyn DiskMap,
    /// Ascending.
    kept: &'a [ChunkDigest],
}

impl<'a> Without<'a> {
    /// `inner` without `kept`.
    pub fn new(inner: &'a mut dyn DiskMap, kept: &'a [ChunkDigest]) -> Self {
        Self { inner, kept }
    }

    /// The end of the stretch that begins at or before `guest`, and whether it is left out.
    fn stretch(&self, guest: u64) -> (u64, bool) {
        let index = guest / CHUNK_SIZE;
        let at = self.kept.partition_point(|chunk| chunk.index < index);
        match self.kept.get(at) {
            Some(chunk) if chunk.index == index => (index.saturating_add(1).saturating_mul(CHUNK_SIZE), true),
            Some(chunk) => (chunk.index.saturating_mul(CHUNK_SIZE), false),
            None => (u64::MAX, false),
        }
    }
}

impl DiskMap for Without<'_> {
    fn format(&self) -> DiskFormat {
        self.inner.format()
    }

    fn virtual_size(&self) -> Option<u64> {
        self.inner.virtual_size()
    }

    fn may_read_twice(&self) -> bool {
        self.inner.may_read_twice()
    }

    fn check_length(&self, length: u64) -> Result<()> {
        self.inner.check_length(length)
    }

    fn finish(&mut self, input: &mut dyn ReadAt) -> Result<()> {
        self.inner.finish(input)
    }

    fn resolve(&mut self, input: &mut dyn ReadAt, guest: u64, most: u64) -> Result<Mapping> {
        let (end, left_out) = self.stretch(guest);
        let most = most.min(end.saturating_sub(guest));
        // Where the disk ends is told by reading to its end, unless it is known.
        if left_out && self.inner.virtual_size().is_some() {
            return Ok(Mapping { length: most, place: Place::Zero });
        }
        self.inner.resolve(input, guest, most)
    }
}
