//! A real Ceph cluster on loopback: one monitor and one OSD, with cephx, and a manager where statistics are needed.
//!
//! Ready in a few seconds. Data is kept in memory or on disk. Several can run at once. Everything that a cluster starts
//! or writes is in one [`Scope`], and gone with it; nothing is read from or written to `/etc/ceph`, `/var/lib/ceph` or `/var/log/ceph`.

mod admin;
mod config;
mod daemons;
mod gateway;

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::OnceCell;

use crate::error::{Context, Error, Result};
use crate::port::PortLease;
use crate::process::Process;
use crate::scope::Scope;
use admin::Admin;
pub use gateway::Gateway;

/// How long a cluster may take until it takes commands: 2 s on two idle cores, much more on a machine that compiles beside it.
const START_DEADLINE: Duration = Duration::from_secs(180);
/// How often a cluster is asked for something that is waited for.
const POLL: Duration = Duration::from_millis(100);

/// What kind of cluster.
#[derive(Debug, Clone)]
pub struct CephOptions {
    /// Whether it keeps statistics, which quotas and `df` rest on: that takes a manager, and some 15 s until the first ones are there.
    pub statistics: bool,
    /// Whether data is on disk (bluestore), so that it is still there after the OSD was killed; else it is in memory (memstore).
    pub on_disk: bool,
    /// How large it says it is, in bytes. Nothing is taken before it is written.
    pub size: u64,
    /// After how long a client that was killed no longer counts as using its images. Clients say every 5 s that they live.
    pub watch_timeout: Duration,
}

impl Default for CephOptions {
    fn default() -> Self {
        Self { statistics: false, on_disk: false, size: 8 << 30, watch_timeout: Duration::from_secs(12) }
    }
}

/// A running cluster. Dropping it ends it and removes its files.
#[derive(Debug)]
pub struct CephCluster {
    // Dropped in this order: the processes first, then the scope, whose keeper waits for the rest.
    admin: Admin,
    manager: Option<Process>,
    osd: Mutex<Option<Process>>,
    monitor: Mutex<Option<Process>>,
    port: PortLease,
    fsid: String,
    admin_key: String,
    scope: Scope,
}

impl CephCluster {
    /// Starts one that keeps its data in memory and has no statistics.
    ///
    /// # Errors
    /// When Ceph is not installed, or a daemon does not become ready; the message holds the end of its log.
    pub async fn start() -> Result<Self> {
        Self::start_with(&CephOptions::default()).await
    }

    /// Starts one.
    ///
    /// # Errors
    /// As [`CephCluster::start`].
    pub async fn start_with(options: &CephOptions) -> Result<Self> {
        daemons::check_installed()?;
        let scope = Scope::open("ceph")?;
        let port = PortLease::reserve()?;
        let fsid = config::uuid()?;
        let path = scope.dir().join("ceph.conf");
        std::fs::write(&path, config::text(scope.dir(), &fsid, port.port(), options))
            .context(|| format!("write {}", path.display()))?;
        let admin_key = config::write_keyring(&scope.dir().join("keyring"))?;
        daemons::make_data(&scope, &fsid, port.port()).await?;
        let monitor = daemons::start(&scope, "ceph-mon", "a")?;
        let osd = daemons::start(&scope, "ceph-osd", "0")?;
        let manager = options.statistics.then(|| daemons::start(&scope, "ceph-mgr", "x")).transpose()?;
        let admin = Admin::start(&scope, &path)?;
        let (monitor, osd) = (Mutex::new(Some(monitor)), Mutex::new(Some(osd)));
        let cluster = Self { admin, manager, osd, monitor, port, fsid, admin_key, scope };
        cluster.wait_until_up().await?;
        Ok(cluster)
    }

