//! What this node sees of each ImageStore, reported in the node's NodeCache.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt as _;
use k8s_openapi::{api::core::v1::Node, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
    core::ObjectMeta,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event},
    },
};
use serde_json::json;
use tokio::{
    task::AbortHandle,
    time::{Instant, MissedTickBehavior},
};

use super::{
    FIELD_MANAGER,
    listing::Listings,
    probe::{self, Probes, Subject},
    request::{self, RequestError},
    stores::{Place, Stores},
    view::Pauses,
};
use crate::api::{AgentInfo, ImageStore, NodeCache, NodeCacheSpec, StoreReport, identity::ANNOTATION_PROBE};

/// Reports kept at most: the bound in the definition of NodeCache.
const MAX_STORES: usize = 128;
/// Longest request of a person that is repeated: the bound in the definition of NodeCache.
const MAX_ASKED: usize = 64;
/// Room that must have come or gone, as a part of the capacity (1/100), to be worth a write by itself.
const ROOM_STEP: i64 = 100;
/// Without any change the report is written this often, so that `probedAt` does not look forgotten.
const QUIET_INTERVAL: Duration = Duration::from_mins(5);
/// How often leftovers in shared stores are collected, and how old they must be: far longer than any pause of a living writer.
const SWEEP_INTERVAL: Duration = Duration::from_hours(1);

/// Watches ImageStores, probes those of this node, and reports.
pub struct Reach {
    node: String,
    agent: AgentInfo,
    stores: Arc<Stores>,
    nodes: Api<Node>,
    watched: Api<ImageStore>,
    caches: Api<NodeCache>,
    owner: Option<OwnerReference>,
    interval: Duration,
    probes: Probes,
    listings: Listings,
    /// The sweeps under way: one that hangs is not begun again.
    sweeps: BTreeMap<String, AbortHandle>,
    reports: BTreeMap<String, StoreReport>,
    written: Option<(Instant, Vec<StoreReport>)>,
    swept: Instant,
}

impl Reach {
    /// For the agent `agent` on `node`, probing and listing at these intervals. `before` is what an earlier agent reported of this node.
    pub fn new(
        client: &Client,
        node: &str,
        agent: AgentInfo,
        owner: Option<OwnerReference>,
        stores: Arc<Stores>,
        before: Vec<StoreReport>,
        (interval, listing): (Duration, Duration),
    ) -> Self {
        Self {
            node: node.to_owned(),
            agent,
            stores,
            nodes: Api::all(client.clone()),
            watched: Api::all(client.clone()),
            caches: Api::all(client.clone()),
            owner,
            interval,
            probes: Probes::default(),
            listings: Listings::new(listing),
            sweeps: BTreeMap::new(),
            reports: before.into_iter().map(|report| (report.name.clone(), report)).collect(),
            written: None,
            swept: Instant::now(),
        }
    }

