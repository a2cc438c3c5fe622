//! Import: from a task's order to the engine's, and back to the task's result.

use std::{path::PathBuf, sync::Arc};

use k8s_openapi::api::core::v1::Secret;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use tokio_util::sync::CancellationToken;
use url::Url;
use vitrine_engine::{
    error::{Error, Kind, Result},
    model::{Digest, ObjectKey, OutputFormat},
    pipeline::{Import, Imported, Permit, Published, Target},
    source::{End, Expected, HttpConfig, HttpSource, Source, fetch_checksum, file_name},
    store::{self, ObjectStat, thick::ThickStore},
};

use super::{failure, rate::signed, request, stores::Place, workplace::Workplace};
use crate::api::{
    Content, ImageTaskSpec, ImportOrder, ImportResult, Output, StoreFailure, StoreTarget, TaskHttp, TaskLocation,
    identity::{SECRET_CA_KEY, SECRET_HEADER_PREFIX},
};

/// The object that a task is about.
///
/// # Errors
/// `InvalidInput` if it cannot name one.
pub fn key(spec: &ImageTaskSpec) -> Result<ObjectKey> {
    let revision = u64::try_from(spec.revision).ok();
    revision.and_then(|revision| ObjectKey::new(&spec.image.uid, revision)).ok_or_else(|| {
        let found = format!("uid {} and revision {}", spec.image.uid, spec.revision);
        Error::new(Kind::InvalidInput, format!("{found} cannot name an object in a store"))
    })
}

/// An import that can begin.
pub struct Prepared {
    /// What the engine needs.
    pub job: Import,
    /// The stores that cannot be opened, if it can do without.
    pub closed: Vec<Published>,
    /// What is to be told how it ended, if somebody sends the bytes.
    pub expected: Option<Expected>,
}

/// Everything that the engine needs for the order in `spec`. Reads the task's Secret and the checksum file.
///
/// # Errors
/// `InvalidInput` if the order makes no sense, and what the API server, the stores and the checksum file's server say.
pub async fn prepare(
    place: &Workplace,
    spec: &ImageTaskSpec,
    permit: Arc<dyn Permit>,
    stop: &CancellationToken,
) -> Result<Prepared> {
    let order = spec.import.as_ref().ok_or_else(|| Error::new(Kind::InvalidInput, "the task has no import order"))?;
    let Origin { source, checksums, expected } = origin(place, spec, order, stop).await?;
    let (targets, closed) = targets(place, &order.stores, order.require_all_stores, stop).await?;
    let import = Import {
        source,
        disk_format: order.disk_format.disk_format(),
        container_format: order.container_format,
        container_disk: order.container_disk.clone(),
        checksums,
        request: order.request.clone(),
        key: key(spec)?,
        attempt: token(spec.attempt)?,
        targets,
        require_all: order.require_all_stores,
        permit: Some(permit),
        limits: place.config.limits.clone(),
        scratch: PathBuf::clone(&place.scratch),
        workers: place.config.workers,
    };
    Ok(Prepared { job: import, closed, expected })
}

/// Where the bytes come from, and what they must hash to.
struct Origin {
    source: Arc<dyn Source>,
    checksums: Vec<Digest>,
    expected: Option<Expected>,
}

async fn origin(
    place: &Workplace,
    spec: &ImageTaskSpec,
    order: &ImportOrder,
    stop: &CancellationToken,
) -> Result<Origin> {
    if order.source.upload.is_some() {
        let expected = place.config.uploads.expect(&spec.image.uid);
        let checksums = parse_checksums(&order.checksums)?;
        return Ok(Origin { source: expected.source(), checksums, expected: Some(expected) });
    }
    let http = order.source.http.as_ref().ok_or_else(|| {
        Error::new(Kind::InvalidInput, "this agent does not know the task's source; use agents as new as the operator")
    })?;
    let secret = secret(place, http, stop).await?;
    let config = http_config(place, http, secret.as_ref())?;
    let checksums = tokio::select! {
        checksums = checksums(order, &config) => checksums?,
        () = stop.cancelled() => return Err(cancelled()),
    };
    let accept_unframed = !checksums.is_empty();
    let source = Arc::new(HttpSource::new(HttpConfig { accept_unframed, ..config })?);
    Ok(Origin { source, checksums, expected: None })
}

/// What whoever sent the bytes is told of how the import ended.
pub fn end(done: &Result<Imported>) -> End {
    match done {
        Ok(_) => End::Stored,
        Err(error) => {
            let told = failure::describe(error);
            let rule = told.rule.map(|rule| format!("{rule}: ")).unwrap_or_default();
            let refused = matches!(error.kind(), Kind::Refused | Kind::InvalidInput);
            End::Failed { refused, message: format!("{rule}{}", told.message) }
        }
    }
}

/// The attempt as a fencing token.
///
/// # Errors
/// `InvalidInput` if it cannot be one.
pub fn token(attempt: i64) -> Result<u32> {
    u32::try_from(attempt).map_err(|e| Error::with_source(Kind::InvalidInput, format!("attempt {attempt}"), e))
}

