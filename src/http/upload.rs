//! Upload: bytes for an Image whose source is `upload`, whole (PUT) or in resumable steps (tus 1.0: POST, HEAD, PATCH, DELETE).
//!
//! What comes goes straight into the import that waits for it, with all its checks; nothing is kept elsewhere meanwhile. How the import
//! ends is the answer to who sent the last byte, or the first one that was not acceptable. The agent that holds the import is found
//! through the Image's status; any other passes the request on to it.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use futures::StreamExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header};
use kube::Client;
use vitrine_engine::source::{End, Inlet, Pen, Refused, Uploads};

use super::{
    Config,
    answer::{Answer, Refusal},
    idle::Work,
    images,
    peer::{self, FORWARDED, Peers, Question},
    tenant::Place,
};
use crate::api::{
    Image,
    condition::types,
    data::{TUS_RESUMABLE, TUS_TYPE, TUS_VERSION, UPLOAD_DEFER_LENGTH, UPLOAD_LENGTH, UPLOAD_OFFSET},
};

/// What of tus' extensions is spoken.
const TUS_EXTENSIONS: &str = "creation,termination";
/// How long a refusal may be on its way from the import to here.
const REASON_WITHIN: Duration = Duration::from_secs(60);

/// What uploads are made of.
pub struct Intake {
    config: Config,
    client: Client,
    uploads: Arc<Uploads>,
    peers: Arc<Peers>,
}

/// Where the bytes of an Image go.
enum Way {
    /// Into an import of this agent.
    Here(Arc<Inlet>),
    /// To the agent of this node.
    There(String),
}

/// Whether the request is one of an upload.
pub fn is_upload(method: &Method, headers: &HeaderMap) -> bool {
    let is_tus = headers.contains_key(TUS_RESUMABLE);
    match *method {
        Method::PUT | Method::POST | Method::PATCH | Method::DELETE => true,
        Method::HEAD => is_tus,
        _ => false,
    }
}

/// What OPTIONS is answered with: what a tus client may do here.
pub fn capabilities(max_size: u64) -> Response {
    let mut response = tus(StatusCode::NO_CONTENT, &[]);
    let headers = response.headers_mut();
    headers.insert("tus-version", HeaderValue::from_static(TUS_VERSION));
    headers.insert("tus-extension", HeaderValue::from_static(TUS_EXTENSIONS));
    headers.insert("tus-max-size", HeaderValue::from(max_size));
    response
}

/// Says of every answer which version of tus it is of, and of one to another version which it must be.
pub fn mark(response: &mut Response) {
    let of_version = response.status() == StatusCode::PRECONDITION_FAILED;
    response.headers_mut().insert(TUS_RESUMABLE, HeaderValue::from_static(TUS_VERSION));
    if of_version {
        response.headers_mut().insert("tus-version", HeaderValue::from_static(TUS_VERSION));
    }
}

impl Intake {
    /// Into the imports of `uploads`.
    pub fn new(config: Config, client: Client, uploads: Arc<Uploads>, peers: Arc<Peers>) -> Self {
        Self { config, client, uploads, peers }
    }

    /// Answers a request of somebody who may.
    ///
    /// # Errors
    /// Why the bytes are not taken.
    pub async fn answer(
        &self,
        (namespace, name): (&str, &str),
        request: Request<Body>,
        work: &Work,
        place: Place,
    ) -> Answer {
        let length = self.check(&request)?;
        let at_work = work.begin();
        let image = images::read(&self.client, self.config.patience, namespace, name).await?;
        let way = self.way(&image, name, request.headers())?;
        drop(at_work);
        match way {
            Way::Here(inlet) => receive(&inlet, length, request, work).await,
            Way::There(node) => self.pass_on(&node, request, work, place).await,
        }
    }

