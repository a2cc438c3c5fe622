//! What must be over before the process ends.
//!
//! A connection has threads of its own. When `exit` tears down the libraries' static data under them, they crash, and with them an
//! orderly end of the process; so `exit` first waits until connections that are being shut down are.

use std::{
    ffi::c_int,
    sync::{Condvar, Mutex, Once, PoisonError},
    time::Duration,
};

/// How long the end of a process waits. Shutting down takes some milliseconds; one that nobody shuts down is not worth more.
const PATIENCE: Duration = Duration::from_secs(3);

static CONNECTIONS: Mutex<usize> = Mutex::new(0);
static CLOSED: Condvar = Condvar::new();

unsafe extern "C" {
    /// C11, section 7.22.4.2: called by `exit`, before what was registered earlier.
    fn atexit(function: extern "C" fn()) -> c_int;
}

/// Counts a connection.
pub(super) fn opened() {
    *CONNECTIONS.lock().unwrap_or_else(PoisonError::into_inner) += 1;
}

/// Counts its end.
pub(super) fn closed() {
    let mut connections = CONNECTIONS.lock().unwrap_or_else(PoisonError::into_inner);
    *connections = connections.saturating_sub(1);
    CLOSED.notify_all();
}

/// Has `exit` wait for connections that are being shut down.
pub(super) fn wait_for_connections() {
    static REGISTERED: Once = Once::new();
    // SAFETY: the function waits on a lock and calls nothing of the libraries.
    REGISTERED.call_once(|| {
        unsafe { atexit(wait) };
    });
}

extern "C" fn wait() {
    let connections = CONNECTIONS.lock().unwrap_or_else(PoisonError::into_inner);
    let _ = CLOSED.wait_timeout_while(connections, PATIENCE, |connections| *connections > 0);
}
