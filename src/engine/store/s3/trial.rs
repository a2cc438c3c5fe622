//! Whether the server keeps the promise on which everything rests: that of two conditional writes only one is done.
//!
//! Servers that do not know the conditions ignore them without a word, so it is tried out, once for each store that is opened.

use bytes::Bytes;
use object_store::{ObjectStore as _, ObjectStoreExt as _, PutMode, PutOptions, PutPayload, UpdateVersion, path::Path};
use tokio::sync::OnceCell;

use super::{fault::Fault, place::Place};
use crate::error::{Error, Kind, Result};

/// What was found out.
#[derive(Debug, Default)]
pub(super) struct Trial {
    /// Whether the server wants ETags in quotes. Older gateways of Ceph compare without them, Amazon takes both.
    quoted: OnceCell<bool>,
}

impl Trial {
    /// An ETag as the server wants it in a condition.
    pub(super) fn spell(&self, tag: &str) -> String {
        spell(tag, self.quoted.get().copied().unwrap_or(false))
    }

    /// Tries it out, if that was not done.
    ///
    /// # Errors
    /// `InvalidInput` if the server does not keep the promise, and what else it says.
    pub(super) async fn pass(&self, place: &Place) -> Result<()> {
        self.quoted.get_or_try_init(|| run(place)).await.map(drop)
    }
}

fn spell(tag: &str, quoted: bool) -> String {
    let bare = tag.trim_matches('"');
    if quoted { format!("\"{bare}\"") } else { bare.to_owned() }
}

async fn run(place: &Place) -> Result<bool> {
    let path = place.layout().trial(rand::random());
    let result = compare(place, &path).await;
    let removed = place.bounded("trying out conditional writes", place.quick().delete(&path)).await;
    if let Err(fault) = removed {
        tracing::info!(store = place.name(), %path, ?fault, "what was tried out stays until it is swept");
    }
    result
}

async fn compare(place: &Place, path: &Path) -> Result<bool> {
    let first = write(place, path, "1", PutMode::Create)
        .await?
        .ok_or_else(|| broken(place, "a name that nobody has was taken"))?;
    if write(place, path, "2", PutMode::Create).await?.is_some() {
        return Err(broken(place, "it overwrote an object in spite of If-None-Match: *"));
    }
    let update = |tag: &str, quoted| PutMode::Update(UpdateVersion { e_tag: Some(spell(tag, quoted)), version: None });
    for quoted in [false, true] {
        if write(place, path, "3", update("0123456789abcdef0123456789abcdef", quoted)).await?.is_some() {
            return Err(broken(place, "it overwrote an object in spite of an If-Match that was not fulfilled"));
        }
    }
    for quoted in [false, true] {
        if write(place, path, "4", update(&first, quoted)).await?.is_some() {
            return Ok(quoted);
        }
    }
    Err(broken(place, "it did not overwrite an object though its If-Match was fulfilled"))
}

/// The ETag of what was written; nothing if the condition was not fulfilled.
async fn write(place: &Place, path: &Path, text: &'static str, mode: PutMode) -> Result<Option<String>> {
    let doing = "trying out conditional writes";
    let payload = PutPayload::from_bytes(Bytes::from_static(text.as_bytes()));
    let options = PutOptions { mode, ..PutOptions::default() };
    match place.bounded(doing, place.quick().put_opts(path, payload, options)).await {
        Ok(done) => done.e_tag.map(Some).ok_or_else(|| broken(place, "it gives objects no ETag")),
        Err(Fault::Refused) => Ok(None),
        Err(fault) => Err(place.fault(doing, &fault)),
    }
}

fn broken(place: &Place, what: &str) -> Error {
    let message = format!(
        "store {}, bucket {}: {} does not honour conditional writes ({what}), and without them two writers could publish the same \
         image: use a server that does, such as Amazon S3, Ceph's RADOS gateway or MinIO, in its present version",
        place.name(),
        place.bucket(),
        place.options().endpoint.as_str().trim_end_matches('/')
    );
    Error::new(Kind::InvalidInput, message)
}
