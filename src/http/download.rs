//! Download: GET and HEAD of an Image's data, from whichever copy can be read.
//!
//! This node's own stores come first, in the order of the Image's locations; another copy goes on where one breaks off, if its bytes must
//! be the same. What cannot be read here is passed on to an agent that can.

use std::{ops::Range, sync::Arc, time::Duration};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;
use vitrine_engine::{
    error::{Error, Kind, Result},
    model::ObjectKey,
    store::{ObjectReader, answer_within},
};

use super::{
    Config, Shelf,
    answer::{Answer, Refusal},
    idle::Work,
    images,
    memo::Memo,
    peer::{self, FORWARDED, Peers, Question},
    precondition::{self, Verdict},
    range::{self, Part},
    representation::Representation,
    tenant::{Place, keep},
};
use crate::api::{Image, ImageStore, Location, condition::types};

/// How much is read at once: enough that a store's own delay does not count, little enough that many readers fit into memory.
const CHUNK: u64 = 1 << 20;
/// How long what an ImageStore says is believed, and of how many.
const BELIEF: Duration = Duration::from_secs(5);
const MOST_STORES: usize = 256;

/// What downloads are made of.
pub struct Downloads {
    config: Config,
    client: Client,
    shelf: Arc<dyn Shelf>,
    stores: Memo<String, Arc<ImageStore>>,
    peers: Arc<Peers>,
    stop: CancellationToken,
}

/// A download.
pub struct Request<'a> {
    /// The Image's namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// GET or HEAD.
    pub method: &'a Method,
    /// Path and query.
    pub path: &'a str,
    /// The headers.
    pub headers: &'a HeaderMap,
}

/// One copy, open.
struct Opened {
    store: String,
    reader: Arc<dyn ObjectReader>,
    representation: Representation,
}

/// The copies that this node may be able to read.
struct Copies {
    downloads: Arc<Downloads>,
    image: String,
    key: ObjectKey,
    content: String,
    /// Those that were not tried yet, best last.
    left: Vec<Location>,
    /// Why the others are of no use.
    tried: Vec<String>,
}

impl Downloads {
    /// On this node's `shelf`.
    pub fn new(
        config: Config,
        client: Client,
        shelf: Arc<dyn Shelf>,
        peers: Arc<Peers>,
        stop: CancellationToken,
    ) -> Self {
        Self { config, client, shelf, stores: Memo::new(BELIEF, MOST_STORES), peers, stop }
    }

    /// Answers a request of somebody who may.
    ///
    /// # Errors
    /// What keeps the bytes from being had.
    pub async fn answer(self: &Arc<Self>, request: &Request<'_>, work: &Work, place: Place) -> Answer {
        let at_work = work.begin();
        let image = self.image(request).await?;
        let mut copies = self.copies(&image)?;
        if let Some(opened) = copies.next(|_| true).await {
            drop(at_work);
            return Ok(send(request, opened, copies, work.clone(), place));
        }
        if request.headers.contains_key(FORWARDED) {
            return Err(peer::unreachable(&copies.tried));
        }
        self.pass_on(request, &image, copies.tried, work, place).await
    }

    async fn image(&self, request: &Request<'_>) -> Answer<Image> {
        let Request { namespace, name, .. } = *request;
        let image = images::read(&self.client, self.config.patience, namespace, name).await?;
        if image.spec.deactivated {
            let message =
                format!("Image {name} is deactivated: its data is served to nobody until spec.deactivated is false");
            return Err(Refusal::forbidden(message));
        }
        Ok(image)
    }

    /// The copies of the revision that serves.
    fn copies(self: &Arc<Self>, image: &Image) -> Answer<Copies> {
        let name = image.metadata.name.clone().unwrap_or_default();
        let status = image.status.clone().unwrap_or_default();
        let said = status.conditions.iter().find(|condition| condition.type_ == types::READY);
        let why = said.map(|ready| format!(": {}", ready.message)).unwrap_or_default();
        let none = || Refusal::conflict(format!("Image {name} has no data yet{why}"));
        let (revision, content) = status.revision.zip(status.content).ok_or_else(none)?;
        let uid = image.metadata.uid.as_deref().unwrap_or_default();
        let key = u64::try_from(revision).ok().and_then(|revision| ObjectKey::new(uid, revision)).ok_or_else(none)?;
        let mut left: Vec<_> = status.locations.into_iter().filter(|location| location.phase.is_copy()).collect();
        if left.is_empty() {
            return Err(Refusal::unavailable(format!("no copy of Image {name} can be read now{why}")));
        }
        left.reverse();
        Ok(Copies {
            downloads: self.clone(),
            image: name,
            key,
            content: content.content_digest,
            left,
            tried: Vec::new(),
        })
    }

