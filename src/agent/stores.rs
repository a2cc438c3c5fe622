//! The node's stores: from what an ImageStore says to something that can be written to.
//!
//! An ImageStore names a path on the node, and who may write ImageStores must not thereby get the agent to write anywhere on it:
//! paths outside the configured roots are refused, symbolic links included. Which store a folder held is remembered, so that a
//! volume that is not mounted is noticed and not written past.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Component, Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::OnceCell;
use vitrine_engine::{
    error::{Error, Kind, Result},
    store::{
        Store,
        filesystem::{FilesystemOptions, FilesystemStore, StoreId},
    },
};

use crate::api::{FilesystemBackend, identity};

/// Folders that the agent makes are for nobody else on the node.
const MODE: u32 = 0o700;

type Opened = Arc<OnceCell<FilesystemStore>>;

/// The node's stores, each opened once.
#[derive(Debug)]
pub struct Stores {
    roots: Vec<PathBuf>,
    memory: PathBuf,
    opened: Mutex<BTreeMap<(String, PathBuf), Opened>>,
}

impl Stores {
    /// Stores below `roots`; what is remembered of them is in the folder `memory`.
    pub fn new(roots: Vec<PathBuf>, memory: PathBuf) -> Self {
        Self { roots, memory, opened: Mutex::default() }
    }

    /// The store, made if its folder does not exist and never did.
    ///
    /// # Errors
    /// `Denied` if the path is outside the roots, `InvalidInput` if the back end is none this version knows, and what opening says.
    pub async fn open(&self, name: &str, filesystem: Option<&FilesystemBackend>) -> Result<Arc<dyn Store>> {
        let backend = filesystem.ok_or_else(|| unknown(name))?;
        let path = PathBuf::from(&backend.path);
        let cell = {
            let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
            opened.entry((name.to_owned(), path.clone())).or_default().clone()
        };
        let store = cell.get_or_try_init(|| self.open_first(name, path, backend.shared)).await?;
        Ok(Arc::new(store.clone()))
    }

    /// The store, or nothing if its folder does not exist and was never seen here: then there is nothing in it either.
    ///
    /// # Errors
    /// As `open`.
    pub async fn open_existing(
        &self,
        name: &str,
        filesystem: Option<&FilesystemBackend>,
    ) -> Result<Option<Arc<dyn Store>>> {
        let backend = filesystem.ok_or_else(|| unknown(name))?;
        let (path, note) = (PathBuf::from(&backend.path), self.note(name, Path::new(&backend.path)));
        let (name_, roots) = (name.to_owned(), self.roots.clone());
        let absent = blocking(move || {
            check_path(&name_, &path, &roots)?;
            Ok(!note.exists() && !path.exists())
        });
        if absent.await? { Ok(None) } else { self.open(name, filesystem).await.map(Some) }
    }

    /// Forgets every store but those that `keep` names: a later one of the same name is another one.
    pub fn forget_all_but(&self, keep: impl Fn(&str) -> bool) {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.retain(|(name, path), _| {
            let kept = keep(name);
            if !kept && let Err(error) = fs::remove_file(self.note(name, path)) {
                tracing::debug!(store = name, %error, "nothing was remembered of a store that is gone");
            }
            kept
        });
    }

    async fn open_first(&self, name: &str, path: PathBuf, shared: bool) -> Result<FilesystemStore> {
        let (name_, note, roots) = (name.to_owned(), self.note(name, &path), self.roots.clone());
        let store = blocking(move || open_folder(&name_, &path, &roots, &note)).await?;
        if !shared {
            // Nobody but this agent writes here, and it has not begun: what is unfinished was left by one that was killed.
            let swept = store.sweep(Duration::ZERO).await?;
            if !swept.is_empty() {
                tracing::info!(store = name, ?swept, "removed what a killed agent had left");
            }
        }
        Ok(store)
    }

    /// The file that remembers which store was in `path`.
    fn note(&self, name: &str, path: &Path) -> PathBuf {
        self.memory.join(identity::short_hash(&format!("{name} {}", path.display())))
    }
}

fn unknown(name: &str) -> Error {
    let message = format!("store {name}: this agent does not know its back end; use agents as new as the operator");
    Error::new(Kind::InvalidInput, message)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|e| Err(Error::with_source(Kind::Internal, "opening a store did not end", e)))
}

fn open_folder(name: &str, path: &Path, roots: &[PathBuf], note: &Path) -> Result<FilesystemStore> {
    check_path(name, path, roots)?;
    let expected = match fs::read_to_string(note) {
        Ok(text) => StoreId::parse(text.trim()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(Error::io(format!("store {name}: reading {}", note.display()), error)),
    };
    if expected.is_none() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(MODE)
            .create(path)
            .map_err(|e| Error::io(format!("store {name}: making {}", path.display()), e))?;
    }
    let store = FilesystemStore::open(name, path, &FilesystemOptions { expected, ..FilesystemOptions::default() })?;
    remember(note, &store.id().to_string()).map_err(|e| Error::io(format!("store {name}: {}", note.display()), e))?;
    Ok(store)
}

