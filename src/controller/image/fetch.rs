//! Reads what a decision about an Image needs. The first of the two steps that hold a client.
//!
//! The Image and its tasks are read from the API server and not from a cache: a decision on yesterday's status could hand out an
//! attempt twice. They are few, and reads by name and by label.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client, api::ListParams};

use super::validate::References;
use crate::{
    api::{BundleKind, CaBundleRef, HttpSource, Image, ImageStatus, ImageStore, ImageTask, SecretRef, identity},
    kube::{Doing as _, Result},
};

/// What was read.
#[derive(Debug)]
pub struct Fetched {
    /// The Image.
    pub image: Image,
    /// All tasks for it.
    pub tasks: Vec<ImageTask>,
    /// What its spec refers to, besides stores.
    pub references: References,
    /// ImageStores that have data of the Image and are not among those that this operator serves. One that is not here is no more.
    pub others: Vec<ImageStore>,
}

/// Reads an Image and what belongs to it; `None` if it is gone. `is_served` says which ImageStores this operator serves.
///
/// # Errors
/// What the API server says.
pub async fn fetch(
    client: &Client,
    images: &Api<Image>,
    tasks: &Api<ImageTask>,
    name: &str,
    is_served: impl Fn(&str) -> bool,
) -> Result<Option<Fetched>> {
    let Some(image) = images.get_opt(name).await.doing(|| format!("read Image {name}"))? else { return Ok(None) };
    let uid = image.metadata.uid.clone().unwrap_or_default();
    let ours = ListParams::default().labels(&format!("{}={uid}", identity::LABEL_IMAGE_UID));
    let tasks = tasks.list(&ours).await.doing(|| format!("list the tasks of Image {name}"))?.items;
    let references = match &image.spec.source.http {
        Some(source) if image.metadata.deletion_timestamp.is_none() => references(client, &image, source).await?,
        _ => References::default(),
    };
    let others = other_stores(client, &image, is_served).await?;
    Ok(Some(Fetched { image, tasks, references, others }))
}

async fn other_stores(client: &Client, image: &Image, is_served: impl Fn(&str) -> bool) -> Result<Vec<ImageStore>> {
    let api: Api<ImageStore> = Api::all(client.clone());
    let names: BTreeSet<_> = image.status.iter().flat_map(stores_of).filter(|name| !is_served(name)).collect();
    let mut found = Vec::new();
    for name in names {
        found.extend(api.get_opt(name).await.doing(|| format!("read ImageStore {name}"))?);
    }
    Ok(found)
}

/// The stores that have, or may have, data of the Image.
fn stores_of(status: &ImageStatus) -> impl Iterator<Item = &str> {
    let kept = status.revisions.iter().flat_map(|r| r.locations.iter().map(|l| &l.store).chain(&r.tried));
    status.cleanup.iter().map(|item| &item.store).chain(kept).map(String::as_str)
}

async fn references(client: &Client, image: &Image, source: &HttpSource) -> Result<References> {
    let namespace = image.metadata.namespace.clone().unwrap_or_default();
    let headers = match &source.headers_secret_ref {
        Some(reference) => Some(read_headers(client, &namespace, reference).await?),
        None => None,
    };
    let bundle = match source.tls.as_ref().and_then(|tls| tls.ca_bundle_ref.as_ref()) {
        Some(reference) => Some(read_bundle(client, &namespace, reference).await?),
        None => None,
    };
    Ok(References { headers, bundle })
}

async fn read_headers(
    client: &Client,
    namespace: &str,
    reference: &SecretRef,
) -> Result<Result<BTreeMap<String, Vec<u8>>, String>> {
    let SecretRef { name } = reference;
    let read = read_secret(client, namespace, name).await?;
    Ok(read.ok_or_else(|| missing("spec.source.http.headersSecretRef", "Secret", namespace, name)))
}

async fn read_bundle(client: &Client, namespace: &str, reference: &CaBundleRef) -> Result<Result<Vec<u8>, String>> {
    let CaBundleRef { kind, name, key } = reference;
    let (kind, data) = match kind {
        BundleKind::Secret => ("Secret", read_secret(client, namespace, name).await?),
        BundleKind::ConfigMap => ("ConfigMap", read_config_map(client, namespace, name).await?),
    };
    let field = "spec.source.http.tls.caBundleRef";
    let Some(mut data) = data else { return Ok(Err(missing(field, kind, namespace, name))) };
    let keys = data.keys().cloned().collect::<Vec<_>>().join(", ");
    let no_key = || format!("{field} names key {key} of {kind} {namespace}/{name}, which has: {keys}");
    Ok(data.remove(key).ok_or_else(no_key))
}

async fn read_secret(client: &Client, namespace: &str, name: &str) -> Result<Option<BTreeMap<String, Vec<u8>>>> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let secret = api.get_opt(name).await.doing(|| format!("read Secret {namespace}/{name}"))?;
    Ok(secret.map(|s| s.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0)).collect()))
}

async fn read_config_map(client: &Client, namespace: &str, name: &str) -> Result<Option<BTreeMap<String, Vec<u8>>>> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let map = api.get_opt(name).await.doing(|| format!("read ConfigMap {namespace}/{name}"))?;
    Ok(map.map(|m| {
        let texts = m.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.into_bytes()));
        let bytes = m.binary_data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0));
        texts.chain(bytes).collect()
    }))
}

fn missing(field: &str, kind: &str, namespace: &str, name: &str) -> String {
    format!("{field} names {kind} {name}, and there is none in namespace {namespace}: make it, or name another")
}
