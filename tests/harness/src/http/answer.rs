//! Makes the answer to a request: first as a good server would (RFC 9110), then spoiled by the faults that apply. Pure.

use std::fmt::Write;
use std::time::Duration;

use super::request::{Request, Wanted};
use super::route::{Body, Content, Fault, Route, Target};

/// An answer, ready to be sent.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub part: Option<Part>,
    pub framing: Framing,
    pub conduct: Conduct,
}

/// The bytes that the body consists of.
#[derive(Debug, Clone)]
pub struct Part {
    pub body: Body,
    pub offset: u64,
    pub len: u64,
}

/// How the receiver learns where the body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// `Content-Length`, which may be a lie by so much.
    Length {
        lie: i64,
    },
    Chunked,
    UntilClose,
}

/// How the answer is sent.
#[derive(Debug, Clone, Default)]
pub struct Conduct {
    pub hang_up: bool,
    pub cut_after: Option<u64>,
    pub stall_after: Option<u64>,
    pub rate: Option<u64>,
    pub delay: Duration,
}

/// The faults that one request sees, by what they spoil.
#[derive(Default)]
struct Faults<'a> {
    ignore_range: bool,
    refuse_head: bool,
    status: Option<u16>,
    retry_after: Option<u64>,
    redirect: Option<&'a str>,
    replace: Option<&'a Content>,
    content_range: i64,
    offset: i64,
    end: Option<u64>,
    framing: Option<Framing>,
    conduct: Conduct,
}

impl<'a> Faults<'a> {
    fn of(route: &'a Route, nth: u64) -> Self {
        let mut all = Self::default();
        for fault in route.faults_at(nth) {
            match fault {
                Fault::IgnoreRange => all.ignore_range = true,
                Fault::CutAfter(bytes) => all.conduct.cut_after = Some(*bytes),
                Fault::StallAfter(bytes) => all.conduct.stall_after = Some(*bytes),
                Fault::HangUp => all.conduct.hang_up = true,
                Fault::WrongContentRange(by) => all.content_range = *by,
                Fault::WrongOffset(by) => all.offset = *by,
                Fault::WrongLength(by) => all.framing = Some(Framing::Length { lie: *by }),
                Fault::EndAfter(bytes) => all.end = Some(*bytes),
                Fault::Chunked => all.framing = Some(Framing::Chunked),
                Fault::UntilClose => all.framing = Some(Framing::UntilClose),
                Fault::Status(status) => all.status = Some(*status),
                Fault::Unavailable(after) => (all.status, all.retry_after) = (Some(503), *after),
                Fault::Redirect(url) => all.redirect = Some(url),
                Fault::RefuseHead => all.refuse_head = true,
                Fault::Replace(content) => all.replace = Some(content),
                Fault::Rate(rate) => all.conduct.rate = Some(*rate),
                Fault::Delay(delay) => all.conduct.delay = *delay,
            }
        }
        all
    }
}

impl Answer {
    /// The answer of `route` to `request`, the `nth` for its path.
    pub fn to(request: &Request, route: &Route, nth: u64) -> Self {
        let faults = Faults::of(route, nth);
        let mut answer = Self::choose(request, route, &faults);
        // What the route says takes the place of what a good server would say.
        let said = |name: &str| route.headers.iter().any(|(other, _)| other.eq_ignore_ascii_case(name));
        answer.headers.retain(|(name, _)| !said(name));
        answer.headers.extend(route.headers.iter().cloned());
        answer.conduct = faults.conduct;
        answer
    }

    fn choose(request: &Request, route: &Route, faults: &Faults<'_>) -> Self {
        if let Some((name, value)) = &route.required
            && request.header(&name.to_ascii_lowercase()) != Some(value)
        {
            return Self::status(401).with("WWW-Authenticate", "Bearer");
        }
        if !matches!(request.method.as_str(), "GET" | "HEAD") || (faults.refuse_head && request.method == "HEAD") {
            return Self::status(405).with("Allow", "GET");
        }
        if let Some(status) = faults.status {
            let answer = Self::status(status);
            return match faults.retry_after {
                Some(seconds) => answer.with("Retry-After", seconds),
                None => answer,
            };
        }
        match (&route.target, faults.redirect) {
            (_, Some(url)) => Self::status(302).with("Location", url),
            (Target::Status(status), None) => Self::status(*status),
            (Target::Redirect(url), None) => Self::status(302).with("Location", url),
            (Target::RedirectToItself, None) => Self::status(302).with("Location", &request.target),
            (Target::Content(content), None) => Self::content(request, faults.replace.unwrap_or(content), faults),
        }
    }

