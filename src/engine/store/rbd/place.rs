//! A pool that is open: the connection, what its errors mean, and the threads on which the libraries are waited for.
//!
//! librados and librbd block, and may block for long when the cluster is away; so every piece of work has a thread of its own and a
//! deadline. A thread whose deadline is over goes on until the libraries' own timeouts end it; how many there are at once is bounded.

use std::{fmt::Display, io::Write, os::fd::AsRawFd, sync::Arc, time::Duration};

use tokio::sync::{Semaphore, oneshot};

use super::{
    ffi::{Cluster, Errno, Making, Pool},
    flight::Hold,
    options::{RbdCluster, RbdOptions},
    step::Step,
};
use crate::{
    error::{Error, Kind, Result},
    store::{cleaning::Cleaning, steps::Steps},
};

/// How many threads may wait for one store at once. Each piece of work takes milliseconds where the cluster answers.
const THREADS: usize = 32;

/// The pool.
pub(super) struct Place {
    name: String,
    user: String,
    pool_name: String,
    namespace: Option<String>,
    data_pool_name: Option<String>,
    fsid: String,
    cluster: Arc<Cluster>,
    pool: Arc<Pool>,
    data: Option<Arc<Pool>>,
    making: Making,
    operation_timeout: Duration,
    deadline: Duration,
    flatten_clones: bool,
    owner: Option<String>,
    threads: Arc<Semaphore>,
    hold: Hold,
    /// What is cleaned up behind callers' backs.
    pub(super) cleaning: Cleaning,
    /// What is published and deleted, step by step.
    pub(super) steps: Steps<Step>,
}

impl Place {
    /// Connects; blocks, at most for the timeout of connecting.
    pub(super) fn open(name: &str, options: &RbdOptions) -> Result<Self> {
        let cluster = Arc::new(connect(name, options)?);
        let namespace = options.namespace.as_deref().filter(|namespace| !namespace.is_empty());
        let pool = open_pool(name, options, &cluster, &options.pool, namespace)?;
        let data = options.data_pool.as_deref().filter(|data| *data != options.pool);
        let data = data.map(|data| open_pool(name, options, &cluster, data, namespace)).transpose()?;
        let fsid = cluster.fsid().map_err(|errno| connecting(name, options, errno))?;
        let making = Making {
            features: options.features,
            order: options.object_order,
            data_pool: data.is_some().then(|| options.data_pool.clone()).flatten(),
            clone_format: None,
        };
        let place = Self {
            name: name.to_owned(),
            user: options.user.clone(),
            pool_name: options.pool.clone(),
            namespace: namespace.map(str::to_owned),
            data_pool_name: making.data_pool.clone(),
            fsid,
            cluster,
            pool: Arc::new(pool),
            data: data.map(Arc::new),
            making,
            operation_timeout: options.operation_timeout,
            deadline: options.deadline,
            flatten_clones: options.flatten_clones,
            owner: options.owner.clone(),
            threads: Arc::new(Semaphore::new(THREADS)),
            hold: Hold::new(),
            cleaning: Cleaning::default(),
            steps: Steps::default(),
        };
        place.check_namespace()?;
        Ok(place)
    }

    fn check_namespace(&self) -> Result<()> {
        let Some(namespace) = &self.namespace else { return Ok(()) };
        let (store, pool) = (&self.name, &self.pool_name);
        let exists = self.cluster.has_namespace(pool, namespace);
        if exists.map_err(|errno| self.error(format!("looking for namespace {namespace}"), errno))? {
            return Ok(());
        }
        let message = format!(
            "store {store}: pool {pool} has no namespace {namespace}: make it with `rbd namespace create {pool}/{namespace}`, or \
             correct the store"
        );
        Err(Error::new(Kind::NotFound, message))
    }

    /// The store's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The cephx user, without `client.`.
    pub(super) fn user(&self) -> &str {
        &self.user
    }

    /// Whose it must be.
    pub(super) fn owner(&self) -> Option<&str> {
        self.owner.as_deref()
    }

    /// The namespace in the pool.
    pub(super) fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// The pool, without its namespace.
    pub(super) fn pool_name(&self) -> &str {
        &self.pool_name
    }

    /// The cluster's id.
    pub(super) fn fsid(&self) -> &str {
        &self.fsid
    }

    /// The connection.
    pub(super) fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// Where images and their records are.
    pub(super) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Where the images' data is.
    pub(super) fn data_pool(&self) -> &Arc<Pool> {
        self.data.as_ref().unwrap_or(&self.pool)
    }

    /// The name of the pool in which the images' data is.
    pub(super) fn data_pool_name(&self) -> &str {
        self.data_pool_name.as_deref().unwrap_or(&self.pool_name)
    }

    /// The memory of writes under way.
    pub(super) fn hold(&self) -> &Hold {
        &self.hold
    }

    /// How images are made.
    pub(super) fn making(&self) -> &Making {
        &self.making
    }