    /// The one cluster that the tests of this process share, in memory, started by whoever asks first. It ends with the process.
    ///
    /// # Errors
    /// As [`CephCluster::start`]; the next one to ask tries again.
    pub async fn shared() -> Result<&'static Self> {
        static SHARED: OnceCell<CephCluster> = OnceCell::const_new();
        SHARED.get_or_try_init(Self::start).await
    }

    /// The cluster's id.
    pub fn fsid(&self) -> &str {
        &self.fsid
    }

    /// The monitor's address, as `mon_host` takes it.
    pub fn monitors(&self) -> String {
        format!("[v2:127.0.0.1:{}]", self.port.port())
    }

    /// The cluster's `ceph.conf`. It names a keyring with the administrator's key.
    pub fn config(&self) -> PathBuf {
        self.scope.dir().join("ceph.conf")
    }

    /// The key of `client.admin`.
    pub fn admin_key(&self) -> &str {
        &self.admin_key
    }

    /// The scope of this cluster, for starting processes that shall end with it; logs are in its folder.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Makes a pool for images, and waits until it takes writes.
    ///
    /// # Errors
    /// What the monitor says.
    pub async fn create_pool(&self, pool: &str) -> Result<()> {
        self.ask(&format!(r#"{{"pool": {{"pool": "{pool}", "application": "rbd"}}}}"#)).await.map(drop)
    }

    /// Makes a namespace for images in `pool`.
    ///
    /// # Errors
    /// What the pool says.
    pub async fn create_namespace(&self, pool: &str, namespace: &str) -> Result<()> {
        self.ask(&format!(r#"{{"namespace": {{"pool": "{pool}", "namespace": "{namespace}"}}}}"#)).await.map(drop)
    }

    /// How many images in a namespace of `pool` have a snapshot. Takes a millisecond or two.
    ///
    /// # Errors
    /// What the pool says.
    pub async fn snapshots(&self, pool: &str, namespace: &str) -> Result<usize> {
        let question = format!(r#"{{"snapshots": {{"pool": "{pool}", "namespace": "{namespace}"}}}}"#);
        let answer = self.ask(&question).await?;
        answer.parse().context(|| format!("read {answer:?} as a number"))
    }

    /// Makes the user `client.<name>` with capabilities as pairs of service and text; returns its key.
    ///
    /// # Errors
    /// What the monitor says.
    pub async fn create_user(&self, name: &str, caps: &[(&str, &str)]) -> Result<String> {
        let caps: Vec<_> = caps.iter().map(|(service, cap)| format!(r#""{service}", "{cap}""#)).collect();
        let caps = caps.join(", ");
        let command = format!(r#"{{"prefix": "auth get-or-create", "entity": "client.{name}", "caps": [{caps}]}}"#);
        let answer = self.command(&command).await?;
        let key = answer.split_once(r#""key": ""#).and_then(|(_, rest)| rest.split_once('"'));
        key.map(|(key, _)| key.to_owned()).ok_or_else(|| Error::new(format!("no key for client.{name}: {answer}")))
    }

    /// Sends a command to the monitor, as JSON with its `prefix` and arguments, and returns the answer, as JSON.
    ///
    /// # Errors
    /// What the monitor says.
    pub async fn command(&self, command: &str) -> Result<String> {
        self.ask(&format!(r#"{{"command": {command}}}"#)).await
    }

    /// From which part of its size in use the OSD counts as full. It takes a second or two until that is noticed.
    ///
    /// # Errors
    /// What the monitor says.
    pub async fn set_full_ratio(&self, ratio: f64) -> Result<()> {
        // All three, because none takes effect while a lower one is above it.
        for kind in ["nearfull", "backfillfull", "full"] {
            self.command(&format!(r#"{{"prefix": "osd set-{kind}-ratio", "ratio": {ratio}}}"#)).await?;
        }
        Ok(())
    }

    /// Repeats a command until `enough` likes the answer.
    ///
    /// # Errors
    /// What the monitor says, or that it took longer than `deadline`.
    pub async fn wait_for(&self, command: &str, deadline: Duration, enough: impl Fn(&str) -> bool) -> Result<String> {
        let start = Instant::now();
        loop {
            let answer = self.command(command).await?;
            if enough(&answer) {
                return Ok(answer);
            }
            if start.elapsed() > deadline {
                let seconds = deadline.as_secs();
                return Err(Error::new(format!("after {seconds} s Ceph still answers {command} with {answer}")));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Runs `rbd` as the administrator and returns what it wrote.
    ///
    /// # Errors
    /// When it fails; the message holds what it said.
    pub fn rbd(&self, args: &[&str]) -> Result<String> {
        daemons::run(&self.scope, "rbd", args)
    }

    /// Runs `rados` as the administrator and returns what it wrote.
    ///
    /// # Errors
    /// When it fails; the message holds what it said.
    pub fn rados(&self, args: &[&str]) -> Result<String> {
        daemons::run(&self.scope, "rados", args)
    }

    /// Kills the OSD (SIGKILL), as a power cut would. Data in memory is lost with it, data on disk is not.
    pub fn kill_osd(&self) {
        drop(lock(&self.osd).take());
    }

    /// Starts the OSD again. Nothing happens if it runs. It takes requests some seconds later.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_osd(&self) -> Result<()> {
        let mut osd = lock(&self.osd);
        if osd.is_none() {
            *osd = Some(daemons::start(&self.scope, "ceph-osd", "0")?);
        }
        Ok(())
    }

    /// Stops the OSD where it is (SIGSTOP), as a machine that hangs.
    ///
    /// # Errors
    /// When the signal may not be sent.
    pub fn pause_osd(&self) -> Result<()> {
        lock(&self.osd).as_ref().map_or(Ok(()), Process::pause)
    }

    /// Lets the OSD go on.
    ///
    /// # Errors
    /// When the signal may not be sent.
    pub fn resume_osd(&self) -> Result<()> {
        lock(&self.osd).as_ref().map_or(Ok(()), Process::resume)
    }

    /// Kills the monitor (SIGKILL). Its data and its port stay.
    pub fn kill_monitor(&self) {
        drop(lock(&self.monitor).take());
    }

    /// Starts the monitor again. Nothing happens if it runs.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_monitor(&self) -> Result<()> {
        let mut monitor = lock(&self.monitor);
        if monitor.is_none() {
            *monitor = Some(daemons::start(&self.scope, "ceph-mon", "a")?);
        }
        Ok(())
    }

    async fn wait_until_up(&self) -> Result<()> {
        let start = Instant::now();
        let up =
            self.wait_for(r#"{"prefix": "osd stat"}"#, START_DEADLINE, |answer| answer.contains(r#""num_up_osds": 1"#));
        if let Err(error) = up.await {
            for daemon in [&self.monitor, &self.osd] {
                if let Some(daemon) = &*lock(daemon) {
                    daemons::check_running(daemon, &self.config())?;
                }
            }
            return Err(error);
        }
        if self.manager.is_some() {
            let left = START_DEADLINE.saturating_sub(start.elapsed());
            self.wait_for(r#"{"prefix": "df"}"#, left, |answer| !answer.contains(r#""total_bytes": 0,"#)).await?;
        }
        Ok(())
    }

    async fn ask(&self, request: &str) -> Result<String> {
        self.admin.ask(request.to_owned()).await
    }
}

fn lock(process: &Mutex<Option<Process>>) -> MutexGuard<'_, Option<Process>> {
    process.lock().unwrap_or_else(PoisonError::into_inner)
}
