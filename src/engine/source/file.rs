//! A local file, or standard input: where the command line gets images from.

use std::{
    fs::{File, FileType},
    io::{Read, Seek, SeekFrom},
    os::unix::fs::{FileExt, FileTypeExt as _, MetadataExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};

use super::{ByteStream, Opened, RangeReader, Source};
use crate::error::{Error, Kind, Result};

/// Bytes read at once: large enough that system calls cost nothing, small enough to stay in the processor's cache.
const PIECE: u64 = 1 << 20;

/// A file, block device or pipe by its path.
#[derive(Debug)]
pub struct FileSource {
    path: PathBuf,
    once: Once,
}

impl FileSource {
    /// A source at `path`, which is opened when it is read.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), once: Once::default() }
    }
}

#[async_trait]
impl Source for FileSource {
    fn describe(&self) -> String {
        self.path.display().to_string()
    }

    async fn open(&self) -> Result<Opened> {
        let path = self.path.clone();
        let (file, state) = run(move || open_file(&path)).await?;
        let name = self.describe();
        if state.is_none() {
            self.once.begin(&name)?;
        }
        let ranges = state.as_ref().map(|state| {
            Arc::new(FileRanges { file: Arc::clone(&file), state: state.clone(), name: name.clone() })
                as Arc<dyn RangeReader>
        });
        let length = state.as_ref().map(|state| state.length);
        let end = End { state, file: Arc::clone(&file) };
        Ok(Opened { length, shows_cuts: true, stream: read_all(file, name, Some(end)), ranges })
    }

    fn reopens(&self) -> bool {
        // What cannot be looked at cannot be opened either, and that says why.
        self.path.metadata().map_or(true, |metadata| can_seek(metadata.file_type()))
    }
}

/// Standard input.
#[derive(Debug, Default)]
pub struct StdinSource {
    once: Once,
}

#[async_trait]
impl Source for StdinSource {
    fn describe(&self) -> String {
        "standard input".to_owned()
    }

    async fn open(&self) -> Result<Opened> {
        self.once.begin(&self.describe())?;
        // A file of its own, so that nothing stands in a buffer between us and the pipe.
        let wrap = |e| Error::io("opening standard input", e);
        let file = std::io::stdin();
        let file = File::from(std::os::fd::AsFd::as_fd(&file).try_clone_to_owned().map_err(wrap)?);
        let stream = read_all(Arc::new(file), self.describe(), None);
        Ok(Opened { length: None, shows_cuts: true, stream, ranges: None })
    }

    fn reopens(&self) -> bool {
        false
    }
}

/// Lets something be read once: what a pipe has brought is gone, and what comes next is not its beginning.
#[derive(Debug, Default)]
struct Once(AtomicBool);

impl Once {
    fn begin(&self, name: &str) -> Result<()> {
        if self.0.swap(true, Ordering::Relaxed) {
            let message = format!("{name} can be read only once, and was: save it as a file first");
            return Err(Error::new(Kind::InvalidInput, message));
        }
        Ok(())
    }
}

/// Whether this has a beginning to go back to.
fn can_seek(kind: FileType) -> bool {
    kind.is_file() || kind.is_block_device()
}

/// What tells whether a file was written to while it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    length: u64,
    modified: (i64, i64),
}

impl State {
    /// The state of a file or block device; `None` for what cannot seek.
    fn of(file: &File) -> std::io::Result<Option<Self>> {
        let metadata = file.metadata()?;
        let kind = metadata.file_type();
        if !can_seek(kind) {
            return Ok(None);
        }
        let length = if kind.is_file() { metadata.len() } else { (&*file).seek(SeekFrom::End(0))? };
        (&*file).rewind()?;
        Ok(Some(Self { length, modified: (metadata.mtime(), metadata.mtime_nsec()) }))
    }

    fn check_unchanged(&self, file: &File, name: &str) -> Result<()> {
        let metadata = file.metadata().map_err(|e| Error::io(format!("looking at {name}"), e))?;
        let is_file = metadata.file_type().is_file();
        if is_file && (metadata.len() != self.length || (metadata.mtime(), metadata.mtime_nsec()) != self.modified) {
            return Err(Error::new(Kind::Changed, format!("{name}: the file was written to while it was read")));
        }
        Ok(())
    }
}

fn open_file(path: &Path) -> Result<(Arc<File>, Option<State>)> {
    let wrap = |e| Error::io(format!("opening {}", path.display()), e);
    let file = File::open(path).map_err(wrap)?;
    if file.metadata().map_err(wrap)?.is_dir() {
        return Err(Error::new(Kind::InvalidInput, format!("{} is a directory, not an image", path.display())));
    }
    let state = State::of(&file).map_err(wrap)?;
    Ok((Arc::new(file), state))
}

/// What is checked when the last byte has been read.
struct End {
    file: Arc<File>,
    state: Option<State>,
}