/// The stores of an order, and those that cannot be opened.
///
/// # Errors
/// With `require_all` the first store's that cannot be opened, else the first if none can.
pub async fn targets(
    place: &Workplace,
    stores: &[StoreTarget],
    require_all: bool,
    stop: &CancellationToken,
) -> Result<(Vec<Target>, Vec<Published>)> {
    // A store that others need not wait for has less time.
    let patience = if require_all { store::DEADLINE } else { place.config.limits.store_stall.min(store::DEADLINE) };
    let open = |target| async move {
        let opening = place.stores.open(named(target));
        let opened = store::answer_within(patience, &target.name, "opening it", stop, opening).await;
        let store = opened.map_err(|error| here(place, error))?;
        let store = if target.thin_provisioning { store } else { Arc::new(ThickStore::new(store)) };
        Ok::<_, Error>(Target { store, output: output_format(&target.output)? })
    };
    let (mut targets, mut closed) = (Vec::new(), Vec::new());
    let opened = futures::future::join_all(stores.iter().map(open)).await;
    for (target, opened) in stores.iter().zip(opened) {
        match opened {
            Ok(target) => targets.push(target),
            Err(error) if require_all || error.kind() == Kind::Cancelled => return Err(error),
            Err(error) => closed.push(Published { store: target.name.clone(), result: Err(error) }),
        }
    }
    if targets.is_empty() {
        let first = closed.into_iter().find_map(|closed| closed.result.err());
        return Err(first.unwrap_or_else(|| Error::new(Kind::InvalidInput, "the task names no store")));
    }
    Ok((targets, closed))
}

/// The store as the task names it.
pub fn named(target: &StoreTarget) -> Place<'_> {
    Place { name: &target.name, backend: &target.backend, id: target.store_id.as_deref() }
}

/// A store that cannot be opened says something about this node: another one may well have it.
pub fn here(place: &Workplace, error: Error) -> Error {
    let node = &place.config.node;
    match error.kind() {
        Kind::Denied | Kind::InvalidInput | Kind::NotFound => {
            Error::with_source(Kind::Unavailable, format!("on node {node}"), error)
        }
        _ => error.context(format!("on node {node}")),
    }
}

async fn secret(place: &Workplace, http: &TaskHttp, stop: &CancellationToken) -> Result<Option<Secret>> {
    let Some(name) = &http.secret_ref else { return Ok(None) };
    let answer = request::until_answered("reading the task's Secret", stop, || place.secrets.get(name)).await;
    match answer {
        None => Err(cancelled()),
        Some(Ok(secret)) => Ok(Some(secret)),
        // It was made before the task; a later attempt gets one of its own.
        Some(Err(error)) => {
            Err(Error::with_source(Kind::Unavailable, format!("the task's Secret {name} cannot be read"), error))
        }
    }
}

fn cancelled() -> Error {
    Error::new(Kind::Cancelled, "the import was stopped before it began")
}

fn http_config(place: &Workplace, http: &TaskHttp, secret: Option<&Secret>) -> Result<HttpConfig> {
    let (headers, ca_bundle) = match secret {
        None => (HeaderMap::new(), None),
        Some(secret) => read_secret(secret)?,
    };
    Ok(HttpConfig {
        headers,
        ca_bundle,
        insecure_skip_verify: http.insecure_skip_verify,
        proxy: place.config.proxy.clone(),
        policy: place.config.policy.clone(),
        patience: place.config.patience,
        ..HttpConfig::new(parse_url(&http.url)?)
    })
}

/// The URL is not shown: it may hold what it should not.
fn parse_url(text: &str) -> Result<Url> {
    Url::parse(text).map_err(|e| Error::with_source(Kind::InvalidInput, "the source's URL is no URL", e))
}

/// Request headers and the CA bundle. Messages name keys, never values.
fn read_secret(secret: &Secret) -> Result<(HeaderMap, Option<Vec<u8>>)> {
    let (mut headers, mut ca) = (HeaderMap::new(), None);
    for (key, value) in secret.data.iter().flatten() {
        if key == SECRET_CA_KEY {
            ca = Some(value.0.clone());
        } else if let Some(name) = key.strip_prefix(SECRET_HEADER_PREFIX) {
            let wrong = |what: &str| {
                let message = format!("key `{name}` of the headers Secret: {what}; correct the Secret");
                Error::new(Kind::InvalidInput, message)
            };
            let name_ = HeaderName::try_from(name).map_err(|_| wrong("not the name of a request header"))?;
            // A final line break is what `kubectl create secret --from-file` makes of a text file.
            let mut value =
                HeaderValue::from_bytes(value.0.trim_ascii()).map_err(|_| wrong("its value is not one of a header"))?;
            value.set_sensitive(true);
            headers.append(name_, value);
        }
    }
    Ok((headers, ca))
}

