//! What an answer's head says: which version of the file, which part of it, and whether that is what was asked for.
//!
//! Pure: sees status and header fields, never the network. RFC 9110, sections 8.8 (validators), 13 (conditions), 14 (ranges).

use reqwest::{
    StatusCode,
    header::{CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, DATE, ETAG, HeaderMap, HeaderValue, LAST_MODIFIED},
};

use super::{fault::Fault, retry::http_date};
use crate::error::{Error, Kind, Result};

/// What tells one version of a file from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version {
    etag: Option<HeaderValue>,
    modified: Option<HeaderValue>,
    /// Whether `modified` is older than the answer, so that a second change within the same second is excluded.
    modified_is_strong: bool,
    /// Length of the whole file.
    pub length: Option<u64>,
}

impl Version {
    fn of(headers: &HeaderMap, length: Option<u64>) -> Self {
        let seconds =
            |name| headers.get(name).and_then(|v| http_date(v.to_str().ok()?)).map(jiff::Timestamp::as_second);
        let modified_is_strong =
            matches!((seconds(LAST_MODIFIED), seconds(DATE)), (Some(modified), Some(now)) if modified < now);
        Self {
            etag: headers.get(ETAG).cloned(),
            modified: headers.get(LAST_MODIFIED).cloned(),
            modified_is_strong,
            length,
        }
    }

    /// What to send as `If-Range`: only a strong validator may stand there (RFC 9110, section 13.1.5).
    pub fn validator(&self) -> Option<&HeaderValue> {
        let strong = self.etag.as_ref().filter(|etag| !etag.as_bytes().starts_with(b"W/"));
        strong.or_else(|| self.modified.as_ref().filter(|_| self.modified_is_strong && self.etag.is_none()))
    }

    /// Whether two answers certainly carry the same bytes.
    pub fn proves_same(&self, later: &Self) -> bool {
        self.validator().is_some() && self.validator() == later.validator() && self.length == later.length
    }

    /// Whether a part must carry an ETag and does not: a server that gave a strong one has to send it with every part, too
    /// (RFC 9110, section 15.3.7), so what comes without may be of another version.
    pub fn misses_etag(&self, part: &Self) -> bool {
        let strong = self.etag.is_some() && self.validator().is_some();
        strong && part.etag.is_none()
    }

    /// Checks that nothing in a `later` answer says that the file is another one now.
    ///
    /// # Errors
    /// `Changed`, naming what differs.
    pub fn check_unchanged(&self, later: &Self, what: &str) -> Result<()> {
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let differs = |name: &str, old: String, new: String| {
            let message = format!("{what}: the file changed while it was read: {name} was {old} and is {new} now");
            Err(Error::new(Kind::Changed, message))
        };
        match (&self.etag, &later.etag) {
            (Some(old), Some(new)) if old != new => return differs("ETag", text(old), text(new)),
            _ => {}
        }
        // A strong ETag that stayed says more than a date, which differs between the machines of one service.
        let settled = self.etag.is_some() && self.etag == later.etag && self.validator().is_some();
        match (&self.modified, &later.modified) {
            (Some(old), Some(new)) if old != new && !settled => return differs("Last-Modified", text(old), text(new)),
            _ => {}
        }
        match (self.length, later.length) {
            (Some(old), Some(new)) if old != new => differs("its length", old.to_string(), new.to_string()),
            _ => Ok(()),
        }
    }
}

/// The bytes from `first` up to but not including `end`, or to the end of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub first: u64,
    pub end: Option<u64>,
}

impl Span {
    /// The value of a `Range` field.
    pub fn to_header(self) -> String {
        match self.end {
            Some(end) => format!("bytes={}-{}", self.first, end.saturating_sub(1)),
            None => format!("bytes={}-", self.first),
        }
    }
}

/// An answer that can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The body is the file.
    Whole(Version),
    /// The body begins where it was asked to begin. It may end before what was asked.
    Part(Version),
    /// What was asked for begins past the end of the file, which is so long.
    PastEnd(u64),
}

