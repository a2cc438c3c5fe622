//! Whether this process can do its work, as a kubelet's readiness probe asks. Said by who does the work, read by who answers probes.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Until when this process is ready, shared by all clones. It begins as not ready, and stays ready only as long as it is said again: who
/// hangs says nothing.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<Option<Instant>>>);

impl Readiness {
    /// It is ready, for so long from now.
    pub fn hold(&self, duration: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + duration);
    }

    /// Why it is not ready; nothing if it is.
    pub fn why_not(&self) -> Option<String> {
        let until = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match until.map(|until| Instant::now().checked_duration_since(until)) {
            Some(None) => None,
            Some(Some(since)) => {
                Some(format!("its last word from the API server holds no longer, for {} s", since.as_secs()))
            }
            None => Some(
                "it has not begun to work: the API server has not answered yet, or refuses (see the log)".to_owned(),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_is_ready_as_long_as_that_is_said_again() {
        let readiness = Readiness::default();
        let other = readiness.clone();
        assert!(other.why_not().unwrap().contains("has not begun"));
        readiness.hold(Duration::from_secs(10));
        tokio::time::advance(Duration::from_secs(9)).await;
        assert_eq!(other.why_not(), None);
        readiness.hold(Duration::from_secs(10));
        tokio::time::advance(Duration::from_secs(9)).await;
        assert_eq!(other.why_not(), None);
        tokio::time::advance(Duration::from_secs(5)).await;
        assert!(other.why_not().unwrap().contains("for 4 s"));
    }
}
