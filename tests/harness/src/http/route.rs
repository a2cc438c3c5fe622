//! What a path has, and what goes wrong with it when. Plain data; [`super::answer`] makes an answer of it.

use std::collections::hash_map::DefaultHasher;
use std::fs::File;
use std::hash::{Hash, Hasher};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::error::{Context, Result};

/// Bytes with what HTTP says of their identity.
#[derive(Debug, Clone)]
pub struct Content {
    pub(super) body: Body,
    pub(super) etag: Option<String>,
    pub(super) last_modified: Option<SystemTime>,
}

#[derive(Debug, Clone)]
pub(super) enum Body {
    Bytes(Arc<[u8]>),
    File { file: Arc<File>, len: u64 },
}

/// One way to misbehave. Offsets and counts are in bytes of the body that this answer would have.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Answers 200 with everything when asked for a range, and does not offer ranges.
    IgnoreRange,
    /// Closes the connection after so many bytes of the body.
    CutAfter(u64),
    /// Sends nothing more after so many bytes of the body, and keeps the connection open.
    StallAfter(u64),
    /// Closes the connection before any answer.
    HangUp,
    /// Sends the right bytes of a range under a `Content-Range` whose positions are moved by so much.
    WrongContentRange(i64),
    /// Sends other bytes of the file than `Content-Range` says: from so much further (or less far).
    WrongOffset(i64),
    /// Says that the body is so much longer (or shorter) than what is sent, and closes the connection afterwards.
    WrongLength(i64),
    /// Sends the body in chunks, its length unsaid.
    Chunked,
    /// Ends the body properly after so many bytes, as if that were all of it. `Content-Range` stays as it would be.
    EndAfter(u64),
    /// Sends the body until the connection closes, its length unsaid.
    UntilClose,
    /// Answers with this status and no body worth reading.
    Status(u16),
    /// Answers 503, with `Retry-After` in seconds if given.
    Unavailable(Option<u64>),
    /// Answers 302 to this URL.
    Redirect(String),
    /// Answers 405 to HEAD.
    RefuseHead,
    /// Has other content than before: the file was replaced.
    Replace(Content),
    /// Sends so many bytes in a second.
    Rate(u64),
    /// Waits before it answers.
    Delay(Duration),
}

/// What a path has and how it misbehaves.
#[derive(Debug, Clone)]
pub struct Route {
    pub(super) target: Target,
    pub(super) headers: Vec<(String, String)>,
    pub(super) required: Option<(String, String)>,
    pub(super) faults: Vec<(When, Fault)>,
}

#[derive(Debug, Clone)]
pub(super) enum Target {
    Content(Content),
    Status(u16),
    Redirect(String),
    RedirectToItself,
}

/// Which of a path's requests, counted from one. A HEAD counts as the request after it.
#[derive(Debug, Clone, Copy)]
pub(super) struct When {
    first: u64,
    last: u64,
}

impl Content {
    /// These bytes; the ETag is made from them, the modification time is now.
    pub fn bytes(bytes: impl Into<Arc<[u8]>>) -> Self {
        let bytes = bytes.into();
        let mut hash = DefaultHasher::new();
        bytes.hash(&mut hash);
        let etag = format!("\"{:016x}\"", hash.finish());
        Self { body: Body::Bytes(bytes), etag: Some(etag), last_modified: Some(SystemTime::now()) }
    }

    /// A file, read as it is sent; the ETag is made from its size and modification time.
    ///
    /// # Errors
    /// When it cannot be opened or is no regular file.
    pub fn file(path: &Path) -> Result<Self> {
        let doing = || format!("open {}", path.display());
        let file = File::open(path).context(doing)?;
        let metadata = file.metadata().context(doing)?;
        if !metadata.is_file() {
            return Err(crate::Error::new(format!("{} is not a regular file", path.display())));
        }
        let last_modified = metadata.modified().ok();
        let age = last_modified.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok()).unwrap_or_default();
        let etag = format!("\"{:x}-{:x}\"", metadata.len(), age.as_nanos());
        Ok(Self { body: Body::File { file: Arc::new(file), len: metadata.len() }, etag: Some(etag), last_modified })
    }

    /// With this ETag (its quotes included) or none.
    #[must_use]
    pub fn etag(mut self, etag: Option<&str>) -> Self {
        self.etag = etag.map(str::to_owned);
        self
    }

    /// With this modification time or none.
    #[must_use]
    pub fn last_modified(mut self, time: Option<SystemTime>) -> Self {
        self.last_modified = time;
        self
    }
}

impl Body {
    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { len, .. } => *len,
        }
    }
}

impl Route {
    fn new(target: Target) -> Self {
        Self { target, headers: Vec::new(), required: None, faults: Vec::new() }
    }

    /// A path with this content.
    pub fn content(content: Content) -> Self {
        Self::new(Target::Content(content))
    }

    /// A path with these bytes, as [`Content::bytes`].
    pub fn bytes(bytes: impl Into<Arc<[u8]>>) -> Self {
        Self::content(Content::bytes(bytes))
    }

    /// A path with this file, as [`Content::file`].
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn file(path: &Path) -> Result<Self> {
        Content::file(path).map(Self::content)
    }

    /// A path that only ever answers with this status.
    pub fn status(status: u16) -> Self {
        Self::new(Target::Status(status))
    }

    /// A path that redirects (302) to this URL.
    pub fn redirect(url: impl Into<String>) -> Self {
        Self::new(Target::Redirect(url.into()))
    }

    /// A path that redirects to itself for ever.
    pub fn redirect_loop() -> Self {
        Self::new(Target::RedirectToItself)
    }

    /// With this header on every answer.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Answers 401 to requests without exactly this header.
    #[must_use]
    pub fn require_header(mut self, name: &str, value: &str) -> Self {
        self.required = Some((name.to_owned(), value.to_owned()));
        self
    }

    /// Misbehaves like this every time.
    #[must_use]
    pub fn always(self, fault: Fault) -> Self {
        self.from(1, fault)
    }

    /// Misbehaves like this for the first `count` requests.
    #[must_use]
    pub fn first(self, count: u64, fault: Fault) -> Self {
        self.with(When { first: 1, last: count }, fault)
    }

    /// Misbehaves like this from the `nth` request on (the first one is 1).
    #[must_use]
    pub fn from(self, nth: u64, fault: Fault) -> Self {
        self.with(When { first: nth, last: u64::MAX }, fault)
    }

    /// Misbehaves like this at the `nth` request only (the first one is 1).
    #[must_use]
    pub fn only(self, nth: u64, fault: Fault) -> Self {
        self.with(When { first: nth, last: nth }, fault)
    }

    fn with(mut self, when: When, fault: Fault) -> Self {
        self.faults.push((when, fault));
        self
    }

    /// The faults that the `nth` request sees.
    pub(super) fn faults_at(&self, nth: u64) -> impl Iterator<Item = &Fault> {
        self.faults.iter().filter(move |(when, _)| (when.first..=when.last).contains(&nth)).map(|(_, fault)| fault)
    }
}
