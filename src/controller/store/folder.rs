//! Whether an ImageStore names a folder that is another's. Pure.
//!
//! Objects are named by Image and revision and not by store, so in one folder two stores would overwrite and delete each other's.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use kube::ResourceExt as _;

use crate::api::{FilesystemBackend, ImageStore};

/// Why `store` cannot be used: its folder is, or lies in, or holds that of an older one among `stores`, on a node that may have both.
pub fn is_taken(store: &ImageStore, stores: &[Arc<ImageStore>]) -> Option<String> {
    let backend = store.spec.backend.filesystem.as_ref()?;
    let older = stores.iter().filter(|other| age(other) < age(store) && other.name_any() != store.name_any());
    older.filter_map(|other| Some((other, other.spec.backend.filesystem.as_ref()?))).find_map(|(other, theirs)| {
        let how = overlap(&backend.path, &theirs.path)?;
        let meet = (backend.shared && theirs.shared) || may_meet(&store.spec.node_selector, &other.spec.node_selector);
        meet.then(|| explain(backend, how, other))
    })
}

fn explain(backend: &FilesystemBackend, how: &str, other: &ImageStore) -> String {
    format!(
        "{} {how} the folder of ImageStore {}, which is older, and two stores in one folder would delete each other's images: make \
         an ImageStore with another path instead of this one",
        backend.path,
        other.name_any()
    )
}

/// Of two that were made in one second, the first by name counts as older.
fn age(store: &ImageStore) -> (Option<jiff::Timestamp>, String) {
    (store.metadata.creation_timestamp.as_ref().map(|time| time.0), store.name_any())
}

fn overlap(ours: &str, theirs: &str) -> Option<&'static str> {
    let (ours, theirs) = (Path::new(ours), Path::new(theirs));
    if ours == theirs {
        Some("is")
    } else if ours.starts_with(theirs) {
        Some("lies in")
    } else if theirs.starts_with(ours) {
        Some("holds")
    } else {
        None
    }
}

/// Whether one node can fit both selectors.
fn may_meet(a: &BTreeMap<String, String>, b: &BTreeMap<String, String>) -> bool {
    a.iter().all(|(key, value)| b.get(key).is_none_or(|other| other == value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::image::testing;

    fn store(name: &str, second: i64, path: &str) -> ImageStore {
        let mut store = testing::store(name);
        store.metadata.creation_timestamp = jiff::Timestamp::from_second(second).ok().map(Into::into);
        if let Some(backend) = &mut store.spec.backend.filesystem {
            path.clone_into(&mut backend.path);
        }
        store
    }

    fn on(mut store: ImageStore, rack: &str, shared: bool) -> ImageStore {
        store.spec.node_selector.insert("rack".to_owned(), rack.to_owned());
        if let Some(backend) = &mut store.spec.backend.filesystem {
            backend.shared = shared;
        }
        store
    }

    fn taken(store: &ImageStore, other: &ImageStore) -> bool {
        is_taken(store, &[Arc::new(store.clone()), Arc::new(other.clone())]).is_some()
    }

    #[test]
    fn the_newer_of_two_stores_in_one_folder_is_refused() {
        let old = store("z", 100, "/srv/images");
        for path in ["/srv/images", "/srv/images/deep", "/srv"] {
            let new = store("a", 200, path);
            assert!(taken(&new, &old), "{path}");
            assert!(!taken(&old, &new), "{path}");
        }
        assert!(!taken(&store("a", 200, "/srv/images2"), &old));
        let (a, b) = (store("a", 100, "/srv/images"), store("b", 100, "/srv/images"));
        assert!(taken(&b, &a) && !taken(&a, &b), "made in one second");
        let message = is_taken(&b, &[Arc::new(a)]).unwrap();
        assert!(message.contains("ImageStore a") && message.contains("another path"), "{message}");
    }

    #[test]
    fn stores_that_share_no_node_may_have_the_same_path() {
        let (old, new) = (store("a", 100, "/srv/images"), store("b", 200, "/srv/images"));
        assert!(!taken(&on(new.clone(), "2", false), &on(old.clone(), "1", false)));
        assert!(taken(&on(new.clone(), "1", false), &on(old.clone(), "1", false)));
        assert!(taken(&on(new.clone(), "2", false), &old), "the older one is on every node");
        assert!(taken(&on(new, "2", true), &on(old, "1", true)), "one network file system");
    }
}
