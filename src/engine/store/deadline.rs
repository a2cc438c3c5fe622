//! How long a store is waited for. A network file system whose server is away may never answer.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::error::{Error, Kind, Result};

/// Far longer than any answer takes that comes: a lock is waited for up to a minute, and removing a large, scattered file takes
/// seconds, on a busy disk some dozens of them.
pub const DEADLINE: Duration = Duration::from_mins(5);

/// What `work` on `store` brings. `doing` completes "has not answered … for".
///
/// # Errors
/// What `work` says; `Unavailable` if it says nothing in time, `Cancelled` once `stop` is.
pub async fn answer<T>(
    store: &str,
    doing: &str,
    stop: &CancellationToken,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    answer_within(DEADLINE, store, doing, stop, work).await
}

/// As [`answer`], with another patience than that of who has nothing else to do.
///
/// # Errors
/// As `answer`.
pub async fn answer_within<T>(
    patience: Duration,
    store: &str,
    doing: &str,
    stop: &CancellationToken,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    tokio::select! {
        answer = tokio::time::timeout(patience, work) => answer.unwrap_or_else(|_| {
            let message = format!(
                "store {store} has not answered when {doing} for {} s: does its server answer, and is its volume mounted?",
                patience.as_secs()
            );
            Err(Error::new(Kind::Unavailable, message))
        }),
        () = stop.cancelled() => {
            Err(Error::new(Kind::Cancelled, format!("stopped while store {store} was waited for when {doing}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_store_that_never_answers_is_not_waited_for_for_ever() {
        let stop = CancellationToken::new();
        let hung = || answer::<()>("s", "looking for an object", &stop, std::future::pending());
        let error = hung().await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.to_string().contains("store s"), "{error}");
        stop.cancel();
        assert_eq!(hung().await.unwrap_err().kind(), Kind::Cancelled);
        let alive = CancellationToken::new();
        assert_eq!(answer("s", "counting", &alive, async { Ok(7) }).await.unwrap(), 7);
    }
}
