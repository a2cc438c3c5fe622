//! A RADOS gateway on a cluster: an S3 server on loopback, plain and with TLS, with a user of its own.
//!
//! Several can run on one cluster and serve the same buckets, so a test may kill its own and leave the others alone.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex as AsyncMutex, OnceCell};

use super::{CephCluster, daemons};
use crate::error::{Context, Error, Result};
use crate::pki::Authority;
use crate::port::PortLease;
use crate::process::Process;

/// The user under whose name gateways talk to the cluster.
const CLIENT: &str = "client.rgw";
/// The S3 user of all tests, its key and its secret.
const USER: &str = "vitrine";
const KEY: &str = "VITRINEACCESS";
const SECRET: &str = "vitrine/secret+0123456789";
/// How long a gateway may take until it answers: 3 s on idle cores, more where it makes its pools beside a compiler.
const START_DEADLINE: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(50);

/// A running gateway. Dropping it ends it; its data stays in the cluster.
pub struct Gateway<'a> {
    cluster: &'a CephCluster,
    process: Mutex<Option<Process>>,
    name: String,
    plain: PortLease,
    tls: PortLease,
    authority: Authority,
}

impl<'a> Gateway<'a> {
    /// Starts one.
    ///
    /// # Errors
    /// When the gateway is not installed or does not become ready; the message holds the end of its log.
    pub async fn start(cluster: &'a CephCluster) -> Result<Self> {
        // One at a time: the first one makes the pools and the user.
        static STARTING: AsyncMutex<()> = AsyncMutex::const_new(());
        let _starting = STARTING.lock().await;
        let key = cluster.create_user("rgw", &[("mon", "allow rw"), ("osd", "allow rwx"), ("mgr", "allow rw")]).await?;
        write(&cluster.scope().dir().join("rgw.keyring"), &format!("[{CLIENT}]\n\tkey = {key}\n"))?;
        let (plain, tls) = (PortLease::reserve()?, PortLease::reserve()?);
        let authority = Authority::new("vitrine-lab gateways")?;
        let name = format!("radosgw-{}", plain.port());
        let identity = authority.server(&["127.0.0.1", "localhost"])?;
        write(&cluster.scope().dir().join(format!("{name}.pem")), &(identity.certificate + &identity.key))?;
        let gateway = Self { cluster, process: Mutex::default(), name, plain, tls, authority };
        gateway.resume_from_nothing()?;
        gateway.wait_until_up().await?;
        gateway.make_user(USER, KEY, SECRET)?;
        Ok(gateway)
    }

    /// The one gateway that the tests of this process share, on the shared cluster. It ends with the process.
    ///
    /// # Errors
    /// As [`Gateway::start`]; the next one to ask tries again.
    pub async fn shared() -> Result<&'static Gateway<'static>> {
        static SHARED: OnceCell<Gateway<'static>> = OnceCell::const_new();
        SHARED.get_or_try_init(async || Gateway::start(CephCluster::shared().await?).await).await
    }

