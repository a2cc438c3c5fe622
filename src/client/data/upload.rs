//! Bytes into an Image that waits for them: a file in resumable steps (tus), which goes on by itself where a connection broke; a pipe in one
//! go.

use std::{
    io::{self, SeekFrom},
    path::Path,
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures::{Stream, TryStreamExt as _};
use http::{HeaderName, Method, StatusCode, header};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::sync::CancellationToken;
use vitrine_engine::{
    error::{Error, Kind, Result},
    pipeline::{Progress, Stage},
};

use super::{
    Patience,
    link::{self, Link, Outgoing, accepted, number, refusal},
};
use crate::{
    api::data::{TUS_RESUMABLE, TUS_TYPE, TUS_VERSION, UPLOAD_LENGTH, UPLOAD_OFFSET},
    client::{
        connect::Cluster,
        images,
        text::short_size,
        wait::{Standing, stalled, standing},
    },
};

/// How much is read at once.
const PIECE: usize = 256 << 10;
/// After so long without a byte that is taken, a connection counts as dead: agents hold up who sends while a store is slow, and give a store
/// a minute by default.
const STALL: Duration = Duration::from_secs(150);
/// How long it may take until a node waits for the bytes of an Image.
const TAKER_WITHIN: Duration = Duration::from_secs(120);
/// How long an agent may believe that a lent account may nothing.
const RIGHTS_WITHIN: Duration = Duration::from_secs(12);
/// How often is looked what becomes of an image of which all is sent.
const LOOK: Duration = Duration::from_secs(5);
/// How often is asked for one.
const POLL: Duration = Duration::from_millis(400);

/// An upload.
pub struct Upload<'a> {
    /// The cluster, and the Image's namespace.
    pub cluster: &'a Cluster,
    /// The Image.
    pub name: &'a str,
    /// The way to an agent.
    pub link: &'a mut Link,
    /// How far it is.
    pub progress: &'a Arc<Progress>,
    /// Ends it.
    pub cancel: &'a CancellationToken,
    /// How long to wait for a node that takes it.
    pub limit: Option<Duration>,
    /// The patch by which the Image says whose bytes it takes from now on, if it does not yet.
    pub mark: Option<Value>,
}

/// What is done with bytes that were sent before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// They are gone on with: they are of the same file.
    GoOn,
    /// They are not of this file, so nothing is sent.
    Refuse,
    /// They are given up.
    GiveUp,
}

/// Where an upload stands on the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Taken {
    offset: u64,
    length: Option<u64>,
}

/// What became of one step.
enum Step {
    /// The image is stored.
    Done,
    /// It is to be seen how far it is, and to be gone on from there.
    Again,
}

