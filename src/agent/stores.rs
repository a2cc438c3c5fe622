//! The node's stores: from what an ImageStore says to something that can be written to.
//!
//! Each is opened once. A connection to a cluster that answers no more is let go, and made anew with what its Secret then holds.
//!
//! An ImageStore names a path on the node, and who may write ImageStores must not thereby get the agent to write anywhere on it:
//! paths outside the configured roots are refused, symbolic links included. Which store is to be found there is known from the task,
//! from the ImageStore or from what this node reported before, so that a volume that is not mounted is noticed and not written past.
//! Only where none of them knows, an empty folder is made a store.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::DirBuilderExt as _,
    path::{Component, Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use tokio::sync::OnceCell;
use vitrine_engine::{
    error::{Error, Kind, Result},
    model::ObjectKey,
    store::{
        Store,
        filesystem::{FilesystemOptions, FilesystemStore, StoreId},
        meter::MeteredStore,
    },
};

use super::{bucket, pool};
use crate::api::{Backend, FilesystemBackend};

/// Folders that the agent makes are for nobody else on the node.
const MODE: u32 = 0o700;

type Opened = Arc<OnceCell<Arc<dyn Store>>>;

/// A store as a task or an ImageStore names it.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The ImageStore's name.
    pub name: &'a str,
    /// Its back end.
    pub backend: &'a Backend,
    /// Which store must be found there, by its own mark, as far as who asks knows.
    pub id: Option<&'a str>,
}

/// The node's stores, each opened once.
#[must_use]
pub struct Stores {
    roots: Vec<PathBuf>,
    /// The Secrets in Vitrine's namespace, for back ends that need some.
    secrets: Option<Api<Secret>>,
    /// Whose stores must be that are written to.
    owner: Option<String>,
    /// What copies will go on with that a killed agent has begun.
    spared: BTreeSet<ObjectKey>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    opened: BTreeMap<String, (Backend, Opened)>,
    /// Which store is to be found, by name, for those who ask without knowing.
    known: BTreeMap<String, Known>,
}

/// A store that was seen on this node.
#[derive(Clone, Debug)]
struct Known {
    id: StoreId,
    /// Of the ImageStore, as far as it was told: one that was deleted and made anew is another.
    uid: Option<String>,
}

impl Stores {
    /// Stores below `roots`.
    pub fn new(roots: Vec<PathBuf>) -> Self {
        Self { roots, secrets: None, owner: None, spared: BTreeSet::new(), state: Mutex::default() }
    }

    /// The same, with what back ends that are reached with a key need.
    pub fn with_secrets(self, secrets: Api<Secret>) -> Self {
        Self { secrets: Some(secrets), ..self }
    }

    /// The same for the installation `owner`: stores that are written to bear its mark, and those with another one's are only read.
    pub fn with_owner(self, owner: Option<String>) -> Self {
        Self { owner, ..self }
    }

    /// The same, with what is unfinished of the objects in `spared` left where it is: somebody goes on with it.
    pub fn with_spared(self, spared: BTreeSet<ObjectKey>) -> Self {
        Self { spared, ..self }
    }

    /// Takes note of which store was seen on this node for the ImageStore `name` with `uid`.
    pub fn remember(&self, name: &str, uid: Option<&str>, id: &str) {
        if let Some(id) = StoreId::parse(id) {
            self.lock().known.insert(name.to_owned(), Known { id, uid: uid.map(str::to_owned) });
        }
    }

    /// Forgets every store but those whose name and uid `keep` accepts: a later one of the same name is another one.
    pub fn forget_all_but(&self, keep: impl Fn(&str, Option<&str>) -> bool) {
        let mut state = self.lock();
        state.known.retain(|name, known| keep(name, known.uid.as_deref()));
        state.opened.retain(|name, _| keep(name, None));
    }

