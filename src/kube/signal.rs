//! When to stop: SIGTERM from a kubelet, SIGINT from a terminal.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{Error, Result};

/// A token that is cancelled by the first SIGTERM or SIGINT.
///
/// # Errors
/// `Setup` if the handlers cannot be installed.
pub fn stop_token() -> Result<CancellationToken> {
    let listen = |kind| signal(kind).map_err(|e| Error::Setup(format!("no handler for a signal: {e}")));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let token = CancellationToken::new();
    let stop = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
            _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
        }
        stop.cancel();
    });
    Ok(token)
}
