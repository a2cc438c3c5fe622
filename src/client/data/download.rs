//! An Image's bytes into a file, which goes on where a connection broke, or an earlier run; or into a pipe.

use std::{fmt::Write as _, path::Path, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderName, Method, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;
use vitrine_engine::{
    error::{Error, Kind, Result},
    model::DigestAlgorithm,
    pipeline::{Progress, Stage},
    verify::DigestSet,
};

use super::{
    Patience,
    link::{Link, accepted, number, refusal, text},
    part::Part,
};
use crate::{
    api::data::{CONTENT_DIGEST, DISK_FORMAT, REPR_DIGEST},
    client::text::short_size,
};

/// How long an agent may be silent: it waits half a minute for a store.
const SILENCE: std::time::Duration = std::time::Duration::from_secs(150);

/// What is to be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Which version of it.
    pub etag: String,
    /// In bytes.
    pub length: u64,
    /// How the disk is laid out.
    pub format: String,
    /// Digest of what the guest sees.
    pub content_digest: Option<String>,
    /// Digest of its bytes, `sha256:hex`, where it is known.
    pub digest: Option<String>,
}

/// A download.
pub struct Download<'a> {
    /// The way to an agent.
    pub link: &'a mut Link,
    /// How far it is.
    pub progress: &'a Arc<Progress>,
    /// Ends it.
    pub cancel: &'a CancellationToken,
}

/// A file of which all bytes have come, and which has not got its name yet.
pub struct Received {
    part: Part,
    /// What was offered.
    pub offer: Offer,
    /// Whether its bytes were held against their digest.
    pub proven: bool,
}

impl Received {
    /// Where it is.
    pub fn path(&self) -> &Path {
        self.part.path()
    }

    /// Gives it its name.
    ///
    /// # Errors
    /// If that cannot be written.
    pub fn keep(self, force: bool) -> Result<()> {
        self.part.finish(force)
    }

    /// Throws it away.
    pub fn discard(self) {
        self.part.discard();
    }
}

impl Download<'_> {
    /// What there is.
    ///
    /// # Errors
    /// Why there is nothing.
    pub async fn offer(&mut self) -> Result<Offer> {
        let mut patience = Patience::default();
        loop {
            match self.ask_offer().await {
                Ok(offer) => return Ok(offer),
                Err(error) => self.bear(&mut patience, error, 0).await?,
            }
        }
    }

    async fn ask_offer(&mut self) -> Result<Offer> {
        let answer = self.link.ask(Method::HEAD, &[]).await?;
        if answer.status().is_success() {
            return offer_of(&answer);
        }
        // HEAD has no words; GET has, and of an answer that succeeds only the head is read.
        let answer = self.link.ask(Method::GET, &[(header::RANGE, "bytes=0-0".to_owned())]).await?;
        let answer = accepted(answer).await.map_err(super::link::Refusal::into_error)?;
        let message = format!("the agent answered {} and then {}", StatusCode::SERVICE_UNAVAILABLE, answer.status());
        Err(Error::new(Kind::Unavailable, message))
    }

    /// Fetches what is offered into `target`, and holds it against its digest, if the agent gave one.
    ///
    /// # Errors
    /// `Cancelled` when asked to stop; what has come stays, and a later run goes on with it.
    pub async fn fetch(&mut self, target: &Path, offer: Offer, force: bool) -> Result<Received> {
        let mut part = Part::open(target, &offer.etag, force)?;
        let (mut offer, mut patience) = (offer, Patience::default());
        self.progress.expect(Some(offer.length));
        loop {
            let before = part.written();
            self.show(before);
            let cancel = self.cancel.clone();
            let done = cancel.run_until_cancelled(self.fetch_rest(&mut part, &mut offer)).await;
            part.settle()?;
            match done {
                None => return Err(interrupted(part.written(), offer.length)),
                Some(Ok(())) if part.written() == offer.length => break,
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    if part.written() > before {
                        patience.renew();
                    }
                    self.bear(&mut patience, error, offer.length).await?;
                }
            }
        }
        self.progress.enter(Stage::Publishing);
        prove(part, offer)
    }

    /// One connection's worth.
    async fn fetch_rest(&mut self, part: &mut Part, offer: &mut Offer) -> Result<()> {
        let at = part.written();
        if at == offer.length {
            return Ok(());
        }
        let rest = [(header::RANGE, format!("bytes={at}-")), (header::IF_RANGE, offer.etag.clone())];
        let headers: &[(HeaderName, String)] = if at > 0 { &rest } else { &[] };
        let answer = self.link.ask(Method::GET, headers).await?;
        match answer.status() {
            StatusCode::PARTIAL_CONTENT => {}
            StatusCode::OK => {
                let now = offer_of(&answer)?;
                if at > 0 || now.etag != offer.etag {
                    eprintln!("the Image has other data by now: beginning anew");
                    part.begin_anew(&now.etag)?;
                    self.progress.expect(Some(now.length));
                    self.show(0);
                }
                *offer = now;
            }
            _ => return Err(refusal(answer).await.into_error()),
        }
        self.progress.enter(Stage::Transferring);
        let mut body = answer.into_body();
        while let Some(bytes) = next(&mut body).await? {
            self.progress.receive(bytes.len() as u64);
            part.write(&bytes)?;
        }
        Ok(())
    }

    /// Fetches what is offered into a pipe. What broke off goes on in it, as long as the Image's data is the same.
    ///
    /// # Errors
    /// If it cannot be had whole, or the pipe is closed.
    pub async fn pipe(&mut self, output: &mut (impl AsyncWrite + Unpin), offer: Offer) -> Result<()> {
        let (mut patience, mut written) = (Patience::default(), 0);
        let mut digests = DigestSet::new([DigestAlgorithm::Sha256]);
        self.progress.expect(Some(offer.length));
        while written < offer.length {
            let before = written;
            self.show(before);
            let cancel = self.cancel.clone();
            let rest = self.pipe_rest(output, &offer, &mut written, &mut digests);
            match cancel.run_until_cancelled(rest).await {
                None => return Err(interrupted(written, offer.length)),
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    if written > before {
                        patience.renew();
                    }
                    self.bear(&mut patience, error, offer.length).await?;
                }
            }
        }
        output.flush().await.map_err(|e| Error::io("writing to standard output", e))?;
        let found = digests.finish().digests.into_iter().next().map(|digest| digest.to_string());
        match offer.digest {
            Some(expected) if found.as_ref() != Some(&expected) => {
                let message = format!("what was written is not what was announced ({expected}): do not use it");
                Err(Error::new(Kind::Io, message))
            }
            _ => Ok(()),
        }
    }

    async fn pipe_rest(
        &mut self,
        output: &mut (impl AsyncWrite + Unpin),
        offer: &Offer,
        written: &mut u64,
        digests: &mut DigestSet,
    ) -> Result<()> {
        let headers = [(header::RANGE, format!("bytes={written}-")), (header::IF_MATCH, offer.etag.clone())];
        let answer = self.link.ask(Method::GET, &headers).await?;
        match answer.status() {
            StatusCode::PARTIAL_CONTENT => {}
            StatusCode::OK if *written == 0 => {}
            StatusCode::PRECONDITION_FAILED | StatusCode::OK => {
                let message = "the Image has other data by now than what was written: begin anew";
                return Err(Error::new(Kind::Conflict, message));
            }
            _ => return Err(refusal(answer).await.into_error()),
        }
        self.progress.enter(Stage::Transferring);
        let mut body = answer.into_body();
        while let Some(bytes) = next(&mut body).await? {
            output.write_all(&bytes).await.map_err(|e| Error::io("writing to standard output", e))?;
            *written = written.saturating_add(bytes.len() as u64);
            digests.update(&bytes);
            self.progress.receive(bytes.len() as u64);
        }
        Ok(())
    }

    /// Waits before the next try, unless asked to stop.
    async fn bear(&self, patience: &mut Patience, error: Error, length: u64) -> Result<()> {
        let done = self.progress.snapshot().received;
        self.cancel.run_until_cancelled(patience.bear(error)).await.unwrap_or_else(|| Err(interrupted(done, length)))
    }

    fn show(&self, offset: u64) {
        self.progress.enter(Stage::Connecting);
        self.progress.receive(offset);
    }
}

