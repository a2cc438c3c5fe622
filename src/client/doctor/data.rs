//! The data API: published, certified, and answering.

use http::{Method, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;
use kube::Api;
use vitrine_engine::error::{Error, Kind, Result};
use x509_parser::pem::Pem;

use super::{Case, Finding, one};
use crate::{
    api::{
        data::path,
        identity::{CA_BUNDLE, DATA_SERVICE},
    },
    client::{
        data::door::{Door, published},
        text::lasting,
    },
};

/// A bundle of which nothing holds longer than this is about to be of no use.
const SOON: i64 = 7 * 86_400;

/// Looks at it.
pub async fn examine(case: &Case<'_>) -> Vec<Finding> {
    let services: Api<Service> = Api::namespaced(case.cluster.client.clone(), case.site);
    let mut findings = Vec::new();
    match one(services, DATA_SERVICE, "data service").await {
        Ok(Some(_)) => findings.push(Finding::ok("data service", format!("{DATA_SERVICE} is there"))),
        Ok(None) if case.way.url.is_some() => {}
        Ok(None) => {
            let message = format!(
                "there is no Service {DATA_SERVICE} in namespace {}: nothing can be uploaded or downloaded",
                case.site
            );
            findings.push(Finding::warning(
                "data service",
                message,
                "set data.enabled of the chart, unless that is meant",
            ));
            return findings;
        }
        Err(unseen) => findings.push(unseen),
    }
    let bundle = published(case.cluster, case.site).await;
    findings.push(match bundle {
        Ok(bundle) => judge_bundle(&bundle, Timestamp::now()),
        Err(error) => {
            Finding::problem("certificates", error.to_string(), "see what is said of the leader, who makes it")
        }
    });
    findings.push(match ask(case).await {
        Ok(place) => Finding::ok("data API", format!("{place} answers, and proves who it is")),
        Err(error) if error.kind() == Kind::Denied => Finding::warning(
            "data API",
            error.to_string(),
            "kubectl vitrine doctor --data-url https://… looks at it where it is exposed",
        ),
        Err(error) => Finding::problem(
            "data API",
            error.to_string(),
            format!("kubectl get pods --namespace {} --output wide", case.site),
        ),
    });
    findings
}

/// Who signs must be good now, and for a while.
fn judge_bundle(bundle: &str, now: Timestamp) -> Finding {
    let subject = "certificates";
    let ends = Pem::iter_from_buffer(bundle.as_bytes()).filter_map(|pem| {
        let pem = pem.ok()?;
        Some(pem.parse_x509().ok()?.validity().not_after.timestamp())
    });
    let remedy = format!("see the operator's log; it renews ConfigMap {CA_BUNDLE} by itself");
    match ends.max() {
        None => Finding::problem(subject, format!("ConfigMap {CA_BUNDLE} holds no certificate"), remedy),
        Some(end) if end < now.as_second() => {
            Finding::problem(subject, "who signs agents' certificates has expired", remedy)
        }
        Some(end) if end - now.as_second() < SOON => {
            let left = lasting((end - now.as_second()).unsigned_abs());
            Finding::warning(subject, format!("who signs agents' certificates expires in {left}"), remedy)
        }
        Some(end) => Finding::ok(
            subject,
            format!("who signs agents' certificates is good for {}", lasting((end - now.as_second()).unsigned_abs())),
        ),
    }
}

/// What tus clients ask first needs no token, and tells no secret.
async fn ask(case: &Case<'_>) -> Result<String> {
    let door = Door::find(case.cluster, case.way.clone()).await?;
    let broken =
        |e: hyper::Error| Error::with_source(Kind::Unavailable, format!("speaking HTTP with {}", door.place()), e);
    let stream = TokioIo::new(door.open().await?);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.map_err(broken)?;
    tokio::spawn(connection);
    let request = http::Request::builder()
        .method(Method::OPTIONS)
        .uri(path("doctor", "doctor"))
        .header(http::header::HOST, door.host())
        .body(Empty::<bytes::Bytes>::new().boxed())
        .map_err(|e| Error::with_source(Kind::Internal, "making a request", e))?;
    let answer = sender.send_request(request).await.map_err(broken)?;
    if answer.status() == StatusCode::NO_CONTENT {
        return Ok(door.place());
    }
    Err(Error::new(Kind::Unavailable, format!("{} answers {}, as no agent does", door.place(), answer.status())))
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn a_bundle_is_good_as_long_as_its_last_certificate() {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.not_after = rcgen::date_time_ymd(2030, 1, 1);
        let pem = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem();
        let at = |text: &str| judge_bundle(&pem, text.parse().unwrap()).level;
        assert_eq!(at("2026-01-01T00:00:00Z"), Level::Ok);
        assert_eq!(at("2029-12-30T00:00:00Z"), Level::Warning);
        assert_eq!(at("2030-01-02T00:00:00Z"), Level::Problem);
        assert_eq!(judge_bundle("", Timestamp::now()).level, Level::Problem);
    }
}