    /// How long an OSD may take.
    pub(super) fn operation_timeout(&self) -> Duration {
        self.operation_timeout
    }

    /// How long a piece of work may take.
    pub(super) fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Whether clones are made independent of an image that is to be deleted.
    pub(super) fn flattens_clones(&self) -> bool {
        self.flatten_clones
    }

    /// The pool with its namespace, as `rbd` takes it.
    pub(super) fn spec(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("{}/{namespace}", self.pool_name),
            None => self.pool_name.clone(),
        }
    }

    /// Where the snapshot of a published image is.
    pub(super) fn url_of(&self, image: &str) -> String {
        format!("rbd://{}/{}/{image}/{}", self.fsid, self.spec(), super::layout::SNAPSHOT)
    }

    /// Which pool of which cluster it is: a digest of their names, 32 hexadecimal digits as the ids of other stores.
    pub(super) fn id(&self) -> String {
        let digest = blake3::hash(format!("{}/{}", self.fsid, self.spec()).as_bytes());
        hex::encode(digest.as_bytes().get(..16).unwrap_or_default())
    }

    /// The error for `errno` while `doing`, which names the image.
    pub(super) fn error(&self, doing: impl Display, errno: Errno) -> Error {
        let (kind, meaning) = self.meaning(errno);
        let message = format!("store {}, pool {}: {doing}: {meaning}", self.name, self.spec());
        match kind {
            Kind::Io => Error::with_source(kind, message, std::io::Error::from_raw_os_error(errno.0)),
            _ => Error::new(kind, message),
        }
    }

    fn meaning(&self, errno: Errno) -> (Kind, String) {
        let Self { user, pool_name, .. } = self;
        match errno {
            Errno::PERM | Errno::ACCES | Errno::ROFS => (
                Kind::Denied,
                format!(
                    "Ceph does not let client.{user} do this. Give it the capabilities mon 'profile rbd' and osd 'profile rbd \
                     pool={pool_name}', for the data pool too (`ceph auth caps`); and see whether the pool still exists"
                ),
            ),
            Errno::NOENT => (Kind::NotFound, "it does not exist (any more)".to_owned()),
            Errno::EXIST => (Kind::AlreadyExists, "it exists already".to_owned()),
            Errno::BUSY => (Kind::InUse, "somebody uses it; `rbd status` and `rbd children` tell who".to_owned()),
            Errno::NOSPC => (Kind::NoSpace, "the cluster is full: delete images or add OSDs".to_owned()),
            Errno::DQUOT => (
                Kind::NoSpace,
                "the pool's quota is used up: delete images or raise it (`ceph osd pool set-quota`)".to_owned(),
            ),
            Errno::TIMEDOUT => (
                Kind::Unavailable,
                "Ceph has not answered in time: are the monitors and OSDs up (`ceph -s`), and reachable from here?"
                    .to_owned(),
            ),
            Errno::SHUTDOWN => (
                Kind::Unavailable,
                "Ceph has shut this client out (`ceph osd blocklist ls`); the store must be opened again".to_owned(),
            ),
            _ => (Kind::Io, "Ceph's client failed".to_owned()),
        }
    }

    /// Does `work`, which blocks, on a thread of its own. `doing` completes "has not answered within … when".
    pub(super) async fn call<T: Send + 'static>(
        self: &Arc<Self>,
        doing: impl Display,
        work: impl FnOnce(&Arc<Self>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let place = Arc::clone(self);
        let started = async {
            let permit = Arc::clone(&self.threads).acquire_owned().await.ok();
            let work = move || {
                let result = work(&place);
                drop((permit, place));
                // Whoever asked may have gone away meanwhile.
                let _ = reply.send(result);
            };
            std::thread::Builder::new().name("rbd".to_owned()).spawn(work).map_err(|error| self.no_thread(error))?;
            answer.await.map_err(|_| {
                Error::new(
                    Kind::Internal,
                    format!("store {}: a thread ended early when {doing}; report this", self.name),
                )
            })?
        };
        tokio::time::timeout(self.deadline, started).await.unwrap_or_else(|_| Err(self.overdue(&doing)))
    }

    /// The error for something that took longer than the deadline.
    pub(super) fn overdue(&self, doing: impl Display) -> Error {
        let message = format!(
            "store {}, pool {}: Ceph has not answered within {} s when {doing}: are the monitors and OSDs up (`ceph -s`), and \
             reachable from here?",
            self.name,
            self.spec(),
            self.deadline.as_secs_f32()
        );
        Error::new(Kind::Unavailable, message)
    }

    fn no_thread(&self, error: std::io::Error) -> Error {
        Error::with_source(Kind::Unavailable, format!("store {}: starting a thread", self.name), error)
    }

    /// Does `work` behind the caller's back. Later work of this process waits for it, for a while.
    pub(super) fn clean_up(self: &Arc<Self>, work: impl FnOnce(&Arc<Self>) + Send + 'static) {
        let (place, piece) = (Arc::clone(self), self.cleaning.begin());
        let run = move || {
            work(&place);
            drop(piece);
        };
        if let Err(error) = std::thread::Builder::new().name("rbd clean-up".to_owned()).spawn(run) {
            tracing::warn!(store = self.name, %error, "nothing is cleaned up; sweeping will do it");
        }
    }
}