    /// An answer without content.
    pub fn status(status: u16) -> Self {
        let (framing, conduct) = (Framing::Length { lie: 0 }, Conduct::default());
        Self { status, headers: Vec::new(), part: None, framing, conduct }
    }

    fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    fn content(request: &Request, content: &Content, faults: &Faults<'_>) -> Self {
        let mut identity = Vec::new();
        identity.extend(content.etag.iter().map(|etag| ("ETag".to_owned(), etag.clone())));
        identity.extend(content.last_modified.map(|time| ("Last-Modified".to_owned(), httpdate::fmt_http_date(time))));
        let mut answer = match Self::precondition(request, content) {
            Some(status) => Self::status(status),
            None => Self::part(request, content, &identity, faults),
        };
        answer.headers.append(&mut identity);
        answer
    }

    /// 412 and 304, of RFC 9110 §13.
    fn precondition(request: &Request, content: &Content) -> Option<u16> {
        let lists =
            |value: &str| value == "*" || value.split(',').any(|etag| Some(etag.trim()) == content.etag.as_deref());
        if request.header("if-match").is_some_and(|value| !lists(value)) {
            return Some(412);
        }
        request.header("if-none-match").is_some_and(lists).then_some(304)
    }

    fn part(request: &Request, content: &Content, identity: &[(String, String)], faults: &Faults<'_>) -> Self {
        let len = content.body.len();
        let unchanged = request.header("if-range").is_none_or(|value| identity.iter().any(|(_, known)| known == value));
        let wanted = request.wanted(len).filter(|_| unchanged && !faults.ignore_range);
        let framing = faults.framing.unwrap_or(Framing::Length { lie: 0 });
        let mut answer = match wanted {
            Some(Wanted::Nothing) => return Self::status(416).with("Content-Range", format!("bytes */{len}")),
            Some(Wanted::Part { first, last }) => {
                let shown = |position: u64| position.saturating_add_signed(faults.content_range);
                let range = format!("bytes {}-{}/{len}", shown(first), shown(last));
                let part = moved(&content.body, first, last - first + 1, faults.offset);
                Self { part: Some(part), ..Self::status(206) }.with("Content-Range", range)
            }
            None => Self { part: Some(Part { body: content.body.clone(), offset: 0, len }), ..Self::status(200) },
        };
        if let (Some(part), Some(end)) = (&mut answer.part, faults.end) {
            part.len = part.len.min(end);
        }
        let answer = if faults.ignore_range { answer } else { answer.with("Accept-Ranges", "bytes") };
        Self { framing, ..answer }.with("Content-Type", "application/octet-stream")
    }

    /// Whether the connection can carry another request afterwards.
    pub fn keeps_connection(&self) -> bool {
        self.framing == Framing::Chunked || self.framing == Framing::Length { lie: 0 }
    }

    /// The status line and headers.
    pub fn head(&self) -> String {
        let mut head = format!("HTTP/1.1 {} {}\r\n", self.status, reason(self.status));
        let mut line = |name: &str, value: &dyn std::fmt::Display| {
            // Writing to a String cannot fail.
            let _infallible = write!(head, "{name}: {value}\r\n");
        };
        for (name, value) in &self.headers {
            line(name, value);
        }
        let len = self.part.as_ref().map_or(0, |part| part.len);
        match self.framing {
            Framing::Length { .. } if self.status == 304 => {}
            Framing::Length { lie } => line("Content-Length", &len.saturating_add_signed(lie)),
            Framing::Chunked => line("Transfer-Encoding", &"chunked"),
            Framing::UntilClose => {}
        }
        if !self.keeps_connection() {
            line("Connection", &"close");
        }
        head.push_str("\r\n");
        head
    }
}

/// `len` bytes from `offset` moved by `by`, kept inside the body, so that only the place is wrong and not the length.
fn moved(body: &Body, offset: u64, len: u64, by: i64) -> Part {
    let latest = body.len().saturating_sub(len);
    Part { body: body.clone(), offset: offset.saturating_add_signed(by).min(latest), len }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        206 => "Partial Content",
        302 => "Found",
        304 => "Not Modified",
        401 => "Unauthorized",
        404 => "Not Found",
        405 => "Method Not Allowed",
        412 => "Precondition Failed",
        416 => "Range Not Satisfiable",
        503 => "Service Unavailable",
        _ => "Status",
    }
}