    /// The store, made if its folder is empty or does not exist, and nobody knows of one there.
    ///
    /// # Errors
    /// `Denied` if the path is outside the roots, `InvalidInput` if the back end is none this version knows or the folder is that of
    /// another ImageStore, `Unavailable` if another store is found there, and what opening says.
    pub async fn open(&self, place: Place<'_>) -> Result<Arc<dyn Store>> {
        let expected = self.expected(place)?;
        let cell = self.cell(place, expected.as_ref());
        let store = cell.get_or_try_init(|| async move {
            let store = match place.backend {
                Backend { filesystem: Some(folder), .. } => self.open_folder(place.name, folder, expected).await,
                Backend { rbd: Some(pool), .. } => {
                    let store = pool::open(self.secrets(place.name)?, place.name, pool, self.owner.clone()).await?;
                    self.take_up(place, Arc::new(store), expected.as_ref())
                }
                Backend { s3: Some(bucket), .. } => {
                    let store = bucket::open(self.secrets(place.name)?, place.name, bucket, self.owner.clone()).await?;
                    self.take_up(place, Arc::new(store), expected.as_ref())
                }
                Backend { filesystem: None, rbd: None, s3: None } => Err(unknown(place.name)),
            };
            store.map(|store| Arc::new(MeteredStore::new(store)) as Arc<dyn Store>)
        });
        store.await.cloned()
    }

    /// Lets a connection go, so that the next who asks makes it anew, with what its Secret then holds; what is used already goes on.
    /// Folders stay as they are.
    pub fn let_go(&self, name: &str) {
        let mut state = self.lock();
        if state.opened.get(name).is_some_and(|(backend, _)| backend.filesystem.is_none()) {
            state.opened.remove(name);
        }
    }

    /// The store, or nothing if its folder does not exist and nobody knows of one there: then there is nothing in it either.
    ///
    /// # Errors
    /// As `open`.
    pub async fn open_existing(&self, place: Place<'_>) -> Result<Option<Arc<dyn Store>>> {
        let Some(folder) = &place.backend.filesystem else { return self.open(place).await.map(Some) };
        let (name, path, roots) = (place.name.to_owned(), PathBuf::from(&folder.path), self.roots.clone());
        let unseen = self.expected(place)?.is_none();
        let absent = blocking(move || {
            check_path(&name, &path, &roots)?;
            Ok(unseen && !path.exists())
        });
        if absent.await? { Ok(None) } else { self.open(place).await.map(Some) }
    }

