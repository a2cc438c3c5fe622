//! An administrator's session with a cluster: a Python process that talks librados, asked line by line.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Context, Error, Result};
use crate::scope::Scope;

/// Debian's own Python, which is the one that Debian's python3-rados belongs to.
const PYTHON: &str = "/usr/bin/python3";
const PROGRAM: &str = include_str!("admin.py");

/// The session. It ends with its scope at the latest.
#[derive(Debug, Clone)]
pub struct Admin {
    session: Arc<Mutex<Session>>,
}

#[derive(Debug)]
struct Session {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Admin {
    /// Starts a session with the cluster of `config`; it waits for the monitor by itself.
    pub fn start(scope: &Scope, config: &Path) -> Result<Self> {
        let mut command = scope.command(PYTHON);
        command.args(["-c", PROGRAM]).arg(config).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context(|| format!("start {PYTHON}"))?;
        let (Some(requests), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Error::new(format!("{PYTHON} has no pipes")));
        };
        Ok(Self { session: Arc::new(Mutex::new(Session { child, requests, answers: BufReader::new(answers) })) })
    }

    /// Sends `request` and returns the answer, both JSON.
    pub async fn ask(&self, request: String) -> Result<String> {
        let session = Arc::clone(&self.session);
        let work = move || session.lock().unwrap_or_else(PoisonError::into_inner).ask(&request);
        tokio::task::spawn_blocking(work).await.context(|| "ask Ceph's monitor")?
    }
}

impl Session {
    fn ask(&mut self, request: &str) -> Result<String> {
        let doing = || format!("ask Ceph's monitor {request}");
        writeln!(self.requests, "{request}").and_then(|()| self.requests.flush()).context(doing)?;
        let mut line = String::new();
        self.answers.read_line(&mut line).context(doing)?;
        let answer = line.trim();
        match answer.strip_prefix("{\"answer\": ").and_then(|rest| rest.strip_suffix('}')) {
            Some(answer) => Ok(answer.to_owned()),
            None if answer.is_empty() => Err(Error::new(format!(
                "{}: {PYTHON} ended; it needs python3-rados and python3-rbd: run tests/ceph/install.sh",
                doing()
            ))),
            None => Err(Error::new(format!("{}: {answer}", doing()))),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _gone_meanwhile = self.child.kill();
        let _status = self.child.wait();
    }
}
