//! Requests: read from a connection, kept for assertions, and what they say of ranges (RFC 9110 §14).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt};

/// A request head may be no longer; ours are a few hundred bytes.
const MAX_HEAD: usize = 64 * 1024;

/// A request as it came, with how much was sent in answer.
#[derive(Debug, Clone)]
pub struct Request {
    /// The method, such as `GET`.
    pub method: String,
    /// What was asked for: a path with its query, or a whole URL when asked of a proxy.
    pub target: String,
    /// The headers in their order, names in lower case.
    pub headers: Vec<(String, String)>,
    sent: Arc<AtomicU64>,
}

impl Request {
    /// The target without its query.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// The value of a header, its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The `Range` header.
    pub fn range(&self) -> Option<&str> {
        self.header("range")
    }

    /// How many bytes of the body were sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    pub(super) fn add_sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The first and the last byte asked for, of `len`. None when no (single, understood) range was asked for.
    pub(super) fn wanted(&self, len: u64) -> Option<Wanted> {
        let (first, last) = self.range()?.strip_prefix("bytes=")?.split_once('-')?;
        let end = len.saturating_sub(1);
        let (first, last) = match (first, last) {
            ("", suffix) => (len.saturating_sub(suffix.parse().ok()?), end),
            (first, "") => (first.parse().ok()?, end),
            (first, last) => (first.parse().ok()?, last.parse::<u64>().ok()?.min(end)),
        };
        Some(if first < len && first <= last { Wanted::Part { first, last } } else { Wanted::Nothing })
    }

    fn parse(head: &str) -> Option<Self> {
        let mut lines = head.split("\r\n");
        let mut words = lines.next()?.split(' ');
        let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
        let header =
            |line: &str| line.split_once(':').map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()));
        Some(Self { method, target, headers: lines.filter_map(header).collect(), sent: Arc::default() })
    }
}

/// What a `Range` header asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// These bytes, both included.
    Part { first: u64, last: u64 },
    /// A range that the content does not have.
    Nothing,
}

/// Reads the next request from a connection and drops its body. `buffer` holds what was read beyond it. None at the connection's end,
/// or when what came is not HTTP.
pub(super) async fn next<S: AsyncRead + Unpin>(stream: &mut S, buffer: &mut Vec<u8>) -> Option<Request> {
    let end = loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if buffer.len() > MAX_HEAD || stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    };
    let request = Request::parse(std::str::from_utf8(buffer.get(..end)?).ok()?)?;
    buffer.drain(..end + 4);
    skip_body(stream, buffer, &request).await?;
    Some(request)
}

async fn skip_body<S: AsyncRead + Unpin>(stream: &mut S, buffer: &mut Vec<u8>, request: &Request) -> Option<()> {
    let mut left = request.header("content-length").map_or(Some(0), |length| length.parse::<usize>().ok())?;
    loop {
        let here = left.min(buffer.len());
        buffer.drain(..here);
        left -= here;
        if left == 0 {
            return Some(());
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
}