    /// A panic elsewhere cannot leave the maps half changed.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expected(&self, place: Place<'_>) -> Result<Option<StoreId>> {
        let Some(text) = place.id else {
            return Ok(self.lock().known.get(place.name).map(|known| known.id.clone()));
        };
        let wrong = || Error::new(Kind::InvalidInput, format!("store {}: {text} is not the id of a store", place.name));
        StoreId::parse(text).map(Some).ok_or_else(wrong)
    }

    /// Where the store is or will be. One that was opened and is not the `expected` one is let go, and looked for anew.
    fn cell(&self, place: Place<'_>, expected: Option<&StoreId>) -> Opened {
        let mut state = self.lock();
        let anew = || (place.backend.clone(), Opened::default());
        let (backend, cell) = state.opened.entry(place.name.to_owned()).or_insert_with(anew);
        let other = |store: &Arc<dyn Store>| expected.is_some_and(|expected| store.id() != Some(expected.to_string()));
        if backend != place.backend || cell.get().is_some_and(other) {
            (*backend, *cell) = anew();
        }
        cell.clone()
    }

    fn secrets(&self, name: &str) -> Result<&Api<Secret>> {
        let missing =
            || Error::new(Kind::Internal, format!("store {name}: nobody told where Secrets are; report this"));
        self.secrets.as_ref().ok_or_else(missing)
    }

    /// Takes a store behind a connection for that of `place`, if it is the one that is expected there.
    fn take_up(&self, place: Place<'_>, store: Arc<dyn Store>, expected: Option<&StoreId>) -> Result<Arc<dyn Store>> {
        let id = store.id().as_deref().and_then(StoreId::parse);
        if let (Some(expected), Some(id)) = (expected, &id)
            && expected != id
        {
            let message = format!(
                "store {}: {} is there, and it is not the one that was used before: {id} instead of {expected}; is it another \
                 cluster? Correct its addresses, or make a new ImageStore",
                place.name,
                place.backend.place().unwrap_or("its back end")
            );
            return Err(Error::new(Kind::Unavailable, message));
        }
        if let Some(id) = &id {
            self.claim(place.name, id)?;
        }
        Ok(store)
    }

    async fn open_folder(
        &self,
        name: &str,
        folder: &FilesystemBackend,
        expected: Option<StoreId>,
    ) -> Result<Arc<dyn Store>> {
        let (name_, path, roots) = (name.to_owned(), PathBuf::from(&folder.path), self.roots.clone());
        let options = FilesystemOptions { expected, owner: self.owner.clone(), ..FilesystemOptions::default() };
        let store = blocking(move || open_folder(&name_, &path, &roots, &options)).await?;
        self.claim(name, store.id())?;
        if !folder.shared {
            // Nobody but this agent writes here, and it has not begun: what is unfinished was left by one that was killed.
            match store.sweep_but(Duration::ZERO, self.spared.clone()).await {
                Ok(swept) if swept.is_empty() => {}
                Ok(swept) => tracing::info!(store = name, ?swept, "removed what a killed agent had left"),
                Err(error) => tracing::warn!(store = name, %error, "what a killed agent had left stays behind"),
            }
        }
        Ok(Arc::new(store))
    }

    /// Takes the store `id` for the ImageStore `name`, if it is no other's: links and mounts lead to one folder by several paths, and
    /// two ImageStores in one folder would delete each other's images.
    fn claim(&self, name: &str, id: &StoreId) -> Result<()> {
        let mut state = self.lock();
        if let Some((other, _)) = state.known.iter().find(|(other, known)| *other != name && known.id == *id) {
            let message = format!(
                "store {name}: its folder, pool or bucket is that of ImageStore {other} (store {id}), by another path; make an \
                 ImageStore with a folder, a pool or namespace, or a bucket or prefix of its own instead of this one"
            );
            return Err(Error::new(Kind::InvalidInput, message));
        }
        state.known.entry(name.to_owned()).or_insert_with(|| Known { id: id.clone(), uid: None }).id = id.clone();
        Ok(())
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

fn open_folder(name: &str, path: &Path, roots: &[PathBuf], options: &FilesystemOptions) -> Result<FilesystemStore> {
    check_path(name, path, roots)?;
    if options.expected.is_none() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(MODE)
            .create(path)
            .map_err(|e| Error::io(format!("store {name}: making {}", path.display()), e))?;
    }
    FilesystemStore::open(name, path, options)
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
    use crate::api::FilesystemBackend;

    fn path_of(backend: &Backend) -> &str {
        &backend.filesystem.as_ref().unwrap().path
    }

    struct Node {
        dir: tempfile::TempDir,
    }

    impl Node {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            for folder in ["root", "elsewhere"] {
                fs::create_dir(dir.path().join(folder)).unwrap();
            }
            Self { dir }
        }

        fn stores(&self) -> Stores {
            Stores::new(vec![self.dir.path().join("root")])
        }

        fn backend(&self, path: &str) -> Backend {
            FilesystemBackend { path: self.dir.path().join(path).display().to_string(), shared: false }.into()
        }
    }

    fn named<'a>(name: &'a str, backend: &'a Backend) -> Place<'a> {
        Place { name, backend, id: None }
    }

    async fn kind(stores: &Stores, place: Place<'_>) -> Kind {
        stores.open(place).await.err().unwrap().kind()
    }

    #[tokio::test]
    async fn paths_outside_the_roots_are_refused_and_not_touched() {
        let node = Node::new();
        symlink(node.dir.path().join("elsewhere"), node.dir.path().join("root/link")).unwrap();
        for path in ["elsewhere", "elsewhere/x", "root/../elsewhere", "root/link", "root/link/x", "rootx"] {
            let error = node.stores().open(named("s", &node.backend(path))).await.err().unwrap();
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
        let first = node.stores();
        assert!(first.open_existing(named("s", &backend)).await.unwrap().is_none());
        let store = first.open(named("s", &backend)).await.unwrap();
        store.probe().await.unwrap();
        let id = store.id().unwrap();
        // An agent that starts anew, with nothing but what others tell it, finds an unmounted volume: an empty folder, or none.
        fs::remove_dir_all(path_of(&backend)).unwrap();
        let (told, reported) = (node.stores(), node.stores());
        reported.remember("s", Some("uid"), &id);
        let by_task = Place { id: Some(&id), ..named("s", &backend) };
        for again in [false, true] {
            for (stores, place) in [(&first, named("s", &backend)), (&told, by_task), (&reported, named("s", &backend))]
            {
                let opened = stores.open(place).await;
                let error = match opened {
                    Ok(store) => store.probe().await.unwrap_err(),
                    Err(error) => error,
                };
                assert_eq!(error.kind(), Kind::Unavailable, "{error}");
            }
            assert!(told.open_existing(by_task).await.is_err());
            assert!(reported.open_existing(named("s", &backend)).await.is_err());
            if !again {
                fs::create_dir(path_of(&backend)).unwrap();
            }
        }
        assert_eq!(fs::read_dir(path_of(&backend)).unwrap().count(), 0, "nothing is written into the empty folder");
    }

    #[tokio::test]
    async fn another_store_in_the_place_is_named_and_left_when_the_right_one_is_back() {
        let node = Node::new();
        let (backend, away) = (node.backend("root/store"), node.dir.path().join("away"));
        let id = node.stores().open(named("s", &backend)).await.unwrap().id().unwrap();
        fs::rename(path_of(&backend), &away).unwrap();
        let stores = node.stores();
        let other = stores.open(named("s", &backend)).await.unwrap().id().unwrap();
        let place = Place { id: Some(&id), ..named("s", &backend) };
        let error = stores.open(place).await.err().unwrap();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.to_string().contains(&id) && error.to_string().contains(&other), "{error}");
        fs::remove_dir_all(path_of(&backend)).unwrap();
        fs::rename(&away, path_of(&backend)).unwrap();
        stores.open(place).await.unwrap().probe().await.unwrap();
    }

    #[tokio::test]
    async fn a_store_that_was_deleted_is_forgotten() {
        let node = Node::new();
        let (backend, stores) = (node.backend("root/store"), node.stores());
        let id = stores.open(named("s", &backend)).await.unwrap().id().unwrap();
        stores.remember("s", Some("old"), &id);
        fs::remove_dir_all(path_of(&backend)).unwrap();
        stores.forget_all_but(|name, uid| name == "s" && uid.is_none_or(|uid| uid == "old"));
        assert!(stores.open(named("s", &backend)).await.unwrap().probe().await.is_err());
        // Deleted and made anew while nobody looked.
        stores.forget_all_but(|_, uid| uid == Some("new"));
        stores.open(named("s", &backend)).await.unwrap().probe().await.unwrap();
    }

    #[tokio::test]
    async fn two_image_stores_never_have_one_folder() {
        let node = Node::new();
        let (backend, stores) = (node.backend("root/a"), node.stores());
        stores.open(named("a", &backend)).await.unwrap();
        symlink(path_of(&backend), node.dir.path().join("root/link")).unwrap();
        for path in ["root/a", "root/link"] {
            let error = stores.open(named("b", &node.backend(path))).await.err().unwrap();
            assert_eq!(error.kind(), Kind::InvalidInput, "{path}");
            assert!(error.to_string().contains("that of ImageStore a"), "{error}");
        }
        stores.forget_all_but(|name, _| name != "a");
        stores.open(named("b", &backend)).await.unwrap();
        assert_eq!(kind(&stores, named("a", &backend)).await, Kind::InvalidInput);
    }

    #[tokio::test]
    async fn a_leftover_that_cannot_be_removed_does_not_keep_a_store_shut() {
        let node = Node::new();
        let backend = node.backend("root/store");
        node.stores().open(named("s", &backend)).await.unwrap();
        // Deeper than the store removes: nothing of its own looks like this.
        let left = Path::new(path_of(&backend)).join(".partial-k-r1-a1-00000000000000aa");
        fs::create_dir_all(left.join("a/b/c/d/e/f/g/h/i/j")).unwrap();
        node.stores().open(named("s", &backend)).await.unwrap().probe().await.unwrap();
        assert!(left.exists());
    }

    #[tokio::test]
    async fn an_unknown_back_end_is_said_to_be_one() {
        assert_eq!(
            kind(&Node::new().stores(), Place { name: "s", backend: &Backend::default(), id: None }).await,
            Kind::InvalidInput
        );
    }
}
