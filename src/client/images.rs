//! Images as a person reads, makes and removes them.

use std::time::Duration;

use k8s_openapi::api::core::v1::Event;
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use vitrine_engine::error::{Error, Kind, Result};

use super::{
    FIELD_MANAGER,
    connect::Cluster,
    explain::{Explain as _, explain},
};
use crate::api::{Image, ImagePhase};

/// How often a change is tried while others change the same Image.
const CONTESTS: usize = 8;
/// How often it is seen whether something is gone.
const POLL: Duration = Duration::from_millis(500);

/// Which Images are meant of those that are there.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// As kubectl's `-l`.
    pub selector: Option<String>,
    /// In this phase.
    pub phase: Option<ImagePhase>,
    /// With these properties.
    pub properties: Vec<(String, String)>,
    /// With these tags.
    pub tags: Vec<String>,
}

/// The Image `name` of the namespace that is meant.
///
/// # Errors
/// If there is none, or it may not be read.
pub async fn get(cluster: &Cluster, name: &str) -> Result<Image> {
    cluster.images().get(name).await.explain(|| reading(cluster, name))
}

/// The same; nothing if there is none.
///
/// # Errors
/// If it cannot be read.
pub async fn find(cluster: &Cluster, name: &str) -> Result<Option<Image>> {
    cluster.images().get_opt(name).await.explain(|| reading(cluster, name))
}

fn reading(cluster: &Cluster, name: &str) -> String {
    format!("reading Image {name} in namespace {}", cluster.namespace)
}

/// The Images of the namespace that is meant, or of all, in the order of their names.
///
/// # Errors
/// If they may not be listed.
pub async fn list(cluster: &Cluster, everywhere: bool, filter: &Filter) -> Result<Vec<Image>> {
    let (api, place) = if everywhere {
        (cluster.all_images(), "all namespaces".to_owned())
    } else {
        (cluster.images(), format!("namespace {}", cluster.namespace))
    };
    let mut params = ListParams::default();
    if let Some(selector) = &filter.selector {
        params = params.labels(selector);
    }
    let mut images = api.list(&params).await.explain(|| format!("listing the Images of {place}"))?.items;
    images.retain(|image| filter.fits(image));
    images.sort_by_key(|image| (image.namespace(), image.name_any()));
    Ok(images)
}

impl Filter {
    fn fits(&self, image: &Image) -> bool {
        let phase = image.status.as_ref().and_then(|status| status.phase);
        let (properties, tags) = (&image.spec.properties, &image.spec.tags);
        self.phase.is_none_or(|wanted| phase == Some(wanted))
            && self.properties.iter().all(|(key, value)| properties.get(key) == Some(value))
            && self.tags.iter().all(|tag| tags.contains(tag))
    }
}

/// Makes an Image. `dry` has the API server check it and keep nothing.
///
/// # Errors
/// If the API server does not take it.
pub async fn create(cluster: &Cluster, image: &Image, dry: bool) -> Result<Image> {
    let params = PostParams { dry_run: dry, field_manager: Some(FIELD_MANAGER.to_owned()) };
    let doing = || format!("making Image {} in namespace {}", image.name_any(), cluster.namespace);
    cluster.images().create(&params, image).await.explain(doing)
}

/// Changes an Image as `patch` says for what it is now. Where somebody else changes it at the same moment, it is read again.
///
/// # Errors
/// What `patch` says, and what the API server says.
pub async fn change(cluster: &Cluster, name: &str, patch: impl Fn(&Image) -> Result<Value>) -> Result<Image> {
    let (images, params) = (cluster.images(), manager());
    let mut contests = 0;
    loop {
        let image = get(cluster, name).await?;
        let mut patch = patch(&image)?;
        if let Some(patch) = patch.as_object_mut() {
            let metadata = patch.entry("metadata").or_insert_with(|| json!({}));
            if let Some(metadata) = metadata.as_object_mut() {
                metadata.insert("resourceVersion".to_owned(), json!(image.resource_version()));
            }
        }
        match images.patch(name, &params, &Patch::Merge(patch)).await {
            Err(kube::Error::Api(status)) if status.is_conflict() && contests < CONTESTS => contests += 1,
            Err(error) => return Err(explain(&error).context(format!("changing Image {name}"))),
            Ok(image) => return Ok(image),
        }
    }
}

fn manager() -> PatchParams {
    PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() }
}

/// Has an Image deleted.
///
/// # Errors
/// If the API server does not do it: it may be protected.
pub async fn delete(cluster: &Cluster, name: &str) -> Result<()> {
    let deleted = cluster.images().delete(name, &DeleteParams::default()).await;
    deleted.map(drop).explain(|| format!("deleting Image {name}"))
}

/// Waits until an Image is gone with all of its data.
///
/// # Errors
/// `Unavailable` after `limit`; the message says what it waits for.
pub async fn gone(cluster: &Cluster, name: &str, limit: Option<Duration>) -> Result<()> {
    let began = tokio::time::Instant::now();
    while let Some(image) = find(cluster, name).await? {
        if limit.is_some_and(|limit| began.elapsed() > limit) {
            let why = super::view::image::message(&image).unwrap_or("nobody works on it: is there an operator?");
            return Err(Error::new(Kind::Unavailable, format!("Image {name} is still there: {why}")));
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// What has happened to an Image, the last at the end. None if that may not be read.
pub async fn events(cluster: &Cluster, image: &Image) -> Vec<Event> {
    let Some(uid) = image.uid() else { return Vec::new() };
    let namespace = image.namespace().unwrap_or_else(|| cluster.namespace.clone());
    let events: Api<Event> = Api::namespaced(cluster.client.clone(), &namespace);
    let about = ListParams::default().fields(&format!("involvedObject.uid={uid}"));
    let mut events = events.list(&about).await.map(|list| list.items).unwrap_or_default();
    events.sort_by_key(super::view::event::time);
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_met_together() {
        let mut image = Image::new("a", crate::api::ImageSpec::default());
        image.spec.properties.insert("os_distro".to_owned(), "debian".to_owned());
        image.spec.tags.push("golden".to_owned());
        let filter = |key: &str, tag: &str| Filter {
            properties: vec![(key.to_owned(), "debian".to_owned())],
            tags: vec![tag.to_owned()],
            ..Filter::default()
        };
        assert!(Filter::default().fits(&image) && filter("os_distro", "golden").fits(&image));
        assert!(!filter("os_version", "golden").fits(&image) && !filter("os_distro", "silver").fits(&image));
        assert!(!Filter { phase: Some(ImagePhase::Active), ..Filter::default() }.fits(&image));
    }
}
