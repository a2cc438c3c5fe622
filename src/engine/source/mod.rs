//! Where an image's bytes come from.
//!
//! A source gives bytes in order, once; some can also be asked for a range. It knows nothing of what the bytes mean.

mod address;
mod checksums;
mod file;
mod http;
mod upload;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

use crate::error::Result;
pub use address::{AddressPolicy, AddressRule, HostPattern, PortRange, Refusal, Scheme};
pub use checksums::{Checksums, fetch_checksum, file_name};
pub use file::{FileSource, StdinSource};
#[doc(hidden)]
pub use http::judge_head;
pub use http::{HttpConfig, HttpSource, Parallel, Patience, ProxySettings, display_url};
pub use upload::{End, Expected, Inlet, Pen, Refused, UploadSource, Uploads};

/// Bytes in order. Ends with `None` only after every byte of the source has come; anything less is an error.
pub type ByteStream = BoxStream<'static, Result<Bytes>>;

/// A place to read an image from.
#[async_trait]
pub trait Source: Send + Sync {
    /// Name for messages and logs. Holds no credentials: no user info, no query string.
    fn describe(&self) -> String;

    /// Contacts the source and begins to read from its first byte.
    ///
    /// # Errors
    /// `Denied` by the address policy or the server, `NotFound`, `InvalidInput`, or `Unavailable` after the last retry.
    async fn open(&self) -> Result<Opened>;

    /// Whether `open` may be called again and then begins from the first byte again. What cannot is an error the second time.
    fn reopens(&self) -> bool {
        true
    }
}

/// A source that has answered.
pub struct Opened {
    /// Length in bytes, if the source tells.
    pub length: Option<u64>,
    /// Whether the stream's end can be told from a cut. If not, only a checksum shows that everything came.
    pub shows_cuts: bool,
    /// All bytes, in order.
    pub stream: ByteStream,
    /// Random access to the same version of the same bytes, where the source can. Used to fetch tables that stand behind
    /// the data they describe; whoever uses it must compare with what the stream brings later.
    pub ranges: Option<Arc<dyn RangeReader>>,
}

/// Reads a part of a source without disturbing its stream.
#[async_trait]
pub trait RangeReader: Send + Sync {
    /// Exactly the bytes `offset..offset + length`, of the version that the stream delivers. `None` if the source only claimed to
    /// have ranges: then there is the stream and nothing else.
    ///
    /// # Errors
    /// `Changed` if the source now holds another version, `Unavailable` after the last retry.
    async fn read_range(&self, offset: u64, length: u64) -> Result<Option<Bytes>>;

    /// Whether a part costs no more than the same bytes on their way through the stream.
    fn is_near(&self) -> bool {
        false
    }
}
