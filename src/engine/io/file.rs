//! A local file as a `ReadAt`.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use bytes::Bytes;

use super::ReadAt;
use crate::error::{Error, Kind, Result};

/// Reads a regular file or block device by offset.
#[derive(Debug)]
pub struct FileReader {
    file: File,
    path: PathBuf,
    length: u64,
}

impl FileReader {
    /// Opens `path`.
    ///
    /// # Errors
    /// If it cannot be opened, or is neither a regular file nor a block device.
    pub fn open(path: &Path) -> Result<Self> {
        let wrap = |e: io::Error| Error::io(format!("opening {}", path.display()), e);
        let file = File::open(path).map_err(wrap)?;
        let kind = file.metadata().map_err(wrap)?.file_type();
        if kind.is_dir() {
            return Err(Error::new(Kind::InvalidInput, format!("{} is a directory, not an image", path.display())));
        }
        // Seeking to the end also tells the size of a block device, where metadata says 0.
        let length = io::Seek::seek(&mut &file, io::SeekFrom::End(0)).map_err(wrap)?;
        Ok(Self { file, path: path.to_owned(), length })
    }
}

impl ReadAt for FileReader {
    fn is_near(&self) -> bool {
        true
    }

    fn length(&self) -> Option<u64> {
        Some(self.length)
    }

    fn read_up_to(&mut self, offset: u64, length: usize) -> Result<Bytes> {
        let available = usize::try_from(self.length.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut buffer = vec![0_u8; length.min(available)];
        self.file
            .read_exact_at(&mut buffer, offset)
            .map_err(|e| Error::io(format!("reading {} at byte {offset}", self.path.display()), e))?;
        Ok(buffer.into())
    }
}
