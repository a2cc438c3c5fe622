//! What spec asks for, with everything it refers to looked up, or why it cannot be had. Pure.
//!
//! What the schema's rules hold already is not checked again. What is checked here depends on other objects, which come and go.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kube::ResourceExt as _;
use serde::Serialize;
use vitrine_engine::model::{Compression, ContainerFormat, DiskFormat};

use crate::{
    api::{
        Backend, Conversion, DeclaredFormat, Image, ImageSpec, ImageStore, LocationPhase, Output, Source,
        condition::{reasons, types},
        identity,
    },
    kube::condition::find,
};

/// Cluster size of qcow2 images when none is asked for: what qemu-img makes.
const DEFAULT_CLUSTER_SIZE: i64 = 65536;

/// How many stores an Image can be in: the schema of its status has this bound.
const MOST_STORES: usize = 64;

/// What spec asks for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Where the bytes come from.
    pub source: Source,
    /// Headers and certificates for the source, as a task's Secret holds them, or what is missing: only who is about to import needs them.
    pub secret: Result<BTreeMap<String, Vec<u8>>, String>,
    /// The stores that shall keep it, at least one.
    pub stores: Vec<WantedStore>,
    /// Whether it serves only once it is in all of them.
    pub require_all: bool,
}

/// A store that shall keep the image.
#[derive(Clone, Debug)]
pub struct WantedStore {
    /// Its name.
    pub name: String,
    /// What it is.
    pub backend: Backend,
    /// How the image is stored there.
    pub output: Output,
    /// Whether zeros are left out there.
    pub thin_provisioning: bool,
    /// The nodes that reach it.
    pub node_selector: BTreeMap<String, String>,
    /// Whether it takes new images.
    pub writable: bool,
    /// Whether the store controller holds it against vanishing under us.
    pub prepared: bool,
}

/// What an Image refers to, as far as it was there; the error says what was not.
#[derive(Clone, Debug, Default)]
pub struct References {
    /// Request headers, if asked for.
    pub headers: Option<Result<BTreeMap<String, Vec<u8>>, String>>,
    /// The bundle of certificate authorities, if asked for.
    pub bundle: Option<Result<Vec<u8>, String>>,
}

/// Names the content that spec asks for: equal hashes ask for the same revision.
pub fn spec_hash(spec: &ImageSpec) -> String {
    /// The fields that make a revision. A later one must be left out while it is absent, or every image would be imported again.
    #[derive(Serialize)]
    struct Identity<'a> {
        source: &'a Source,
        disk_format: DeclaredFormat,
        #[serde(skip_serializing_if = "Option::is_none")]
        container_format: Option<ContainerFormat>,
        #[serde(skip_serializing_if = "Option::is_none")]
        container_disk: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        convert_to: Option<&'a Conversion>,
    }
    let identity = Identity {
        source: &spec.source,
        disk_format: spec.disk_format,
        container_format: spec.container_format,
        container_disk: spec.container_disk.as_deref(),
        convert_to: spec.convert_to.as_ref(),
    };
    let text = serde_json::to_vec(&identity).unwrap_or_default();
    blake3::hash(&text).to_hex().chars().take(32).collect()
}

/// Looks up what spec refers to.
///
/// # Errors
/// What was asked for, what there is instead, and what to do.
pub fn validate(image: &Image, stores: &[Arc<ImageStore>], references: References) -> Result<Wanted, String> {
    let spec = &image.spec;
    let source = spec.source.clone();
    if source.http.is_none() && source.upload.is_none() {
        return Err("spec.source names no source: set http or upload".to_owned());
    }
    let kept = image.status.iter().flat_map(|status| &status.locations);
    let held = kept
        .filter(|location| location.phase != LocationPhase::Missing)
        .map(|location| location.store.as_str())
        .collect();
    let chosen = choose_stores(spec, stores, &held)?;
    let stores = chosen.into_iter().map(|store| wanted_store(spec, store)).collect::<Result<_, _>>()?;
    Ok(Wanted { source, secret: secret(references), stores, require_all: spec.require_all_stores })
}

fn secret(references: References) -> Result<BTreeMap<String, Vec<u8>>, String> {
    let headers = references.headers.transpose()?.unwrap_or_default().into_iter();
    let mut secret: BTreeMap<_, _> =
        headers.map(|(name, value)| (format!("{}{name}", identity::SECRET_HEADER_PREFIX), value)).collect();
    if let Some(bundle) = references.bundle.transpose()? {
        secret.insert(identity::SECRET_CA_KEY.to_owned(), bundle);
    }
    Ok(secret)
}

/// The default store: of those that say so, the oldest, and of equally old ones the first by name.
pub fn default_store(stores: &[Arc<ImageStore>]) -> Option<&Arc<ImageStore>> {
    let age = |store: &ImageStore| (store.metadata.creation_timestamp.clone().map(|time| time.0), store.name_any());
    stores.iter().filter(|store| store.spec.default && !is_deleting(store)).min_by_key(|store| age(store))
}

