//! Where an image comes from on the command line: a file, a URL, or standard input; and what is needed to get at it.

use std::{path::PathBuf, sync::Arc};

use clap::{Args, ValueHint};
use url::Url;
use vitrine_engine::{
    error::{Error, Kind, Result},
    source::{AddressPolicy, AddressRule, FileSource, HttpConfig, HttpSource, ProxySettings, Source, StdinSource},
};

/// How URLs are fetched.
///
/// The command line runs as its user and asks whom the user asks, loopback and private addresses included, as curl does. The
/// address policy of the agents does not apply here.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "For URLs (any address may be asked: the agents' address policy does not apply here)")]
pub struct Fetching {
    /// Send this header, written as `Name: value`; may be given several times
    #[arg(long = "header", value_name = "HEADER")]
    headers: Vec<String>,
    /// Trust the certificates in this PEM file besides the system's
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    cacert: Option<PathBuf>,
    /// Accept any certificate; the image may come from anybody then
    #[arg(long)]
    insecure: bool,
}

/// What the user named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A file or block device.
    File(PathBuf),
    /// An HTTP or HTTPS URL.
    Url(Url),
    /// `-`.
    Stdin,
}

impl Input {
    /// What `text` means. Everything with `://` in it is a URL, everything else a path.
    ///
    /// # Errors
    /// `InvalidInput` for URLs that are none, or of another scheme.
    pub fn parse(text: &str) -> Result<Self> {
        if text == "-" {
            return Ok(Self::Stdin);
        }
        if !text.contains("://") {
            return Ok(Self::File(text.into()));
        }
        let url = Url::parse(text)
            .map_err(|e| Error::new(Kind::InvalidInput, format!("`{text}` is no URL: {e}; paths have no `://`")))?;
        match url.scheme() {
            "http" | "https" => Ok(Self::Url(url)),
            "file" => url
                .to_file_path()
                .map(Self::File)
                .map_err(|()| Error::new(Kind::InvalidInput, format!("`{text}` names no file of this machine"))),
            other => {
                let message = format!("`{other}` URLs are not read: use http or https, or download the file first");
                Err(Error::new(Kind::InvalidInput, message))
            }
        }
    }

    /// The source that reads it. `checksummed` says that its bytes are held against a checksum, so that a cut cannot pass for the end.
    ///
    /// # Errors
    /// `InvalidInput` or an I/O error from the options.
    pub fn source(&self, fetching: &Fetching, checksummed: bool) -> Result<Arc<dyn Source>> {
        Ok(match self {
            Self::File(path) => Arc::new(FileSource::new(path)),
            Self::Url(url) => {
                let config = HttpConfig { accept_unframed: checksummed, ..fetching.config(url)? };
                Arc::new(HttpSource::new(config)?)
            }
            Self::Stdin => Arc::new(StdinSource::default()),
        })
    }
}

impl Fetching {
    fn config(&self, url: &Url) -> Result<HttpConfig> {
        let mut config = HttpConfig::new(url.clone());
        for header in &self.headers {
            let wrong = || Error::new(Kind::InvalidInput, format!("`{header}` is no header: write `Name: value`"));
            let (name, value) = header.split_once(':').ok_or_else(wrong)?;
            let name: reqwest::header::HeaderName = name.trim().parse().map_err(|_| wrong())?;
            config.headers.append(name, value.trim().parse().map_err(|_| wrong())?);
        }
        if let Some(path) = &self.cacert {
            let text = std::fs::read(path).map_err(|e| Error::io(format!("reading {}", path.display()), e))?;
            config.ca_bundle = Some(text);
        }
        config.insecure_skip_verify = self.insecure;
        config.proxy = ProxySettings::from_environment();
        config.policy = Arc::new(any_address());
        Ok(config)
    }
}

/// The policy of a user who asks for himself.
fn any_address() -> AddressPolicy {
    let everywhere = AddressRule {
        networks: vec![ipnet::Ipv4Net::default().into(), ipnet::Ipv6Net::default().into()],
        ..AddressRule::default()
    };
    // One rule lifts the denials on names, the other those on addresses.
    AddressPolicy { allow: vec![AddressRule::default(), everywhere], ..AddressPolicy::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_urls_and_stdin_are_told_apart() {
        assert_eq!(Input::parse("-").unwrap(), Input::Stdin);
        assert_eq!(Input::parse("a:b.raw").unwrap(), Input::File("a:b.raw".into()));
        assert_eq!(Input::parse("file:///a/b%20c").unwrap(), Input::File("/a/b c".into()));
        assert!(matches!(Input::parse("http://localhost:1/x").unwrap(), Input::Url(_)));
        assert_eq!(Input::parse("ftp://a/b").unwrap_err().kind(), Kind::InvalidInput);
        assert_eq!(Input::parse("http://").unwrap_err().kind(), Kind::InvalidInput);
    }

    #[test]
    fn headers_are_checked() {
        let config = |header: &str| {
            let fetching = Fetching { headers: vec![header.to_owned()], ..Fetching::default() };
            fetching.config(&"http://localhost/".parse().unwrap())
        };
        assert_eq!(config("X-Token: a b").unwrap().headers["x-token"], "a b");
        assert_eq!(config("X-Token").unwrap_err().kind(), Kind::InvalidInput);
        assert_eq!(config("X Token: a").unwrap_err().kind(), Kind::InvalidInput);
    }
}