fn read_all(file: Arc<File>, name: String, end: Option<End>) -> ByteStream {
    let start = (file, name, end, 0_u64);
    let stream = stream::try_unfold(start, async |(file, name, end, position)| {
        run(move || {
            let mut piece = Vec::with_capacity(usize::try_from(PIECE).unwrap_or_default());
            (&*file)
                .take(PIECE)
                .read_to_end(&mut piece)
                .map_err(|e| Error::io(format!("reading {name} at byte {position}"), e))?;
            if piece.is_empty() {
                check_end(end.as_ref(), &name, position)?;
                return Ok(None);
            }
            let position = position.saturating_add(piece.len() as u64);
            Ok(Some((Bytes::from(piece), (file, name, end, position))))
        })
        .await
    });
    stream.boxed()
}

fn check_end(end: Option<&End>, name: &str, position: u64) -> Result<()> {
    let Some(End { file, state: Some(state) }) = end else { return Ok(()) };
    state.check_unchanged(file, name)?;
    if position == state.length {
        return Ok(());
    }
    Err(Error::new(Kind::Changed, format!("{name}: {position} bytes could be read of {}", state.length)))
}

struct FileRanges {
    file: Arc<File>,
    state: State,
    name: String,
}

#[async_trait]
impl RangeReader for FileRanges {
    fn is_near(&self) -> bool {
        true
    }

    async fn read_range(&self, offset: u64, length: u64) -> Result<Option<Bytes>> {
        let end = offset.saturating_add(length);
        if end > self.state.length {
            let message =
                format!("{}: bytes {offset} to {end} were asked for, the file has {}", self.name, self.state.length);
            return Err(Error::new(Kind::InvalidInput, message));
        }
        let (file, state, name) = (Arc::clone(&self.file), self.state.clone(), self.name.clone());
        run(move || {
            let mut piece = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
            file.read_exact_at(&mut piece, offset)
                .map_err(|e| Error::io(format!("reading {name} at byte {offset}"), e))?;
            state.check_unchanged(&file, &name)?;
            Ok(Some(piece.into()))
        })
        .await
    }
}

/// Runs blocking work where it may block.
async fn run<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::with_source(Kind::Internal, "a task that read a file ended on its own", e))?
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use futures::TryStreamExt;

    use super::*;

    async fn read(source: &dyn Source) -> Result<Vec<u8>> {
        let opened = source.open().await?;
        opened
            .stream
            .try_fold(Vec::new(), async |mut all, piece| {
                all.extend_from_slice(&piece);
                Ok(all)
            })
            .await
    }

    fn file_with(content: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        file
    }

    #[tokio::test]
    async fn a_file_is_read_in_order_and_by_range() {
        let content: Vec<u8> = (0..3_000_001_u32).map(|i| (i % 251) as u8).collect();
        let file = file_with(&content);
        let source = FileSource::new(file.path());
        assert_eq!(read(&source).await.unwrap(), content);
        let opened = source.open().await.unwrap();
        assert_eq!(opened.length, Some(3_000_001));
        let ranges = opened.ranges.unwrap();
        assert_eq!(ranges.read_range(2_999_999, 2).await.unwrap().unwrap(), &content[2_999_999..]);
        assert_eq!(ranges.read_range(2_999_999, 3).await.unwrap_err().kind(), Kind::InvalidInput);
    }

    #[tokio::test]
    async fn a_file_written_to_meanwhile_is_changed() {
        let mut file = file_with(&[1; 1000]);
        let opened = FileSource::new(file.path()).open().await.unwrap();
        file.write_all(&[2; 10]).unwrap();
        let error = opened.stream.try_fold((), async |(), _| Ok(())).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Changed);
        assert_eq!(opened.ranges.unwrap().read_range(0, 1).await.unwrap_err().kind(), Kind::Changed);
    }

    #[tokio::test]
    async fn what_cannot_go_back_is_read_once() {
        let file = file_with(b"abc");
        let source = FileSource::new(file.path());
        assert!(source.reopens());
        for _ in 0..2 {
            assert_eq!(read(&source).await.unwrap(), b"abc");
        }
        let source = FileSource::new("/dev/null");
        assert!(!source.reopens() && !StdinSource::default().reopens());
        read(&source).await.unwrap();
        let error = read(&source).await.unwrap_err();
        assert!(error.kind() == Kind::InvalidInput && error.to_string().contains("only once"), "{error}");
    }

    #[tokio::test]
    async fn what_is_no_file_is_said() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(&FileSource::new(folder.path())).await.unwrap_err().kind(), Kind::InvalidInput);
        let missing = FileSource::new(folder.path().join("no"));
        assert_eq!(read(&missing).await.unwrap_err().kind(), Kind::NotFound);
        assert!(read(&FileSource::new("/dev/null")).await.unwrap().is_empty());
    }
}
