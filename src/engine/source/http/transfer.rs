//! Reads one stretch of one version of a file, over as many connections as it takes.
//!
//! After a cut or a stall it goes on where it was: by a range, where the server has ranges and can prove that the file is
//! still the same one; else by reading again from the start and leaving out what was delivered. Without a strong validator
//! the bytes left out must have the same digest as those delivered, so what comes out is always one version of the file.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use reqwest::Response;

use super::{
    answer::{Answer, Span, Version, is_web_page},
    config::Patience,
    fault::Fault,
    retry::Attempts,
    wire::{Reply, Wire},
};
use crate::error::{Error, Kind, Result};

/// One stretch being read.
pub(super) struct Transfer {
    wire: Arc<Wire>,
    version: Version,
    /// Where the next byte to deliver stands in the file.
    position: u64,
    /// Where the stretch ends; `None` if that is the end of a file of unknown length.
    end: Option<u64>,
    body: Option<Body>,
    attempts: Attempts,
    /// How often it had to go on over another connection.
    interruptions: u64,
    resume: Resume,
    finished: bool,
}

/// How a stretch goes on after a cut.
enum Resume {
    /// By ranges only: the others would read the file several times over.
    RangesOnly,
    /// By a range; a server that has none sends the file from the start, and its validators prove that it is the same.
    RangesFirst,
    /// From the start, with the digest of what was delivered as the proof.
    FromStart(Box<blake3::Hasher>),
}

/// What is left of an answer.
struct Body {
    response: Response,
    /// Where it stands in the file.
    position: u64,
    /// Digest of what is left out, if that has to be proven.
    skipped: Option<Box<blake3::Hasher>>,
    untouched: bool,
    /// Bytes that came, and how long they were waited for, since it was last seen that enough come.
    came: u64,
    waited: Duration,
}

impl Body {
    fn new(response: Response, position: u64, skipped: Option<Box<blake3::Hasher>>) -> Self {
        Self { response, position, skipped, untouched: position == 0, came: 0, waited: Duration::ZERO }
    }

    /// Notes that `length` bytes came after `waited`. Says whether the server brings next to nothing.
    fn is_dripping(&mut self, length: usize, waited: Duration, patience: &Patience) -> bool {
        self.came = self.came.saturating_add(length as u64);
        self.waited = self.waited.saturating_add(waited);
        let (enough, late) = (self.came >= patience.progress, self.waited >= patience.progress_time);
        if enough {
            (self.came, self.waited) = (0, Duration::ZERO);
        }
        late && !enough
    }
}

/// The first answer: what all later ones are compared with.
pub(super) struct Beginning {
    pub version: Version,
    pub offers_ranges: bool,
    /// Whether the end can be told from a cut.
    pub framed: bool,
    pub transfer: Transfer,
}

impl Transfer {
    /// Asks for the whole file, as often as the patience allows.
    pub async fn begin(wire: Arc<Wire>) -> Result<Beginning> {
        let what = wire.name.clone();
        let mut attempts = Attempts::new(wire.config.patience, 0);
        let reply = loop {
            match wire.ask(None, None).await {
                Ok(reply) => break reply,
                Err(fault) => tokio::time::sleep(attempts.failed(fault, &what, 0)?).await,
            }
        };
        let Answer::Whole(version) = reply.answer else {
            return Err(Error::new(Kind::Internal, format!("{what}: an answer to another question was accepted")));
        };
        let resume = match version.validator() {
            Some(_) => Resume::RangesFirst,
            None => Resume::FromStart(Box::default()),
        };
        let body = Body::new(reply.response, 0, None);
        let transfer = Self {
            attempts,
            interruptions: 0,
            body: Some(body),
            position: 0,
            end: version.length,
            version: version.clone(),
            resume,
            finished: false,
            wire,
        };
        Ok(Beginning { version, offers_ranges: reply.offers_ranges, framed: reply.framed, transfer })
    }