    /// Where it answers without TLS.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.plain.port())
    }

    /// Where it answers with TLS.
    pub fn tls_endpoint(&self) -> String {
        format!("https://127.0.0.1:{}", self.tls.port())
    }

    /// The certificate of the authority that signed the gateway's, as PEM text.
    pub fn authority(&self) -> String {
        self.authority.pem()
    }

    /// Id and secret of the access key of the user who owns the tests' buckets.
    pub fn access_key(&self) -> (&'static str, &'static str) {
        (KEY, SECRET)
    }

    /// Makes a user with an access key of its own.
    ///
    /// # Errors
    /// What `radosgw-admin` says.
    pub fn make_user(&self, user: &str, key: &str, secret: &str) -> Result<()> {
        match self.admin(&["user", "info", "--uid", user]) {
            Ok(_) => Ok(()),
            Err(_) => self
                .admin(&[
                    "user",
                    "create",
                    "--uid",
                    user,
                    "--display-name",
                    user,
                    "--access-key",
                    key,
                    "--secret-key",
                    secret,
                ])
                .map(drop),
        }
    }

    /// Makes a bucket of the tests' user. Nothing happens if there is one.
    ///
    /// # Errors
    /// What the gateway says.
    pub fn make_bucket(&self, bucket: &str) -> Result<()> {
        self.request("PUT", bucket).map(drop)
    }

    /// Removes an empty bucket of the tests' user.
    ///
    /// # Errors
    /// What the gateway says.
    pub fn remove_bucket(&self, bucket: &str) -> Result<()> {
        self.request("DELETE", bucket).map(drop)
    }

    fn request(&self, method: &str, bucket: &str) -> Result<String> {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--fail-with-body", "--max-time", "60", "--noproxy", "*"]);
        command.args([
            "--request",
            method,
            "--aws-sigv4",
            "aws:amz:us-east-1:s3",
            "--user",
            &format!("{KEY}:{SECRET}"),
        ]);
        command.args(["--header", "x-amz-content-sha256: UNSIGNED-PAYLOAD", &format!("{}/{bucket}", self.endpoint())]);
        let output = command.output().context(|| "start curl")?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if output.status.success() {
            return Ok(out.into_owned());
        }
        Err(Error::new(format!("{method} of bucket {bucket} failed: {err}{out}")))
    }

    /// Runs `radosgw-admin` and returns what it wrote.
    ///
    /// # Errors
    /// When it fails; the message holds what it said.
    pub fn admin(&self, args: &[&str]) -> Result<String> {
        let keyring = self.keyring();
        let all = [&["--name", CLIENT, "--keyring", &keyring][..], args].concat();
        daemons::run(self.cluster.scope(), "radosgw-admin", &all)
    }

    /// Kills it (SIGKILL). Its ports stay reserved.
    pub fn kill(&self) {
        drop(self.lock().take());
    }

    /// Starts it again and waits until it answers. Nothing happens if it runs.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn restart(&self) -> Result<()> {
        self.resume_from_nothing()?;
        self.wait_until_up().await
    }

    /// Stops it where it is (SIGSTOP), as a machine that hangs.
    ///
    /// # Errors
    /// When the signal may not be sent.
    pub fn pause(&self) -> Result<()> {
        self.lock().as_ref().map_or(Ok(()), Process::pause)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// When the signal may not be sent.
    pub fn resume(&self) -> Result<()> {
        self.lock().as_ref().map_or(Ok(()), Process::resume)
    }

    fn keyring(&self) -> String {
        self.cluster.scope().dir().join("rgw.keyring").display().to_string()
    }

    fn resume_from_nothing(&self) -> Result<()> {
        let mut process = self.lock();
        if process.is_none() {
            let mut command = daemons::command(self.cluster.scope(), "radosgw");
            command.args(["--name", CLIENT, "--keyring", &self.keyring(), "-f", "--pid-file", "", "--rgw-frontends"]);
            command.arg(self.frontends());
            command.args([
                "--rgw-thread-pool-size",
                "64",
                "--rgw-run-sync-thread",
                "false",
                "--rgw-dynamic-resharding",
                "false",
            ]);
            // A pool has eight placement groups, as all others of these clusters; quotas are looked at each time.
            command.args([
                "--rgw-rados-pool-pg-num-min",
                "4",
                "--rgw-bucket-quota-ttl",
                "0",
                "--rgw-enable-usage-log",
                "false",
            ]);
            *process = Some(self.cluster.scope().spawn(&self.name, command)?);
        }
        Ok(())
    }

    fn frontends(&self) -> String {
        let pem = self.cluster.scope().dir().join(format!("{}.pem", self.name));
        let mut text =
            format!("beast endpoint=127.0.0.1:{} ssl_endpoint=127.0.0.1:{}", self.plain.port(), self.tls.port());
        let _ = write!(text, " ssl_certificate={} ssl_private_key={}", pem.display(), pem.display());
        text
    }

    async fn wait_until_up(&self) -> Result<()> {
        let start = Instant::now();
        while tokio::net::TcpStream::connect(("127.0.0.1", self.tls.port())).await.is_err()
            || tokio::net::TcpStream::connect(("127.0.0.1", self.plain.port())).await.is_err()
        {
            if let Some(process) = &*self.lock() {
                daemons::check_running(process, &self.cluster.config())?;
            }
            if start.elapsed() > START_DEADLINE {
                return Err(Error::new(format!("{} did not answer for {} s", self.name, START_DEADLINE.as_secs())));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).context(|| format!("write {}", path.display()))
}