/// `held` are the stores that keep the image now. Where spec leaves the choice to us, they are kept to: another default store, or a
/// store that becomes read-only, must not set every image in motion.
fn choose_stores<'a>(
    spec: &ImageSpec,
    stores: &'a [Arc<ImageStore>],
    held: &BTreeSet<&str>,
) -> Result<Vec<&'a ImageStore>, String> {
    let here = |store: &ImageStore| held.contains(store.name_any().as_str());
    let mut staying = stores.iter().map(Arc::as_ref).filter(|store| !is_deleting(store));
    if spec.all_stores {
        let mut all: Vec<&ImageStore> = staying.filter(|store| !store.spec.read_only || here(store)).collect();
        all.sort_by_key(|store| store.name_any());
        let none = || "allStores is set, and there is no ImageStore that can be written to: make one".to_owned();
        let many = || {
            let count = all.len();
            format!(
                "allStores is set, and there are {count} ImageStores, of which {MOST_STORES} are the most: name them in spec.stores"
            )
        };
        return match all.len() {
            0 => Err(none()),
            1..=MOST_STORES => Ok(all),
            _ => Err(many()),
        };
    }
    if spec.stores.is_empty() {
        let store = staying.find(|store| here(store)).or_else(|| default_store(stores).map(Arc::as_ref));
        let none = || {
            let there = known(stores);
            format!(
                "spec.stores is empty, and no ImageStore is the default: name a store, or set default on one ({there})"
            )
        };
        return Ok(vec![store.ok_or_else(none)?]);
    }
    spec.stores.iter().map(|name| find_store(name, stores)).collect()
}

fn find_store<'a>(name: &str, stores: &'a [Arc<ImageStore>]) -> Result<&'a ImageStore, String> {
    let found = stores.iter().find(|store| store.name_any() == name);
    let store = found.ok_or_else(|| {
        format!(
            "spec.stores names {name}, and there is no such ImageStore: make it, or name another ({})",
            known(stores)
        )
    })?;
    if is_deleting(store) {
        return Err(format!("ImageStore {name} is being deleted: name another ({})", known(stores)));
    }
    Ok(store)
}

fn known(stores: &[Arc<ImageStore>]) -> String {
    let mut names: Vec<_> = stores.iter().filter(|store| !is_deleting(store)).map(|store| store.name_any()).collect();
    names.sort();
    if names.is_empty() { "there are none".to_owned() } else { format!("there are: {}", names.join(", ")) }
}

fn wanted_store(spec: &ImageSpec, store: &ImageStore) -> Result<WantedStore, String> {
    let name = store.name_any();
    let backend = store.spec.backend.clone();
    if backend.kind().is_none() {
        return Err(format!("ImageStore {name} has no back end that this version knows"));
    }
    if let Some(message) = invalid(store) {
        return Err(format!("ImageStore {name} cannot be used: {message}"));
    }
    let conversion = spec.convert_to.or(store.spec.preferred_format);
    Ok(WantedStore {
        backend,
        output: output(conversion),
        thin_provisioning: store.spec.thin_provisioning,
        node_selector: store.spec.node_selector.clone(),
        writable: !store.spec.read_only,
        prepared: store.finalizers().iter().any(|f| f == identity::FINALIZER),
        name,
    })
}

/// What is wrong with a store that can never work as it is written, by its own status.
pub fn invalid(store: &ImageStore) -> Option<&str> {
    let conditions = store.status.as_ref()?.conditions.as_slice();
    let stalled = find(conditions, types::STALLED)?;
    (stalled.status == "True" && stalled.reason == reasons::INVALID_CONFIGURATION).then_some(&stalled.message)
}

fn output(conversion: Option<Conversion>) -> Output {
    let raw = Output {
        disk_format: DiskFormat::Raw,
        subformat: None,
        compression: Compression::None,
        cluster_size: DEFAULT_CLUSTER_SIZE,
    };
    conversion.map_or(raw, |wanted| Output {
        disk_format: wanted.disk_format,
        subformat: wanted.subformat,
        compression: wanted.compression.unwrap_or(Compression::None),
        cluster_size: wanted.cluster_size.unwrap_or(DEFAULT_CLUSTER_SIZE),
    })
}