    async fn store(&self, name: &str) -> Result<Arc<ImageStore>> {
        if let Some(known) = self.stores.get(&name.to_owned()) {
            return Ok(known);
        }
        let stores: Api<ImageStore> = Api::all(self.client.clone());
        let found = tokio::time::timeout(self.config.patience, stores.get(name)).await;
        let late = |_| Error::new(Kind::Unavailable, "the API server did not answer in time");
        let found = found.map_err(late)?.map_err(|e| {
            Error::with_source(Kind::Unavailable, format!("ImageStore {name} cannot be read from the API server"), e)
        })?;
        let found = Arc::new(found);
        self.stores.put(name.to_owned(), found.clone());
        Ok(found)
    }

    async fn open(&self, location: &Location, key: &ObjectKey, content: &str) -> Result<Arc<dyn ObjectReader>> {
        let name = location.store.as_str();
        if location.node.as_ref().is_some_and(|node| *node != self.config.node) {
            let node = location.node.as_deref().unwrap_or_default();
            return Err(Error::new(Kind::Unavailable, format!("store {name} keeps it on node {node}")));
        }
        let declared = self.store(name).await?;
        let id = declared.status.as_ref().and_then(|status| status.id.as_deref());
        let open = async {
            let store = self.shelf.open(name, &declared.spec.backend, id).await?;
            let store =
                store.ok_or_else(|| Error::new(Kind::NotFound, format!("store {name}: its folder is not there")))?;
            store.open(key).await
        };
        let reader = answer_within(self.config.patience, name, "opening an image", &self.stop, open).await?;
        let found = reader.image().manifest.root().to_string();
        if found != content {
            let message = format!("store {name}: {key} is recorded to hold {found}, and {content} is expected");
            return Err(Error::new(Kind::Changed, message));
        }
        Ok(reader)
    }

    /// Asks the agents that can read what this one cannot.
    async fn pass_on(
        &self,
        request: &Request<'_>,
        image: &Image,
        mut tried: Vec<String>,
        work: &Work,
        place: Place,
    ) -> Answer {
        let question = Question { method: request.method, path: request.path, headers: request.headers };
        let locations = image.status.iter().flat_map(|status| &status.locations).filter(|l| l.phase.is_copy());
        let mut asked = vec![self.config.node.clone()];
        for location in locations {
            let Some(node) = self.reader_of(location).await.filter(|node| !asked.contains(node)) else { continue };
            let at_work = work.begin();
            let answer = self.peers.ask(&node, &question).await;
            drop(at_work);
            match answer {
                Ok(answer) if !peer::is_no_answer(answer.status()) => {
                    return Ok(peer::pass_on(answer, work.clone(), place));
                }
                Ok(_) => tried.push(format!("the agent of node {node} cannot read it either")),
                Err(error) => tried.push(format!("the agent of node {node} cannot be asked ({error})")),
            }
            asked.push(node);
        }
        tracing::warn!(image = request.name, namespace = request.namespace, ?tried, "nobody can read an image");
        Err(peer::unreachable(&tried))
    }

    /// A node that reads the copy at `location`.
    async fn reader_of(&self, location: &Location) -> Option<String> {
        match &location.node {
            Some(node) => Some(node.clone()),
            None => self.store(&location.store).await.ok()?.status.as_ref()?.lister.clone(),
        }
    }
}

impl Copies {
    /// The next copy that can be read and that `fits`.
    async fn next(&mut self, fits: impl Fn(&Representation) -> bool) -> Option<Opened> {
        while let Some(location) = self.left.pop() {
            match self.downloads.open(&location, &self.key, &self.content).await {
                Ok(reader) => {
                    let representation = Representation::new(&self.image, &location, reader.image());
                    if fits(&representation) {
                        return Some(Opened { store: location.store, reader, representation });
                    }
                }
                Err(error) => self.tried.push(error.to_string()),
            }
        }
        None
    }
}

