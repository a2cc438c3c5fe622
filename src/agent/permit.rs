//! Whether work may go on, and whether it may publish.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use vitrine_engine::{
    error::{Error, Kind, Result},
    pipeline::Permit,
};

use super::{
    heartbeat::Pulse,
    queue::Stop,
    report::{Reporter, Standing},
};

/// Stops one piece of work, and says why.
#[derive(Clone, Debug, Default)]
pub struct Halt {
    token: CancellationToken,
    why: Arc<OnceLock<Stop>>,
}

impl Halt {
    /// Stops. The first reason counts.
    pub fn stop(&self, why: Stop) {
        // Set already: then the earlier reason stands.
        let _earlier = self.why.set(why);
        self.token.cancel();
    }

    /// Why it was stopped, if it was.
    pub fn why(&self) -> Option<Stop> {
        self.why.get().copied()
    }

    /// Cancelled when it is stopped.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }
}

/// Asks before publishing: the Lease must hold, and the task must be there and wanted, by a fresh read. While the API server is
/// away the work waits; it is neither lost nor published.
pub struct TaskPermit {
    /// The task.
    pub reporter: Reporter,
    /// The Lease.
    pub pulse: Pulse,
    /// Stops the wait, and is told what was found.
    pub halt: Halt,
}

#[async_trait]
impl Permit for TaskPermit {
    async fn permit(&self) -> Result<()> {
        let mut pulse = self.pulse.clone();
        loop {
            if !pulse.holds() {
                tracing::warn!("the Lease has run out: publishing waits until it holds again");
            }
            tokio::select! {
                () = pulse.held() => {}
                () = self.halt.token().cancelled() => return Err(stopped()),
            }
            let standing = self.reporter.standing(self.halt.token()).await.ok_or_else(stopped)?;
            if !pulse.holds() {
                continue; // the answer may be older than the Lease
            }
            return match standing {
                Standing::Wanted(_) => Ok(()),
                Standing::Cancelled(_) => Err(self.refuse(Stop::Cancelled, Kind::Cancelled, "it was cancelled")),
                Standing::Ended | Standing::Gone => Err(self.refuse(Stop::Gone, Kind::Conflict, "its task is gone")),
            };
        }
    }
}

impl TaskPermit {
    fn refuse(&self, why: Stop, kind: Kind, message: &str) -> Error {
        self.halt.stop(why);
        Error::new(kind, format!("nothing is published: {message}"))
    }
}

fn stopped() -> Error {
    Error::new(Kind::Cancelled, "the work was stopped before anything was published")
}
