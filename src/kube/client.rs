//! Connecting to the API server.

use std::time::Duration;

use kube::{Client, Config};

use super::{Error, Result};

/// An API server that accepts a request and does not answer is left alone after this long; watches live by their own timeout.
const READ_TIMEOUT: Duration = Duration::from_secs(295);
/// How long connecting may take before the next try has its turn.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A client from KUBECONFIG, the user's kubeconfig, or the pod's service account, in this order.
///
/// # Errors
/// `Setup` if none is there or none makes sense.
pub async fn connect() -> Result<Client> {
    install_crypto();
    let config = Config::infer().await.map_err(|e| Error::Setup(format!("no way to reach the API server: {e}")))?;
    connect_with(config)
}

/// A client from a configuration that the caller made.
///
/// # Errors
/// `Setup` if it makes no sense.
pub fn connect_with(mut config: Config) -> Result<Client> {
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    connect_as_told(config)
}

/// The same with the time-outs of the configuration: what a person forwards may be silent for longer than a server.
///
/// # Errors
/// `Setup` if it makes no sense.
pub fn connect_as_told(config: Config) -> Result<Client> {
    install_crypto();
    Client::try_from(config).map_err(|e| Error::Setup(format!("the API server's configuration makes no sense: {e}")))
}

/// rustls has no default provider when several are compiled in; saying it here makes the choice certain. A second call finds it installed.
fn install_crypto() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
