//! One file under a name that a user chose: what `vitrine convert` writes.
//!
//! Takes the place of a store where the engine wants one. Knows files; knows nothing of formats. Unlike the filesystem store
//! it keeps no record beside the data: the file is the user's from then on.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use rustix::{
    fs::{CWD, RenameFlags},
    io::Errno,
};

use super::{
    ObjectStat, Sink, Store,
    data_file::{DataFile, open_direct},
    describe,
    discard::Discard,
    layer::Layer,
};
use crate::{
    error::{Error, Kind, Result},
    model::{ObjectKey, OutputFormat, Verified},
};

/// Permissions of a new file before the user's umask, as for every ordinary file.
const MODE: u32 = 0o666;

/// A file to be written, whole or not at all.
#[derive(Clone, Debug)]
pub struct PlainFile {
    path: PathBuf,
    replace: bool,
}

impl PlainFile {
    /// The file at `path`. One that is there already is only replaced with `replace`.
    pub fn new(path: impl Into<PathBuf>, replace: bool) -> Self {
        Self { path: path.into(), replace }
    }

    /// Whether the file may be written; asked before any work is done, and again by `commit`.
    ///
    /// # Errors
    /// `AlreadyExists`, or `InvalidInput` if something else than a regular file is in its place.
    pub fn check(&self) -> Result<()> {
        let path = self.path.display();
        match self.path.symlink_metadata() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error::io(format!("looking at {path}"), e)),
            Ok(found) if !found.is_file() => {
                let message = format!("{path} is there and is no regular file: name a file that is to be written");
                Err(Error::new(Kind::InvalidInput, message))
            }
            Ok(_) if self.replace => Ok(()),
            Ok(_) => Err(exists(&self.path)),
        }
    }

    fn begin(&self, format: OutputFormat) -> Result<PlainSink> {
        let folder = folder_of(&self.path);
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let partial = folder.join(format!(".{name}.partial-{:016x}", rand::random::<u64>()));
        let file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&partial);
        let file = file.map_err(|e| Error::io(format!("making a file in {}", folder.display()), e))?;
        let cloned = file.try_clone().map_err(|e| Error::io(format!("making a file in {}", folder.display()), e))?;
        let written = Arc::new(OwnedFd::from(cloned));
        let direct = open_direct(CWD, &partial, &written);
        let data = Arc::new(Mutex::new(DataFile::new(written, direct)));
        Ok(PlainSink { file, data, partial: Some(partial), target: self.clone(), format })
    }
}

/// A path without a folder is in the current one.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn exists(path: &Path) -> Error {
    let message = format!("{} exists: choose another name, or replace it with --force", path.display());
    Error::new(Kind::AlreadyExists, message)
}

#[async_trait]
impl Layer for PlainFile {
    fn inner(&self) -> &dyn Store {
        &Discard
    }

    fn name(&self) -> &str {
        self.path.to_str().unwrap_or("the output file")
    }

    async fn create(&self, _key: &ObjectKey, _attempt: u32, format: OutputFormat) -> Result<Box<dyn Sink>> {
        let target = self.clone();
        blocking(move || Ok(Box::new(target.begin(format)?) as Box<dyn Sink>)).await
    }
}

struct PlainSink {
    file: File,
    data: Arc<Mutex<DataFile>>,
    /// The private name, until the file has its own.
    partial: Option<PathBuf>,
    target: PlainFile,
    format: OutputFormat,
}

impl PlainSink {
    fn publish(mut self, length: u64, proof: &Verified) -> Result<ObjectStat> {
        let path = self.target.path.clone();
        let wrap = |what: &'static str| move |e: io::Error| Error::io(format!("{what} {}", path.display()), e);
        self.file.set_len(length).map_err(wrap.clone()("setting the length of"))?;
        self.file.sync_all().map_err(wrap.clone()("making durable"))?;
        self.target.check()?;
        if let Some(partial) = &self.partial {
            rename(partial, &self.target)?;
        }
        self.partial = None;
        // The new name is only durable when its folder is.
        File::open(folder_of(&self.target.path))
            .and_then(|folder| folder.sync_all())
            .map_err(wrap.clone()("naming"))?;
        let allocated = self.file.metadata().map_err(wrap("looking at"))?.blocks().saturating_mul(512);
        Ok(ObjectStat {
            image: describe(self.format, length, proof),
            url: format!("file://{}", std::path::absolute(&self.target.path).unwrap_or_default().display()),
            allocated_size: allocated,
        })
    }
}

