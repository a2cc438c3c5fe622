//! What the controllers share: the client, caches, the fleet, and the bells that wake them.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures::channel::mpsc::UnboundedSender;
use kube::{
    Client, ResourceExt as _,
    runtime::reflector::{ObjectRef, Store},
};
use tokio::time::Instant;

use super::{authority::Requests, fleet::Fleet, settings::Settings};
use crate::{
    api::{Image, ImageStore, Orphans},
    kube::{apply::Writer, backoff::Backoff, event::Events},
};

/// The wait after a request that failed: what fails for long is no use asking often.
const ERROR_BACKOFF: Backoff = Backoff { base: Duration::from_secs(2), limit: Duration::from_secs(60) };

/// What the controllers share.
pub struct Context {
    /// For reading.
    pub client: Client,
    /// What the operator was told.
    pub settings: Settings,
    /// All ImageStores. Complete before any controller acts, and up to date before it rings for a change: see `watch`.
    pub stores: Store<ImageStore>,
    /// All Images, by watched namespace.
    pub images: Vec<Store<Image>>,
    /// Wakes the controllers.
    pub bells: Bells,
    /// Writes as the image controller.
    pub image_writer: Writer,
    /// Writes as the store controller.
    pub store_writer: Writer,
    /// Tells people.
    pub events: Events,
    /// The agents that are to have a certificate.
    pub requests: Requests,
    fleet: Mutex<Fleet>,
    last_progress: Mutex<BTreeMap<String, Instant>>,
    orphans: Mutex<BTreeMap<String, Option<Orphans>>>,
    failures: Mutex<Failures>,
}

/// How often in a row objects could not be dealt with.
#[derive(Debug, Default)]
struct Failures(BTreeMap<String, i64>);

impl Failures {
    fn count(&mut self, object: String) -> i64 {
        let count = self.0.entry(object).or_default();
        *count = count.saturating_add(1);
        *count
    }

    fn forget(&mut self, object: &str) {
        self.0.remove(object);
    }
}

/// Wakes the controllers for objects that need another look. What rings too often is merged by the controllers' queues.
#[derive(Debug)]
pub struct Bells {
    /// One for each watched namespace, or one for all.
    pub images: Vec<(Option<String>, UnboundedSender<ObjectRef<Image>>)>,
    /// The store controller's.
    pub stores: UnboundedSender<ObjectRef<ImageStore>>,
}

impl Bells {
    /// Another look at one Image.
    pub fn image(&self, namespace: &str, name: &str) {
        for (watched, bell) in &self.images {
            if watched.as_deref().is_none_or(|watched| watched == namespace) {
                // It fails only when the controller has ended, and then nobody needs waking.
                let _ = bell.unbounded_send(ObjectRef::new(name).within(namespace));
            }
        }
    }

    /// Another look at one ImageStore.
    pub fn store(&self, name: &str) {
        let _ = self.stores.unbounded_send(ObjectRef::new(name));
    }
}

impl Context {
    /// A context whose caches and bells belong to controllers that are about to run.
    pub fn new(
        client: Client,
        settings: Settings,
        fleet: Fleet,
        (stores, images): (Store<ImageStore>, Vec<Store<Image>>),
        bells: Bells,
    ) -> Self {
        Self {
            image_writer: Writer::new(client.clone(), super::image::MANAGER),
            store_writer: Writer::new(client.clone(), super::store::MANAGER),
            events: Events::new(client.clone(), "vitrine-operator", &settings.identity),
            requests: Requests::default(),
            client,
            settings,
            stores,
            images,
            bells,
            fleet: Mutex::new(fleet),
            last_progress: Mutex::default(),
            orphans: Mutex::default(),
            failures: Mutex::default(),
        }
    }

    /// Does something with the fleet that nobody disturbs. It must not wait for anything.
    pub fn with_fleet<T>(&self, act: impl FnOnce(&mut Fleet) -> T) -> T {
        act(&mut self.fleet.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Rings for every Image of which `needs` says that it needs another look.
    pub fn ring_images(&self, needs: impl Fn(&Image) -> bool) {
        for image in self.images.iter().flat_map(Store::state).filter(|image| needs(image)) {
            self.bells.image(&image.namespace().unwrap_or_default(), &image.name_any());
        }
    }

    /// Rings for every ImageStore.
    pub fn ring_stores(&self) {
        self.stores.state().iter().for_each(|store| self.bells.store(&store.name_any()));
    }

    /// Takes note that `object` could not be dealt with, once more in a row; how long to wait before the next try.
    pub fn failed(&self, object: String) -> Duration {
        ERROR_BACKOFF.delay(self.failures.lock().unwrap_or_else(PoisonError::into_inner).count(object))
    }

    /// Takes note that `object` was dealt with.
    pub fn succeeded(&self, object: &str) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).forget(object);
    }

    /// Takes note of what a store holds that no Image knows, and has the store looked at if that is news.
    pub fn note_orphans(&self, store: &str, orphans: Option<Orphans>) {
        let mut all = self.orphans.lock().unwrap_or_else(PoisonError::into_inner);
        if all.get(store) == Some(&orphans) {
            return;
        }
        all.insert(store.to_owned(), orphans);
        self.bells.store(store);
    }

    /// What a store holds that no Image knows, as last seen; what an earlier leader wrote of it, until this one has looked.
    pub fn orphans(&self, store: &ImageStore) -> Option<Orphans> {
        let seen = self.orphans.lock().unwrap_or_else(PoisonError::into_inner).get(&store.name_any()).cloned();
        seen.unwrap_or_else(|| store.status.as_ref().and_then(|status| status.orphans.clone()))
    }

    /// How long to wait before progress of this Image may be written again; `None` means now, and counts as having written.
    pub fn progress_gate(&self, uid: &str, interval: Duration) -> Option<Duration> {
        let mut last = self.last_progress.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        last.retain(|_, at| now.duration_since(*at) < interval);
        if let Some(at) = last.get(uid) {
            return Some(interval.saturating_sub(now.duration_since(*at)));
        }
        last.insert(uid.to_owned(), now);
        None
    }
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("settings", &self.settings).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_again_and_again_is_tried_ever_less_often_until_it_succeeds() {
        let mut failures = Failures::default();
        let mut next = |object: &str| ERROR_BACKOFF.delay(failures.count(object.to_owned())).as_secs();
        assert_eq!([next("a"), next("a"), next("b"), next("a")], [2, 4, 2, 8]);
        failures.forget("a");
        assert_eq!((failures.count("a".to_owned()), failures.0.len()), (1, 2));
    }
}
