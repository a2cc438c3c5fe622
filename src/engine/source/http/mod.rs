//! An image behind an HTTP or HTTPS URL.
//!
//! Knows RFC 9110 and how servers break it; knows nothing of what the bytes mean. From the inside out: `answer` judges one
//! answer's head, `wire` puts one question (with redirects, over `client`), `transfer` reads one stretch over as many
//! connections as it takes (with `retry`), `download` puts stretches in order.

mod answer;
mod client;
mod config;
mod download;
mod fault;
mod retry;
mod transfer;
mod wire;

use std::sync::Arc;

use async_trait::async_trait;
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream};
use percent_encoding::percent_decode_str;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use url::Url;

use self::{
    answer::Version,
    download::{Download, can_use_ranges, collect},
    fault::Fault,
    transfer::Transfer,
    wire::Wire,
};
use super::{
    Opened, RangeReader, Source,
    address::{Scheme, Target},
};
use crate::error::{Error, Kind, Result};
#[doc(hidden)]
pub use answer::judge_head;
pub use config::{HttpConfig, Parallel, Patience, ProxySettings, display_url};

/// An image behind a URL.
pub struct HttpSource {
    wire: Arc<Wire>,
}

impl HttpSource {
    /// Prepares a source; nothing is sent yet.
    ///
    /// # Errors
    /// `Denied` if the policy does not allow the URL, `InvalidInput` if the CA bundle cannot be read.
    pub fn new(mut config: HttpConfig) -> Result<Self> {
        config.policy.check_target(&Target::of(&config.url)?)?;
        config.url.set_fragment(None);
        take_user_info(&mut config)?;
        Ok(Self { wire: Arc::new(Wire::new(config)?) })
    }
}

/// Turns user info in the URL into a header, which redirects to other servers do not get.
fn take_user_info(config: &mut HttpConfig) -> Result<()> {
    let url: &mut Url = &mut config.url;
    if url.username().is_empty() && url.password().is_none() {
        return Ok(());
    }
    let mut plain: Vec<u8> = percent_decode_str(url.username()).collect();
    plain.push(b':');
    plain.extend(percent_decode_str(url.password().unwrap_or_default()));
    let mut value = HeaderValue::try_from(format!("Basic {}", BASE64_STANDARD.encode(plain)))
        .map_err(|e| Error::with_source(Kind::InvalidInput, "the user info in the URL", e))?;
    value.set_sensitive(true);
    config.headers.entry(AUTHORIZATION).or_insert(value);
    // Both fail only for URLs that cannot have a host, and `Target::of` has found one.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    Ok(())
}

#[async_trait]
impl Source for HttpSource {
    fn describe(&self) -> String {
        self.wire.name.clone()
    }

    async fn open(&self) -> Result<Opened> {
        let beginning = Transfer::begin(Arc::clone(&self.wire)).await?;
        let (length, shows_cuts) = (beginning.version.length, beginning.framed);
        let ranges = can_use_ranges(&beginning).then(|| {
            let (wire, version) = (Arc::clone(&self.wire), beginning.version.clone());
            Arc::new(HttpRanges { wire, version }) as Arc<dyn RangeReader>
        });
        let download = Download::new(Arc::clone(&self.wire), beginning);
        let stream = stream::try_unfold(download, async |mut download| {
            Ok(download.next().await?.map(|piece| (piece, download)))
        });
        Ok(Opened { length, shows_cuts, stream: stream.boxed(), ranges })
    }
}

/// Ranges of the version that a stream delivers.
struct HttpRanges {
    wire: Arc<Wire>,
    version: Version,
}

#[async_trait]
impl RangeReader for HttpRanges {
    async fn read_range(&self, offset: u64, length: u64) -> Result<Option<Bytes>> {
        let what = &self.wire.name;
        let end = offset.saturating_add(length);
        if self.version.length.is_none_or(|total| end > total) {
            let total = self.version.length.unwrap_or_default();
            return Err(Error::new(
                Kind::InvalidInput,
                format!("{what}: bytes {offset} to {end} were asked for, the file has {total}"),
            ));
        }
        let transfer = Transfer::of_range(Arc::clone(&self.wire), self.version.clone(), offset, end);
        let mut pieces = match collect(transfer).await {
            Ok(pieces) => pieces,
            Err(Fault::NoRanges) => return Ok(None),
            Err(fault) => return Err(fault.into_error(what)),
        };
        if pieces.len() <= 1 {
            return Ok(Some(pieces.pop_front().unwrap_or_default()));
        }
        let mut whole = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
        for piece in &pieces {
            whole.extend_from_slice(piece);
        }
        Ok(Some(whole.freeze()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_info_becomes_a_header_of_the_first_server() {
        let mut config = HttpConfig::new("https://us%40er:p%3Ass@a.example/x?y#z".parse().unwrap());
        take_user_info(&mut config).unwrap();
        assert_eq!(config.url.as_str(), "https://a.example/x?y#z");
        let value = config.headers.get(AUTHORIZATION).unwrap();
        assert_eq!(value.as_bytes(), b"Basic dXNAZXI6cDpzcw==");
        assert!(value.is_sensitive());
    }

    #[test]
    fn what_cannot_be_fetched_is_refused_before_anything_is_sent() {
        let kind = |url: &str| HttpSource::new(HttpConfig::new(url.parse().unwrap())).err().unwrap().kind();
        assert_eq!(kind("ftp://a.example/x"), Kind::Denied);
        assert_eq!(kind("http://169.254.169.254/x"), Kind::Denied);
        assert_eq!(kind("file:///etc/passwd"), Kind::Denied);
    }
}
