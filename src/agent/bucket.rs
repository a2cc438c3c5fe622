//! A bucket of an S3 server as a store: from what an ImageStore and its Secret say to a client.
//!
//! Knows the names of the Secret's keys. What it reads there is shown nowhere.

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use vitrine_engine::{
    error::{Error, Kind, Result},
    store::s3::{S3Options, S3Store},
};

use super::secret;
use crate::api::S3Backend;

/// In the spelling of this API, and in that of the tools that others make such Secrets with.
const ID: [&str; 2] = ["accessKeyID", "AWS_ACCESS_KEY_ID"];
const SECRET: [&str; 2] = ["secretAccessKey", "AWS_SECRET_ACCESS_KEY"];

/// Prepares the use of the bucket of the ImageStore `name`.
///
/// # Errors
/// `Unavailable` if the Secret cannot be read or lacks something, `InvalidInput` if endpoint or certificates are none.
pub async fn open(secrets: &Api<Secret>, name: &str, backend: &S3Backend, owner: Option<String>) -> Result<S3Store> {
    let secret = secret::read(secrets, &backend.secret_ref).await.map_err(|why| lacking(name, backend, &why))?;
    let (name, options) = (name.to_owned(), S3Options { owner, ..options(name, backend, &secret)? });
    // Reading the system's certificates blocks.
    tokio::task::spawn_blocking(move || S3Store::open(&name, &options))
        .await
        .unwrap_or_else(|e| Err(Error::with_source(Kind::Internal, "opening a store did not end", e)))
}

fn options(name: &str, backend: &S3Backend, secret: &Secret) -> Result<S3Options> {
    let text = |keys: &[&str]| secret::text(secret, keys).map_err(|why| lacking(name, backend, &why));
    let S3Backend { endpoint, bucket, .. } = backend;
    let endpoint = endpoint.parse().map_err(|error| {
        let message = format!("store {name}, bucket {bucket}: its endpoint {endpoint} is no URL");
        Error::with_source(Kind::InvalidInput, message, error)
    });
    let options = S3Options::new(endpoint?, bucket, text(&ID)?, text(&SECRET)?);
    Ok(S3Options {
        prefix: backend.prefix.clone().unwrap_or_default(),
        region: backend.region.clone(),
        path_style: backend.path_style,
        ca_bundle: backend.ca_bundle.clone().map(String::into_bytes),
        object_size: backend.object_size.and_then(|size| u64::try_from(size).ok()).unwrap_or(options.object_size),
        ..options
    })
}

fn lacking(name: &str, backend: &S3Backend, what: &str) -> Error {
    let (secret, bucket) = (&backend.secret_ref.name, &backend.bucket);
    let message = format!(
        "store {name}, bucket {bucket}: Secret {secret} {what}: it belongs into Vitrine's own namespace, with {} and {}",
        ID.join(" or "),
        SECRET.join(" or ")
    );
    Error::new(Kind::Unavailable, message)
}

#[cfg(test)]
mod tests {
    use super::{secret::of as secret, *};

    fn backend() -> S3Backend {
        S3Backend { endpoint: "http://10.0.0.1:7480".to_owned(), bucket: "images".to_owned(), ..S3Backend::default() }
    }

    #[test]
    fn a_secret_in_either_spelling_is_enough() {
        for (id, key) in [(ID[0], SECRET[0]), (ID[1], SECRET[1]), (ID[0], SECRET[1])] {
            let made = options("s", &backend(), &secret(&[(id, "AK\n"), (key, "hidden\n")])).unwrap();
            assert_eq!((made.access_key_id.as_str(), made.secret_access_key.as_str()), ("AK", "hidden"));
            assert_eq!((made.prefix.as_str(), made.object_size), ("", S3Options::OBJECT_SIZE));
        }
    }

    #[test]
    fn what_is_missing_is_named_and_nothing_else_shown() {
        for (entries, missing) in
            [(vec![(ID[0], "AK"), (SECRET[0], " ")], SECRET[1]), (vec![(SECRET[1], "hidden")], ID[0])]
        {
            let error = options("s", &backend(), &secret(&entries)).err().unwrap();
            let text = error.to_string();
            assert!(text.contains(missing) && text.contains("bucket images") && !text.contains("hidden"), "{text}");
            assert_eq!(error.kind(), Kind::Unavailable);
        }
        let broken = S3Backend { endpoint: "http://[".to_owned(), ..backend() };
        let error = options("s", &broken, &secret(&[(ID[0], "AK"), (SECRET[0], "hidden")])).err().unwrap();
        assert_eq!(error.kind(), Kind::InvalidInput);
    }
}