    /// Reports for ever.
    pub async fn keep(mut self) {
        let watch = watcher::watcher(self.watched.clone(), watcher::Config::default()).backoff(Pauses::default());
        let mut events = Box::pin(watch);
        let mut ticks = tokio::time::interval(self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut known, mut incoming) = (None, BTreeMap::new());
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(event)) => {
                        if !follow(event, &mut known, &mut incoming) {
                            continue;
                        }
                    }
                    Some(Err(error)) => {
                        tracing::warn!(%error, "watching ImageStores broke off; trying again");
                        continue;
                    }
                    None => return,
                },
                Some(report) = self.probes.next() => {
                    self.hear(report);
                    self.write_when_all_answered().await;
                    continue;
                }
                Some(()) = self.listings.next() => {
                    self.write_when_all_answered().await;
                    continue;
                }
                _ = ticks.tick() => {}
            }
            if let Some(known) = &known {
                self.look(known).await;
                self.write_when_all_answered().await;
            }
        }
    }

    /// Begins to probe every store of this node.
    async fn look(&mut self, known: &BTreeMap<String, ImageStore>) {
        let is_current = |name: &str, uid: Option<&str>| {
            known.get(name).is_some_and(|store| uid.is_none() || store.metadata.uid.as_deref() == uid)
        };
        self.stores.forget_all_but(is_current);
        self.reports.retain(|name, report| is_current(name, report.uid.as_deref()));
        let labels = self.labels().await;
        let subjects = subjects(known, labels.as_ref(), &self.reports, &self.node);
        let names: BTreeSet<_> = subjects.iter().map(|subject| subject.name.clone()).collect();
        self.reports.retain(|name, _| names.contains(name));
        if self.swept.elapsed() >= SWEEP_INTERVAL {
            self.swept = Instant::now();
            subjects.iter().for_each(|subject| self.sweep(subject));
        }
        let listed: Vec<_> = subjects.iter().filter(|subject| subject.lists).collect();
        self.listings.begin(&self.stores, &listed);
        for subject in subjects {
            let look = probe::look(self.stores.clone(), subject.clone());
            self.probes.begin(subject, look);
        }
    }

    fn sweep(&mut self, subject: &Subject) {
        if self.sweeps.get(&subject.name).is_none_or(AbortHandle::is_finished) {
            let sweep = tokio::spawn(sweep(self.stores.clone(), subject.clone()));
            self.sweeps.insert(subject.name.clone(), sweep.abort_handle());
        }
    }

    /// Takes over an answer. It may be of a store that is gone by now; the next look forgets it.
    fn hear(&mut self, report: StoreReport) {
        if let Some(id) = &report.id {
            self.stores.remember(&report.name, report.uid.as_deref(), id);
        }
        self.reports.insert(report.name.clone(), report);
    }

    /// One write for all that is probed at the same time. Probes have a deadline, so this does not wait for ever.
    async fn write_when_all_answered(&mut self) {
        if self.probes.is_idle()
            && let Err(error) = self.write().await
        {
            tracing::warn!(%error, "reporting this node's stores failed");
        }
    }

    /// The node's labels; nothing if the agent may not read its Node, and then all stores are looked at: the operator knows.
    async fn labels(&self) -> Option<BTreeMap<String, String>> {
        match request::once(self.nodes.get_metadata(&self.node)).await {
            Ok(node) => Some(node.metadata.labels.unwrap_or_default()),
            Err(error) => {
                tracing::debug!(%error, "this node's labels cannot be read");
                None
            }
        }
    }

    /// Writes the reports, if there is something new in them.
    async fn write(&mut self) -> Result<(), RequestError> {
        let listed = |report: &StoreReport| StoreReport { listing: self.listings.page(&report.name), ..report.clone() };
        let reports: Vec<_> = self.reports.values().map(listed).collect();
        if !self.written.as_ref().is_none_or(|(at, last)| at.elapsed() >= QUIET_INTERVAL || is_news(last, &reports)) {
            return Ok(());
        }
        let status = json!({
            "apiVersion": "vitrine.dev/v1alpha1",
            "kind": "NodeCache",
            "status": { "observedGeneration": 1, "agent": self.agent, "stores": reports },
        });
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        let written = request::once(self.caches.patch_status(&self.node, &parameters, &Patch::Apply(&status))).await;
        match written {
            Err(RequestError::NotFound) => {
                self.create().await?;
                request::once(self.caches.patch_status(&self.node, &parameters, &Patch::Apply(&status))).await?;
            }
            written => drop(written?),
        }
        self.written = Some((Instant::now(), reports));
        Ok(())
    }

    async fn create(&self) -> Result<(), RequestError> {
        let metadata = ObjectMeta {
            name: Some(self.node.clone()),
            owner_references: self.owner.clone().map(|owner| vec![owner]),
            ..ObjectMeta::default()
        };
        let cache = NodeCache { metadata, spec: NodeCacheSpec::default(), status: None };
        let parameters = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        request::once(self.caches.create(&parameters, &cache)).await.map(drop)
    }
}

/// Follows the watch. True if stores should be looked at again: what the operator writes to their status is no reason, but for which
/// store it is.
fn follow(
    event: Event<ImageStore>,
    known: &mut Option<BTreeMap<String, ImageStore>>,
    incoming: &mut BTreeMap<String, ImageStore>,
) -> bool {
    let name = |store: &ImageStore| store.metadata.name.clone().unwrap_or_default();
    match event {
        Event::Init => {
            incoming.clear();
            false
        }
        Event::InitApply(store) => {
            incoming.insert(name(&store), store);
            false
        }
        Event::InitDone => {
            *known = Some(std::mem::take(incoming));
            true
        }
        Event::Apply(store) => {
            let id = |store: &ImageStore| store.status.as_ref().and_then(|status| status.id.clone());
            let now = (store.metadata.generation, id(&store), asked(&store));
            let last = known.get_or_insert_default().insert(name(&store), store);
            last.is_none_or(|last| (last.metadata.generation, id(&last), asked(&last)) != now)
        }
        Event::Delete(store) => known.get_or_insert_default().remove(&name(&store)).is_some(),
    }
}

