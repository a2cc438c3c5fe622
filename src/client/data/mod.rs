//! Images' bytes, to and from the agents' data API.
//!
//! ```text
//! credential: a token to be known by ─┐
//! door: a way to an agent, with TLS  ─┴► link: HTTP over it ─► upload: from a file or a pipe, going on where it broke off
//!                                                           └► download: into a file, the same
//! ```

pub mod credential;
pub mod door;
pub mod download;
pub mod fingerprint;
pub mod link;
mod part;
pub mod upload;

use std::time::Duration;

use vitrine_engine::error::{Error, Kind, Result};

/// How often is tried again without any progress in between, before it is given up.
const TRIES: u32 = 12;
/// The first pause before that, and the longest. All of them together are a few minutes: an agent that is being replaced is back by then.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Counts failures in a row.
#[derive(Debug, Default)]
struct Patience {
    failures: u32,
}

impl Patience {
    /// There was progress.
    fn renew(&mut self) {
        self.failures = 0;
    }

    /// Waits before the next try.
    ///
    /// # Errors
    /// `error`, if it has been tried often enough.
    async fn bear(&mut self, error: Error) -> Result<()> {
        if !matches!(error.kind(), Kind::Unavailable | Kind::Changed) || self.failures >= TRIES {
            return Err(error);
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(8)).min(LONGEST_PAUSE);
        self.failures += 1;
        // The first failures are ordinary: a node has not heard of an Image yet, a connection was closed.
        if self.failures > 3 {
            eprintln!("{error}; trying again in {} s", pause.as_secs().max(1));
        }
        tokio::time::sleep(pause).await;
        Ok(())
    }
}
