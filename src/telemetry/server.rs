//! Answers probes and scrapes over plain HTTP. What is told names stores and nodes, and neither images nor tenants.

use std::{io, net::SocketAddr};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use metrics_exporter_prometheus::{BuildError, PrometheusHandle};
use tokio::net::TcpListener;

use super::metrics;
use crate::{http::listen, kube::readiness::Readiness};

/// Prometheus' text format.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Why nothing can be told.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address cannot be had.
    #[error("nothing can be served on {0}: {1}; name another address with --telemetry-address")]
    Address(SocketAddr, #[source] io::Error),
    /// Recording has begun already.
    #[error("metrics cannot be recorded: {0}")]
    Recorder(#[from] BuildError),
}

/// `/metrics`, `/healthz` and `/readyz` on one address.
pub struct Server {
    listener: TcpListener,
    told: Told,
}

/// What is answered from.
#[derive(Clone)]
struct Told {
    metrics: PrometheusHandle,
    readiness: Readiness,
}

impl Server {
    /// Takes `address` and begins recording; port 0 takes a free one, which the log names.
    ///
    /// # Errors
    /// If the address cannot be had.
    pub async fn open(address: SocketAddr, readiness: Readiness) -> Result<Self, ServerError> {
        let refuse = |error| ServerError::Address(address, error);
        let listener = listen(address).await.map_err(refuse)?;
        let address = listener.local_addr().map_err(refuse)?;
        tracing::info!(%address, "serves /metrics, /healthz and /readyz");
        Ok(Self { listener, told: Told { metrics: metrics::record()?, readiness } })
    }

    /// Answers for ever.
    pub async fn serve(self) {
        let router = Router::new()
            .route("/metrics", get(scrape))
            .route("/healthz", get(async || "ok\n"))
            .route("/readyz", get(ready))
            .with_state(self.told);
        if let Err(error) = axum::serve(self.listener, router).await {
            tracing::error!(%error, "probes and scrapes are not answered any more");
        }
    }
}

async fn scrape(State(told): State<Told>) -> impl IntoResponse {
    ([(CONTENT_TYPE, TEXT)], told.metrics.render())
}

async fn ready(State(told): State<Told>) -> (StatusCode, String) {
    match told.readiness.why_not() {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
    }
}
