//! A store in memory: the reference for what every other store must do, and the fast one for tests.
//!
//! Holds pages sparsely, so an object may have any length. Knows nothing of files.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Capacity, ObjectEntry, ObjectReader, ObjectStat, Sink, Store, cut_off, describe, overtaken};
use crate::{
    error::{Error, Kind, Result},
    model::{ObjectKey, OutputFormat, StoredImage, Verified},
};

/// Granularity in which memory is given out, in bytes: small enough that a sparse disk of 1 TiB with scattered clusters stays
/// small, large enough that the map stays short.
const PAGE_LENGTH: usize = 64 << 10;
const PAGE: u64 = PAGE_LENGTH as u64;

/// The store.
#[derive(Clone)]
pub struct MemoryStore {
    name: String,
    shared: Arc<Shared>,
}

struct Shared {
    /// Bytes of pages that may be held, published or not.
    capacity: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<ObjectKey, Arc<Object>>,
    /// The sink that may publish each key: its attempt and ticket. After a deletion there is no ticket.
    owners: BTreeMap<ObjectKey, (u32, Option<u64>)>,
    sinks: BTreeMap<u64, Unfinished>,
    next_ticket: u64,
}

struct Unfinished {
    key: ObjectKey,
    attempt: u32,
    changed: Instant,
    allocated: u64,
}

struct Object {
    image: StoredImage,
    pages: BTreeMap<u64, Box<[u8]>>,
    published: Instant,
}

impl Object {
    fn allocated(&self) -> u64 {
        (self.pages.len() as u64).saturating_mul(PAGE)
    }
}

impl Shared {
    /// A panic elsewhere cannot leave the maps half changed: every change below is one insert or remove.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn used(&self) -> u64 {
        let objects = self.objects.values().map(|object| object.allocated()).fold(0, u64::saturating_add);
        self.sinks.values().map(|sink| sink.allocated).fold(objects, u64::saturating_add)
    }

    fn find(&self, store: &str, key: &ObjectKey) -> Result<Arc<Object>> {
        self.objects.get(key).cloned().ok_or_else(|| {
            Error::new(Kind::NotFound, format!("store {store} holds no {key}; import it, or remove the location"))
        })
    }
}

impl MemoryStore {
    /// A store that takes as much as there is memory.
    pub fn new(name: impl Into<String>) -> Self {
        Self::with_capacity(name, u64::MAX)
    }

    /// A store that is full with `capacity` bytes.
    pub fn with_capacity(name: impl Into<String>, capacity: u64) -> Self {
        Self { name: name.into(), shared: Arc::new(Shared { capacity, state: Mutex::default() }) }
    }