/// What to probe on a node with `labels`. Stores beyond the bound are left out altogether: with one report too many, none could be
/// written.
fn subjects(
    known: &BTreeMap<String, ImageStore>,
    labels: Option<&BTreeMap<String, String>>,
    reports: &BTreeMap<String, StoreReport>,
    node: &str,
) -> Vec<Subject> {
    let here = known.values().filter(|store| matches(store, labels));
    here.take(MAX_STORES).filter_map(|store| subject(store, reports, node)).collect()
}

/// Whether the store is one of a node with `labels`.
fn matches(store: &ImageStore, labels: Option<&BTreeMap<String, String>>) -> bool {
    labels.is_none_or(|labels| store.spec.node_selector.iter().all(|(key, value)| labels.get(key) == Some(value)))
}

/// What to probe of `store`. Which one it must be says the ImageStore if it is the same everywhere, else what was seen here before.
fn subject(store: &ImageStore, reports: &BTreeMap<String, StoreReport>, node: &str) -> Option<Subject> {
    let name = store.metadata.name.clone()?;
    let shared = store.status.as_ref().and_then(|status| status.id.clone());
    let seen = || reports.get(&name).and_then(|report| report.id.clone());
    let lister = store.status.as_ref().and_then(|status| status.lister.as_deref());
    Some(Subject {
        lists: store.spec.backend.is_local() || lister == Some(node),
        id: shared.or_else(seen),
        name,
        uid: store.metadata.uid.clone(),
        generation: store.metadata.generation.unwrap_or_default(),
        backend: store.spec.backend.clone(),
        read_only: store.spec.read_only,
        asked: asked(store),
    })
}

/// By which request of a person the store is to be looked at.
fn asked(store: &ImageStore) -> Option<String> {
    let value = store.metadata.annotations.as_ref()?.get(ANNOTATION_PROBE)?;
    Some(value.chars().take(MAX_ASKED).collect())
}

/// Removes old leftovers. Nobody waits for it, and what goes wrong says nothing of whether the store can be used.
async fn sweep(stores: Arc<Stores>, subject: Subject) {
    let Subject { name, backend, id, .. } = &subject;
    let swept = async {
        let place = Place { name, backend, id: id.as_deref() };
        stores.open(place).await?.sweep(SWEEP_INTERVAL).await
    };
    match swept.await {
        Ok(names) if names.is_empty() => {}
        Ok(names) => tracing::info!(store = name, ?names, "removed old leftovers"),
        Err(error) => tracing::warn!(store = name, %error, "old leftovers stay behind"),
    }
}

/// Whether `now` says something that `last` did not.
fn is_news(last: &[StoreReport], now: &[StoreReport]) -> bool {
    let same = |(a, b): (&StoreReport, &StoreReport)| {
        let key = |report: &StoreReport| {
            let StoreReport { name, observed_generation, uid, id, ready, read_only, message, capacity, asked, .. } =
                report;
            let state = (*ready, *read_only, message.clone(), asked.clone());
            (name.clone(), *observed_generation, uid.clone(), id.clone(), state, *capacity)
        };
        let entries = |report: &StoreReport| {
            report
                .listing
                .as_ref()
                .map(|page| page.entries.iter().map(|held| (held.uid.clone(), held.revision)).collect::<Vec<_>>())
        };
        key(a) == key(b) && !moved(a, b) && entries(a) == entries(b)
    };
    last.len() != now.len() || !last.iter().zip(now).all(same)
}

