//! One question to the server, redirects included, and the answer's head. No retries.

use std::sync::{Mutex, MutexGuard, PoisonError};

use reqwest::{
    Response,
    header::{
        ACCEPT, ACCEPT_ENCODING, ACCEPT_RANGES, HeaderMap, HeaderValue, IF_RANGE, LOCATION, RANGE, TRANSFER_ENCODING,
    },
};
use url::Url;

use super::{
    Scheme,
    answer::{Answer, Span, check_encoding, judge},
    client::Clients,
    config::{HttpConfig, display_url},
    fault::Fault,
};
use crate::{
    error::{Kind, Result},
    source::address::Target,
};

/// Redirects followed for one question. Mirrors need two or three; browsers allow 20.
const MAX_REDIRECTS: usize = 10;

/// Failures in a row after which a server that was redirected to is left: one may be a restart.
const MIRROR_FAILURES: u32 = 2;

/// The source's side of the network.
pub(super) struct Wire {
    pub config: HttpConfig,
    /// The source's name in messages: its URL without what may be secret.
    pub name: String,
    clients: Clients,
    /// Where the redirects led the last time. Later questions go there at once: it saves the round trips, and a mirror
    /// service would send each of them to another mirror.
    settled: Mutex<Settled>,
}

/// A place to ask, and how often in a row it could not be.
#[derive(Clone)]
struct Settled {
    url: Url,
    failures: u32,
}

impl Settled {
    fn at(url: Url) -> Self {
        Self { url, failures: 0 }
    }
}

/// An answer whose body can be read.
pub(super) struct Reply {
    pub answer: Answer,
    pub response: Response,
    /// Whether the server says that it serves ranges.
    pub offers_ranges: bool,
    /// Whether the protocol marks the body's end.
    pub framed: bool,
}

impl Wire {
    pub fn new(config: HttpConfig) -> Result<Self> {
        let (name, settled) = (display_url(&config.url), Mutex::new(Settled::at(config.url.clone())));
        Ok(Self { clients: Clients::new(&config)?, settled, name, config })
    }

    /// Asks for `asked`, or for the whole file. With `condition`, a part is only sent of that very version.
    pub async fn ask(&self, asked: Option<Span>, condition: Option<&HeaderValue>) -> Result<Reply, Fault> {
        let settled = self.settled().url.clone();
        let moved = settled != self.config.url;
        match self.follow(settled.clone(), asked, condition).await {
            // Where the redirects led may have been good for a while only (a signed URL, a mirror that is gone).
            Err(Fault::Final(error)) if moved && matches!(error.kind(), Kind::Denied | Kind::NotFound) => {
                self.follow(self.config.url.clone(), asked, condition).await
            }
            Err(fault @ Fault::Passing { .. }) => {
                self.note_failure(&settled);
                Err(fault)
            }
            other => other,
        }
    }

    fn settled(&self) -> MutexGuard<'_, Settled> {
        self.settled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A mirror that stays away is left: the next question begins at the URL itself, which may lead to another.
    fn note_failure(&self, url: &Url) {
        let mut settled = self.settled();
        if settled.url != *url {
            return;
        }
        settled.failures = settled.failures.saturating_add(1);
        if settled.failures >= MIRROR_FAILURES {
            *settled = Settled::at(self.config.url.clone());
        }
    }

