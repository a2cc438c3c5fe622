//! A connection to a cluster, and a pool of it.

use std::{
    ffi::c_int,
    ptr::{null, null_mut},
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    NAME, Outcome, Shared, check, copied, exit, in_background,
    library::{Api, ClusterStat},
    text,
};

unsafe extern "C" {
    /// Linux, `sched_setscheduler(2)`; the parameter is one `int`, and 0 is the calling thread.
    fn sched_setscheduler(thread: c_int, policy: c_int, parameter: *const c_int) -> c_int;
}

/// `SCHED_OTHER`, the usual policy, and `SCHED_BATCH`.
const USUAL: c_int = 0;
const BATCH: c_int = 3;

/// Does something, so that the threads which it starts wait for their turn when they are woken, and take no processor from who woke them:
/// one thread of a connection would otherwise be held up at the very place where another must not overtake it. See decision 0028. Where
/// the kernel refuses, it is done all the same.
fn unhurried<T>(what: impl FnOnce() -> T) -> T {
    let priority = 0;
    // SAFETY: the parameter lives during the call.
    let changed = unsafe { sched_setscheduler(0, BATCH, &raw const priority) } == 0;
    let done = what();
    if changed {
        // SAFETY: as above.
        unsafe { sched_setscheduler(0, USUAL, &raw const priority) };
    }
    done
}

/// A connection to a cluster, or one that is being set up.
pub(in super::super) struct Cluster {
    pub(super) api: &'static Api,
    handle: Shared,
}

impl Cluster {
    /// A connection that is not yet made, for the user `client.<user>`. The outer error says which library is missing.
    pub(in super::super) fn new(user: &str) -> Result<Outcome<Self>, String> {
        static LOADED: Mutex<Option<&'static Api>> = Mutex::new(None);
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        let api = match *loaded {
            Some(api) => api,
            // A failure is not remembered: the libraries may be installed at any time.
            None => *loaded.insert(Box::leak(Box::new(Api::load()?))),
        };
        Ok(Self::create(api, user))
    }

    fn create(api: &'static Api, user: &str) -> Outcome<Self> {
        let (cluster, user, mut handle) = (text("ceph")?, text(&format!("client.{user}"))?, null_mut());
        // SAFETY: strings and place live during the call.
        check(unsafe { (api.rados_create2)(&raw mut handle, cluster.as_ptr(), user.as_ptr(), 0) })?;
        exit::opened();
        Ok(Self { api, handle: Shared(handle) })
    }

    pub(in super::super) fn read_config(&mut self, path: &str) -> Outcome<()> {
        let path = text(path)?;
        // SAFETY: the string lives during the call.
        check(unsafe { (self.api.rados_conf_read_file)(self.handle.get(), path.as_ptr()) }).map(drop)
    }

    pub(in super::super) fn set(&mut self, option: &str, value: &str) -> Outcome<()> {
        let (option, value) = (text(option)?, text(value)?);
        // SAFETY: the strings live during the call.
        check(unsafe { (self.api.rados_conf_set)(self.handle.get(), option.as_ptr(), value.as_ptr()) }).map(drop)
    }

    pub(in super::super) fn connect(&mut self) -> Outcome<()> {
        // SAFETY: connected once, because what connects owns the handle alone.
        check(unhurried(|| unsafe { (self.api.rados_connect)(self.handle.get()) }))?;
        // Not before: what the libraries have set up by now must not be torn down first.
        exit::wait_for_connections();
        Ok(())
    }

    pub(in super::super) fn fsid(&self) -> Outcome<String> {
        let mut id = vec![0; NAME];
        // SAFETY: the buffer has the length that is given.
        check(unsafe { (self.api.rados_cluster_fsid)(self.handle.get(), id.as_mut_ptr().cast(), id.len()) })?;
        Ok(copied(id.as_ptr().cast()))
    }

    /// All bytes of the cluster, and those that are left.
    pub(in super::super) fn room(&self) -> Outcome<(u64, u64)> {
        let mut stat = ClusterStat::default();
        // SAFETY: the structure is the one that the call fills.
        check(unsafe { (self.api.rados_cluster_stat)(self.handle.get(), &raw mut stat) })?;
        Ok((stat.kb.saturating_mul(1024), stat.kb_avail.saturating_mul(1024)))
    }

    /// Asks the monitor, in JSON.
    pub(in super::super) fn ask(&self, command: &str) -> Outcome<Vec<u8>> {
        let command = text(command)?;
        let (mut out, mut length, mut status, mut status_length) = (null_mut(), 0, null_mut(), 0);
        // SAFETY: places and string live during the call; what is returned is copied and given back to the library once.
        unsafe {
            let (answer, words) = ((&raw mut out, &raw mut length), (&raw mut status, &raw mut status_length));
            let command = [command.as_ptr()];
            let ask = self.api.rados_mon_command;
            let code = ask(self.handle.get(), command.as_ptr(), 1, null(), 0, answer.0, answer.1, words.0, words.1);
            let bytes = if out.is_null() { &[] } else { std::slice::from_raw_parts(out.cast::<u8>(), length) }.to_vec();
            (self.api.rados_buffer_free)(out);
            (self.api.rados_buffer_free)(status);
            check(code).map(|_| bytes)
        }
    }

    /// A pool, and a namespace in it, empty for the pool's own. Writes fail at once where the pool is full, and do not wait.
    pub(in super::super) fn pool(self: &Arc<Self>, pool: &str, namespace: &str) -> Outcome<Pool> {
        let (pool, name, mut handle) = (text(pool)?, text(namespace)?, null_mut());
        // SAFETY: strings and place live during the call. The handle is set up before anybody else has it.
        unsafe {
            check((self.api.rados_ioctx_create)(self.handle.get(), pool.as_ptr(), &raw mut handle))?;
            (self.api.rados_ioctx_set_namespace)(handle, name.as_ptr());
            (self.api.rados_set_pool_full_try)(handle);
        }
        Ok(Pool { cluster: Arc::clone(self), handle: Shared(handle) })
    }

    /// Whether `pool` has the namespace for images.
    pub(in super::super) fn has_namespace(self: &Arc<Self>, pool: &str, namespace: &str) -> Outcome<bool> {
        let (pool, name, mut exists) = (self.pool(pool, "")?, text(namespace)?, false);
        // SAFETY: string and place live during the call.
        check(unsafe { (self.api.rbd_namespace_exists)(pool.handle.get(), name.as_ptr(), &raw mut exists) })?;
        Ok(exists)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let (api, handle) = (self.api, self.handle);
        // SAFETY: whatever rests on the connection keeps it alive, so nothing does any more.
        in_background(move || {
            unsafe { (api.rados_shutdown)(handle.get()) };
            exit::closed();
        });
    }
}

/// A pool of a cluster, or a namespace of one.
pub(in super::super) struct Pool {
    cluster: Arc<Cluster>,
    handle: Shared,
}

impl Pool {
    pub(super) fn api(&self) -> &'static Api {
        self.cluster.api
    }

    pub(super) fn handle(&self) -> super::Handle {
        self.handle.get()
    }

    /// Waits until callbacks of watches that have ended are done.
    pub(super) fn flush_watches(&self) {
        // SAFETY: the connection lives.
        let _ = unsafe { (self.api().rados_watch_flush)(self.cluster.handle.get()) };
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: whatever rests on the pool keeps it alive.
        unsafe { (self.api().rados_ioctx_destroy)(self.handle.get()) }
    }
}
