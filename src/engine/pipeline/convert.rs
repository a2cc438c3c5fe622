//! Conversion of a local file: the same pass as an import, but reading where the data is instead of from end to end.
//!
//! Nobody asked for the digest of the file's bytes here, so holes need not be read at all; that, and reading in the guest's order
//! without a window, is all that differs.

use std::{
    fs::{File, Metadata},
    ops::Range,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use rustix::{fs::SeekFrom, io::Errno};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::{
    Direct, Imported, Output, Progress, Stage, Target, Transfer, Transferred, container,
    deliver::{NamedSink, WrittenFile},
    import::imported,
    publish::{Joining, join_sinks, publish},
    sparse::{Holes, Sparse},
    transfer::{BUFFERS, Failed, transfer},
};
use crate::{
    error::{Error, Kind, Result},
    format::{self, DiskMap as _, Order},
    io::{FileReader, ReadAt},
    model::{ContainerFormat, DiskFormat, Evidence, Limits, ObjectKey, Properties, Received, Verified},
    store::DEADLINE,
    unpack,
};

/// A conversion to be done.
pub struct ConvertJob {
    /// The file or block device; `is_plain` holds for it.
    pub path: PathBuf,
    /// What the user says it is; `None` for whatever is found.
    pub disk_format: Option<DiskFormat>,
    /// Where it goes.
    pub target: Target,
    /// Its name there.
    pub key: ObjectKey,
    /// Bounds.
    pub limits: Limits,
    /// Threads that unpack, hash and encode.
    pub workers: usize,
}

/// Whether `path` can be read by offset, and nothing is around the disk in it.
///
/// # Errors
/// If it cannot be read.
pub fn is_plain(path: &Path) -> Result<bool> {
    let kind = path.metadata().map_err(|e| Error::io(format!("opening {}", path.display()), e))?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Ok(false);
    }
    let head = FileReader::open(path)?.read_up_to(0, unpack::HEAD)?;
    Ok(container::layer(&head).is_none())
}

/// Converts a file. The result tells no digest of the bytes received.
///
/// # Errors
/// The first thing that went wrong; nothing is left behind then.
pub async fn convert(job: ConvertJob, progress: &Arc<Progress>, cancel: &CancellationToken) -> Result<Imported> {
    let ConvertJob { path, disk_format, target, key, limits, workers } = job;
    let source = Plain::open(&path, progress)?;
    progress.enter(Stage::Transferring);
    let store = target.store.name().to_owned();
    let sink = target.store.create(&key, 1, target.output).await?;
    let encoder = format::encoder(target.output)?.into();
    let stop = cancel.child_token();
    let outputs = vec![Output { encoder, sinks: vec![NamedSink { store, sink }] }];
    let work = Transfer {
        outputs,
        require_all: true,
        limits,
        workers,
        buffers: BUFFERS,
        progress: progress.clone(),
        cancel: stop.clone(),
    };
    // If this future is dropped, the guard ends the threads.
    let _guard = stop.drop_guard();
    let handle = Handle::current();
    let done = tokio::task::spawn_blocking(move || move_all(source, &handle, disk_format, work)).await;
    let done = done.map_err(|e| Error::with_source(Kind::Internal, "the conversion's thread failed", e))?;
    let (files, evidence) = match done {
        Ok(done) => done,
        Err(failed) => return Err(failed.settle().await),
    };
    let mut published = Vec::new();
    let rules = Joining { require_all: true, patience: DEADLINE, stop: cancel };
    let sinks = join_sinks(files, rules, &mut published).await?;
    progress.enter(Stage::Publishing);
    let verified = Verified::try_from(evidence)?;
    publish(sinks, &verified, true, &mut published).await?;
    Ok(imported(&verified, published))
}

type Moved = (Vec<WrittenFile>, Evidence);

fn move_all(source: Plain, handle: &Handle, declared: Option<DiskFormat>, job: Transfer) -> Result<Moved, Failed> {
    let _runtime = handle.enter();
    let Plain { path, before, mut reader, holes } = source;
    let map = format::open(&mut reader, declared, &job.limits, Order::Tables);
    let map = map.and_then(|map| check_end(&mut reader, map.format()).map(|()| map));
    let map = match map {
        Ok(map) => map,
        Err(error) => return Err(Failed::before(error, job)),
    };
    let mut map = Sparse::new(map, FileHoles(holes));
    let source_format = map.format();
    let length = reader.length().unwrap_or(0);
    let Transferred { manifest, files } = transfer(&mut map, &mut Direct(reader), job)?;
    if let Err(error) = check_unchanged(&path, &before) {
        return Err(Failed::after(error, files));
    }
    let evidence = Evidence {
        received: Received { length, digests: Vec::new() },
        declared: Vec::new(),
        source_format,
        container_format: ContainerFormat::Bare,
        properties: Properties::new(),
        request: None,
        violations: Vec::new(),
        manifest,
    };
    Ok((files, evidence))
}