/// All digests that must hold: those declared, and the one of the checksum file.
async fn checksums(order: &ImportOrder, config: &HttpConfig) -> Result<Vec<Digest>> {
    let mut all = parse_checksums(&order.checksums)?;
    if let Some(url) = &order.checksum_url {
        let name = file_name(&config.url).ok_or_else(|| {
            Error::new(Kind::InvalidInput, "the source's URL names no file to look for in the checksum file")
        })?;
        all.push(fetch_checksum(beside(config, parse_url(url)?), &name).await?);
    }
    Ok(all)
}

fn parse_checksums(declared: &[String]) -> Result<Vec<Digest>> {
    let parse = |text: &String| {
        text.parse::<Digest>().map_err(|e| Error::with_source(Kind::InvalidInput, format!("checksum {text}"), e))
    };
    declared.iter().map(parse).collect()
}

/// How `url` is fetched, given how the source is: its headers are credentials, and go to the source's own server only.
fn beside(config: &HttpConfig, url: Url) -> HttpConfig {
    let headers = if url.origin() == config.url.origin() { config.headers.clone() } else { HeaderMap::new() };
    HttpConfig { url, headers, ..config.clone() }
}

fn output_format(output: &Output) -> Result<OutputFormat> {
    let wrong = |e| Error::with_source(Kind::InvalidInput, format!("cluster size {}", output.cluster_size), e);
    Ok(OutputFormat {
        disk_format: output.disk_format,
        subformat: output.subformat,
        compression: output.compression,
        cluster_size: u32::try_from(output.cluster_size).map_err(wrong)?,
    })
}

/// What to write into the task of what the engine brought. `closed` are stores that it was not given.
pub fn result(imported: Imported, closed: Vec<Published>) -> ImportResult {
    let (mut locations, mut failures) = (Vec::new(), Vec::new());
    for Published { store, result } in imported.published.into_iter().chain(closed) {
        match result {
            Ok(stat) => locations.push(location(store, &stat)),
            Err(error) => failures.push(StoreFailure { store, failure: failure::describe(&error) }),
        }
    }
    let content = Content {
        disk_format: imported.disk_format,
        container_format: imported.container_format,
        properties: imported.properties,
        virtual_size: signed(imported.virtual_size),
        size: signed(imported.received.length),
        digests: imported.received.digests.iter().map(ToString::to_string).collect(),
        content_digest: imported.content_digest.to_string(),
    };
    ImportResult { content, locations, failures }
}

fn location(store: String, stat: &ObjectStat) -> TaskLocation {
    let OutputFormat { disk_format, subformat, compression, cluster_size } = stat.image.format;
    TaskLocation {
        store,
        url: stat.url.clone(),
        format: Output { disk_format, subformat, compression, cluster_size: i64::from(cluster_size) },
        size: signed(stat.image.length),
        allocated_size: signed(stat.allocated_size),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;
    use vitrine_engine::model::{Compression, DiskFormat};

    fn secret(pairs: &[(&str, &str)]) -> Secret {
        let data = pairs.iter().map(|(key, value)| ((*key).to_owned(), ByteString((*value).into()))).collect();
        Secret { data: Some(data), ..Secret::default() }
    }

    #[test]
    fn a_secret_gives_headers_and_authorities() {
        let (headers, ca) =
            read_secret(&secret(&[("ca.crt", "PEM"), ("header.Authorization", "Bearer x\n"), ("other", "y")])).unwrap();
        assert_eq!(ca.as_deref(), Some(b"PEM".as_slice()));
        assert_eq!((headers.len(), headers["authorization"].to_str().unwrap()), (1, "Bearer x"));
        assert!(headers["authorization"].is_sensitive());
    }

    #[test]
    fn a_bad_secret_is_named_by_key_and_never_shown() {
        for pair in [("header.bad name", "hidden"), ("header.X", "hid\u{1}den")] {
            let error = read_secret(&secret(&[pair])).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidInput);
            assert!(!error.to_string().contains("hid"), "{error}");
        }
    }

    #[test]
    fn credentials_stay_with_their_server() {
        let mut config = HttpConfig::new("https://a.example/x.img".parse().unwrap());
        config.headers.insert("authorization", HeaderValue::from_static("secret"));
        let other = |url: &str| beside(&config, url.parse().unwrap()).headers.len();
        assert_eq!(other("https://a.example/SHA256SUMS"), 1);
        for url in ["http://a.example/SHA256SUMS", "https://a.example:8443/SHA256SUMS", "https://b.example/SHA256SUMS"]
        {
            assert_eq!(other(url), 0, "{url}");
        }
    }

    #[test]
    fn outputs_are_translated_whole() {
        let output = Output {
            disk_format: DiskFormat::Qcow2,
            subformat: None,
            compression: Compression::Zstd,
            cluster_size: 131_072,
        };
        let format = output_format(&output).unwrap();
        assert_eq!((format.disk_format, format.compression), (DiskFormat::Qcow2, Compression::Zstd));
        assert_eq!(format.cluster_size, 131_072);
        assert!(output_format(&Output { cluster_size: -1, ..output }).is_err());
    }
}