impl Upload<'_> {
    /// Sends the file at `path`, of `length` bytes.
    ///
    /// # Errors
    /// `Refused` if the image is; `Cancelled` when asked to stop: the rest can be sent later.
    pub async fn send_file(&mut self, path: &Path, length: u64, before: Before) -> Result<()> {
        let cancel = self.cancel.clone();
        let sent = cancel.run_until_cancelled(self.try_send_file(path, length, before)).await;
        sent.unwrap_or_else(|| Err(self.interrupted(length)))
    }

    fn interrupted(&self, length: u64) -> Error {
        let sent = short_size(self.progress.snapshot().received);
        Error::new(
            Kind::Cancelled,
            format!("interrupted after {sent} of {}; what was sent is kept for an hour", short_size(length)),
        )
    }

    async fn try_send_file(&mut self, path: &Path, length: u64, mut before: Before) -> Result<()> {
        let (mut patience, mut furthest) = (Patience::default(), 0);
        self.progress.expect(Some(length));
        loop {
            match self.step(path, length, &mut before, &mut furthest).await {
                Ok(Step::Done) => return Ok(()),
                Ok(Step::Again) => patience.renew(),
                Err(error) => {
                    if self.progress.snapshot().received > furthest {
                        furthest = self.progress.snapshot().received;
                        patience.renew();
                    }
                    self.given_up_by_cluster().await?;
                    patience.bear(error).await?;
                }
            }
        }
    }

    /// One connection's worth.
    async fn step(&mut self, path: &Path, length: u64, before: &mut Before, furthest: &mut u64) -> Result<Step> {
        let mut taken = self.await_taker().await?;
        if *before == Before::GiveUp && taken.length.is_some() {
            accepted(self.ask(Method::DELETE, &[]).await?).await.map_err(link::Refusal::into_error)?;
            *before = Before::GoOn;
            return Ok(Step::Again);
        }
        if *before == Before::Refuse && taken.offset > 0 {
            return Err(Error::new(
                Kind::InvalidInput,
                format!(
                    "Image {} waits for the rest of another file: --restart begins anew with this one, and --resume goes on with it all \
                     the same",
                    self.name
                ),
            ));
        }
        *before = Before::GoOn;
        if taken.length.is_some_and(|announced| announced != length) {
            return Err(Error::new(
                Kind::InvalidInput,
                format!(
                    "an upload of {} bytes was begun for this Image, and this file has {length}: --restart gives that one up",
                    taken.length.unwrap_or(0)
                ),
            ));
        }
        if let Some(mark) = self.mark.take() {
            images::change(self.cluster, self.name, |_| Ok(mark.clone())).await?;
        }
        if taken.length.is_none() {
            let made = self.ask(Method::POST, &[(UPLOAD_LENGTH, length.to_string())]).await?;
            accepted(made).await.map_err(link::Refusal::into_error)?;
            taken = Taken { offset: 0, length: Some(length) };
        }
        self.show(taken.offset);
        *furthest = (*furthest).max(taken.offset);
        self.patch(path, length, taken.offset).await
    }

    /// Sends the rest of the file from `offset`.
    async fn patch(&mut self, path: &Path, length: u64, offset: u64) -> Result<Step> {
        let fault = |e| Error::io(format!("reading {}", path.display()), e);
        let mut file = tokio::fs::File::open(path).await.map_err(fault)?;
        file.seek(SeekFrom::Start(offset)).await.map_err(fault)?;
        let rest = length.saturating_sub(offset);
        let body = self.body(file.take(rest));
        let headers = [
            (header::CONTENT_TYPE, TUS_TYPE.to_owned()),
            (header::CONTENT_LENGTH, rest.to_string()),
            (UPLOAD_OFFSET, offset.to_string()),
        ];
        let answer = self.watched(Method::PATCH, &tus(&headers), body, Some(length)).await?;
        let Some(answer) = answer else { return Ok(Step::Done) };
        match answer.status() {
            status if status.is_success() => {
                let at = number(answer.headers(), &UPLOAD_OFFSET).unwrap_or(length);
                Ok(if at >= length { Step::Done } else { Step::Again })
            }
            // Somebody else sent some, or the agent that had taken the first bytes is gone: where to go on is asked anew.
            StatusCode::CONFLICT | StatusCode::NOT_FOUND | StatusCode::LOCKED => {
                let said = refusal(answer).await.message;
                Err(Error::new(Kind::Unavailable, said))
            }
            _ => Err(refusal(answer).await.into_error()),
        }
    }

    /// Sends all that `input` gives, without knowing how much that is. What broke off cannot be sent again.
    ///
    /// # Errors
    /// As `send_file`.
    pub async fn send_stream(&mut self, input: impl AsyncRead + Send + Unpin + 'static) -> Result<()> {
        let cancel = self.cancel.clone();
        let send = async {
            let taken = self.await_taker().await?;
            if taken.length.is_some() || taken.offset > 0 {
                let message = "an upload was begun for this Image: --restart gives it up";
                return Err(Error::new(Kind::InvalidInput, message));
            }
            let body = self.body(input);
            let answer = self.watched(Method::PUT, &[], body, None).await;
            let answer = match answer {
                Err(error) => {
                    self.given_up_by_cluster().await?;
                    return Err(error.context("what came through the pipe cannot be sent again"));
                }
                Ok(answer) => answer,
            };
            let Some(answer) = answer else { return Ok(()) };
            accepted(answer).await.map(drop).map_err(link::Refusal::into_error)
        };
        let interrupted =
            || Error::new(Kind::Cancelled, "interrupted; what comes through a pipe must be sent from its beginning");
        cancel.run_until_cancelled(send).await.unwrap_or_else(|| Err(interrupted()))
    }

    /// Gives up what was sent before.
    ///
    /// # Errors
    /// If there is no answer.
    pub async fn begin_anew(&mut self) -> Result<()> {
        if self.await_taker().await?.length.is_some() {
            accepted(self.ask(Method::DELETE, &[]).await?).await.map_err(link::Refusal::into_error)?;
        }
        Ok(())
    }

    /// Waits until a node waits for the bytes, and says how many it has.
    async fn await_taker(&mut self) -> Result<Taken> {
        let began = tokio::time::Instant::now();
        let limit = self.limit.unwrap_or(TAKER_WITHIN);
        loop {
            let answer = self.ask(Method::HEAD, &[]).await?;
            let status = answer.status();
            if status.is_success() {
                let (headers, offset) = (answer.headers(), number(answer.headers(), &UPLOAD_OFFSET));
                return Ok(Taken { offset: offset.unwrap_or(0), length: number(headers, &UPLOAD_LENGTH) });
            }
            self.given_up_by_cluster().await?;
            if status == StatusCode::CONFLICT {
                return Err(self.has_data().await?);
            }
            // Another API server than the one that was asked may hear of a lent account's rights a moment later.
            let early = self.link.is_lent() && began.elapsed() < RIGHTS_WITHIN;
            if status.is_client_error() && !early {
                return Err(self.words(status).await?);
            }
            if began.elapsed() > limit {
                let why = images::find(self.cluster, self.name).await?;
                let why =
                    why.as_ref().and_then(crate::client::view::image::message).unwrap_or("nobody has looked at it");
                let message =
                    format!("no node waits for the bytes of Image {}: {why}; see `kubectl vitrine doctor`", self.name);
                return Err(Error::new(Kind::NotFound, message));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Why nothing is told: HEAD has no words. A step without a type is refused for that, if for nothing else, and changes nothing.
    async fn words(&mut self, status: StatusCode) -> Result<Error> {
        let said = refusal(self.ask(Method::PATCH, &[]).await?).await;
        let other = said.code == StatusCode::UNSUPPORTED_MEDIA_TYPE;
        let message = format!("the agent answered {status}, and does not say why");
        Ok(if other { Error::new(Kind::InvalidInput, message) } else { said.into_error() })
    }

    /// Why an Image takes no bytes.
    async fn has_data(&self) -> Result<Error> {
        let image = images::get(self.cluster, self.name).await?;
        let message = if image.spec.source.upload.is_none() {
            format!("Image {} is not one that is uploaded: its source is another one", self.name)
        } else {
            format!("Image {} has its data already; choose another name for other data", self.name)
        };
        Ok(Error::new(Kind::AlreadyExists, message))
    }

    /// Fails if the cluster has come to the end with this Image: then sending again cannot help.
    async fn given_up_by_cluster(&self) -> Result<()> {
        match images::find(self.cluster, self.name).await {
            Ok(Some(image)) => match standing(&image) {
                Standing::Stalled(why, rule) => Err(stalled(self.name, &why, rule.as_deref())),
                Standing::Ready | Standing::Underway => Ok(()),
            },
            Ok(None) => Err(Error::new(Kind::NotFound, format!("Image {} was deleted", self.name))),
            // The API server may be away for a moment as well.
            Err(error) if error.kind() == Kind::Unavailable => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn ask(
        &mut self,
        method: Method,
        headers: &[(HeaderName, String)],
    ) -> Result<http::Response<hyper::body::Incoming>> {
        self.link.ask(method, &tus(headers)).await
    }

    /// Sends a body as long as it is taken, and waits for what becomes of it. Nothing if the Image says that it is stored before the agent
    /// does.
    async fn watched(
        &mut self,
        method: Method,
        headers: &[(HeaderName, String)],
        body: Outgoing,
        length: Option<u64>,
    ) -> Result<Option<http::Response<hyper::body::Incoming>>> {
        self.progress.enter(Stage::Transferring);
        let (cluster, name, progress) = (self.cluster, self.name, self.progress.clone());
        let other_end = async {
            let (mut last, mut moved) = (progress.snapshot(), tokio::time::Instant::now());
            loop {
                tokio::time::sleep(LOOK).await;
                let now = progress.snapshot();
                if now.received != last.received {
                    (last, moved) = (now, tokio::time::Instant::now());
                }
                if now.stage == Stage::Publishing || length.is_some_and(|length| now.received >= length) {
                    if is_stored(cluster, name).await? {
                        return Ok(());
                    }
                } else if moved.elapsed() > STALL {
                    let message = format!("nothing was taken for {} s", STALL.as_secs());
                    return Err(Error::new(Kind::Unavailable, message));
                }
            }
        };
        tokio::select! {
            answer = self.link.send(method, headers, body) => answer.map(Some),
            end = other_end => end.map(|()| None),
        }
    }

    /// `input` as a body, counted.
    fn body(&self, input: impl AsyncRead + Send + Unpin + 'static) -> Outgoing {
        let progress = self.progress.clone();
        let end = self.progress.clone();
        let pieces = pieces(input).inspect_ok(move |piece| progress.receive(piece.len() as u64));
        let ended = futures::stream::poll_fn(move |_| {
            end.enter(Stage::Publishing);
            std::task::Poll::Ready(None::<io::Result<Bytes>>)
        });
        link::body(futures::StreamExt::chain(pieces, ended))
    }

    /// What was sent before counts as sent.
    fn show(&self, offset: u64) {
        self.progress.enter(Stage::Connecting);
        self.progress.receive(offset);
    }
}

/// Whether the Image says that it has its data, whatever the connection does.
async fn is_stored(cluster: &Cluster, name: &str) -> Result<bool> {
    let Ok(Some(image)) = images::find(cluster, name).await else { return Ok(false) };
    match standing(&image) {
        Standing::Ready => Ok(image.status.is_some_and(|status| status.revision.is_some())),
        Standing::Stalled(why, rule) => Err(stalled(name, &why, rule.as_deref())),
        Standing::Underway => Ok(false),
    }
}

/// With the version of tus that they are of.
fn tus(headers: &[(HeaderName, String)]) -> Vec<(HeaderName, String)> {
    std::iter::once((TUS_RESUMABLE, TUS_VERSION.to_owned())).chain(headers.iter().cloned()).collect()
}

fn pieces(input: impl AsyncRead + Send + Unpin + 'static) -> impl Stream<Item = io::Result<Bytes>> + Send {
    futures::stream::try_unfold((input, BytesMut::new()), |(mut input, mut room)| async move {
        room.reserve(PIECE);
        let read = input.read_buf(&mut room).await?;
        Ok((read > 0).then(|| (room.split().freeze(), (input, room))))
    })
}