/// Judges an answer's head. `body` is the length that the body declares.
pub(super) fn judge(
    what: &str,
    asked: Option<Span>,
    status: StatusCode,
    headers: &HeaderMap,
    body: Option<u64>,
) -> Result<Answer, Fault> {
    match (status, asked) {
        (StatusCode::OK, _) => Ok(Answer::Whole(Version::of(headers, body))),
        (StatusCode::PARTIAL_CONTENT, Some(asked)) => judge_part(what, asked, headers, body),
        (StatusCode::RANGE_NOT_SATISFIABLE, Some(_)) => match content_range(headers) {
            Some(ContentRange::Unsatisfied(total)) => Ok(Answer::PastEnd(total)),
            _ => Err(Fault::of_status(what, status, headers)),
        },
        (status, _) => Err(Fault::of_status(what, status, headers)),
    }
}

/// Judges the head of an answer as a download does, with everything it looks at; for whoever feeds it nonsense. `asked` are the
/// first byte and the end of the part asked for, in bytes. The length of the whole file, if the answer tells.
///
/// # Errors
/// What a download would make of it.
#[doc(hidden)]
pub fn judge_head(
    asked: Option<(u64, Option<u64>)>,
    status: StatusCode,
    headers: &HeaderMap,
    body: Option<u64>,
) -> Result<Option<u64>> {
    let (what, asked) = ("answer", asked.map(|(first, end)| Span { first, end }));
    let answer = judge(what, asked, status, headers, body).and_then(|answer| {
        check_encoding(what, "/disk.raw.gz", headers)?;
        Ok(answer)
    });
    match answer.map_err(|fault| fault.into_error(what))? {
        Answer::PastEnd(total) => Ok(Some(total)),
        Answer::Whole(version) | Answer::Part(version) => {
            version.check_unchanged(&version, what)?;
            Ok(version.length)
        }
    }
}

