//! Sources in memory that behave as a test wants, and imports with the usual settings.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio_util::sync::CancellationToken;
use vitrine_engine::{
    error::{Error, Kind, Result},
    model::{Compression, DiskFormat, Limits, ObjectKey, OutputFormat},
    pipeline::{Import, Imported, Progress, Target, import},
    source::{Opened, RangeReader, Source},
    store::{Store, memory::MemoryStore},
};

/// Bytes in memory as a source.
pub struct Bytestream {
    /// What the stream brings.
    pub bytes: Bytes,
    /// What range requests bring; `None` if there are none.
    pub ranges: Option<Bytes>,
    /// Whether the length is told.
    pub sized: bool,
    /// Whether it can be read only once.
    pub once: bool,
    /// Whether a cut would show.
    pub shows_cuts: bool,
    /// The stream fails after this many bytes.
    pub cut: Option<usize>,
    /// How often it was opened.
    pub opened: AtomicUsize,
}

impl Bytestream {
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        Self {
            bytes: bytes.into(),
            ranges: None,
            sized: true,
            once: false,
            shows_cuts: true,
            cut: None,
            opened: AtomicUsize::new(0),
        }
    }

    pub fn file(path: &Path) -> Self {
        Self::new(std::fs::read(path).unwrap())
    }

    pub fn ranged(mut self) -> Self {
        self.ranges = Some(self.bytes.clone());
        self
    }
}

struct Ranges(Bytes);

#[async_trait]
impl RangeReader for Ranges {
    async fn read_range(&self, offset: u64, length: u64) -> Result<Option<Bytes>> {
        let start = usize::try_from(offset).unwrap();
        Ok(Some(self.0.slice(start..start + usize::try_from(length).unwrap())))
    }
}

#[async_trait]
impl Source for Bytestream {
    fn describe(&self) -> String {
        "memory".into()
    }

    fn reopens(&self) -> bool {
        !self.once
    }

    async fn open(&self) -> Result<Opened> {
        self.opened.fetch_add(1, Ordering::SeqCst);
        let bytes = self.bytes.clone();
        let end = self.cut.unwrap_or(bytes.len());
        // An odd piece size, so that nothing lines up with clusters by accident.
        let pieces = (0..end).step_by(77_777).map(move |at| Ok(bytes.slice(at..end.min(at + 77_777))));
        let fault = self.cut.map(|at| Err(Error::new(Kind::Unavailable, format!("cut after {at} bytes"))));
        Ok(Opened {
            shows_cuts: self.shows_cuts,
            length: self.sized.then_some(self.bytes.len() as u64),
            stream: stream::iter(pieces.collect::<Vec<_>>()).chain(stream::iter(fault)).boxed(),
            ranges: self.ranges.clone().map(|bytes| Arc::new(Ranges(bytes)) as _),
        })
    }
}

pub const QCOW2_ZSTD: OutputFormat = OutputFormat {
    disk_format: DiskFormat::Qcow2,
    subformat: None,
    compression: Compression::Zstd,
    cluster_size: 64 << 10,
};

/// An import of `source` into `targets`.
pub fn job(source: impl Source + 'static, targets: Vec<(Arc<dyn Store>, OutputFormat)>) -> Import {
    Import {
        source: Arc::new(source),
        disk_format: None,
        container_format: None,
        container_disk: None,
        checksums: Vec::new(),
        request: None,
        key: ObjectKey::new("5f1d8a3e-uid", 1).unwrap(),
        attempt: 1,
        targets: targets.into_iter().map(|(store, output)| Target { store, output }).collect(),
        require_all: true,
        permit: None,
        limits: Limits::default(),
        scratch: std::env::temp_dir(),
        workers: 2,
    }
}

pub fn memory() -> Arc<MemoryStore> {
    Arc::new(MemoryStore::new("memory"))
}

pub async fn run(job: &Import) -> Result<Imported> {
    import(job, &Arc::new(Progress::default()), &CancellationToken::new()).await
}

/// Everything a store holds for the test's key, as the published bytes.
pub async fn stored(store: &dyn Store) -> Vec<u8> {
    let reader = store.open(&ObjectKey::new("5f1d8a3e-uid", 1).unwrap()).await.unwrap();
    let length = usize::try_from(reader.image().length).unwrap();
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        bytes.extend_from_slice(&reader.read_at(bytes.len() as u64, 1 << 20).await.unwrap());
    }
    bytes
}

/// A disk of `length` bytes that looks like one: an MBR signature, text, noise and holes.
pub fn disk(length: usize) -> Vec<u8> {
    let mut bytes = vec![0_u8; length];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for (i, block) in bytes.chunks_mut(65_536).enumerate() {
        match i % 4 {
            0 => block.iter_mut().for_each(|b| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *b = u8::try_from(state >> 56).unwrap();
            }),
            1 => block.iter_mut().enumerate().for_each(|(j, b)| *b = b"a line of text\n"[(i + j) % 15]),
            _ => {}
        }
    }
    bytes[510] = 0x55;
    bytes[511] = 0xaa;
    bytes[446..510].fill(0);
    bytes
}
