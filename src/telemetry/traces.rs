//! Traces: the spans of this program, by OpenTelemetry's protocol over HTTP, to the collector that the environment names. Without one
//! nothing is recorded.

use std::{env, time::Duration};

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{ExporterBuildError, Protocol, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use tracing::Level;
use tracing_subscriber::{Layer, Registry, filter::filter_fn};

/// Where a collector is, by the names of OpenTelemetry's specification ("OpenTelemetry Protocol Exporter"). The other variables of
/// the specification are read by its library: headers, time-outs, samplers, attributes of the resource.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
/// How it is spoken to; `http/protobuf` where nothing is said.
const PROTOCOLS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
/// Says `true` where nothing is to be sent in spite of an endpoint.
const DISABLED: &str = "OTEL_SDK_DISABLED";
/// Which program it is; the variable goes before what the program says of itself.
const SERVICE: &str = "OTEL_SERVICE_NAME";
/// How long the end of the program waits for what has not been sent yet.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// The sender of traces; what it has not sent yet is sent when this is dropped.
pub struct Traces(Option<SdkTracerProvider>);

impl Traces {
    /// Begins to send, as the program `service`, if there is somebody to send to. Must not be called within a runtime.
    ///
    /// # Errors
    /// If the environment names a collector that cannot be one.
    pub(super) fn of_environment(service: &'static str) -> Result<Self, ExporterBuildError> {
        let named =
            |names: [&str; 2]| names.into_iter().any(|name| env::var(name).is_ok_and(|value| !value.is_empty()));
        if !named(ENDPOINTS) || env::var(DISABLED).is_ok_and(|value| value.eq_ignore_ascii_case("true")) {
            return Ok(Self(None));
        }
        let exporter = if named(PROTOCOLS) {
            SpanExporter::builder().build()?
        } else {
            SpanExporter::builder().with_http().with_protocol(Protocol::HttpBinary).build()?
        };
        let resource = match env::var(SERVICE) {
            Ok(_) => Resource::builder(),
            Err(_) => Resource::builder().with_service_name(service),
        };
        Ok(Self(Some(
            SdkTracerProvider::builder().with_resource(resource.build()).with_batch_exporter(exporter).build(),
        )))
    }

    /// What records spans, and the events in them. Those of libraries are left out: among them is the sender itself.
    pub(super) fn layer(&self) -> Option<impl Layer<Registry> + Send + Sync + use<>> {
        let tracer = self.0.as_ref()?.tracer("vitrine");
        let ours = filter_fn(|metadata| metadata.target().starts_with("vitrine") && *metadata.level() <= Level::INFO);
        Some(
            tracing_opentelemetry::layer()
                .with_tracer(tracer)
                .with_location(false)
                .with_threads(false)
                .with_filter(ours),
        )
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        if let Some(provider) = &self.0
            && let Err(error) = provider.shutdown_with_timeout(LAST_WORDS)
        {
            tracing::warn!(%error, "the last traces could not be sent");
        }
    }
}
