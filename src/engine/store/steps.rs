//! The steps by which a store publishes and deletes, shown to tests that kill or hold up whoever takes them.

use std::sync::{Arc, Mutex, PoisonError};

type Watcher<S> = Arc<dyn Fn(S) + Send + Sync>;

/// Who watches the steps of one store.
pub(super) struct Steps<S>(Mutex<Option<Watcher<S>>>);

impl<S> Default for Steps<S> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<S> Steps<S> {
    /// Has `watcher` called after every step from now on.
    pub(super) fn watch(&self, watcher: impl Fn(S) + Send + Sync + 'static) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(watcher));
    }

    /// Notes that `step` is done.
    pub(super) fn done(&self, step: S) {
        let watcher = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(watcher) = watcher {
            watcher(step);
        }
    }
}
