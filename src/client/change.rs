//! What of an Image is to be changed, as the patch that does it.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use vitrine_engine::error::{Error, Kind, Result};

use crate::api::{Image, identity::ANNOTATION_RETRY};

/// What becomes of properties, tags, labels and switches. What is not named stays.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// Set, or removed where there is no value.
    pub properties: BTreeMap<String, Option<String>>,
    /// The same of labels.
    pub labels: BTreeMap<String, Option<String>>,
    /// The same of annotations.
    pub annotations: BTreeMap<String, Option<String>>,
    /// Tags to add.
    pub tags: Vec<String>,
    /// Tags to remove.
    pub untags: Vec<String>,
    /// Whether it is protected from being deleted.
    pub protected: Option<bool>,
    /// Whether its data is served to nobody.
    pub deactivated: Option<bool>,
    /// How many revisions are kept.
    pub history: Option<i64>,
}

impl Change {
    /// The patch of `image`.
    ///
    /// # Errors
    /// If nothing is to be changed.
    pub fn patch(&self, image: &Image) -> Result<Value> {
        let (mut spec, mut metadata) = (Map::new(), Map::new());
        if !self.properties.is_empty() {
            spec.insert("properties".to_owned(), json!(self.properties));
        }
        if !self.tags.is_empty() || !self.untags.is_empty() {
            spec.insert("tags".to_owned(), json!(self.tags_of(image)));
        }
        for (name, value) in [("protected", self.protected), ("deactivated", self.deactivated)] {
            if let Some(value) = value {
                spec.insert(name.to_owned(), json!(value));
            }
        }
        if let Some(history) = self.history {
            spec.insert("revisionHistoryLimit".to_owned(), json!(history));
        }
        for (name, values) in [("labels", &self.labels), ("annotations", &self.annotations)] {
            if !values.is_empty() {
                metadata.insert(name.to_owned(), json!(values));
            }
        }
        if spec.is_empty() && metadata.is_empty() {
            return Err(Error::new(Kind::InvalidInput, "nothing is to be changed: say what, see --help"));
        }
        Ok(json!({ "metadata": metadata, "spec": spec }))
    }

    fn tags_of(&self, image: &Image) -> Vec<String> {
        let mut tags: Vec<_> = image.spec.tags.iter().filter(|tag| !self.untags.contains(tag)).cloned().collect();
        for tag in &self.tags {
            if !tags.contains(tag) {
                tags.push(tag.clone());
            }
        }
        tags
    }
}

/// The patch by which an Image is kept in more stores than it is.
///
/// # Errors
/// If it is not known where it is kept now, so that a store more might be one less.
pub fn more_stores(image: &Image, stores: &[String]) -> Result<Value> {
    if image.spec.all_stores {
        return Err(Error::new(Kind::InvalidInput, "it is to be kept in all stores already (spec.allStores)"));
    }
    let mut named = image.spec.stores.clone();
    if named.is_empty() {
        let kept = image.status.iter().flat_map(|status| &status.locations).map(|location| location.store.clone());
        named.extend(kept);
        if named.is_empty() {
            return Err(Error::new(
                Kind::InvalidInput,
                "it names no store and is not kept in the default one yet: wait until it is, or name all stores with `kubectl edit`",
            ));
        }
    }
    named.extend(stores.iter().cloned());
    let mut seen = std::collections::BTreeSet::new();
    named.retain(|store| seen.insert(store.clone()));
    Ok(json!({ "spec": { "stores": named } }))
}

/// The patch by which an Image is kept in every store.
pub fn all_stores() -> Value {
    json!({ "spec": { "stores": null, "allStores": true } })
}

/// The patch by which an import is begun again, if it has come to its end; `now` tells this request from others.
pub fn retry(now: &str) -> Value {
    json!({ "metadata": { "annotations": { ANNOTATION_RETRY: now } } })
}

/// Another URL to import from.
#[derive(Clone, Debug, Default)]
pub struct OtherSource {
    /// The URL.
    pub url: String,
    /// What its bytes must hash to.
    pub checksum: Option<String>,
    /// Where that is written.
    pub checksum_url: Option<String>,
}

impl OtherSource {
    /// The patch by which the Image's next revision comes from there. Checksums of the last one do not hold for it; headers and
    /// certificates do.
    pub fn patch(&self) -> Value {
        let http = json!({ "url": self.url, "checksum": self.checksum, "checksumURL": self.checksum_url });
        json!({ "spec": { "source": { "http": http, "upload": null } } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{ImageSpec, ImageStatus, Location};

    fn image() -> Image {
        let mut image = Image::new("a", ImageSpec::default());
        image.spec.tags = vec!["x".to_owned(), "y".to_owned()];
        image
    }

    #[test]
    fn what_is_not_named_stays() {
        let change = Change {
            properties: [("a".to_owned(), Some("1".to_owned())), ("b".to_owned(), None)].into(),
            tags: vec!["y".to_owned(), "z".to_owned()],
            untags: vec!["x".to_owned()],
            deactivated: Some(true),
            ..Change::default()
        };
        let patch = change.patch(&image()).unwrap();
        let spec = json!({ "properties": { "a": "1", "b": null }, "tags": ["y", "z"], "deactivated": true });
        assert_eq!(patch, json!({ "metadata": {}, "spec": spec }));
        assert_eq!(Change::default().patch(&image()).unwrap_err().kind(), Kind::InvalidInput);
    }

    #[test]
    fn a_store_more_is_not_one_less() {
        let mut image = image();
        assert_eq!(more_stores(&image, &["b".to_owned()]).unwrap_err().kind(), Kind::InvalidInput);
        let location = Location { store: "default".to_owned(), ..Location::default() };
        image.status = Some(ImageStatus { locations: vec![location.clone(), location], ..ImageStatus::default() });
        let stores = |image: &Image| more_stores(image, &["b".to_owned()]).unwrap()["spec"]["stores"].clone();
        assert_eq!(stores(&image), json!(["default", "b"]));
        image.spec.stores = vec!["b".to_owned(), "c".to_owned()];
        assert_eq!(stores(&image), json!(["b", "c"]));
    }
}