/// The answer for a copy that can be read.
fn send(request: &Request<'_>, opened: Opened, copies: Copies, work: Work, place: Place) -> Response {
    let Representation { length, ref etag, .. } = opened.representation;
    let mut response = Response::new(Body::empty());
    opened.representation.describe(response.headers_mut());
    match precondition::judge(request.headers, etag) {
        Verdict::Go => {}
        Verdict::NotModified => {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            return response;
        }
        Verdict::Failed => {
            let message = format!("the Image's data is of version {etag} now");
            return axum::response::IntoResponse::into_response(Refusal::precondition(message));
        }
    }
    // RFC 9110 defines ranges for GET only.
    let asked = request.headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    let asked = asked.filter(|_| *request.method == Method::GET && precondition::range_applies(request.headers, etag));
    let range = match asked.map_or(Part::Whole, |asked| range::part(asked, length)) {
        Part::Whole => 0..length,
        Part::Bytes(range) => {
            let last = range.end.saturating_sub(1);
            set(response.headers_mut(), header::CONTENT_RANGE, format!("bytes {}-{last}/{length}", range.start));
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            range
        }
        Part::None => {
            let refusal = Refusal::range(format!("the Image's data has {length} bytes"));
            let mut response = axum::response::IntoResponse::into_response(refusal);
            set(response.headers_mut(), header::CONTENT_RANGE, format!("bytes */{length}"));
            return response;
        }
    };
    set(response.headers_mut(), header::CONTENT_TYPE, "application/octet-stream".to_owned());
    set(response.headers_mut(), header::CONTENT_LENGTH, range.end.saturating_sub(range.start).to_string());
    if *request.method == Method::GET {
        *response.body_mut() = Body::from_stream(stream(Sending { opened, copies, range, work, place }));
    }
    response
}

fn set(headers: &mut HeaderMap, name: http::HeaderName, value: String) {
    // Numbers and plain words: all of it may stand in a header.
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(name, value);
    }
}

/// Bytes on their way.
struct Sending {
    opened: Opened,
    copies: Copies,
    /// What is still to be sent.
    range: Range<u64>,
    work: Work,
    place: Place,
}

fn stream(sending: Sending) -> impl futures::Stream<Item = Result<Bytes>> {
    futures::stream::try_unfold(sending, |mut sending| async move {
        let bytes = sending.next().await?;
        Ok(bytes.map(|bytes| (bytes, sending)))
    })
}

impl Sending {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        let left = self.range.end.saturating_sub(self.range.start);
        let length = usize::try_from(left.min(CHUNK)).unwrap_or(usize::MAX);
        if length == 0 {
            return Ok(None);
        }
        let all = self.copies.downloads.config.bytes_per_tenant;
        let closed = || Error::new(Kind::Cancelled, "the agent ends");
        // Waiting for what was read before to be taken is waiting for the caller.
        let room = self.place.room(length, all).await.ok_or_else(closed)?;
        let at_work = self.work.begin();
        let bytes = self.read(length).await?;
        drop(at_work);
        self.range.start = self.range.start.saturating_add(bytes.len() as u64);
        Ok(Some(keep(bytes, room)))
    }

    /// The next `length` bytes at most, from this copy or the next one.
    async fn read(&mut self, length: usize) -> Result<Bytes> {
        loop {
            let error = match self.try_read(length).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) if error.kind() == Kind::Cancelled => return Err(error),
                Err(error) => error,
            };
            let store = &self.opened.store;
            tracing::warn!(store, image = self.copies.image, at = self.range.start, %error, "a copy broke off while it was sent");
            let wanted = &self.opened.representation;
            let next =
                if wanted.same_everywhere { self.copies.next(|found| found.etag == wanted.etag).await } else { None };
            self.opened = next.ok_or(error)?;
        }
    }

    async fn try_read(&self, length: usize) -> Result<Bytes> {
        let (reader, at) = (self.opened.reader.clone(), self.range.start);
        let Downloads { config, stop, .. } = &*self.copies.downloads;
        let read = reader.read_at(at, length);
        let bytes = answer_within(config.patience, &self.opened.store, "reading an image", stop, read).await?;
        if bytes.is_empty() {
            let store = &self.opened.store;
            return Err(Error::new(Kind::Changed, format!("store {store}: the image ends at byte {at}, too early")));
        }
        Ok(bytes)
    }
}
