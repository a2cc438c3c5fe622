//! What an HTTP source is told: where, with what, how patiently.

use std::{env, fmt, sync::Arc, time::Duration};

use reqwest::header::{HeaderMap, HeaderValue};
use serde::{Deserialize, Serialize};
use url::Url;

use super::wire::same_server;
use crate::source::AddressPolicy;

/// An HTTP(S) source. `HttpConfig::new` gives safe defaults for everything but the URL.
#[derive(Clone)]
pub struct HttpConfig {
    /// What to fetch. User info in it is sent as basic authorization.
    pub url: Url,
    /// Sent with each request to the URL's own host, and to no other that it redirects to: they hold credentials.
    pub headers: HeaderMap,
    /// Certificates in PEM that are trusted besides the system's.
    pub ca_bundle: Option<Vec<u8>>,
    /// Accepts any certificate.
    pub insecure_skip_verify: bool,
    /// Proxies to go through.
    pub proxy: ProxySettings,
    /// Which addresses may be asked.
    pub policy: Arc<AddressPolicy>,
    /// How long to wait, how often to try.
    pub patience: Patience,
    /// When and how to fetch several ranges at once.
    pub parallel: Parallel,
    /// Takes a body whose end the protocol does not mark (neither `Content-Length` nor chunks), in which a cut looks like
    /// the end. Only safe when a checksum was declared, so whoever knows of one says so.
    pub accept_unframed: bool,
    /// The `User-Agent`.
    pub user_agent: HeaderValue,
}

impl HttpConfig {
    /// A source at `url` with defaults.
    pub fn new(url: Url) -> Self {
        Self {
            url,
            headers: HeaderMap::new(),
            ca_bundle: None,
            insecure_skip_verify: false,
            proxy: ProxySettings::default(),
            policy: Arc::default(),
            patience: Patience::default(),
            parallel: Parallel::default(),
            accept_unframed: false,
            user_agent: HeaderValue::from_static(concat!("vitrine/", env!("CARGO_PKG_VERSION"))),
        }
    }

    /// The same settings for another URL, such as that of the image's checksum. The headers come along only if it is on
    /// the same server.
    #[must_use]
    pub fn at(&self, url: Url) -> Self {
        let headers = if same_server(&self.url, &url) { self.headers.clone() } else { HeaderMap::new() };
        Self { url, headers, ..self.clone() }
    }
}

impl fmt::Debug for HttpConfig {
    /// Neither headers nor user info nor the query: they may hold credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpConfig").field("url", &display_url(&self.url)).finish_non_exhaustive()
    }
}

/// `url` without what may be secret: user info, query and fragment.
pub fn display_url(url: &Url) -> String {
    let host = url.host().map(|host| host.to_string()).unwrap_or_default();
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{host}{port}{}", url.scheme(), url.path())
}

/// Proxies, as the well-known environment variables give them. A proxy is the operator's choice, so the address policy
/// does not apply to it, only to what is asked of it.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ProxySettings {
    /// For `http` URLs; `http://`, `https://`, `socks5://` or `socks5h://`, with user info if the proxy wants it.
    pub http: Option<Url>,
    /// For `https` URLs.
    pub https: Option<Url>,
    /// Hosts that are asked directly, in the notation of `NO_PROXY`.
    pub no_proxy: String,
}

impl ProxySettings {
    /// One proxy for everything.
    pub fn all(proxy: Url) -> Self {
        Self { http: Some(proxy.clone()), https: Some(proxy), no_proxy: String::new() }
    }

    /// What `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` say, in lower case first as curl does. Values that
    /// are no URLs are ignored.
    pub fn from_environment() -> Self {
        Self::from_variables(|name| env::var(name).ok())
    }

    fn from_variables(get: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| get(&name.to_ascii_lowercase()).or_else(|| get(name)).filter(|value| !value.is_empty());
        let url = |name: &str| {
            let text = get(name).or_else(|| get("ALL_PROXY"))?;
            // `host:port` without a scheme is common and means http.
            let text = if text.contains("://") { text } else { format!("http://{text}") };
            Url::parse(&text).ok()
        };
        Self { http: url("HTTP_PROXY"), https: url("HTTPS_PROXY"), no_proxy: get("NO_PROXY").unwrap_or_default() }
    }
}

impl fmt::Debug for ProxySettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |url: &Option<Url>| url.as_ref().map(display_url);
        f.debug_struct("ProxySettings")
            .field("http", &show(&self.http))
            .field("https", &show(&self.https))
            .field("no_proxy", &self.no_proxy)
            .finish()
    }
}

