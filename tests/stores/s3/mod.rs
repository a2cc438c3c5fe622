//! The store on a real S3 server, Ceph's RADOS gateway: the conformance suite, and what only this store promises. All tests share one
//! gateway and one bucket, each with a prefix of its own, unless they break something.

mod access;
mod faults;
mod publishing;
mod sinks;
mod steps;
mod stub;

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures::TryStreamExt as _;
use object_store::{ObjectMeta, ObjectStore as _, aws::AmazonS3Builder, path::Path};
use tokio::sync::OnceCell;
use vitrine_engine::store::s3::{S3Options, S3Store};
use vitrine_harness::Gateway;

use crate::conformance::{self, Subject};

/// The bucket with the tests' prefixes.
pub const BUCKET: &str = "images";

/// The shared gateway with its bucket.
pub async fn gateway() -> &'static Gateway<'static> {
    static READY: OnceCell<&'static Gateway<'static>> = OnceCell::const_new();
    *READY
        .get_or_init(|| async {
            let gateway = Gateway::shared().await.unwrap();
            gateway.make_bucket(BUCKET).unwrap();
            gateway
        })
        .await
}

/// Options for a fresh prefix at a gateway.
pub fn options_for(gateway: &Gateway<'_>) -> S3Options {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let (id, secret) = gateway.access_key();
    let mut options = S3Options::new(gateway.endpoint().parse().unwrap(), BUCKET, id, secret);
    options.prefix = format!("tests/{}", NEXT.fetch_add(1, Ordering::Relaxed));
    options
}

/// Options for a fresh prefix at the shared gateway.
pub async fn options() -> S3Options {
    options_for(gateway().await)
}

/// The same, where who is dead is found to be so in seconds.
pub async fn short_lived() -> S3Options {
    S3Options { lease: Duration::from_secs(3), ..options().await }
}

/// Opens a store.
pub fn open(options: &S3Options) -> Arc<S3Store> {
    Arc::new(S3Store::open("bucket", options).unwrap())
}

/// A client that knows nothing of the store.
pub fn client(options: &S3Options) -> object_store::aws::AmazonS3 {
    AmazonS3Builder::new()
        .with_endpoint(options.endpoint.as_str().trim_end_matches('/'))
        .with_allow_http(true)
        .with_bucket_name(&options.bucket)
        .with_access_key_id(&options.access_key_id)
        .with_secret_access_key(&options.secret_access_key)
        .build()
        .unwrap()
}

/// All objects below the prefix of a store.
pub async fn objects(options: &S3Options) -> Vec<ObjectMeta> {
    let prefix = Path::from(options.prefix.as_str());
    client(options).list(Some(&prefix)).try_collect().await.unwrap()
}

/// Those that keep data.
pub async fn pieces(options: &S3Options) -> Vec<ObjectMeta> {
    let is_piece = |meta: &ObjectMeta| {
        let name = meta.location.filename().unwrap();
        name.len() == 8 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    objects(options).await.into_iter().filter(is_piece).collect()
}

/// A fresh store, twice.
async fn subject() -> Subject {
    let options = options().await;
    let (store, again) = (open(&options), open(&options));
    Subject { store, again, granularity: 0, keep: Box::new(()) as Box<dyn Any + Send> }
}

conformance::suite!(conforms, subject().await);
