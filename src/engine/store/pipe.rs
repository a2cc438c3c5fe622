//! Standard output: what `vitrine convert` writes into a pipe.
//!
//! Takes the place of a store where the engine wants one. Knows one open file, which may be anything; knows nothing of formats. What was
//! written cannot be taken back: the program's exit code tells whether it counts.

use std::{
    fs::File,
    io::{self, Write as _},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;

use super::{ObjectStat, Sink, Store, describe, discard::Discard, layer::Layer, plain::blocking};
use crate::{
    error::{Error, Kind, Result},
    model::{ObjectKey, OutputFormat, Verified},
};

/// What holes are made of. As much at once as a pipe's reader gets anyway.
static ZEROS: [u8; 256 << 10] = [0; 256 << 10];

/// A stream that is written from its beginning to its end, holes as zeros.
#[derive(Clone, Debug)]
pub struct Pipe {
    file: Arc<File>,
    begun: Arc<AtomicBool>,
    closed: Arc<AtomicBool>,
}

impl Pipe {
    /// Standard output.
    ///
    /// # Errors
    /// If it is not open.
    pub fn stdout() -> Result<Self> {
        // A descriptor of its own, so that nothing stands in a buffer before it.
        let file = io::stdout().as_fd().try_clone_to_owned().map_err(|e| Error::io("opening standard output", e))?;
        Ok(Self { file: Arc::new(File::from(file)), begun: Arc::default(), closed: Arc::default() })
    }

    /// Whether its reader has gone.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    fn write(&self, mut zeros: u64, bytes: &[u8]) -> Result<()> {
        self.begun.store(true, Ordering::Relaxed);
        let mut file = self.file.as_ref();
        let mut write = || {
            while zeros > 0 {
                let part = ZEROS.get(..usize::try_from(zeros).unwrap_or(usize::MAX)).unwrap_or(&ZEROS);
                file.write_all(part)?;
                zeros = zeros.saturating_sub(part.len() as u64);
            }
            file.write_all(bytes)
        };
        write().map_err(|e| {
            self.closed.fetch_or(e.kind() == io::ErrorKind::BrokenPipe, Ordering::Relaxed);
            Error::io("writing to standard output", e)
        })
    }
}

#[async_trait]
impl Layer for Pipe {
    fn inner(&self) -> &dyn Store {
        &Discard
    }

    fn name(&self) -> &'static str {
        "standard output"
    }

    async fn create(&self, _key: &ObjectKey, _attempt: u32, format: OutputFormat) -> Result<Box<dyn Sink>> {
        if self.begun.load(Ordering::Relaxed) {
            let message = "this image has to be read once more from its beginning, and a part of it was written already: write it to a file";
            return Err(Error::new(Kind::InvalidInput, message));
        }
        Ok(Box::new(PipeSink { pipe: self.clone(), format, at: 0 }))
    }
}

struct PipeSink {
    pipe: Pipe,
    format: OutputFormat,
    at: u64,
}

impl PipeSink {
    /// Writes zeros up to `offset`, and then `bytes`.
    async fn append(&mut self, offset: u64, bytes: Bytes) -> Result<()> {
        let Some(zeros) = offset.checked_sub(self.at) else {
            let message =
                format!("byte {offset} of a stream that has come to byte {} was to be written; report this", self.at);
            return Err(Error::new(Kind::Internal, message));
        };
        self.at = offset.saturating_add(bytes.len() as u64);
        let pipe = self.pipe.clone();
        blocking(move || pipe.write(zeros, &bytes)).await
    }
}

#[async_trait]
impl Sink for PipeSink {
    fn takes_any_order(&self) -> bool {
        false
    }

    async fn write_at(&mut self, offset: u64, bytes: Bytes) -> Result<()> {
        self.append(offset, bytes).await
    }

    async fn commit(mut self: Box<Self>, length: u64, proof: &Verified) -> Result<ObjectStat> {
        self.append(length, Bytes::new()).await?;
        let image = describe(self.format, length, proof);
        Ok(ObjectStat { image, url: "standard output".to_owned(), allocated_size: length })
    }

    async fn abort(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
