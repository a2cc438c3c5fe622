//! Secrets that stores are reached with. What is read there is shown nowhere; what is missing is named.

use k8s_openapi::api::core::v1::Secret;
use kube::Api;

use super::request::{self, RequestError};
use crate::api::SecretRef;

/// The Secret; or why there is none, as what follows its name in a sentence.
pub async fn read(secrets: &Api<Secret>, reference: &SecretRef) -> Result<Secret, String> {
    match request::once(secrets.get(&reference.name)).await {
        Ok(secret) => Ok(secret),
        Err(RequestError::NotFound) => Err("is not there".to_owned()),
        Err(error) => Err(format!("cannot be read ({error})")),
    }
}

/// The text of the first of these keys that has one; or that none has, as what follows the Secret's name in a sentence.
pub fn text<'a>(secret: &'a Secret, keys: &[&str]) -> Result<&'a str, String> {
    let text = |key: &&str| {
        let bytes = secret.data.as_ref()?.get(*key)?;
        std::str::from_utf8(&bytes.0).map(str::trim).ok().filter(|text| !text.is_empty())
    };
    keys.iter().find_map(text).ok_or_else(|| format!("has no text in its key {}", keys.join(" or ")))
}

/// One that holds these texts.
#[cfg(test)]
pub fn of(entries: &[(&str, &str)]) -> Secret {
    let text = |text: &str| k8s_openapi::ByteString(text.as_bytes().to_vec());
    let data = entries.iter().map(|(key, value)| ((*key).to_owned(), text(value)));
    Secret { data: Some(data.collect()), ..Secret::default() }
}