/// Holds what came against the digest that the agent gave, if it did.
fn prove(mut part: Part, offer: Offer) -> Result<Received> {
    let found = part.digest()?;
    let proven = offer.digest.is_some();
    if let Some(expected) = offer.digest.as_ref().filter(|expected| **expected != found) {
        let message =
            format!("what came has the digest {found}, and {expected} was announced: it is thrown away; try again");
        part.discard();
        return Err(Error::new(Kind::Io, message));
    }
    Ok(Received { part, offer, proven })
}

fn interrupted(done: u64, length: u64) -> Error {
    Error::new(Kind::Cancelled, format!("interrupted after {} of {}", short_size(done), short_size(length)))
}

/// The next bytes of a body. It breaks off before its end only with an error.
async fn next(body: &mut Incoming) -> Result<Option<Bytes>> {
    loop {
        let silent = |_| Error::new(Kind::Unavailable, format!("no byte has come for {} s", SILENCE.as_secs()));
        let Some(frame) = tokio::time::timeout(SILENCE, body.frame()).await.map_err(silent)? else { return Ok(None) };
        let frame = frame.map_err(|e| Error::with_source(Kind::Unavailable, "the download broke off", e))?;
        if let Ok(bytes) = frame.into_data() {
            return Ok(Some(bytes));
        }
    }
}

fn offer_of(answer: &http::Response<Incoming>) -> Result<Offer> {
    let headers = answer.headers();
    let missing =
        |what: &str| Error::new(Kind::Unavailable, format!("the answer has no {what}: is that a data API of Vitrine?"));
    Ok(Offer {
        etag: text(headers, &header::ETAG).ok_or_else(|| missing("ETag"))?.to_owned(),
        length: number(headers, &header::CONTENT_LENGTH).ok_or_else(|| missing("Content-Length"))?,
        format: text(headers, &DISK_FORMAT).unwrap_or("raw").to_owned(),
        content_digest: text(headers, &CONTENT_DIGEST).map(str::to_owned),
        digest: text(headers, &REPR_DIGEST).and_then(sha256_of),
    })
}

/// The SHA-256 of a `Repr-Digest`, as Vitrine writes digests.
fn sha256_of(header: &str) -> Option<String> {
    let of = header.split(',').find_map(|one| one.trim().strip_prefix("sha-256=:")?.strip_suffix(':'))?;
    let bytes = STANDARD.decode(of).ok()?;
    let hex = bytes.iter().fold(String::new(), |mut hex, byte| {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    (bytes.len() == DigestAlgorithm::Sha256.length()).then(|| format!("sha256:{hex}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_read_from_its_header() {
        let zeros = STANDARD.encode([0; 32]);
        let expected = format!("sha256:{}", "00".repeat(32));
        assert_eq!(sha256_of(&format!("sha-256=:{zeros}:")).as_ref(), Some(&expected));
        assert_eq!(sha256_of(&format!("sha-512=:x:, sha-256=:{zeros}:")).as_ref(), Some(&expected));
        assert_eq!(sha256_of("sha-256=:AAAA:"), None);
        assert_eq!(sha256_of("sha-512=:AAAA:"), None);
    }
}