    /// Reads `first..end` of `version`, by ranges only.
    pub fn of_range(wire: Arc<Wire>, version: Version, first: u64, end: u64) -> Self {
        let attempts = Attempts::new(wire.config.patience, first);
        let (body, resume, finished) = (None, Resume::RangesOnly, false);
        Self { wire, version, position: first, end: Some(end), body, attempts, interruptions: 0, resume, finished }
    }

    pub fn position(&self) -> u64 {
        self.position
    }

    pub fn end(&self) -> Option<u64> {
        self.end
    }

    pub fn interruptions(&self) -> u64 {
        self.interruptions
    }

    pub fn version(&self) -> &Version {
        &self.version
    }

    /// Lets go of the connection, and continues at `position` when asked again.
    pub fn park(&mut self, position: u64) {
        self.body = None;
        self.position = position;
    }

    /// The next piece; `None` after the last byte of the stretch.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        let wire = Arc::clone(&self.wire);
        let what = wire.name.as_str();
        while !self.finished && self.end != Some(self.position) {
            match self.step(what).await {
                Ok(Some(piece)) => return Ok(Some(piece)),
                Ok(None) => {}
                Err(fault @ Fault::Passing { .. }) => {
                    self.body = None;
                    self.interruptions = self.interruptions.saturating_add(1);
                    let wait = self.attempts.failed(fault, what, self.position).map_err(Fault::Final)?;
                    tokio::time::sleep(wait).await;
                }
                Err(fault) => return Err(fault),
            }
        }
        self.finished = true;
        self.body = None;
        Ok(None)
    }

    /// One piece, or one step towards it.
    async fn step(&mut self, what: &str) -> Result<Option<Bytes>, Fault> {
        let Some(body) = &mut self.body else {
            self.body = self.connect(what).await?;
            self.finished = self.body.is_none();
            return Ok(None);
        };
        let patience = self.wire.config.patience;
        let (stall, begun) = (patience.stall, Instant::now());
        let read = tokio::time::timeout(stall, body.response.chunk()).await;
        let piece = read
            .map_err(|_| {
                Fault::passing(format!(
                    "{what}: no byte came for {:.1} s, at byte {}",
                    stall.as_secs_f64(),
                    body.position
                ))
            })?
            .map_err(|e| Fault::of_transport(&format!("{what}: reading at byte {}", body.position), e))?;
        let length = piece.as_ref().map_or(0, Bytes::len);
        if piece.is_some() && body.is_dripping(length, begun.elapsed(), &patience) {
            let (came, time) = (body.came, body.waited.as_secs_f64());
            return Err(Fault::passing(format!(
                "{what}: only {came} bytes came in {time:.1} s, at byte {}",
                body.position
            )));
        }
        match piece {
            Some(piece) if std::mem::take(&mut body.untouched) && is_web_page(body.response.headers(), &piece) => {
                let message = format!(
                    "{what}: the server answered with a web page, not with an image: a login form or an error page"
                );
                Err(Fault::last(Kind::InvalidInput, message))
            }
            Some(piece) => self.take(what, piece),
            None => self.body_ended(what),
        }
    }

    /// Takes a piece of the body: leaves out what was delivered, checks the proof where that ends, and hands on the rest.
    fn take(&mut self, what: &str, mut piece: Bytes) -> Result<Option<Bytes>, Fault> {
        let Some(body) = &mut self.body else { return Ok(None) };
        let old = self.position.saturating_sub(body.position);
        if old > 0 {
            let skipped = piece.split_to(piece.len().min(usize::try_from(old).unwrap_or(usize::MAX)));
            body.position = body.position.saturating_add(skipped.len() as u64);
            if let Some(hasher) = &mut body.skipped {
                hasher.update(&skipped);
            }
            if body.position == self.position {
                self.check_skipped(what)?;
            }
        }
        if piece.is_empty() {
            return Ok(None);
        }
        self.deliver(what, piece).map(Some)
    }

    fn check_skipped(&mut self, what: &str) -> Result<(), Fault> {
        let skipped = self.body.as_mut().and_then(|body| body.skipped.take());
        match (skipped, &self.resume) {
            (Some(skipped), Resume::FromStart(delivered)) if skipped.finalize() != delivered.finalize() => {
                let message = format!(
                    "{what}: the file changed while it was read: its first {} bytes differ from what they were",
                    self.position
                );
                Err(Fault::last(Kind::Changed, message))
            }
            _ => Ok(()),
        }
    }

    fn deliver(&mut self, what: &str, piece: Bytes) -> Result<Bytes, Fault> {
        let position = self.position.saturating_add(piece.len() as u64);
        if self.end.is_some_and(|end| position > end) {
            let promised = self.end.unwrap_or_default();
            return Err(Fault::passing(format!(
                "{what}: the server sent more than the bytes up to {promised} that it promised"
            )));
        }
        if let Resume::FromStart(delivered) = &mut self.resume {
            delivered.update(&piece);
        }
        if let Some(body) = &mut self.body {
            body.position = position;
        }
        self.position = position;
        Ok(piece)
    }

    /// The body is over; whether the stretch is, too, depends on what was promised.
    fn body_ended(&mut self, what: &str) -> Result<Option<Bytes>, Fault> {
        let reached = self.body.take().map_or(self.position, |body| body.position);
        match self.end {
            Some(end) => {
                Err(Fault::passing(format!("{what}: the server sent {reached} bytes and ended, {end} were promised")))
            }
            None if reached < self.position => Err(Fault::last(
                Kind::Changed,
                format!("{what}: the file changed while it was read: it has {reached} bytes now"),
            )),
            None => {
                self.finished = true;
                Ok(None)
            }
        }
    }

    /// Opens a body to go on with; `None` if the file turns out to end right here.
    async fn connect(&mut self, what: &str) -> Result<Option<Body>, Fault> {
        let by_range = matches!(self.resume, Resume::RangesOnly | Resume::RangesFirst)
            && (self.position > 0 || self.end != self.version.length);
        let asked = by_range
            .then_some(Span { first: self.position, end: self.end.filter(|end| Some(*end) != self.version.length) });
        let Reply { answer, response, .. } = self.wire.ask(asked, self.version.validator()).await?;
        let (position, skipped) = match answer {
            Answer::Whole(version) => {
                self.check_version(what, &version)?;
                (0, self.way_to_skip(&version)?)
            }
            Answer::Part(version) => {
                self.check_version(what, &version)?;
                if self.version.misses_etag(&version) {
                    let message = format!("{what}: the server sent a part without the ETag that the whole file has");
                    return Err(Fault::passing(message));
                }
                (self.position, None)
            }
            Answer::PastEnd(total) if self.end.is_none() && total == self.position => return Ok(None),
            Answer::PastEnd(total) => {
                let message = format!(
                    "{what}: the file changed while it was read: it has {total} bytes now, byte {} was asked for",
                    self.position
                );
                return Err(Fault::last(Kind::Changed, message));
            }
        };
        Ok(Some(Body::new(response, position, skipped)))
    }

    fn check_version(&self, what: &str, found: &Version) -> Result<(), Fault> {
        self.version.check_unchanged(found, what).map_err(Fault::Final)
    }

    /// The whole file came. Says how to leave out what was delivered, or that this is not the way to go on.
    fn way_to_skip(&self, found: &Version) -> Result<Option<Box<blake3::Hasher>>, Fault> {
        let proven = self.version.proves_same(found);
        match &self.resume {
            Resume::FromStart(_) => Ok(Some(Box::default())),
            Resume::RangesFirst if proven || self.position == 0 => Ok(None),
            Resume::RangesOnly if proven => Err(Fault::NoRanges),
            Resume::RangesFirst | Resume::RangesOnly => Err(Fault::last(
                Kind::Changed,
                "the server no longer says which version of the file it offers, so it cannot be continued",
            )),
        }
    }
}
