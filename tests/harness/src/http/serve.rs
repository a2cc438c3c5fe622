//! Accepts connections and answers their requests one after the other; keeps the routes and the record of requests.

use std::collections::HashMap;
use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio_rustls::TlsAcceptor;

use super::answer::Answer;
use super::request::{self, Request};
use super::route::Route;
use super::send::{self, Wire};
use crate::error::{Context, Result};

/// What the connections of one server share.
#[derive(Debug, Default)]
pub struct State {
    folder: Option<PathBuf>,
    routes: Mutex<HashMap<String, Mounted>>,
    requests: Mutex<Vec<Request>>,
    active: AtomicUsize,
    pub peak: AtomicUsize,
    pub down: AtomicBool,
}

#[derive(Debug)]
struct Mounted {
    route: Arc<Route>,
    /// GET requests so far.
    gets: u64,
}

impl State {
    pub fn for_folder(folder: PathBuf) -> Self {
        Self { folder: Some(folder), ..Self::default() }
    }

    pub fn put(&self, path: &str, route: Route) {
        held(&self.routes).insert(path.to_owned(), Mounted { route: Arc::new(route), gets: 0 });
    }

    pub fn requests(&self) -> Vec<Request> {
        held(&self.requests).clone()
    }

    fn answer(&self, request: &Request) -> Answer {
        let found = self.find(request).or_else(|| Some((Arc::new(self.file(request.path())?), 1)));
        found.map_or_else(|| Answer::status(404), |(route, nth)| Answer::to(request, &route, nth))
    }

    /// The route of a request, and which one in its row the request is.
    fn find(&self, request: &Request) -> Option<(Arc<Route>, u64)> {
        let mut routes = held(&self.routes);
        let mounted = routes.get_mut(request.path())?;
        let nth = mounted.gets + 1;
        if request.method != "HEAD" {
            mounted.gets = nth;
        }
        Some((Arc::clone(&mounted.route), nth))
    }

    fn file(&self, path: &str) -> Option<Route> {
        let relative = Path::new(path.trim_start_matches('/'));
        let inside = relative.components().all(|part| matches!(part, Component::Normal(_)));
        Route::file(&self.folder.as_ref().filter(|_| inside)?.join(relative)).ok()
    }
}

/// Takes a port of this machine, 0 being any free one.
pub fn bind(port: u16) -> Result<TcpListener> {
    TcpListener::bind(super::loopback(port)).context(|| format!("listen on 127.0.0.1:{port}"))
}

/// Starts a runtime that hands every connection to `serve`.
pub fn listen<F: Future<Output = ()> + Send + 'static>(
    listener: TcpListener,
    serve: impl Fn(TcpStream) -> F + Send + 'static,
) -> Result<(Runtime, SocketAddr)> {
    let runtime =
        Builder::new_multi_thread().worker_threads(super::THREADS).enable_all().thread_name("lab-http").build();
    let runtime = runtime.context(|| "start threads")?;
    let address = listener.local_addr().context(|| "listen")?;
    listener.set_nonblocking(true).context(|| "listen")?;
    let listener = {
        let _inside = runtime.enter();
        tokio::net::TcpListener::from_std(listener).context(|| "listen")?
    };
    runtime.spawn(async move {
        loop {
            // An error is the one connection's (it was reset before we took it), or lack of descriptors, which passes.
            if let Ok((stream, _)) = listener.accept().await {
                let _speed_only = stream.set_nodelay(true);
                tokio::spawn(serve(stream));
            }
        }
    });
    Ok((runtime, address))
}

/// Serves one connection to its end.
pub async fn connection(state: Arc<State>, tls: Option<TlsAcceptor>, stream: TcpStream) {
    match tls {
        None => converse(&state, stream).await,
        Some(tls) => {
            // A client that does not trust us ends the handshake; that is what some tests are about.
            if let Ok(stream) = tls.accept(stream).await {
                converse(&state, stream).await;
            }
        }
    }
}

async fn converse<S: Wire>(state: &State, mut stream: S) {
    let mut buffer = Vec::new();
    while let Some(request) = request::next(&mut stream, &mut buffer).await {
        if state.down.load(Ordering::Relaxed) {
            return;
        }
        held(&state.requests).push(request.clone());
        let mut active = Some(Active::begin(state));
        let answer = state.answer(&request);
        // A client that has the last byte may ask for the next thing before this task runs again.
        let mut almost_done = || drop(active.take());
        if !send::answer(&mut stream, &request, &answer, &state.down, &mut almost_done).await {
            return;
        }
    }
}

/// Counts a request while it is being answered.
struct Active<'a>(&'a State);

impl<'a> Active<'a> {
    fn begin(state: &'a State) -> Self {
        let now = state.active.fetch_add(1, Ordering::Relaxed) + 1;
        state.peak.fetch_max(now, Ordering::Relaxed);
        Self(state)
    }
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A lock that a panicking test does not take away from the others.
pub fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
