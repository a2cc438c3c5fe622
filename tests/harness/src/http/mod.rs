//! An HTTP/1.1 server that misbehaves on demand, and a forward proxy that counts.
//!
//! What a server of disk images can do wrong is a list of [`Fault`]s; a [`Route`] says what a path has and which faults it shows, and
//! when. Each server runs on its own threads, so a test may block. Every request is kept for assertions. Written by hand, because
//! a well-behaved library cannot lie about lengths.

mod answer;
mod proxy;
mod request;
mod route;
mod send;
mod serve;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;

pub use proxy::ForwardProxy;
pub use request::Request;
pub use route::{Content, Fault, Route};

use crate::error::{Context, Result};
use crate::network::{GATEWAY, Network};
use crate::pki::Authority;
use serve::State;

/// Enough to feed a reader that uses both cores, and the sending is mostly the kernel's work.
const THREADS: usize = 2;

/// A running server, on 127.0.0.1 unless it was started elsewhere. Dropping it cuts its connections.
#[derive(Debug)]
pub struct FaultServer {
    address: SocketAddr,
    scheme: &'static str,
    state: Arc<State>,
    runtime: Option<Runtime>,
}

impl FaultServer {
    /// Starts a server with no paths on a free port.
    ///
    /// # Errors
    /// When no port can be had.
    pub fn start() -> Result<Self> {
        Self::launch(0, None, State::default())
    }

    /// Starts a server with TLS; `authority` signs its certificate for 127.0.0.1 and localhost.
    ///
    /// # Errors
    /// When no port can be had or the certificate cannot be made.
    pub fn start_tls(authority: &Authority) -> Result<Self> {
        let config = authority.server(&["127.0.0.1", "localhost"])?.server_config()?;
        Self::launch(0, Some(TlsAcceptor::from(config)), State::default())
    }

    /// Serves the files of a folder as they are when asked for, on `port` (0: any free one). Routes come before files.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn serve_folder(folder: &Path, port: u16) -> Result<Self> {
        let folder = folder.canonicalize().context(|| format!("open {}", folder.display()))?;
        Self::launch(port, None, State::for_folder(folder))
    }

    /// Starts a server with no paths in a scope's own network, at its gateway.
    ///
    /// # Errors
    /// When the network is gone.
    pub fn start_in(network: &Network) -> Result<Self> {
        let listener =
            network.within(|| TcpListener::bind((GATEWAY, 0)))?.context(|| format!("listen on {GATEWAY}"))?;
        Self::launch_on(listener, None, State::default())
    }

    fn launch(port: u16, tls: Option<TlsAcceptor>, state: State) -> Result<Self> {
        Self::launch_on(serve::bind(port)?, tls, state)
    }

    fn launch_on(listener: TcpListener, tls: Option<TlsAcceptor>, state: State) -> Result<Self> {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let state = Arc::new(state);
        let (runtime, address) = serve::listen(listener, {
            let state = Arc::clone(&state);
            move |stream| serve::connection(Arc::clone(&state), tls.clone(), stream)
        })?;
        Ok(Self { address, scheme, state, runtime: Some(runtime) })
    }

    /// The URL of a path, which begins with a slash.
    pub fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", self.scheme, self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Puts `route` at `path`, in place of what was there; its requests are counted from one again.
    pub fn put(&self, path: &str, route: Route) {
        self.state.put(path, route);
    }

    /// All requests so far, in the order they came.
    pub fn requests(&self) -> Vec<Request> {
        self.state.requests()
    }

    /// The requests for one path so far; a query string does not count as a part of it.
    pub fn requests_for(&self, path: &str) -> Vec<Request> {
        self.requests().into_iter().filter(|request| request.path() == path).collect()
    }

    /// How many bytes of bodies were sent for one path so far.
    pub fn sent(&self, path: &str) -> u64 {
        self.requests_for(path).iter().map(Request::sent).sum()
    }

    /// The most requests that were being answered at the same time.
    pub fn peak_concurrency(&self) -> usize {
        self.state.peak.load(Ordering::Relaxed)
    }

    /// While down, connections are closed before and within answers, as when the server's machine restarts.
    pub fn set_down(&self, down: bool) {
        self.state.down.store(down, Ordering::Relaxed);
    }
}

impl Drop for FaultServer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Waiting for its threads would panic inside an async test; its tasks end at their next await all the same.
            runtime.shutdown_background();
        }
    }
}

/// The loopback address with `port`.
fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}