fn connect(name: &str, options: &RbdOptions) -> Result<Cluster> {
    let cluster = Cluster::new(&options.user).map_err(|missing| {
        let message = format!(
            "store {name}: Ceph's client libraries are not on this node, or cannot be used ({missing}): install librados2 and librbd1 \
             of Ceph 14.2 or later (Debian: librbd1; Red Hat: librbd)"
        );
        Error::new(Kind::Unavailable, message)
    })?;
    let mut cluster = cluster.map_err(|errno| connecting(name, options, errno))?;
    configure(name, options, &mut cluster)?;
    cluster.connect().map_err(|errno| connecting(name, options, errno))?;
    Ok(cluster)
}

fn configure(name: &str, options: &RbdOptions, cluster: &mut Cluster) -> Result<()> {
    let invalid = |what: &str, errno: Errno| {
        let error = std::io::Error::from_raw_os_error(errno.0);
        Error::with_source(Kind::InvalidInput, format!("store {name}: Ceph's client does not take {what}"), error)
    };
    match &options.cluster {
        RbdCluster::Monitors(monitors) => {
            cluster.set("mon_host", monitors).map_err(|errno| invalid("the monitors' addresses", errno))?;
        }
        RbdCluster::Config(text) => {
            // The library reads files only; this one has no name in any folder.
            let file = config_file(text)
                .map_err(|e| Error::with_source(Kind::Io, format!("store {name}: keeping ceph.conf in memory"), e))?;
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            cluster.read_config(&path).map_err(|errno| invalid("its ceph.conf", errno))?;
        }
    }
    let seconds = |duration: Duration| duration.as_secs_f64().ceil().max(1.0).to_string();
    let (connect, operation) = (seconds(options.connect_timeout), seconds(options.operation_timeout));
    let settings = [
        ("client_mount_timeout", connect.as_str()),
        ("rados_mon_op_timeout", connect.as_str()),
        ("rados_osd_op_timeout", operation.as_str()),
        // What goes wrong is told in errors; a library has no business with the program's output, nor with files of its own.
        ("log_to_stderr", "false"),
        ("err_to_stderr", "false"),
        ("log_file", ""),
        ("admin_socket", ""),
        // A write counts as done when the OSDs have it, and its bytes are kept once.
        ("rbd_cache", "false"),
    ];
    for (option, value) in settings {
        cluster.set(option, value).map_err(|errno| invalid(option, errno))?;
    }
    cluster.set("key", &options.key).map_err(|errno| invalid("the key", errno))
}

fn config_file(text: &str) -> std::io::Result<std::fs::File> {
    let mut file = std::fs::File::from(rustix::fs::memfd_create("ceph.conf", rustix::fs::MemfdFlags::CLOEXEC)?);
    file.write_all(text.as_bytes())?;
    Ok(file)
}

fn open_pool(
    name: &str,
    options: &RbdOptions,
    cluster: &Arc<Cluster>,
    pool: &str,
    namespace: Option<&str>,
) -> Result<Pool> {
    cluster.pool(pool, namespace.unwrap_or_default()).map_err(|errno| match errno {
        Errno::NOENT => {
            let message =
                format!("store {name}: the cluster has no pool {pool}: make it and run `rbd pool init {pool}`, or correct the store");
            Error::new(Kind::NotFound, message)
        }
        errno => connecting(name, options, errno).context(format!("opening pool {pool}")),
    })
}

/// The error for `errno` when connecting.
fn connecting(name: &str, options: &RbdOptions, errno: Errno) -> Error {
    let RbdOptions { user, pool, cluster, .. } = options;
    let place = match cluster {
        RbdCluster::Monitors(monitors) => format!("the monitors at {monitors}"),
        RbdCluster::Config(_) => "the monitors that its ceph.conf names".to_owned(),
    };
    let (kind, meaning) = match errno {
        Errno::TIMEDOUT => (
            Kind::Unavailable,
            format!(
                "{place} have not answered within {} s: are they up, and reachable from here?",
                options.connect_timeout.as_secs_f32()
            ),
        ),
        Errno::PERM | Errno::ACCES => (
            Kind::Denied,
            format!("{place} do not accept client.{user} with this key: compare it with `ceph auth get client.{user}`"),
        ),
        Errno::NOENT | Errno::INVAL => (
            Kind::InvalidInput,
            format!(
                "{place} cannot be found, or the key of client.{user} is none: correct the store's addresses and key"
            ),
        ),
        errno => (Kind::Unavailable, format!("{place}: {}", std::io::Error::from_raw_os_error(errno.0))),
    };
    Error::new(kind, format!("store {name}, pool {pool}: connecting to Ceph: {meaning}"))
}