/// Refuses a file that ends as one of another format.
fn check_end(input: &mut dyn ReadAt, format: DiskFormat) -> Result<()> {
    let length = input.length().unwrap_or(0);
    let tail = input.read_up_to(length.saturating_sub(format::TAIL as u64), format::TAIL)?;
    Ok(format::check_tail(&tail, format)?)
}

/// A local file in the hands of a conversion.
struct Plain {
    path: PathBuf,
    before: Metadata,
    reader: Counted,
    holes: File,
}

impl Plain {
    fn open(path: &Path, progress: &Arc<Progress>) -> Result<Self> {
        let wrap = |e| Error::io(format!("opening {}", path.display()), e);
        let holes = File::open(path).map_err(wrap)?;
        let before = holes.metadata().map_err(wrap)?;
        let inner = FileReader::open(path)?;
        // What is read is what is allocated, never more than the length; a block device tells no blocks.
        let allocated = before.blocks().saturating_mul(512);
        let length = inner.length().unwrap_or(0);
        progress.enter(Stage::Connecting);
        progress.expect(Some(if before.is_file() { length.min(allocated) } else { length }));
        Ok(Self { path: path.to_owned(), before, reader: Counted { inner, progress: progress.clone() }, holes })
    }
}

fn check_unchanged(path: &Path, before: &Metadata) -> Result<()> {
    let after = path.metadata().map_err(|e| Error::io(format!("looking at {}", path.display()), e))?;
    let state = |m: &Metadata| (m.ino(), m.len(), m.mtime(), m.mtime_nsec());
    if !before.is_file() || state(before) == state(&after) {
        return Ok(());
    }
    Err(Error::new(Kind::Changed, format!("{}: the file was written to while it was read", path.display())))
}

/// Counts what is read.
struct Counted {
    inner: FileReader,
    progress: Arc<Progress>,
}

impl ReadAt for Counted {
    fn is_near(&self) -> bool {
        self.inner.is_near()
    }

    fn length(&self) -> Option<u64> {
        self.inner.length()
    }

    fn read_up_to(&mut self, offset: u64, length: usize) -> Result<Bytes> {
        let bytes = self.inner.read_up_to(offset, length)?;
        self.progress.receive(bytes.len() as u64);
        Ok(bytes)
    }
}

/// The holes of a file, as its file system tells them.
struct FileHoles(File);

impl Holes for FileHoles {
    fn next_data(&mut self, offset: u64) -> Option<Range<u64>> {
        let start = match rustix::fs::seek(&self.0, SeekFrom::Data(offset)) {
            Ok(start) => start,
            Err(Errno::NXIO) => {
                let end = rustix::fs::seek(&self.0, SeekFrom::End(0)).ok()?;
                return Some(end..end);
            }
            Err(_) => return None,
        };
        Some(start..rustix::fs::seek(&self.0, SeekFrom::Hole(start)).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;
    use crate::format::Place;

    /// Resolves a file as raw and gives the stretches: length, and whether it is data.
    fn stretches(file: &File, path: &Path) -> Vec<(u64, bool)> {
        let mut reader = FileReader::open(path).unwrap();
        let inner = format::open(&mut reader, Some(DiskFormat::Raw), &Limits::default(), Order::Tables).unwrap();
        let size = inner.virtual_size().unwrap();
        let mut map = Sparse::new(inner, FileHoles(file.try_clone().unwrap()));
        let (mut found, mut guest) = (Vec::new(), 0);
        while guest < size {
            let mapping = map.resolve(&mut reader, guest, size - guest).unwrap();
            guest += mapping.length;
            found.push((mapping.length, mapping.place != Place::Zero));
        }
        found
    }

    #[test]
    fn holes_are_not_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(64 << 20).unwrap();
        file.as_file().write_all_at(&vec![1; 1 << 20], 16 << 20).unwrap();
        file.as_file().sync_all().unwrap();
        let found = stretches(file.as_file(), file.path());
        assert_eq!(found, [(16 << 20, false), (1 << 20, true), (47 << 20, false)]);
    }

    #[test]
    fn a_file_without_holes_is_all_data() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().write_all_at(&vec![1; 3 << 20], 0).unwrap();
        assert_eq!(stretches(file.as_file(), file.path()), [(3 << 20, true)]);
    }
}
