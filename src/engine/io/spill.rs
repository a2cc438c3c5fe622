//! A bounded scratch file for bytes that came before their place was known.

use std::{
    fs::{File, OpenOptions},
    ops::Range,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::RangeSet;
use crate::error::{Error, Kind, Result};

/// A sparse file that holds parts of a stream at their own offsets. It has no name, so it is gone however the process ends.
#[derive(Debug)]
pub struct Spill {
    folder: PathBuf,
    file: Option<File>,
    held: RangeSet,
    written: u64,
    limit: u64,
}

impl Spill {
    /// A spill file in `folder` that takes `limit` bytes at most. The file is made when it is first needed.
    pub fn new(folder: &Path, limit: u64) -> Self {
        Self { folder: folder.to_owned(), file: None, held: RangeSet::default(), written: 0, limit }
    }

    /// Keeps `bytes`, which stand at `offset` of the stream.
    ///
    /// # Errors
    /// `Refused` past the limit; `NoSpace` or `Io` from the disk.
    pub fn keep(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.written = self.written.saturating_add(bytes.len() as u64);
        if self.written > self.limit {
            return Err(Error::new(
                Kind::Refused,
                format!(
                    "what is needed first stands so far behind the rest that more than {} bytes would have to wait on disk: \
                     rewrite the image with `qemu-img convert`, take it from a file or a server with ranges, or raise max-spill",
                    self.limit
                ),
            ));
        }
        let folder = self.folder.display().to_string();
        self.file()?
            .write_all_at(bytes, offset)
            .map_err(|e| Error::io(format!("writing the spill file in {folder}"), e))?;
        self.held.insert(offset..offset.saturating_add(bytes.len() as u64));
        Ok(())
    }

    /// Forgets what was kept, and gives its room back.
    pub fn clear(&mut self) {
        (self.file, self.held, self.written) = (None, RangeSet::default(), 0);
    }

    /// Whether all of `range` is kept.
    pub fn holds(&self, range: &Range<u64>) -> bool {
        self.held.contains(range)
    }

    /// Reads what was kept; `buffer` must lie within a range that `holds`.
    ///
    /// # Errors
    /// `Io` from the disk.
    pub fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let folder = self.folder.display().to_string();
        self.file()?
            .read_exact_at(buffer, offset)
            .map_err(|e| Error::io(format!("reading the spill file in {folder}"), e))
    }

    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// How many stretches are kept that do not touch.
    #[cfg(test)]
    pub fn stretches(&self) -> usize {
        self.held.count()
    }

    fn file(&mut self) -> Result<&File> {
        if self.file.is_none() {
            let name = format!(".vitrine-spill-{}-{:016x}", std::process::id(), rand::random::<u64>());
            let path = self.folder.join(name);
            let wrap = |e| Error::io(format!("making a spill file in {}", self.folder.display()), e);
            let file =
                OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path).map_err(wrap)?;
            std::fs::remove_file(&path).map_err(wrap)?;
            self.file = Some(file);
        }
        self.file.as_ref().ok_or_else(|| Error::new(Kind::Internal, "the spill file was not kept open"))
    }
}