/// Whether the room left differs enough to tell.
fn moved(a: &StoreReport, b: &StoreReport) -> bool {
    match (a.available, b.available) {
        (Some(a_), Some(b_)) => a_.abs_diff(b_) > (a.capacity.unwrap_or_default() / ROOM_STEP).unsigned_abs(),
        (a, b) => a != b,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

    use super::*;

    fn report(name: &str, ready: bool, available: i64) -> StoreReport {
        StoreReport {
            name: name.to_owned(),
            observed_generation: 1,
            uid: None,
            id: None,
            ready,
            read_only: false,
            message: String::new(),
            capacity: Some(1000),
            available: Some(available),
            probed_at: Time(Timestamp::now()),
            asked: None,
            listing: None,
        }
    }

    #[test]
    fn only_news_is_written() {
        let last = [report("a", true, 500)];
        assert!(!is_news(&last, &[report("a", true, 495)]), "half a percent is noise, and so is the time");
        assert!(is_news(&last, &[report("a", true, 400)]));
        assert!(is_news(&last, &[report("a", false, 500)]));
        assert!(is_news(&last, &[StoreReport { asked: Some("1".to_owned()), ..report("a", true, 500) }]));
        assert!(is_news(&last, &[report("b", true, 500)]));
        assert!(is_news(&last, &[]));
        assert!(is_news(&last, &[report("a", true, 500), report("b", true, 500)]));
    }

    #[test]
    fn only_what_people_change_is_a_reason_to_look_again() {
        let (mut known, mut incoming) = (None, BTreeMap::new());
        let store = |name: &str, generation| {
            let mut store = ImageStore::new(name, crate::api::ImageStoreSpec::default());
            store.metadata.generation = Some(generation);
            store
        };
        let probed = |name: &str, generation| {
            let mut store = store(name, generation);
            store.metadata.annotations = Some([(ANNOTATION_PROBE.to_owned(), "now".repeat(90))].into());
            store
        };
        let steps = [
            (Event::Init, false),
            (Event::InitApply(store("a", 1)), false),
            (Event::InitDone, true),
            (Event::Apply(store("a", 1)), false),
            (Event::Apply(store("a", 2)), true),
            (Event::Apply(probed("a", 2)), true),
            (Event::Apply(probed("a", 2)), false),
            (Event::Apply(store("b", 1)), true),
            (Event::Delete(store("b", 1)), true),
            (Event::Delete(store("b", 1)), false),
        ];
        for (number, (event, news)) in steps.into_iter().enumerate() {
            assert_eq!(follow(event, &mut known, &mut incoming), news, "step {number}");
        }
        assert_eq!(known.unwrap().len(), 1);
    }

    #[test]
    fn a_store_is_of_the_nodes_that_its_selector_fits() {
        let mut store = ImageStore::new("s", crate::api::ImageStoreSpec::default());
        let labels = BTreeMap::from([("rack".to_owned(), "1".to_owned())]);
        assert!(matches(&store, Some(&labels)));
        store.spec.node_selector = labels.clone();
        assert!(matches(&store, Some(&labels)));
        assert!(matches(&store, None), "labels that cannot be read exclude nothing");
        store.spec.node_selector.insert("rack".to_owned(), "2".to_owned());
        assert!(!matches(&store, Some(&labels)));
    }

    #[test]
    fn more_stores_than_can_be_reported_are_left_out() {
        let store = |number| {
            (format!("s{number:03}"), ImageStore::new(&format!("s{number:03}"), crate::api::ImageStoreSpec::default()))
        };
        let known: BTreeMap<_, _> = (0..140).map(store).collect();
        assert_eq!(subjects(&known, None, &BTreeMap::new(), "n").len(), MAX_STORES);
    }

    #[test]
    fn a_store_must_be_the_one_that_all_agree_on_or_the_one_that_was_here() {
        let mut store = ImageStore::new("a", crate::api::ImageStoreSpec::default());
        let seen = StoreReport { id: Some("seen".to_owned()), ..report("a", false, 0) };
        let reports = BTreeMap::from([("a".to_owned(), seen)]);
        let id = |store: &ImageStore, reports: &BTreeMap<_, _>| subject(store, reports, "n").unwrap().id;
        assert_eq!(id(&store, &BTreeMap::new()), None);
        assert_eq!(id(&store, &reports).as_deref(), Some("seen"));
        store.status = Some(crate::api::ImageStoreStatus {
            id: Some("agreed".to_owned()),
            ..crate::api::ImageStoreStatus::default()
        });
        assert_eq!(id(&store, &reports).as_deref(), Some("agreed"));
    }
}
