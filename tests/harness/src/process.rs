//! One child process with a log: started, watched, waited for with a deadline, measured, killed by its pid.
//!
//! Bound to no async runtime, so that tests of one binary, each with its own runtime, can share it. Knows nothing of what it runs.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::error::{Context, Error, Result};

/// How often a process or its log is looked at while somebody waits.
const POLL: Duration = Duration::from_millis(10);
/// How long a process may take to stop where it is: as long as a thread may be held up in the kernel.
const PAUSE_DEADLINE: Duration = Duration::from_secs(30);
/// How much of a log's end goes into an error message: enough for a panic or a usage error, short enough to read.
const TAIL_LINES: usize = 25;

/// A running (or ended) child process. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    id: u32,
    log: PathBuf,
    /// Where in the log this process begins; an earlier one may have written before it.
    log_start: u64,
    started: Instant,
    child: Mutex<Child>,
}

/// What a process used from its start to its end.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// How it ended.
    pub status: ExitStatus,
    /// From its start to its end.
    pub wall: Duration,
    /// User and system time of all its threads.
    pub cpu: Duration,
    /// The most resident memory it had, in bytes, as last seen at most 10 ms before its end.
    pub peak_rss: u64,
}

impl Process {
    /// Starts `command`, its output appended to `log`. Prefer [`crate::Scope::spawn`], which also ends it with the scope.
    ///
    /// # Errors
    /// When the log cannot be written or the program cannot be started.
    pub fn spawn(name: &str, mut command: Command, log: PathBuf) -> Result<Self> {
        let output =
            OpenOptions::new().create(true).append(true).open(&log).context(|| format!("open {}", log.display()))?;
        let log_start = output.metadata().map_or(0, |metadata| metadata.len());
        let errors = output.try_clone().context(|| format!("open {}", log.display()))?;
        let child = command
            .stdout(output)
            .stderr(errors)
            .spawn()
            .context(|| format!("start {name} ({:?})", command.get_program()))?;
        Ok(Self {
            name: name.to_owned(),
            id: child.id(),
            log,
            log_start,
            started: Instant::now(),
            child: Mutex::new(child),
        })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Where its output goes.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Everything it has written so far.
    pub fn log(&self) -> String {
        let mut text = Vec::new();
        let read = File::open(&self.log).and_then(|mut log| {
            log.seek(SeekFrom::Start(self.log_start))?;
            log.read_to_end(&mut text)
        });
        read.map(|_| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default()
    }

    /// The last lines it has written.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines.get(lines.len().saturating_sub(TAIL_LINES)..).unwrap_or_default().join("\n")
    }

    /// How it ended, or none while it runs.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.child().try_wait().ok().flatten()
    }

    /// Kills it at once (SIGKILL) and waits until it is gone. Nothing happens when it has ended.
    pub fn kill(&self) {
        let mut child = self.child();
        if matches!(child.try_wait(), Ok(None)) {
            let _gone_meanwhile = child.kill();
            let _status = child.wait();
        }
    }