fn judge_part(what: &str, asked: Span, headers: &HeaderMap, body: Option<u64>) -> Result<Answer, Fault> {
    let wrong = |found: &str| {
        Fault::passing(format!("{what}: asked for {}, and the server answered 206 with {found}", asked.to_header()))
    };
    let text = headers.get(CONTENT_RANGE).map_or("no Content-Range".into(), |v| String::from_utf8_lossy(v.as_bytes()));
    let Some(ContentRange::Part { first, last, total }) = content_range(headers) else {
        return Err(wrong(&text));
    };
    if first != asked.first || asked.end.is_some_and(|end| last >= end) {
        return Err(wrong(&text));
    }
    let span = last.saturating_add(1).saturating_sub(first);
    if let Some(body) = body.filter(|body| *body != span) {
        return Err(wrong(&format!("{text} and a body of {body} bytes")));
    }
    Ok(Answer::Part(Version::of(headers, total)))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ContentRange {
    Part { first: u64, last: u64, total: Option<u64> },
    Unsatisfied(u64),
}

/// Reads `Content-Range` (RFC 9110, section 14.4). `None` if it is absent or makes no sense.
fn content_range(headers: &HeaderMap) -> Option<ContentRange> {
    let rest = headers.get(CONTENT_RANGE)?.to_str().ok()?.trim().strip_prefix("bytes ")?;
    let (range, total) = rest.trim().split_once('/')?;
    if range == "*" {
        return total.parse().ok().map(ContentRange::Unsatisfied);
    }
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    let sound = first <= last && total.is_none_or(|total: u64| last < total);
    sound.then_some(ContentRange::Part { first, last, total })
}

/// Checks that the body is the file and not a compressed form of it, which was not asked for.
///
/// Servers that take a `.gz` file for a compressed page label the file's own bytes as an encoding; the suffix tells.
pub(super) fn check_encoding(what: &str, path: &str, headers: &HeaderMap) -> Result<(), Fault> {
    let Some(encoding) = headers.get(CONTENT_ENCODING).map(|v| String::from_utf8_lossy(v.as_bytes()).to_lowercase())
    else {
        return Ok(());
    };
    let suffix = path.rsplit_once('.').map_or("", |(_, suffix)| suffix);
    let is_file = match encoding.trim() {
        "" | "identity" => true,
        "gzip" | "x-gzip" => suffix == "gz" || suffix == "tgz",
        "xz" | "x-xz" => suffix == "xz",
        "zstd" => suffix == "zst",
        "bzip2" | "x-bzip2" => suffix == "bz2",
        _ => false,
    };
    if is_file {
        return Ok(());
    }
    let message = format!(
        "{what}: the server sends the file encoded as `{encoding}` although only its plain bytes were asked for"
    );
    Err(Fault::last(Kind::InvalidInput, message))
}

/// Whether the answer is a web page by its own word and by its first bytes: a login form or an error page, not an image. Servers that
/// know no type say `text/html` of anything, and a VDI begins with `<<<`: markup has a name, `!` or `?` behind its first bracket.
pub(super) fn is_web_page(headers: &HeaderMap, first: &[u8]) -> bool {
    let html = headers.get(CONTENT_TYPE).is_some_and(|v| v.as_bytes().to_ascii_lowercase().starts_with(b"text/html"));
    let mut bytes = first.iter().skip_while(|b| b.is_ascii_whitespace());
    html && bytes.next() == Some(&b'<')
        && bytes.next().is_none_or(|b| b.is_ascii_alphabetic() || matches!(b, b'!' | b'?'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (n.parse::<reqwest::header::HeaderName>().unwrap(), v.parse().unwrap())).collect()
    }

    fn part(range: &str, asked: Span, body: Option<u64>) -> Result<Option<u64>, String> {
        match judge("x", Some(asked), StatusCode::PARTIAL_CONTENT, &headers(&[("content-range", range)]), body) {
            Ok(Answer::Part(version)) => Ok(version.length),
            Ok(other) => Err(format!("{other:?}")),
            Err(fault) => Err(fault.into_error("x").to_string()),
        }
    }

    #[test]
    fn a_part_must_be_the_one_asked_for() {
        let asked = Span { first: 100, end: Some(200) };
        assert_eq!(part("bytes 100-199/1000", asked, Some(100)), Ok(Some(1000)));
        assert_eq!(part("bytes 100-149/1000", asked, None), Ok(Some(1000)));
        assert_eq!(part("bytes 100-199/*", asked, Some(100)), Ok(None));
        for wrong in [
            "bytes 0-99/1000",
            "bytes 101-199/1000",
            "bytes 100-200/1000",
            "bytes 100-199/150",
            "bytes 199-100/1000",
            "bytes */1000",
            "items 100-199/1000",
            "",
        ] {
            let error = part(wrong, asked, None).unwrap_err();
            assert!(error.contains("bytes=100-199") && error.contains(wrong), "{error}");
        }
        assert!(part("bytes 100-199/1000", asked, Some(99)).unwrap_err().contains("a body of 99 bytes"));
        assert_eq!(part("bytes 100-999/1000", Span { first: 100, end: None }, None), Ok(Some(1000)));
    }

    #[test]
    fn only_strong_validators_prove_anything() {
        let date = ("date", "Sun, 06 Nov 1994 08:49:37 GMT");
        let validator = |pairs: &[(&'static str, &str)]| {
            Version::of(&headers(pairs), None).validator().map(|v| v.to_str().unwrap().to_owned())
        };
        assert_eq!(validator(&[("etag", "\"a\""), date]).unwrap(), "\"a\"");
        assert_eq!(validator(&[("etag", "W/\"a\""), date]), None);
        assert_eq!(
            validator(&[("last-modified", "Sun, 06 Nov 1994 08:49:36 GMT"), date]).unwrap(),
            "Sun, 06 Nov 1994 08:49:36 GMT"
        );
        assert_eq!(validator(&[("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT"), date]), None);
        assert_eq!(validator(&[("last-modified", "Sun, 06 Nov 1994 08:49:36 GMT")]), None);
        let tagged = |etag: &str, length| Version::of(&headers(&[("etag", etag)]), Some(length));
        assert!(tagged("\"a\"", 1).proves_same(&tagged("\"a\"", 1)));
        assert!(!tagged("\"a\"", 1).proves_same(&tagged("\"a\"", 2)));
        assert!(!tagged("W/\"a\"", 1).proves_same(&tagged("W/\"a\"", 1)));
        let untagged = Version::of(&HeaderMap::new(), Some(1));
        assert!(tagged("\"a\"", 1).misses_etag(&untagged) && !tagged("\"a\"", 1).misses_etag(&tagged("\"a\"", 1)));
        assert!(!tagged("W/\"a\"", 1).misses_etag(&untagged) && !untagged.misses_etag(&untagged));
    }

    #[test]
    fn a_change_is_named() {
        let version = |etag: &str, modified: &str, length| {
            Version::of(&headers(&[("etag", etag), ("last-modified", modified)]), length)
        };
        let old = version("\"a\"", "Sun, 06 Nov 1994 08:49:37 GMT", Some(10));
        let message = |new: &Version| old.check_unchanged(new, "x").unwrap_err().to_string();
        assert!(old.check_unchanged(&old.clone(), "x").is_ok());
        assert!(old.check_unchanged(&Version::of(&HeaderMap::new(), None), "x").is_ok());
        assert!(
            message(&version("\"b\"", "Sun, 06 Nov 1994 08:49:37 GMT", Some(10)))
                .contains("ETag was \"a\" and is \"b\" now")
        );
        assert!(old.check_unchanged(&version("\"a\"", "Sun, 06 Nov 1994 08:49:38 GMT", Some(10)), "x").is_ok());
        for etag in [None, Some("W/\"a\"")] {
            let dated = |date: &'static str| {
                let pairs = etag.map(|etag| ("etag", etag)).into_iter().chain([("last-modified", date)]);
                Version::of(&headers(&pairs.collect::<Vec<_>>()), None)
            };
            let (old, new) = (dated("Sun, 06 Nov 1994 08:49:37 GMT"), dated("Sun, 06 Nov 1994 08:49:38 GMT"));
            assert!(old.check_unchanged(&new, "x").unwrap_err().to_string().contains("Last-Modified"));
        }
        assert!(
            message(&version("\"a\"", "Sun, 06 Nov 1994 08:49:37 GMT", Some(11)))
                .contains("its length was 10 and is 11 now")
        );
    }

    #[test]
    fn past_the_end_tells_the_length() {
        let asked = Some(Span { first: 100, end: None });
        let answer =
            judge("x", asked, StatusCode::RANGE_NOT_SATISFIABLE, &headers(&[("content-range", "bytes */100")]), None);
        assert_eq!(answer.unwrap(), Answer::PastEnd(100));
        assert!(judge("x", asked, StatusCode::RANGE_NOT_SATISFIABLE, &HeaderMap::new(), None).is_err());
        assert!(
            judge("x", None, StatusCode::PARTIAL_CONTENT, &headers(&[("content-range", "bytes 0-9/10")]), None)
                .is_err()
        );
    }

    #[test]
    fn an_encoding_is_only_taken_where_it_is_the_file() {
        let check =
            |path: &str, encoding: &str| check_encoding("x", path, &headers(&[("content-encoding", encoding)])).is_ok();
        assert!(check("/a.qcow2", "identity"));
        assert!(check("/a.raw.gz", "x-gzip"));
        assert!(!check("/a.qcow2", "gzip"));
        assert!(!check("/a.raw.xz", "gzip"));
        assert!(!check("/a.raw.gz", "br"));
    }

    #[test]
    fn a_web_page_is_told_by_type_and_content() {
        let html = headers(&[("content-type", "text/html; charset=utf-8")]);
        assert!(is_web_page(&html, b"\n <!DOCTYPE html>"));
        assert!(is_web_page(&html, b"<html>") && is_web_page(&html, b"<?xml"));
        assert!(!is_web_page(&html, b"QFI\xfb"));
        assert!(!is_web_page(&html, b"<<< Oracle VM VirtualBox Disk Image >>>\n"));
        assert!(!is_web_page(&HeaderMap::new(), b"<html>"));
    }
}
