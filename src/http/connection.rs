//! Connections: accepted up to a bound, TLS, HTTP/1.1 or 2 as the other side prefers, with a limit for everything it may take its time for.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use axum::{Router, body::Body};
use http::Request;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use rustls::{ServerConfig, server::ResolvesServerCert};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::idle::{Idle, Work};

/// How long a handshake may take, and the head of a request.
const HANDSHAKE: Duration = Duration::from_secs(10);
const HEAD: Duration = Duration::from_secs(30);
/// Requests of one HTTP/2 connection at once, and how much it may have sent that nobody has read: of each, and of all.
const STREAMS: u32 = 64;
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// The longest head of a request.
const MAX_HEAD: usize = 64 << 10;
/// The pause after a connection could not be accepted, as when there are no file descriptors left.
const PAUSE: Duration = Duration::from_millis(100);

/// What every connection is given.
#[derive(Clone)]
pub struct Door {
    tls: TlsAcceptor,
    router: Router,
    idle: Duration,
    stop: CancellationToken,
}

impl Door {
    /// A door that shows `identity`, leads to `router`, and closes behind those who do nothing for `idle`.
    ///
    /// # Errors
    /// If TLS cannot be had, which no configuration of ours can cause.
    pub fn new(
        identity: Arc<dyn ResolvesServerCert>,
        router: Router,
        idle: Duration,
        stop: CancellationToken,
    ) -> Result<Self, rustls::Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let mut config = config.with_no_client_auth().with_cert_resolver(identity);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { tls: TlsAcceptor::from(Arc::new(config)), router, idle, stop })
    }

    /// Lets in up to `most` connections at once, until `stop`; others wait.
    pub async fn keep_open(self, listener: TcpListener, most: usize) {
        let places = Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)));
        loop {
            let accepted = async {
                let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
                listener.accept().await.map(|(stream, _)| (stream, place))
            };
            let accepted = tokio::select! {
                accepted = accepted => accepted,
                () = self.stop.cancelled() => return,
            };
            match accepted {
                Ok((stream, place)) => drop(tokio::spawn(self.clone().let_in(stream, place))),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn let_in(self, stream: TcpStream, _place: OwnedSemaphorePermit) {
        // Without it small answers wait for nothing; that it cannot be had is no reason to refuse.
        let _ = stream.set_nodelay(true);
        let work = Work::default();
        let handshake = self.tls.accept(Idle::new(stream, self.idle, work.clone()));
        let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, handshake).await else { return };
        let router = self.router;
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(work.clone());
            let answer = router.clone().oneshot(request.map(Body::new));
            async move { Ok::<_, Infallible>(answer.await.unwrap_or_else(|never| match never {})) }
        });
        let builder = builder();
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(error, "a connection ended early");
        }
    }
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(MAX_HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX));
    builder
}