    /// Sends it a signal. Nothing happens when it has ended.
    ///
    /// # Errors
    /// When the signal may not be sent.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        // The lock keeps the pid from being reaped, and so from being somebody else's, between the two calls.
        let mut child = self.child();
        if !matches!(child.try_wait(), Ok(None)) {
            return Ok(());
        }
        let pid = i32::try_from(self.id).ok().and_then(Pid::from_raw).ok_or_else(|| Error::new("a pid of 0"))?;
        kill_process(pid, signal).context(|| format!("send a signal to {}", self.name))
    }

    /// Stops it where it is (SIGSTOP), as a machine that hangs, until [`Process::resume`]. Waits until all its threads stand still.
    ///
    /// # Errors
    /// When the signal may not be sent, or a thread goes on.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)?;
        let start = Instant::now();
        while self.ended().is_none() && !self.is_stopped() {
            if start.elapsed() > PAUSE_DEADLINE {
                return Err(self.complaint("does not stop"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Lets it go on (SIGCONT).
    ///
    /// # Errors
    /// When the signal may not be sent.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Asks it to end (SIGTERM), and waits for that.
    ///
    /// # Errors
    /// When it has not ended by the deadline; it is still running then.
    pub async fn terminate(&self, deadline: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait(deadline).await
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it has not ended by the deadline; the message holds the end of its log.
    pub async fn wait(&self, deadline: Duration) -> Result<ExitStatus> {
        self.wait_until(deadline, "has not ended", |process| process.ended()).await
    }

    /// Waits until its log holds `text`.
    ///
    /// # Errors
    /// When it has ended before, or the deadline is over; the message holds the end of its log.
    pub async fn wait_for_log(&self, text: &str, deadline: Duration) -> Result<()> {
        let seen = |process: &Self| match process.log().contains(text) {
            true => Some(Ok(())),
            false => process
                .ended()
                .map(|status| Err(process.complaint(&format!("ended ({status}) before it wrote {text:?}")))),
        };
        self.wait_until(deadline, &format!("has not written {text:?}"), seen).await?
    }

    /// Waits for its end and says what it used. Call it right after the start: memory is sampled while it waits.
    ///
    /// # Errors
    /// When it has not ended by the deadline.
    pub async fn measure(&self, deadline: Duration) -> Result<Usage> {
        let (mut peak_rss, mut cpu) = (0, Duration::ZERO);
        let status = self.wait_until(deadline, "has not ended", |process| {
            // In this order: an ended process still has its times until it is waited for, but no memory any more.
            let exited = process.has_exited();
            peak_rss = process.peak_rss().unwrap_or(0).max(peak_rss);
            cpu = process.cpu().unwrap_or(cpu);
            exited.then(|| process.ended()).flatten()
        });
        let status = status.await?;
        Ok(Usage { status, wall: self.started.elapsed(), cpu, peak_rss })
    }

    /// Its resident memory now, in bytes; none once it has ended.
    pub fn rss(&self) -> Option<u64> {
        self.status_kib("VmRSS:")
    }

    /// The most resident memory it has had, in bytes; none once it has ended.
    pub fn peak_rss(&self) -> Option<u64> {
        self.status_kib("VmHWM:")
    }

    /// User and system time so far; none once it was waited for.
    pub fn cpu(&self) -> Option<Duration> {
        // proc_pid_stat(5): fields 14 and 15, counted from the state (3) that follows the name in parentheses.
        let fields = self.stat_fields()?;
        let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        Some(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
    }

    /// An error that says `what` of this process and shows the end of its log.
    pub fn complaint(&self, what: &str) -> Error {
        let Self { name, log, .. } = self;
        Error::new(format!("{name} {what}. The end of {}:\n{}", log.display(), self.log_tail()))
    }

    /// Whether it has exited but was not waited for.
    fn has_exited(&self) -> bool {
        self.stat_fields().is_none_or(|fields| fields.first().is_some_and(|state| state == "Z"))
    }

    fn is_stopped(&self) -> bool {
        let Ok(threads) = fs::read_dir(format!("/proc/{}/task", self.id)) else { return false };
        // A thread that ended meanwhile does nothing either.
        let states = threads.flatten().filter_map(|thread| fs::read_to_string(thread.path().join("stat")).ok());
        states
            .filter_map(|stat| Some(stat.rsplit_once(')')?.1.trim_start().chars().next()))
            .all(|state| state == Some('T'))
    }

    fn stat_fields(&self) -> Option<Vec<String>> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.id)).ok()?;
        let (_, rest) = stat.rsplit_once(')')?;
        Some(rest.split_whitespace().map(str::to_owned).collect())
    }

    fn status_kib(&self, key: &str) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    }

    async fn wait_until<T>(
        &self,
        deadline: Duration,
        failing: &str,
        mut look: impl FnMut(&Self) -> Option<T>,
    ) -> Result<T> {
        let start = Instant::now();
        loop {
            if let Some(found) = look(self) {
                return Ok(found);
            }
            if start.elapsed() > deadline {
                return Err(self.complaint(&format!("{failing} after {} s", deadline.as_secs_f32())));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Usage {
    /// The signal that ended it, if one did.
    pub fn signal(&self) -> Option<i32> {
        self.status.signal()
    }
}