fn is_deleting(store: &ImageStore) -> bool {
    store.metadata.deletion_timestamp.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        controller::image::testing::{image, store},
        kube::condition::Health,
    };

    fn messages(image: &Image, stores: &[Arc<ImageStore>], references: References) -> String {
        validate(image, stores, references).unwrap_err()
    }

    #[test]
    fn stores_are_chosen_by_name_by_default_or_all() {
        let stores = [store("old"), store("new"), store("locked"), store("going")].map(|mut store| {
            let seconds = if store.name_any() == "old" { 100 } else { 200 };
            store.metadata.creation_timestamp = jiff::Timestamp::from_second(seconds).ok().map(Into::into);
            store.spec.default = store.name_any() != "locked";
            store.spec.read_only = store.name_any() == "locked";
            store.metadata.deletion_timestamp =
                (store.name_any() == "going").then(|| jiff::Timestamp::from_second(300).unwrap().into());
            Arc::new(store)
        });
        let names = |image: &Image| -> Vec<String> {
            validate(image, &stores, References::default()).unwrap().stores.into_iter().map(|s| s.name).collect()
        };
        let mut wanted = image();
        assert_eq!(names(&wanted), ["old"], "the older of two defaults");
        wanted.spec.stores = vec!["locked".into(), "new".into()];
        assert_eq!(names(&wanted), ["locked", "new"]);
        wanted.spec.stores = vec![];
        wanted.spec.all_stores = true;
        assert_eq!(names(&wanted), ["new", "old"]);
        wanted.spec.all_stores = false;
        wanted.spec.stores = vec!["going".into()];
        assert!(messages(&wanted, &stores, References::default()).contains("going is being deleted"));
    }

    #[test]
    fn messages_say_what_is_missing_and_what_there_is() {
        let mut wanted = image();
        assert!(messages(&wanted, &[], References::default()).contains("there are none"));
        wanted.spec.stores = vec!["fats".into()];
        let message = messages(&wanted, &[Arc::new(store("fast")), Arc::new(store("slow"))], References::default());
        assert!(message.contains("fats") && message.contains("there are: fast, slow"), "{message}");
        wanted.spec.stores = vec!["fast".into()];
        let missing = References { headers: Some(Err("no Secret".into())), bundle: None };
        let found = validate(&wanted, &[Arc::new(store("fast"))], missing).unwrap();
        assert_eq!(found.secret.unwrap_err(), "no Secret", "an Image that needs no import is none the worse for it");
    }

    #[test]
    fn a_store_that_cannot_work_is_not_used() {
        let mut fast = store("fast");
        fast.spec.default = true;
        let wrong = Health::Stalled(reasons::INVALID_CONFIGURATION, "its folder is that of ImageStore old".into());
        fast.status = Some(crate::api::ImageStoreStatus {
            conditions: wrong.conditions(1, &[], jiff::Timestamp::now()),
            ..crate::api::ImageStoreStatus::default()
        });
        let message = messages(&image(), &[Arc::new(fast)], References::default());
        assert_eq!(message, "ImageStore fast cannot be used: its folder is that of ImageStore old");
    }

    #[test]
    fn the_image_decides_the_format_then_the_store_then_raw() {
        let mut wanted = image();
        let mut fast = store("fast");
        fast.spec.default = true;
        let output = |image: &Image, store: &ImageStore| {
            validate(image, &[Arc::new(store.clone())], References::default()).unwrap().stores[0].output
        };
        assert_eq!(output(&wanted, &fast).disk_format, DiskFormat::Raw);
        let qcow2 = |compression| Conversion {
            disk_format: DiskFormat::Qcow2,
            subformat: None,
            compression,
            cluster_size: None,
        };
        fast.spec.preferred_format = Some(qcow2(None));
        assert_eq!(output(&wanted, &fast).disk_format, DiskFormat::Qcow2);
        assert_eq!(output(&wanted, &fast).cluster_size, 65536);
        wanted.spec.convert_to = Some(qcow2(Some(Compression::Zstd)));
        assert_eq!(output(&wanted, &fast).compression, Compression::Zstd);
    }

    #[test]
    fn the_hash_follows_content_and_nothing_else() {
        let (base, mut other) = (image(), image());
        other.spec.protected = true;
        other.spec.stores = vec!["elsewhere".into()];
        other.spec.revision_history_limit = 3;
        other.spec.properties.insert("os".into(), "debian".into());
        assert_eq!(spec_hash(&base.spec), spec_hash(&other.spec));
        other.spec.disk_format = DeclaredFormat::Qcow2;
        assert_ne!(spec_hash(&base.spec), spec_hash(&other.spec));
        let mut url = image();
        url.spec.source.http.as_mut().unwrap().url.push('x');
        assert_ne!(spec_hash(&base.spec), spec_hash(&url.spec));
        // Written down: a change of this value would import every image of every user again.
        assert_eq!(spec_hash(&base.spec), "2b0d1e3d7002e350a75837f0147c7669");
    }

    #[test]
    fn headers_and_certificates_get_their_keys() {
        let mut fast = store("fast");
        fast.spec.default = true;
        let references = References {
            headers: Some(Ok([("Authorization".to_owned(), b"Bearer x".to_vec())].into())),
            bundle: Some(Ok(b"PEM".to_vec())),
        };
        let wanted = validate(&image(), &[Arc::new(fast)], references).unwrap();
        assert_eq!(wanted.secret.unwrap().keys().collect::<Vec<_>>(), ["ca.crt", "header.Authorization"]);
    }
}