    async fn follow(&self, mut url: Url, asked: Option<Span>, condition: Option<&HeaderValue>) -> Result<Reply, Fault> {
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send(&url, asked, condition).await?;
            if !response.status().is_redirection() {
                let reply = self.read_head(&url, asked, response)?;
                *self.settled() = Settled::at(url);
                return Ok(reply);
            }
            url = self.next_hop(&url, &response)?;
        }
        let what = &self.name;
        Err(Fault::last(
            Kind::InvalidInput,
            format!("{what}: more than {MAX_REDIRECTS} redirects, the last to {}", display_url(&url)),
        ))
    }

    async fn send(&self, url: &Url, asked: Option<Span>, condition: Option<&HeaderValue>) -> Result<Response, Fault> {
        let client = self.clients.client(&self.config, url).await?;
        let mut request = client.get(url.clone()).headers(self.headers_for(url));
        if let Some(span) = asked {
            request = request.header(RANGE, span.to_header());
            if let Some(condition) = condition {
                request = request.header(IF_RANGE, condition.clone());
            }
        }
        let doing = || format!("asking {}", display_url(url));
        let patience = self.config.patience.connect.saturating_add(self.config.patience.stall);
        match tokio::time::timeout(patience, request.send()).await {
            Ok(sent) => sent.map_err(|e| Fault::of_transport(&doing(), e)),
            Err(_) => Err(Fault::passing(format!("{}: no answer within {:.1} s", doing(), patience.as_secs_f64()))),
        }
    }

    /// The user's headers hold credentials, so they go to the URL's own server only, and to its https side.
    fn headers_for(&self, url: &Url) -> HeaderMap {
        let mut headers =
            if same_server(&self.config.url, url) { self.config.headers.clone() } else { HeaderMap::new() };
        headers.entry(ACCEPT).or_insert(HeaderValue::from_static("*/*"));
        // The publisher's checksum is of the plain file.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers
    }

    fn next_hop(&self, url: &Url, response: &Response) -> Result<Url, Fault> {
        let what = display_url(url);
        let bad = |why: &str| {
            Fault::last(Kind::InvalidInput, format!("{what}: the server answered {}{why}", response.status()))
        };
        let location = response.headers().get(LOCATION).ok_or_else(|| bad(" without saying where to"))?;
        let mut next = location
            .to_str()
            .ok()
            .and_then(|text| url.join(text).ok())
            .ok_or_else(|| bad(" and a Location that is no URL"))?;
        next.set_fragment(None);
        // A URL without user info inherits none, and a Location that is the URL's own server gets it through the headers.
        if url.scheme() == "https" && next.scheme() == "http" && !self.config.policy.allow_downgrade {
            let message = format!(
                "{what}: the server redirects from https to {}, where nothing is protected",
                display_url(&next)
            );
            return Err(Fault::last(Kind::Denied, message));
        }
        Ok(next)
    }

    fn read_head(&self, url: &Url, asked: Option<Span>, response: Response) -> Result<Reply, Fault> {
        let what = display_url(url);
        let headers = response.headers();
        let answer = judge(&what, asked, response.status(), headers, response.content_length())?;
        check_encoding(&what, url.path(), headers)?;
        let framed = response.content_length().is_some() || headers.contains_key(TRANSFER_ENCODING);
        if matches!(answer, Answer::Whole(_)) && !framed && !self.config.accept_unframed {
            let message = format!(
                "{what}: the server tells neither the length nor the end of the file, so a download that was cut off would \
                 look complete: declare a checksum, or use another server"
            );
            return Err(Fault::last(Kind::InvalidInput, message));
        }
        let offers_ranges = headers.get(ACCEPT_RANGES).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"bytes"));
        Ok(Reply { answer, response, offers_ranges, framed })
    }
}

/// Whether `other` is the server of `own`: same scheme, host and port, or the step from plain to TLS on the default ports.
pub(super) fn same_server(own: &Url, other: &Url) -> bool {
    match (Target::of(own), Target::of(other)) {
        (Ok(own), Ok(other)) => {
            let upgraded =
                own.scheme == Scheme::Http && own.port == 80 && other.scheme == Scheme::Https && other.port == 443;
            own == other || (own.host == other.host && upgraded)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_stay_with_their_server() {
        let same = |a: &str, b: &str| same_server(&a.parse().unwrap(), &b.parse().unwrap());
        assert!(same("https://a.example/x", "https://a.example:443/y"));
        assert!(same("http://a.example/x", "https://a.example/x"));
        assert!(same("http://A.example./x", "http://a.example/x"));
        assert!(!same("https://a.example/x", "http://a.example/x"));
        assert!(!same("https://a.example/x", "https://b.a.example/x"));
        assert!(!same("https://a.example/x", "https://a.example:8443/x"));
        assert!(!same("http://a.example:8080/x", "https://a.example/x"));
    }
}
