//! HTTP with an agent: one connection, which is opened again where it was closed; refusals in the agent's own words.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Collected, Empty, Limited, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use vitrine_engine::error::{Error, Kind, Result};

use super::{credential::Credential, door::Door};
use crate::api::data;

/// What is sent.
pub type Outgoing = UnsyncBoxBody<Bytes, std::io::Error>;
/// How long an answer may take to a request without a body: an agent waits a minute for a store, and another one for it.
const ANSWER: Duration = Duration::from_secs(150);
/// The longest refusal that is read.
const MAX_REFUSAL: usize = 64 << 10;

/// A connection about one Image.
pub struct Link {
    door: Door,
    credential: Credential,
    path: String,
    sender: Option<http1::SendRequest<Outgoing>>,
}

/// What an agent answers who does not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The status code.
    pub code: StatusCode,
    /// Its words.
    pub message: String,
}

impl Refusal {
    /// As an error, by what can be done about it.
    pub fn into_error(self) -> Error {
        let Self { code, message } = self;
        let kind = match code {
            StatusCode::UNPROCESSABLE_ENTITY | StatusCode::PAYLOAD_TOO_LARGE => Kind::Refused,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Kind::Denied,
            StatusCode::NOT_FOUND => Kind::NotFound,
            StatusCode::CONFLICT => Kind::Conflict,
            StatusCode::PRECONDITION_FAILED | StatusCode::RANGE_NOT_SATISFIABLE => Kind::Changed,
            code if code.is_server_error() => Kind::Unavailable,
            StatusCode::LOCKED | StatusCode::TOO_MANY_REQUESTS => Kind::Unavailable,
            _ => Kind::InvalidInput,
        };
        Error::new(kind, message)
    }
}

impl Link {
    /// About the Image `name` in `namespace`.
    pub fn new(door: Door, credential: Credential, (namespace, name): (&str, &str)) -> Self {
        Self { door, credential, path: data::path(namespace, name), sender: None }
    }

    /// The way it goes.
    pub fn door(&mut self) -> &mut Door {
        &mut self.door
    }

    /// Whether it is known by an account that was lent for it.
    pub fn is_lent(&self) -> bool {
        self.credential.is_lent()
    }

    /// Gives back what was lent for it.
    pub async fn close(self) {
        self.credential.close().await;
    }

    /// Asks, without a body.
    ///
    /// # Errors
    /// If there is no answer.
    pub async fn ask(&mut self, method: Method, headers: &[(HeaderName, String)]) -> Result<Response<Incoming>> {
        let nothing = Empty::new().map_err(|never| match never {}).boxed_unsync();
        let late = |_| Error::new(Kind::Unavailable, format!("an agent has not answered for {} s", ANSWER.as_secs()));
        tokio::time::timeout(ANSWER, self.send(method, headers, nothing)).await.map_err(late)?
    }

    /// Sends a request.
    ///
    /// # Errors
    /// `Unavailable` if there is no answer.
    pub async fn send(
        &mut self,
        method: Method,
        headers: &[(HeaderName, String)],
        body: Outgoing,
    ) -> Result<Response<Incoming>> {
        let mut request = Request::builder().method(method).uri(&self.path).header(header::HOST, self.door.host());
        request = request.header(header::USER_AGENT, concat!("kubectl-vitrine/", env!("CARGO_PKG_VERSION")));
        request = request.header(header::AUTHORIZATION, self.credential.header().await?);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(body).map_err(|e| Error::with_source(Kind::Internal, "making a request", e))?;
        let mut sender = self.sender().await?;
        let answer = sender.send_request(request).await;
        let broken =
            |e| Error::with_source(Kind::Unavailable, format!("the connection to {} broke", self.door.place()), e);
        let answer = answer.map_err(broken)?;
        self.sender = Some(sender);
        Ok(answer)
    }

    /// The connection, if it is of use still, or a new one.
    async fn sender(&mut self) -> Result<http1::SendRequest<Outgoing>> {
        if let Some(mut sender) = self.sender.take()
            && !sender.is_closed()
            && sender.ready().await.is_ok()
        {
            return Ok(sender);
        }
        let stream = TokioIo::new(self.door.open().await?);
        let broken = |e| Error::with_source(Kind::Unavailable, format!("speaking HTTP with {}", self.door.place()), e);
        let (sender, connection) = http1::handshake(stream).await.map_err(broken)?;
        // Its end is seen by the next request, or in the body that it cuts off.
        tokio::spawn(connection);
        Ok(sender)
    }
}

/// The answer, if it is one of success.
///
/// # Errors
/// What the agent says.
pub async fn accepted(answer: Response<Incoming>) -> Result<Response<Incoming>, Refusal> {
    if answer.status().is_success() { Ok(answer) } else { Err(refusal(answer).await) }
}

/// What a refusal says. One to HEAD has no words.
pub async fn refusal(answer: Response<Incoming>) -> Refusal {
    let code = answer.status();
    let body = Limited::new(answer.into_body(), MAX_REFUSAL).collect().await.map(Collected::to_bytes);
    let said: serde_json::Value = body.ok().and_then(|body| serde_json::from_slice(&body).ok()).unwrap_or_default();
    let message = said.get("message").and_then(serde_json::Value::as_str).filter(|message| !message.is_empty());
    Refusal { code, message: message.map_or_else(|| format!("the agent answered {code}"), str::to_owned) }
}

/// A header as text.
pub fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// A header that is a number.
pub fn number(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    text(headers, name)?.parse().ok()
}

/// A stream of pieces as a body.
pub fn body(pieces: impl futures::Stream<Item = std::io::Result<Bytes>> + Send + 'static) -> Outgoing {
    BodyExt::boxed_unsync(http_body_util::StreamBody::new(pieces.map(|piece| piece.map(hyper::body::Frame::data))))
}

/// Something that may stand in a header.
///
/// # Errors
/// If it may not.
pub fn value(text: &str) -> Result<HeaderValue> {
    HeaderValue::from_str(text).map_err(|e| Error::with_source(Kind::InvalidInput, "a header", e))
}
