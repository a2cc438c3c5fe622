//! What all work of one agent shares: its folder on the node, its clients, its tokens.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use tokio_util::sync::CancellationToken;

use super::{Config, heartbeat::Pulse, stores::Stores};
use crate::api::ImageTask;

const LOCK: &str = "lock";
const SCRATCH: &str = "scratch";
/// How often a taken lock is tried again.
const PAUSE: Duration = Duration::from_millis(200);

/// The agent's own folder, locked, so that two agents never share one.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
    _lock: File,
}

impl Folder {
    /// Makes the folder, waits for its lock until `stop`, and removes what an earlier agent left in `scratch`.
    ///
    /// # Errors
    /// What the file system says; `Interrupted` if `stop` came first.
    pub async fn claim(root: &Path, stop: &CancellationToken) -> io::Result<Self> {
        fs::create_dir_all(root)?;
        let lock = File::options().create(true).truncate(false).write(true).open(root.join(LOCK))?;
        let mut told = false;
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(error)) => return Err(error),
                Err(TryLockError::WouldBlock) if !told => {
                    tracing::warn!(folder = %root.display(), "another agent uses this folder; waiting for its end");
                    told = true;
                }
                Err(TryLockError::WouldBlock) => {}
            }
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => {}
                () = stop.cancelled() => return Err(io::ErrorKind::Interrupted.into()),
            }
        }
        let scratch = root.join(SCRATCH);
        match fs::remove_dir_all(&scratch) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::create_dir(&scratch)?,
        }
        Ok(Self { root: root.to_owned(), _lock: lock })
    }

    /// For spill files.
    pub fn scratch(&self) -> PathBuf {
        self.root.join(SCRATCH)
    }
}

/// What all work of one agent shares.
pub struct Workplace {
    /// What the agent was told.
    pub config: Config,
    /// Made anew with each start.
    pub id: String,
    /// The tasks, of all nodes as far as the API goes.
    pub tasks: Api<ImageTask>,
    /// The Secrets beside them.
    pub secrets: Api<Secret>,
    /// The node's stores.
    pub stores: Arc<Stores>,
    /// Whether the Lease holds.
    pub pulse: Pulse,
    /// For spill files.
    pub scratch: PathBuf,
    /// Cancelled when the agent ends for good: requests that are still being tried are given up.
    pub end: CancellationToken,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_folder_is_claimed_once_and_swept() {
        let (dir, stop) = (tempfile::tempdir().unwrap(), CancellationToken::new());
        let folder = Folder::claim(dir.path(), &stop).await.unwrap();
        fs::write(folder.scratch().join("spill"), "left").unwrap();
        let second = tokio::spawn({
            let (path, stop) = (dir.path().to_owned(), stop.clone());
            async move { Folder::claim(&path, &stop).await }
        });
        tokio::time::sleep(PAUSE * 2).await;
        assert!(!second.is_finished());
        drop(folder);
        let folder = second.await.unwrap().unwrap();
        assert_eq!(fs::read_dir(folder.scratch()).unwrap().count(), 0);
        stop.cancel();
        assert_eq!(Folder::claim(dir.path(), &stop).await.unwrap_err().kind(), io::ErrorKind::Interrupted);
    }
}
