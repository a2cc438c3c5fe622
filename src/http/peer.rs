//! The agent of another node, which holds what this one cannot read: what it answers is passed on as it comes.
//!
//! It is asked with the caller's own token, and decides for itself whether they may.

use std::{net::SocketAddr, time::Duration};

use axum::{
    body::{Body, BodyDataStream},
    response::Response,
};
use futures::StreamExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use reqwest::{Certificate, Url};

use super::{answer::Refusal, idle::Work, memo::Memo, tenant::Place};
use crate::api::{
    NodeCache,
    data::{TUS_RESUMABLE, UPLOAD_LENGTH, UPLOAD_OFFSET},
    identity::{CA_BUNDLE, SECRET_CA_KEY, agent_server_name},
};

/// Says which agent passed a request on. Who gets it so does not pass it on again.
pub const FORWARDED: HeaderName = HeaderName::from_static("vitrine-forwarded-by");
/// How long an agent's address, and who signs, are believed.
const BELIEF: Duration = Duration::from_secs(5);
/// Agents asked at once: more than there are on most clusters.
const MOST: usize = 1024;
/// How long connecting may take: another agent is near.
const CONNECT: Duration = Duration::from_secs(5);
/// How often it is seen whether a silent agent's machine is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What the other agent is told of the request.
const PASSED: [HeaderName; 12] = [
    header::AUTHORIZATION,
    header::RANGE,
    header::IF_RANGE,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::ACCEPT,
    header::USER_AGENT,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    TUS_RESUMABLE,
    UPLOAD_OFFSET,
    UPLOAD_LENGTH,
];
/// What of its answer is about the connection to it, and not about what is sent.
const DROPPED: [HeaderName; 5] =
    [header::CONNECTION, header::TRANSFER_ENCODING, header::DATE, header::UPGRADE, header::TRAILER];

/// Asks the agents of other nodes.
pub struct Peers {
    node: String,
    caches: Api<NodeCache>,
    bundles: Api<ConfigMap>,
    /// How long another agent may be silent.
    patience: Duration,
    clients: Memo<(String, Use), (reqwest::Client, Url)>,
}

/// What another agent is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Use {
    /// To answer: then it must not be silent for long.
    Answers,
    /// To take a body, however long that comes, and then to say how an import ended. It ends a connection that is silent itself.
    Takes,
}

/// A request to be passed on.
pub struct Question<'a> {
    /// GET or HEAD.
    pub method: &'a Method,
    /// Path and query.
    pub path: &'a str,
    /// All of its headers.
    pub headers: &'a HeaderMap,
}

impl Peers {
    /// For the agent on `node` of the operator in `namespace`.
    pub fn new(client: &Client, node: &str, namespace: &str, patience: Duration) -> Self {
        Self {
            node: node.to_owned(),
            caches: Api::all(client.clone()),
            bundles: Api::namespaced(client.clone(), namespace),
            patience,
            clients: Memo::new(BELIEF, MOST),
        }
    }

    /// What the agent of `node` answers.
    ///
    /// # Errors
    /// Why it cannot be asked: it is not known, not there, or not who it ought to be.
    pub async fn ask(&self, node: &str, question: &Question<'_>) -> Result<reqwest::Response, String> {
        self.request(node, question, Use::Answers)
            .await?
            .send()
            .await
            .map_err(|error| error_chain(&error.without_url()))
    }

    /// The same of a request with a body.
    ///
    /// # Errors
    /// As `ask`.
    pub async fn send(
        &self,
        node: &str,
        question: &Question<'_>,
        body: BodyDataStream,
    ) -> Result<reqwest::Response, String> {
        let request = self.request(node, question, Use::Takes).await?.body(reqwest::Body::wrap_stream(body));
        request.send().await.map_err(|error| error_chain(&error.without_url()))
    }

    async fn request(&self, node: &str, question: &Question<'_>, for_: Use) -> Result<reqwest::RequestBuilder, String> {
        let (client, base) = self.client(node, for_).await?;
        let url = base.join(question.path).map_err(|error| error.to_string())?;
        let mut headers = HeaderMap::new();
        for name in PASSED {
            if let Some(value) = question.headers.get(&name) {
                headers.insert(name, value.clone());
            }
        }
        let own = HeaderValue::from_str(&self.node).map_err(|error| error.to_string())?;
        headers.insert(FORWARDED, own);
        Ok(client.request(question.method.clone(), url).headers(headers))
    }

    async fn client(&self, node: &str, for_: Use) -> Result<(reqwest::Client, Url), String> {
        let key = (node.to_owned(), for_);
        if let Some(known) = self.clients.get(&key) {
            return Ok(known);
        }
        let cache = self.caches.get_opt(node).await.map_err(|error| error.to_string())?;
        let data = cache.and_then(|cache| cache.status?.data);
        let address = data.ok_or("it has no agent that serves data")?.address;
        let address: SocketAddr = address.parse().map_err(|_| format!("its address {address} is none"))?;
        let name = agent_server_name(node);
        let builder = reqwest::Client::builder()
            .tls_certs_only(self.signers().await?)
            .resolve(&name, address)
            .https_only(true)
            // One window for all requests of a connection would let one slow reader hold up the others.
            .http1_only()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .tcp_keepalive(KEEP_ALIVE)
            .connect_timeout(CONNECT);
        let builder = match for_ {
            Use::Answers => builder.read_timeout(self.patience),
            Use::Takes => builder,
        };
        let client = builder.build().map_err(|error| error_chain(&error))?;
        let url = format!("https://{name}:{}/", address.port()).parse::<Url>().map_err(|error| error.to_string())?;
        self.clients.put(key, (client.clone(), url.clone()));
        Ok((client, url))
    }

    async fn signers(&self) -> Result<Vec<Certificate>, String> {
        let map = self.bundles.get(CA_BUNDLE).await.map_err(|error| format!("ConfigMap {CA_BUNDLE}: {error}"))?;
        let bundle = map.data.and_then(|data| data.get(SECRET_CA_KEY).cloned());
        let bundle = bundle.ok_or_else(|| format!("ConfigMap {CA_BUNDLE} has no key {SECRET_CA_KEY}"))?;
        Certificate::from_pem_bundle(bundle.as_bytes()).map_err(|error| error_chain(&error))
    }
}

/// The other agent's answer as this one's. `place` is kept until all of it is sent.
pub fn pass_on(answer: reqwest::Response, work: Work, place: Place) -> Response {
    let (status, mut headers) = (answer.status(), answer.headers().clone());
    DROPPED.iter().for_each(|name| drop(headers.remove(name)));
    let state = (answer.bytes_stream().boxed(), work, place);
    let body = futures::stream::unfold(state, |(mut bytes, work, place)| async move {
        // While the other agent is waited for, the caller has nothing to do.
        let at_work = work.begin();
        let piece = bytes.next().await?;
        drop(at_work);
        Some((piece, (bytes, work, place)))
    });
    let mut response = Response::new(Body::from_stream(body));
    (*response.status_mut(), *response.headers_mut()) = (status, headers);
    response
}

/// Whether another agent may do better than one that answers so.
pub fn is_no_answer(status: StatusCode) -> bool {
    status == StatusCode::SERVICE_UNAVAILABLE || status == StatusCode::BAD_GATEWAY
}

/// What is said when there is nobody to ask.
pub fn unreachable(tried: &[String]) -> Refusal {
    Refusal::unavailable(format!("no agent can read this image now: {}; try again later", tried.join("; ")))
}

/// The error with its causes: reqwest's own words are few.
fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}