    /// What can be told without the Image; how many bytes there will be in all, if the request says so.
    fn check(&self, request: &Request<Body>) -> Answer<Option<u64>> {
        let (method, headers) = (request.method(), request.headers());
        let number = |name: &HeaderName| -> Answer<Option<u64>> {
            let Some(value) = headers.get(name) else { return Ok(None) };
            let value = value.to_str().ok().and_then(|value| value.parse().ok());
            value.map(Some).ok_or_else(|| Refusal::bad_request(format!("{name} must be a number of bytes")))
        };
        if *method != Method::PUT && headers.get(TUS_RESUMABLE).is_none_or(|version| version != TUS_VERSION) {
            let message = format!(
                "{method} is of tus {TUS_VERSION}: send `Tus-Resumable: {TUS_VERSION}`; to send all at once use PUT"
            );
            return Err(Refusal::precondition(message));
        }
        if *method == Method::PATCH && headers.get(header::CONTENT_TYPE).is_none_or(|found| found != TUS_TYPE) {
            return Err(Refusal::media_type(format!("the body of PATCH must be of type {TUS_TYPE}")));
        }
        if *method == Method::PATCH && number(&UPLOAD_OFFSET)?.is_none() {
            return Err(Refusal::bad_request("PATCH needs `Upload-Offset`"));
        }
        let length = match *method {
            Method::PUT => number(&header::CONTENT_LENGTH)?,
            Method::PATCH => number(&UPLOAD_LENGTH)?,
            Method::POST => {
                let missing = || Refusal::bad_request("`Upload-Length` must say how many bytes there will be");
                Some(number(&UPLOAD_LENGTH)?.ok_or_else(missing)?)
            }
            _ => None,
        };
        match length.filter(|length| *length > self.config.max_size) {
            Some(length) => Err(Refusal::too_large(format!(
                "{length} bytes are more than the {} that an image may have here: see --max-size of the agents",
                self.config.max_size
            ))),
            None => Ok(length),
        }
    }

    /// Who holds the import that waits for the Image's bytes.
    fn way(&self, image: &Image, name: &str, headers: &HeaderMap) -> Answer<Way> {
        if image.spec.source.upload.is_none() {
            return Err(Refusal::conflict(format!(
                "Image {name} takes no upload: its spec.source is another one than upload"
            )));
        }
        let status = image.status.clone().unwrap_or_default();
        let said = |kind: &str| status.conditions.iter().find(|c| c.type_ == kind && c.status == "True");
        let not_yet =
            || Refusal::unavailable(format!("no node waits for the bytes of Image {name} yet; try again in a moment"));
        let attempt = status.attempt.as_ref().filter(|attempt| attempt.from.is_empty());
        let Some(node) = attempt.and_then(|attempt| attempt.node.clone()) else {
            if let Some(stalled) = said(types::STALLED) {
                let message = format!("{}; annotate the Image with vitrine.dev/retry to upload again", stalled.message);
                return Err(Refusal::conflict(message));
            }
            if status.attempt.is_none() && status.revision.is_some() {
                let message = format!("Image {name} has its data already; make another Image for other data");
                return Err(Refusal::conflict(message));
            }
            return Err(not_yet());
        };
        if node != self.config.node {
            return if headers.contains_key(FORWARDED) { Err(not_yet()) } else { Ok(Way::There(node)) };
        }
        let uid = image.metadata.uid.as_deref().unwrap_or_default();
        self.uploads.find(uid).map(Way::Here).ok_or_else(not_yet)
    }

    async fn pass_on(&self, node: &str, request: Request<Body>, work: &Work, place: Place) -> Answer {
        let (head, body) = request.into_parts();
        let path = head.uri.path_and_query().map_or(head.uri.path(), |path| path.as_str());
        let question = Question { method: &head.method, path, headers: &head.headers };
        // The other agent ends the connection when nothing comes, so this one need not.
        let _at_work = work.begin();
        match self.peers.send(node, &question, body.into_data_stream()).await {
            Ok(answer) => Ok(peer::pass_on(answer, work.clone(), place)),
            Err(error) => Err(Refusal::unavailable(format!(
                "the agent of node {node} cannot be asked ({error}); try again later"
            ))),
        }
    }
}

