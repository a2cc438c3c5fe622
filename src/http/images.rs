//! Reads Images, of those who asked for them and may.

use std::time::Duration;

use kube::{Api, Client};

use super::answer::{Answer, Refusal};
use crate::api::Image;

/// The Image `name` in `namespace`.
///
/// # Errors
/// 404, or 503 if the API server cannot be asked.
pub async fn read(client: &Client, patience: Duration, namespace: &str, name: &str) -> Answer<Image> {
    let none = || Refusal::not_found(format!("there is no Image {name} in namespace {namespace}"));
    if !is_name(namespace) || !is_name(name) {
        return Err(none());
    }
    let images: Api<Image> = Api::namespaced(client.clone(), namespace);
    match tokio::time::timeout(patience, images.get_opt(name)).await {
        Ok(Ok(image)) => image.ok_or_else(none),
        Ok(Err(error)) => {
            tracing::warn!(%error, namespace, name, "an Image cannot be read");
            Err(Refusal::unavailable("the Image cannot be read from the API server; try again later"))
        }
        Err(_) => Err(Refusal::unavailable("the API server did not answer in time; try again later")),
    }
}

/// A name of Kubernetes' that may stand in a path of its API.
fn is_name(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    (1..=253).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('.') && !text.starts_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_get_into_paths_of_the_api() {
        for name in ["a", "debian-12.qcow2", &"a".repeat(253)] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", ".", "..", "../secrets", "a/b", "A", "a b", "a?b", "a%2fb", "-a", &"a".repeat(254)] {
            assert!(!is_name(name), "{name}");
        }
    }
}
