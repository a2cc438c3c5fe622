//! A bucket that is used: requests with deadlines, what their errors mean, and work that goes on when nobody waits for it any more.
//!
//! Every request is bounded by itself (connecting, the whole of it, trying again), and every piece of work by a deadline.

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::{
    BackoffConfig, Certificate, ClientOptions, ListResult, ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMode,
    PutOptions, PutPayload, RetryConfig, UpdateVersion,
    aws::{AmazonS3, AmazonS3Builder},
    client::{HttpClient, HttpConnector as _, ReqwestConnector},
    path::Path,
};
use tokio::runtime::Handle;
use url::Url;

use super::{fault::Fault, index::Index, layout::Layout, options::S3Options, step::Step, trial::Trial};
use crate::{
    error::{Error, Kind, Result},
    store::{cleaning::Cleaning, steps::Steps},
};

/// A request is sent again this long after it failed for the first time; later each pause is longer, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// How often at most: as often as the time for it lets.
const RETRIES: usize = 1000;
/// How long a request of a probe may take. Who asks waits for 10 s, and wants to know why there is no answer.
const PROBE_REQUEST: Duration = Duration::from_secs(4);

/// The bucket.
pub(super) struct Place {
    name: String,
    options: S3Options,
    layout: Layout,
    store: AmazonS3,
    /// The same with little patience.
    quick: AmazonS3,
    http: HttpClient,
    trial: Trial,
    /// The entries as they were last seen.
    seen: Mutex<Arc<Index>>,
    /// What is cleaned up behind callers' backs.
    pub(super) cleaning: Cleaning,
    /// What is published and deleted, step by step.
    pub(super) steps: Steps<Step>,
}

/// On what a write depends.
pub(super) enum Condition {
    /// That there is no such object.
    Absent,
    /// That it is this version of it.
    Unchanged(String),
}

/// Why a conditional write was not done.
pub(super) enum Put {
    /// The condition was not fulfilled; or an answer was lost, and it was fulfilled by this very write.
    Unfulfilled,
    /// Something else; nothing was changed.
    Refused(Error),
    /// It is not known whether it was done.
    Unknown(Error),
}

impl Put {
    /// The error for who does not care what was done.
    pub(super) fn into_error(self, place: &Place, doing: &str) -> Error {
        match self {
            Self::Unfulfilled => place.fault(doing, &Fault::Refused),
            Self::Refused(error) | Self::Unknown(error) => error,
        }
    }
}

impl Place {
    /// Prepares everything. Nobody is asked yet.
    pub(super) fn open(name: &str, options: &S3Options) -> Result<Self> {
        let client = client_options(name, options, options.request_timeout)?;
        let impatient = client_options(name, options, PROBE_REQUEST.min(options.request_timeout))?;
        let unusable = |error: object_store::Error| {
            let message = format!("store {name}, bucket {}: preparing its client", options.bucket);
            Error::with_source(Kind::InvalidInput, message, error)
        };
        Ok(Self {
            name: name.to_owned(),
            options: options.clone(),
            layout: Layout::new(&options.prefix),
            http: ReqwestConnector::default().connect(&client).map_err(unusable)?,
            store: build(options, client, RETRIES).map_err(unusable)?,
            quick: build(options, impatient, 1).map_err(unusable)?,
            trial: Trial::default(),
            seen: Mutex::default(),
            cleaning: Cleaning::default(),
            steps: Steps::default(),
        })
    }

    /// The store's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The bucket's name.
    pub(super) fn bucket(&self) -> &str {
        &self.options.bucket
    }

    /// How it is used.
    pub(super) fn options(&self) -> &S3Options {
        &self.options
    }

    /// The names in it.
    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The client, for what has no method here.
    pub(super) fn client(&self) -> &AmazonS3 {
        &self.store
    }

    /// The client with little patience.
    pub(super) fn quick(&self) -> &AmazonS3 {
        &self.quick
    }

    /// For requests that the client does not know.
    pub(super) fn http(&self) -> &HttpClient {
        &self.http
    }

    /// What is known of the server's conditional writes.
    pub(super) fn trial(&self) -> &Trial {
        &self.trial
    }