    fn stat_of(&self, key: &ObjectKey, object: &Object) -> ObjectStat {
        ObjectStat {
            image: object.image.clone(),
            url: format!("memory://{}/{key}", self.name),
            allocated_size: object.allocated(),
        }
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn name(&self) -> &str {
        &self.name
    }

    async fn create(&self, key: &ObjectKey, attempt: u32, format: OutputFormat) -> Result<Box<dyn Sink>> {
        let mut state = self.shared.lock();
        if state.objects.contains_key(key) {
            return Err(exists(&self.name, key));
        }
        match state.owners.get(key) {
            Some((latest, _)) if *latest > attempt => return Err(overtaken(&self.name, key, attempt, *latest)),
            Some((latest, None)) if *latest == attempt => return Err(deleted(&self.name, key, attempt)),
            _ => {}
        }
        state.sinks.retain(|_, sink| sink.key != *key);
        let ticket = state.next_ticket;
        state.next_ticket = ticket.wrapping_add(1);
        state.owners.insert(key.clone(), (attempt, Some(ticket)));
        state.sinks.insert(ticket, Unfinished { key: key.clone(), attempt, changed: Instant::now(), allocated: 0 });
        drop(state);
        let (store, key) = (self.clone(), key.clone());
        Ok(Box::new(MemorySink { store, key, attempt, ticket, format, pages: BTreeMap::new(), end: 0 }))
    }

    async fn open(&self, key: &ObjectKey) -> Result<Arc<dyn ObjectReader>> {
        Ok(Arc::new(MemoryReader { object: self.shared.lock().find(&self.name, key)? }))
    }

    async fn stat(&self, key: &ObjectKey) -> Result<ObjectStat> {
        let object = self.shared.lock().find(&self.name, key)?;
        Ok(self.stat_of(key, &object))
    }

    async fn delete(&self, key: &ObjectKey, attempt: u32) -> Result<()> {
        let mut state = self.shared.lock();
        if let Some((latest, _)) = state.owners.get(key).filter(|(latest, _)| *latest > attempt) {
            return Err(overtaken(&self.name, key, attempt, *latest));
        }
        state.owners.insert(key.clone(), (attempt, None));
        state.objects.remove(key);
        state.sinks.retain(|_, sink| sink.key != *key);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<ObjectEntry>> {
        let state = self.shared.lock();
        let published = state.objects.iter().map(|(key, object)| ObjectEntry {
            key: Some(key.clone()),
            name: key.to_string(),
            published: true,
            age_seconds: object.published.elapsed().as_secs(),
        });
        let unfinished = state.sinks.values().map(|sink| ObjectEntry {
            key: Some(sink.key.clone()),
            name: unfinished_name(sink),
            published: false,
            age_seconds: sink.changed.elapsed().as_secs(),
        });
        Ok(published.chain(unfinished).collect())
    }

    /// A sink that is gone took its pages along, so what is unfinished here is always being written.
    async fn sweep(&self, _older_than: Duration) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    async fn probe(&self) -> Result<()> {
        Ok(())
    }

    async fn capacity(&self) -> Result<Option<Capacity>> {
        let total = self.shared.capacity;
        Ok(Some(Capacity { total, available: total.saturating_sub(self.shared.lock().used()) }))
    }
}

fn unfinished_name(sink: &Unfinished) -> String {
    format!("{}-a{} (unfinished)", sink.key, sink.attempt)
}

fn exists(store: &str, key: &ObjectKey) -> Error {
    Error::new(Kind::AlreadyExists, format!("store {store} already holds {key}; delete it before it is written anew"))
}

fn deleted(store: &str, key: &ObjectKey, attempt: u32) -> Error {
    Error::new(
        Kind::Conflict,
        format!("store {store}: {key} was deleted with attempt {attempt}; a later one can write it"),
    )
}

struct MemorySink {
    store: MemoryStore,
    key: ObjectKey,
    attempt: u32,
    ticket: u64,
    format: OutputFormat,
    pages: BTreeMap<u64, Box<[u8]>>,
    /// Where the furthest write ended.
    end: u64,
}

impl MemorySink {
    /// Counts a page that is about to be added.
    fn reserve(&self) -> Result<()> {
        let mut state = self.store.shared.lock();
        let available = self.store.shared.capacity.saturating_sub(state.used());
        if available < PAGE {
            return Err(Error::new(
                Kind::NoSpace,
                format!(
                    "store {}: no room for {}: {PAGE} bytes needed, {available} available; delete images or enlarge it",
                    self.store.name, self.key
                ),
            ));
        }
        if let Some(sink) = state.sinks.get_mut(&self.ticket) {
            sink.allocated = sink.allocated.saturating_add(PAGE);
            sink.changed = Instant::now();
        }
        Ok(())
    }

    fn publish(&mut self, length: u64, proof: &Verified) -> Result<ObjectStat> {
        let (store, key) = (&self.store.name, &self.key);
        if self.end > length {
            return Err(cut_off(store, key, length, self.end));
        }
        let mut state = self.store.shared.lock();
        let (latest, owner) = state.owners.get(key).copied().unwrap_or((self.attempt, None));
        if owner != Some(self.ticket) || !state.sinks.contains_key(&self.ticket) {
            return Err(overtaken(store, key, self.attempt, latest));
        }
        if state.objects.contains_key(key) {
            return Err(exists(store, key));
        }
        let image = describe(self.format, length, proof);
        let object = Arc::new(Object { image, pages: std::mem::take(&mut self.pages), published: Instant::now() });
        state.sinks.remove(&self.ticket);
        state.objects.insert(key.clone(), Arc::clone(&object));
        Ok(self.store.stat_of(key, &object))
    }
}

#[async_trait]
impl Sink for MemorySink {
    async fn write_at(&mut self, offset: u64, bytes: Bytes) -> Result<()> {
        let end = offset.checked_add(bytes.len() as u64).ok_or_else(|| {
            Error::new(Kind::InvalidInput, format!("{} bytes at {offset} end past the largest offset", bytes.len()))
        })?;
        let mut rest = bytes.as_ref();
        let mut at = offset;
        while !rest.is_empty() {
            let (page, skip) = (at / PAGE, usize::try_from(at % PAGE).unwrap_or_default());
            if !self.pages.contains_key(&page) {
                self.reserve()?;
            }
            let content = self.pages.entry(page).or_insert_with(|| vec![0; PAGE_LENGTH].into());
            let target = content.get_mut(skip..).unwrap_or_default();
            let count = target.len().min(rest.len());
            let (now, later) = rest.split_at(count);
            target.iter_mut().zip(now).for_each(|(to, from)| *to = *from);
            rest = later;
            at = at.saturating_add(count as u64);
        }
        self.end = self.end.max(end);
        Ok(())
    }

    async fn commit(mut self: Box<Self>, length: u64, proof: &Verified) -> Result<ObjectStat> {
        self.publish(length, proof)
    }

    async fn abort(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

impl Drop for MemorySink {
    fn drop(&mut self) {
        self.store.shared.lock().sinks.remove(&self.ticket);
    }
}

struct MemoryReader {
    object: Arc<Object>,
}

#[async_trait]
impl ObjectReader for MemoryReader {
    fn image(&self) -> &StoredImage {
        &self.object.image
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes> {
        let left = usize::try_from(self.object.image.length.saturating_sub(offset)).unwrap_or(usize::MAX);
        let wanted = length.min(left);
        let mut out = Vec::with_capacity(wanted);
        let mut at = offset;
        while out.len() < wanted {
            let skip = usize::try_from(at % PAGE).unwrap_or_default();
            let count = PAGE_LENGTH.saturating_sub(skip).min(wanted.saturating_sub(out.len()));
            let stored = self.object.pages.get(&(at / PAGE)).and_then(|page| page.get(skip..)?.get(..count));
            match stored {
                Some(bytes) => out.extend_from_slice(bytes),
                None => out.resize(out.len().saturating_add(count), 0),
            }
            at = at.saturating_add(count as u64);
        }
        Ok(out.into())
    }

    async fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>> {
        let length = self.object.image.length;
        if offset >= length {
            return Ok(None);
        }
        let mut pages = self.object.pages.range(offset / PAGE..).map(|(page, _)| *page);
        let Some(first) = pages.next() else { return Ok(None) };
        let mut end = first.saturating_add(1);
        while pages.next() == Some(end) {
            end = end.saturating_add(1);
        }
        let start = first.saturating_mul(PAGE).max(offset);
        Ok((start < length).then(|| (start, end.saturating_mul(PAGE).min(length))))
    }
}
