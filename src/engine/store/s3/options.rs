//! How a bucket is reached and used.

use std::{fmt, time::Duration};

use url::Url;

/// How a bucket is used.
#[derive(Clone, PartialEq, Eq)]
pub struct S3Options {
    /// The server, as `https://s3.example:443`, without a path.
    pub endpoint: Url,
    /// The bucket, which must exist.
    pub bucket: String,
    /// What all names in the bucket begin with, without slashes at its ends; empty for none.
    pub prefix: String,
    /// The region that requests are signed for. Most servers other than Amazon's take any.
    pub region: String,
    /// The access key's id.
    pub access_key_id: String,
    /// Its secret.
    pub secret_access_key: String,
    /// Whether the bucket is named in the path (`https://s3.example/bucket/key`) and not in the host's name.
    pub path_style: bool,
    /// Certificates in PEM that are trusted besides the system's.
    pub ca_bundle: Option<Vec<u8>>,
    /// Which installation writes here; without one nobody asks whose it is.
    pub owner: Option<String>,
    /// Bytes of data that one object keeps at most.
    pub object_size: u64,
    /// How long a connection may take, TLS included.
    pub connect_timeout: Duration,
    /// How long one request may take, its body included.
    pub request_timeout: Duration,
    /// For how long after a request was first sent it is sent again if it failed in a way that may pass.
    pub retry_timeout: Duration,
    /// How long a whole piece of work may take: opening, publishing, deleting.
    pub deadline: Duration,
    /// For how long after its last sign of life a writer or a reader counts as alive. They give one three times as often.
    pub lease: Duration,
}

impl S3Options {
    /// Bytes of data that one object keeps, unless it is said otherwise: large enough that the requests of an image are few, small
    /// enough that a writer that begins again loses little.
    pub const OBJECT_SIZE: u64 = 32 << 20;

    /// The usual options for `bucket`.
    pub fn new(endpoint: Url, bucket: impl Into<String>, id: impl Into<String>, secret: impl Into<String>) -> Self {
        Self {
            endpoint,
            bucket: bucket.into(),
            prefix: String::new(),
            region: "us-east-1".to_owned(),
            access_key_id: id.into(),
            secret_access_key: secret.into(),
            path_style: true,
            ca_bundle: None,
            owner: None,
            object_size: Self::OBJECT_SIZE,
            connect_timeout: Duration::from_secs(10),
            // The last try may begin just before the time to try again is over: together they end within a minute, after which an
            // import counts a store as stalled.
            request_timeout: Duration::from_secs(30),
            retry_timeout: Duration::from_secs(20),
            deadline: Duration::from_mins(4),
            lease: Duration::from_mins(1),
        }
    }
}

/// Without the secret.
impl fmt::Debug for S3Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Options")
            .field("endpoint", &self.endpoint.as_str())
            .field("bucket", &self.bucket)
            .field("prefix", &self.prefix)
            .field("region", &self.region)
            .field("access_key_id", &self.access_key_id)
            .field("object_size", &self.object_size)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After a minute without progress an import gives a store up, and could not say why.
    #[test]
    fn a_server_that_does_not_answer_is_told_within_a_minute() {
        let options = S3Options::new("http://s3.example".parse().unwrap(), "images", "id", "hidden");
        assert!(options.request_timeout + options.retry_timeout < Duration::from_mins(1));
    }
}
