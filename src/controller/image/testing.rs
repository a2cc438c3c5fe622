//! Builders for the tests of this controller's pure steps.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::api::{FilesystemBackend, HttpSource, Image, ImageSpec, ImageStore, ImageStoreSpec, Source, identity};

/// The uid of [`image`].
pub const UID: &str = "0b5f5f8e-8f5c-4a57-9c3f-1d2d3c4b5a69";

/// An Image that names no store.
pub fn image() -> Image {
    let http = HttpSource { url: "https://images.example/debian.qcow2".into(), ..HttpSource::default() };
    let spec = ImageSpec {
        source: Source { http: Some(http), upload: None },
        revision_history_limit: 1,
        require_all_stores: true,
        ..ImageSpec::default()
    };
    let metadata = ObjectMeta {
        name: Some("debian".into()),
        namespace: Some("tenant".into()),
        uid: Some(UID.into()),
        generation: Some(1),
        ..ObjectMeta::default()
    };
    Image { metadata, spec, status: None }
}

/// A local store that the store controller has prepared.
pub fn store(name: &str) -> ImageStore {
    let backend = FilesystemBackend { path: format!("/srv/{name}"), shared: false };
    let spec = ImageStoreSpec { backend: backend.into(), ..ImageStoreSpec::default() };
    let mut store = ImageStore::new(name, spec);
    store.metadata.finalizers = Some(vec![identity::FINALIZER.to_owned()]);
    store
}