fn remember(note: &Path, id: &str) -> io::Result<()> {
    let fresh = note.with_extension("new");
    fs::write(&fresh, id)?;
    fs::rename(fresh, note)
}

/// Whether `path`, or what of it exists already, lies below one of `roots`, as it is written and with symbolic links followed.
fn check_path(name: &str, path: &Path, roots: &[PathBuf]) -> Result<()> {
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    let refuse = |found: &str| {
        let allowed: Vec<_> = roots.iter().map(|root| root.display().to_string()).collect();
        Err(Error::new(
            Kind::Denied,
            format!(
                "store {name}: {} {found}, and agents keep stores below {} only; choose a path there, or have the agents started \
                 with --store-root",
                path.display(),
                allowed.join(", ")
            ),
        ))
    };
    let Some(root) = roots.iter().find(|root| plain && path.starts_with(root)) else {
        return refuse("is not allowed");
    };
    let real = |path: &Path| fs::canonicalize(path);
    let root = real(root).map_err(|error| {
        let message = format!("store {name}: {} is not there; it must be mounted into the agent", root.display());
        Error::with_source(Kind::Unavailable, message, error)
    })?;
    let deepest = path.ancestors().find_map(|ancestor| real(ancestor).ok());
    match deepest {
        Some(deepest) if deepest.starts_with(&root) => Ok(()),
        Some(deepest) => refuse(&format!("leads to {}", deepest.display())),
        None => refuse("leads nowhere"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    struct Node {
        dir: tempfile::TempDir,
    }

    impl Node {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            for folder in ["root", "memory", "elsewhere"] {
                fs::create_dir(dir.path().join(folder)).unwrap();
            }
            Self { dir }
        }

        fn stores(&self) -> Stores {
            Stores::new(vec![self.dir.path().join("root")], self.dir.path().join("memory"))
        }

        fn backend(&self, path: &str) -> FilesystemBackend {
            FilesystemBackend { path: self.dir.path().join(path).display().to_string(), shared: false }
        }
    }

    #[tokio::test]
    async fn paths_outside_the_roots_are_refused_and_not_touched() {
        let node = Node::new();
        symlink(node.dir.path().join("elsewhere"), node.dir.path().join("root/link")).unwrap();
        for path in ["elsewhere", "elsewhere/x", "root/../elsewhere", "root/link", "root/link/x", "rootx"] {
            let error = node.stores().open("s", Some(&node.backend(path))).await.err().unwrap();
            assert_eq!(error.kind(), Kind::Denied, "{path}: {error}");
            assert!(error.to_string().contains("--store-root"), "{error}");
        }
        assert_eq!(fs::read_dir(node.dir.path().join("elsewhere")).unwrap().count(), 0);
        assert!(!node.dir.path().join("rootx").exists());
    }

    #[tokio::test]
    async fn a_store_is_made_once_and_missed_when_it_vanishes() {
        let node = Node::new();
        let backend = node.backend("root/deep/store");
        assert!(node.stores().open_existing("s", Some(&backend)).await.unwrap().is_none());
        node.stores().open("s", Some(&backend)).await.unwrap().probe().await.unwrap();
        // A restarted agent finds an unmounted volume: an empty folder, or none.
        fs::remove_dir_all(&backend.path).unwrap();
        for again in [false, true] {
            let error = node.stores().open("s", Some(&backend)).await.err().unwrap();
            assert_eq!(error.kind(), Kind::Unavailable, "{error}");
            assert!(node.stores().open_existing("s", Some(&backend)).await.is_err());
            if !again {
                fs::create_dir(&backend.path).unwrap();
            }
        }
    }

    #[tokio::test]
    async fn a_store_that_was_deleted_is_forgotten() {
        let node = Node::new();
        let (backend, stores) = (node.backend("root/store"), node.stores());
        stores.open("s", Some(&backend)).await.unwrap();
        fs::remove_dir_all(&backend.path).unwrap();
        stores.forget_all_but(|name| name == "s");
        assert!(stores.open("s", Some(&backend)).await.unwrap().probe().await.is_err());
        stores.forget_all_but(|_| false);
        stores.open("s", Some(&backend)).await.unwrap().probe().await.unwrap();
    }

    #[tokio::test]
    async fn an_unknown_back_end_is_said_to_be_one() {
        let error = Node::new().stores().open("s", None).await.err().unwrap();
        assert_eq!(error.kind(), Kind::InvalidInput);
    }
}