/// A request for an import of this agent.
async fn receive(inlet: &Arc<Inlet>, length: Option<u64>, request: Request<Body>, work: &Work) -> Answer {
    if let Some(length) = length {
        let other = |_| {
            Refusal::conflict(format!(
                "{} bytes were announced before; DELETE the upload to begin anew",
                inlet.length().unwrap_or(0)
            ))
        };
        inlet.announce(length).map_err(other)?;
    }
    let offset = inlet.offset();
    match *request.method() {
        Method::POST => {
            let mut response = tus(StatusCode::CREATED, &[(UPLOAD_OFFSET, offset)]);
            if let Ok(path) = HeaderValue::from_str(request.uri().path()) {
                response.headers_mut().insert(header::LOCATION, path);
            }
            Ok(response)
        }
        Method::HEAD => {
            let length = inlet.length().map_or((UPLOAD_DEFER_LENGTH, 1), |length| (UPLOAD_LENGTH, length));
            Ok(tus(StatusCode::OK, &[(UPLOAD_OFFSET, offset), length]))
        }
        Method::DELETE => {
            inlet.give_up();
            Ok(tus(StatusCode::NO_CONTENT, &[]))
        }
        Method::PATCH if inlet.length().is_none() => {
            let message = "no upload was begun, or the agent that took it is gone: begin with POST and `Upload-Length`";
            Err(Refusal::not_found(message))
        }
        Method::PATCH => {
            let at = request.headers().get(UPLOAD_OFFSET).and_then(|at| at.to_str().ok()?.parse().ok()).unwrap_or(0);
            take(inlet, at, request.into_body(), work).await?;
            Ok(tus(StatusCode::NO_CONTENT, &[(UPLOAD_OFFSET, inlet.offset())]))
        }
        _ => {
            take(inlet, 0, request.into_body(), work).await?;
            Ok(Refusal::success("the image is verified and stored"))
        }
    }
}

/// Takes a body that begins at `offset`; if it brings the last byte, how the import ends.
async fn take(inlet: &Arc<Inlet>, offset: u64, body: Body, work: &Work) -> Answer<()> {
    let mut body = body.into_data_stream();
    let whole = inlet.length().is_none();
    let mut pen = match inlet.write_from(offset) {
        Ok(pen) => pen,
        Err(refused) => return Err(refuse(inlet, refused, offset).await),
    };
    let taken = feed(&mut pen, &mut body, work).await;
    let refused = match taken {
        Ok(true) => {
            if !whole && !pen.is_complete() {
                // A part of it: the next request brings more.
                return Ok(());
            }
            pen.finish();
            let at_work = work.begin();
            let end = inlet.ended().await;
            drop(at_work);
            return conclude(end);
        }
        // It broke off. Nobody reads this answer.
        Ok(false) => return Err(Refusal::bad_request("the body broke off")),
        Err(refused) => refused,
    };
    drop(pen);
    Err(refuse(inlet, refused, offset).await)
}

/// Hands in all of a body; false if it breaks off.
async fn feed(pen: &mut Pen, body: &mut axum::body::BodyDataStream, work: &Work) -> Result<bool, Refused> {
    while let Some(piece) = body.next().await {
        let Ok(piece) = piece else { return Ok(false) };
        // While the import takes its time, whoever sends has to wait.
        let _at_work = work.begin();
        pen.write(piece).await?;
    }
    Ok(true)
}

async fn refuse(inlet: &Arc<Inlet>, refused: Refused, offset: u64) -> Refusal {
    match refused {
        Refused::Busy => {
            Refusal::locked("another request is sending bytes of this image now; ask with HEAD how far it is")
        }
        Refused::Offset(next) => Refusal::conflict(format!(
            "the next byte is number {next}, and this begins at {offset}; go on there (tus), or DELETE the upload to begin anew"
        )),
        Refused::Length => {
            Refusal::bad_request(format!("more than the {} bytes that were announced", inlet.length().unwrap_or(0)))
        }
        Refused::Ended => match tokio::time::timeout(REASON_WITHIN, inlet.ended()).await {
            Ok(end) => conclude(end).err().unwrap_or_else(|| Refusal::conflict("the image has its data already")),
            Err(_) => Refusal::unavailable("the import takes no more bytes; see the Image's status"),
        },
    }
}

fn conclude(end: End) -> Answer<()> {
    match end {
        End::Stored => Ok(()),
        End::Failed { refused: true, message } => Err(Refusal::unprocessable(message)),
        End::Failed { refused: false, message } => Err(Refusal::unavailable(message)),
    }
}

fn tus(code: StatusCode, numbers: &[(HeaderName, u64)]) -> Response {
    let mut response = code.into_response();
    let headers = response.headers_mut();
    headers.insert(TUS_RESUMABLE, HeaderValue::from_static(TUS_VERSION));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    for (name, number) in numbers {
        headers.insert(name.clone(), HeaderValue::from(*number));
    }
    response
}