/// Gives the finished file its name; one that appeared meanwhile is not overwritten.
fn rename(partial: &Path, target: &PlainFile) -> Result<()> {
    let path = &target.path;
    let flags = if target.replace { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
    match rustix::fs::renameat_with(CWD, partial, CWD, path, flags) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => Err(exists(path)),
        // Some network file systems know no flags; `check` has looked a moment ago.
        Err(Errno::INVAL | Errno::NOSYS) => {
            std::fs::rename(partial, path).map_err(|e| Error::io(format!("naming {}", path.display()), e))
        }
        Err(errno) => Err(Error::io(format!("naming {}", path.display()), errno.into())),
    }
}

#[async_trait]
impl Sink for PlainSink {
    async fn write_at(&mut self, offset: u64, bytes: Bytes) -> Result<()> {
        let (data, name) = (Arc::clone(&self.data), self.target.path.display().to_string());
        blocking(move || {
            let mut data = data.lock().unwrap_or_else(PoisonError::into_inner);
            let written = data.write(&[&bytes], offset);
            written.map_err(|errno| Error::io(format!("writing {name} at byte {offset}"), errno.into()))
        })
        .await
    }

    async fn commit(self: Box<Self>, length: u64, proof: &Verified) -> Result<ObjectStat> {
        let proof = proof.clone();
        blocking(move || self.publish(length, &proof)).await
    }

    async fn abort(mut self: Box<Self>) -> Result<()> {
        match self.partial.take() {
            None => Ok(()),
            Some(partial) => std::fs::remove_file(&partial)
                .map_err(|e| Error::io(format!("removing the unfinished {}", partial.display()), e)),
        }
    }
}

impl Drop for PlainSink {
    fn drop(&mut self) {
        if let Some(partial) = self.partial.take()
            && let Err(error) = std::fs::remove_file(&partial)
        {
            tracing::warn!(%error, file = %partial.display(), "an unfinished file stays behind: remove it");
        }
    }
}

pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::with_source(Kind::Internal, "a task that writes a file ended on its own", e))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ContainerFormat, ContentManifest, DiskFormat, Evidence, Received};

    fn proof() -> Verified {
        Verified::try_from(Evidence {
            received: Received { length: 3, digests: Vec::new() },
            declared: Vec::new(),
            source_format: DiskFormat::Raw,
            container_format: ContainerFormat::Bare,
            properties: std::collections::BTreeMap::new(),
            request: None,
            violations: Vec::new(),
            manifest: ContentManifest::default(),
        })
        .unwrap()
    }

    async fn begun(file: &PlainFile) -> Box<dyn Sink> {
        Store::create(file, &ObjectKey::new("a", 1).unwrap(), 1, OutputFormat::RAW).await.unwrap()
    }

    fn names(folder: &Path) -> Vec<String> {
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[tokio::test]
    async fn a_file_appears_whole_and_sparse() {
        let folder = tempfile::tempdir().unwrap();
        let file = PlainFile::new(folder.path().join("disk"), false);
        let mut sink = begun(&file).await;
        sink.write_at(8 << 20, Bytes::from_static(b"abc")).await.unwrap();
        assert!(!folder.path().join("disk").exists());
        let stat = sink.commit(16 << 20, &proof()).await.unwrap();
        assert_eq!(names(folder.path()), ["disk"]);
        assert_eq!(folder.path().join("disk").metadata().unwrap().len(), 16 << 20);
        assert!(stat.allocated_size < 1 << 20, "{stat:?}");
    }

    #[tokio::test]
    async fn dropped_and_aborted_leave_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = PlainFile::new(folder.path().join("disk"), false);
        drop(begun(&file).await);
        begun(&file).await.abort().await.unwrap();
        assert_eq!(names(folder.path()), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_file_that_appeared_meanwhile_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let file = PlainFile::new(&path, false);
        let sink = begun(&file).await;
        std::fs::write(&path, "mine").unwrap();
        assert_eq!(sink.commit(3, &proof()).await.unwrap_err().kind(), Kind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
        assert_eq!(names(folder.path()), ["disk"]);
        let forced = begun(&PlainFile::new(&path, true)).await;
        forced.commit(0, &proof()).await.unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"");
    }

    #[test]
    fn a_directory_is_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(PlainFile::new(folder.path(), true).check().unwrap_err().kind(), Kind::InvalidInput);
    }
}