/// How long to wait, how often to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For a connection, TLS included. 10 s: three SYNs are sent by then.
    pub connect: Duration,
    /// Without a single byte, for the answer's head or within its body. 30 s: longer than the pauses of slow mirrors and
    /// of object stores that fetch from an archive's edge, short enough to save the download.
    pub stall: Duration,
    /// Bytes that must come within `progress_time` of waiting for them. 64 KiB in 2 minutes: slower than any modem; a server that
    /// sends a byte now and then would else never stall and hold its place for ever.
    pub progress: u64,
    /// See `progress`.
    pub progress_time: Duration,
    /// Tries in a row that bring less than `MIN_PROGRESS` bytes before it is given up. With the defaults of the waits
    /// that is about one minute; the task that owns the import tries again later.
    pub attempts: u32,
    /// The first wait; it doubles each time. Each wait is shortened at random by up to a half, so that a hundred nodes
    /// that were cut off together do not come back together.
    pub first_wait: Duration,
    /// The longest wait between two tries.
    pub longest_wait: Duration,
    /// The longest `Retry-After` that is waited for; a server that asks for more is given up at once.
    pub longest_retry_after: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            progress: 64 << 10,
            progress_time: Duration::from_mins(2),
            attempts: 8,
            first_wait: Duration::from_millis(500),
            longest_wait: Duration::from_secs(30),
            longest_retry_after: Duration::from_mins(2),
        }
    }
}

/// Bytes that must have come since the last failure for the count of failures to start anew: else a server that gives
/// one byte per connection would be asked for ever.
pub(super) const MIN_PROGRESS: u64 = 1 << 20;

/// When and how to fetch several ranges at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parallel {
    /// Ranges in flight; 1 turns it off. They and the one being delivered are all that is held in memory.
    pub ranges: usize,
    /// Length of one range in bytes. 2 MiB: over a path of 50 ms and 25 MB/s per connection the pause between two
    /// ranges costs a third of the time of one connection, and all that are held still fit into 10 MiB.
    pub segment: u64,
    /// Bytes that a single connection is watched for first: past TCP's slow start.
    pub trial: u64,
    /// A single connection at least this fast, in bytes per second spent waiting for the network, is left alone.
    /// 100 MiB/s: a saturated gigabit link carries more, so it is not split without need; below it, the limit is most
    /// often one per connection (latency, a server's throttle).
    pub fast_enough: u64,
}

impl Default for Parallel {
    fn default() -> Self {
        Self { ranges: 4, segment: 2 << 20, trial: 8 << 20, fast_enough: 100 << 20 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_secret_is_shown() {
        let url: Url = "https://user:secret@example.com:8443/a/b.qcow2?X-Signature=secret#secret".parse().unwrap();
        let mut config = HttpConfig::new(url);
        config.headers.insert("authorization", HeaderValue::from_static("Bearer secret"));
        config.proxy = ProxySettings::all("http://u:secret@proxy:3128/".parse().unwrap());
        let shown = format!("{config:?} {:?}", config.proxy);
        assert!(!shown.contains("secret"), "{shown}");
        assert_eq!(display_url(&config.url), "https://example.com:8443/a/b.qcow2");
    }

    #[test]
    fn another_url_gets_the_headers_only_on_the_same_server() {
        let mut config = HttpConfig::new("https://a.example/image".parse().unwrap());
        config.headers.insert("authorization", HeaderValue::from_static("Bearer secret"));
        config.accept_unframed = true;
        let at = |url: &str| config.at(url.parse().unwrap());
        assert_eq!(at("https://a.example/SHA256SUMS").headers, config.headers);
        assert!(at("https://b.example/SHA256SUMS").headers.is_empty());
        assert!(at("https://b.example/SHA256SUMS").accept_unframed);
    }

    #[test]
    fn the_environment_is_read_as_curl_does() {
        let vars = |pairs: &'static [(&str, &str)]| {
            ProxySettings::from_variables(|name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
        };
        let one = vars(&[("http_proxy", "a:1"), ("HTTP_PROXY", "http://b:2"), ("NO_PROXY", ".svc,10.0.0.0/8")]);
        assert_eq!(one.http.unwrap().as_str(), "http://a:1/");
        assert_eq!(one.https, None);
        assert_eq!(one.no_proxy, ".svc,10.0.0.0/8");
        let all = vars(&[("ALL_PROXY", "socks5h://c:3"), ("https_proxy", "")]);
        assert_eq!(all.http, all.https);
        assert_eq!(all.https.unwrap().scheme(), "socks5h");
    }
}