    /// The entries as they were last seen.
    pub(super) fn seen(&self) -> Arc<Index> {
        Arc::clone(&self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes note of the entries.
    pub(super) fn see(&self, index: Index) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(index);
    }

    /// Where `path` is, without credentials.
    pub(super) fn url_of(&self, path: &Path) -> String {
        format!("s3://{}/{path}", self.options.bucket)
    }

    /// Which bucket and prefix it is: a digest, 32 hexadecimal digits as the ids of other stores.
    pub(super) fn id(&self) -> String {
        let Self { options: S3Options { endpoint, bucket, .. }, layout, .. } = self;
        let digest = blake3::hash(format!("{endpoint}\n{bucket}\n{}", layout.root()).as_bytes());
        hex::encode(digest.as_bytes().get(..16).unwrap_or_default())
    }

    /// The error for `fault` while `doing`, which names the object.
    pub(super) fn fault(&self, doing: &str, fault: &Fault) -> Error {
        let S3Options { endpoint, bucket, access_key_id, .. } = &self.options;
        let advice = fault.advice(endpoint.as_str().trim_end_matches('/'), bucket, access_key_id);
        Error::new(fault.kind(), format!("store {}, bucket {bucket}: {doing}: {advice}", self.name))
    }

    /// What `work` brings, if it does so in time.
    pub(super) async fn bounded<T>(
        &self,
        doing: &str,
        work: impl Future<Output = Result<T, object_store::Error>>,
    ) -> Result<T, Fault> {
        match tokio::time::timeout(self.options.deadline, work).await {
            Ok(done) => done.map_err(|error| Fault::of(&error)),
            Err(_) => Err(Fault::Away(format!("{doing} took more than {} s", self.options.deadline.as_secs_f32()))),
        }
    }

    /// The object, if there is one. For small ones.
    pub(super) async fn get(&self, path: &Path, doing: &str) -> Result<Option<(ObjectMeta, Bytes)>> {
        let work = async {
            let answer = self.store.get(path).await?;
            Ok((answer.meta.clone(), answer.bytes().await?))
        };
        match self.bounded(doing, work).await {
            Ok(found) => Ok(Some(found)),
            Err(Fault::NoObject) => Ok(None),
            Err(fault) => Err(self.fault(doing, &fault)),
        }
    }

    /// Some bytes of an object.
    pub(super) async fn get_range(&self, path: &Path, range: Range<u64>, doing: &str) -> Result<Bytes, Fault> {
        self.bounded(doing, self.store.get_range(path, range)).await
    }

    /// Writes an object whatever was there.
    pub(super) async fn put(&self, path: &Path, bytes: Bytes, doing: &str) -> Result<()> {
        let put = self.bounded(doing, self.store.put(path, PutPayload::from_bytes(bytes))).await;
        put.map(drop).map_err(|fault| self.fault(doing, &fault))
    }

    /// Writes a small object under a condition.
    pub(super) async fn put_if(&self, path: &Path, bytes: Bytes, condition: Condition, doing: &str) -> Result<(), Put> {
        let mode = match condition {
            Condition::Absent => PutMode::Create,
            Condition::Unchanged(tag) => {
                PutMode::Update(UpdateVersion { e_tag: Some(self.trial.spell(&tag)), version: None })
            }
        };
        let options = PutOptions { mode, ..PutOptions::default() };
        match self.bounded(doing, self.store.put_opts(path, PutPayload::from_bytes(bytes), options)).await {
            Ok(_) => Ok(()),
            Err(Fault::Refused | Fault::NoObject) => Err(Put::Unfulfilled),
            Err(fault) if fault.is_refusal() => Err(Put::Refused(self.fault(doing, &fault))),
            Err(fault) => Err(Put::Unknown(self.fault(doing, &fault))),
        }
    }

    /// All objects below `prefix`.
    pub(super) async fn list(&self, prefix: &Path, doing: &str) -> Result<Vec<ObjectMeta>> {
        let listed = self.bounded(doing, self.store.list(Some(prefix)).try_collect()).await;
        listed.map_err(|fault| self.fault(doing, &fault))
    }

    /// Objects and folders just below `prefix`.
    pub(super) async fn list_level(&self, prefix: &Path, doing: &str) -> Result<ListResult> {
        let prefix = Some(prefix).filter(|prefix| !prefix.as_ref().is_empty());
        let listed = self.bounded(doing, self.store.list_with_delimiter(prefix)).await;
        listed.map_err(|fault| self.fault(doing, &fault))
    }

    /// Removes objects. What is not there is removed already.
    pub(super) async fn remove(&self, paths: Vec<Path>, doing: &str) -> Result<()> {
        let paths = futures::stream::iter(paths.into_iter().map(Ok)).boxed();
        let mut removed = self.store.delete_stream(paths);
        let work = async {
            while let Some(answer) = removed.next().await {
                match answer {
                    Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        };
        self.bounded(doing, work).await.map_err(|fault| self.fault(doing, &fault))
    }

    /// Does `work` to its end, also if nobody waits for it any more. `doing` completes "has not answered within … when".
    pub(super) async fn call<T: Send + 'static>(
        &self,
        doing: &str,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        match tokio::time::timeout(self.options.deadline, tokio::spawn(work)).await {
            Ok(Ok(done)) => done,
            Ok(Err(error)) => Err(Error::with_source(
                Kind::Internal,
                format!("store {}: {doing} broke off; report this", self.name),
                error,
            )),
            Err(_) => Err(self.overdue(doing)),
        }
    }

    /// The error for something that took longer than the deadline.
    pub(super) fn overdue(&self, doing: &str) -> Error {
        self.fault(doing, &Fault::Away(format!("not within {} s", self.options.deadline.as_secs_f32())))
    }

    /// Does `work` behind the caller's back. Later work of this process waits for it, for a while.
    pub(super) fn clean_up(&self, runtime: &Handle, work: impl Future<Output = ()> + Send + 'static) {
        let piece = self.cleaning.begin();
        runtime.spawn(async move {
            work.await;
            drop(piece);
        });
    }
}

/// Where the bucket is.
///
/// # Errors
/// `InvalidInput` if the endpoint has no host that could bear the bucket's name.
pub(super) fn bucket_url(name: &str, options: &S3Options) -> Result<Url> {
    let S3Options { endpoint, bucket, path_style, .. } = options;
    let bad = || {
        let message =
            format!("store {name}: {endpoint} is no endpoint of S3: give it as https://HOST or https://HOST:PORT");
        Error::new(Kind::InvalidInput, message)
    };
    let mut url = endpoint.clone();
    if !matches!(url.scheme(), "http" | "https") {
        return Err(bad());
    }
    if *path_style {
        url.path_segments_mut().map_err(|()| bad())?.pop_if_empty().push(bucket);
    } else {
        let host = format!("{bucket}.{}", url.host_str().ok_or_else(bad)?);
        url.set_host(Some(&host)).map_err(|_| bad())?;
    }
    Ok(url)
}

fn build(options: &S3Options, client: ClientOptions, retries: usize) -> Result<AmazonS3, object_store::Error> {
    // With the bucket in the host's name, the endpoint is expected to have it already.
    let endpoint =
        bucket_url("", options).ok().filter(|_| !options.path_style).unwrap_or_else(|| options.endpoint.clone());
    let backoff = BackoffConfig { init_backoff: FIRST_PAUSE, max_backoff: LONGEST_PAUSE, base: 2.0 };
    let retry = RetryConfig { backoff, max_retries: retries, retry_timeout: options.retry_timeout };
    AmazonS3Builder::new()
        .with_endpoint(endpoint.as_str().trim_end_matches('/'))
        .with_bucket_name(&options.bucket)
        .with_region(&options.region)
        .with_access_key_id(&options.access_key_id)
        .with_secret_access_key(&options.secret_access_key)
        .with_virtual_hosted_style_request(!options.path_style)
        .with_client_options(client)
        .with_retry(retry)
        .build()
}

fn client_options(name: &str, options: &S3Options, request_timeout: Duration) -> Result<ClientOptions> {
    bucket_url(name, options)?;
    let plain = options.endpoint.scheme() == "http";
    let mut client = ClientOptions::new()
        .with_allow_http(plain)
        // No TLS will be spoken: a container without the system's certificates must not fail for want of them.
        .with_no_system_certificates(plain)
        // HTTP/2 would put all parts on one connection, whose one window is what several connections are to escape.
        .with_http1_only()
        .with_connect_timeout(options.connect_timeout.min(request_timeout))
        .with_timeout(request_timeout);
    if let Some(pem) = options.ca_bundle.as_deref().filter(|_| !plain) {
        for certificate in read_bundle(name, pem)? {
            client = client.with_root_certificate(certificate);
        }
    }
    Ok(client)
}

fn read_bundle(name: &str, pem: &[u8]) -> Result<Vec<Certificate>> {
    match Certificate::from_pem_bundle(pem) {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) | Err(_) => Err(Error::new(
            Kind::InvalidInput,
            format!(
                "store {name}: the CA bundle holds no certificate in PEM: it must begin with -----BEGIN CERTIFICATE-----"
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(endpoint: &str) -> S3Options {
        S3Options::new(endpoint.parse().unwrap(), "images", "id", "hidden")
    }

    #[test]
    fn the_bucket_is_in_the_path_or_in_the_hosts_name() {
        let mut options = options("https://s3.example:8443/");
        assert_eq!(bucket_url("s", &options).unwrap().as_str(), "https://s3.example:8443/images");
        options.path_style = false;
        assert_eq!(bucket_url("s", &options).unwrap().as_str(), "https://images.s3.example:8443/");
        options.endpoint = "ftp://s3.example".parse().unwrap();
        assert_eq!(bucket_url("s", &options).unwrap_err().kind(), Kind::InvalidInput);
    }

    #[test]
    fn a_bundle_without_certificates_is_refused() {
        let options = S3Options { ca_bundle: Some(b"no PEM".to_vec()), ..options("https://s3.example") };
        let error = Place::open("s", &options).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidInput, "{error}");
        assert!(!format!("{options:?}").contains("hidden"));
    }

    #[test]
    fn stores_differ_by_endpoint_bucket_and_prefix() {
        let id = |options: &S3Options| Place::open("s", options).unwrap().id();
        let base = options("http://s3.example");
        let ids = [
            id(&base),
            id(&S3Options { bucket: "other".to_owned(), ..base.clone() }),
            id(&S3Options { prefix: "a".to_owned(), ..base.clone() }),
            id(&options("http://s4.example")),
        ];
        assert!(ids.iter().collect::<std::collections::BTreeSet<_>>().len() == 4 && ids[0].len() == 32, "{ids:?}");
        assert_eq!(ids[0], id(&S3Options { access_key_id: "x".to_owned(), ..base }));
    }
}
