//! What this node sees of each ImageStore, reported in the node's NodeCache.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt as _;
use k8s_openapi::{
    api::core::v1::Node,
    apimachinery::pkg::apis::meta::v1::{OwnerReference, Time},
    jiff::Timestamp,
};
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
    task::{AbortHandle, JoinSet},
    time::{Instant, MissedTickBehavior},
};
use vitrine_engine::error::{Error, Kind, Result};

use super::{
    FIELD_MANAGER, failure,
    rate::signed,
    request::{self, RequestError},
    stores::Stores,
    view::Pauses,
};
use crate::api::{AgentInfo, FilesystemBackend, ImageStore, NodeCache, NodeCacheSpec, StoreReport};

/// How long a store may take to answer a probe before it counts as not ready. Local disks answer in milliseconds; a network file
/// system whose server is away never does.
const PROBE_DEADLINE: Duration = Duration::from_secs(10);
/// Longest message of a report, in characters: the bound in the definition of NodeCache.
const MAX_MESSAGE: usize = 1024;
/// Reports kept at most: the bound in the definition of NodeCache.
const MAX_STORES: usize = 64;
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
    /// Probes that have not answered; a store with one is not asked again.
    probing: BTreeMap<String, AbortHandle>,
    reports: BTreeMap<String, StoreReport>,
    written: Option<(Instant, Vec<StoreReport>)>,
    swept: Instant,
}

/// What is probed of a store.
#[derive(Clone, Debug)]
struct Subject {
    name: String,
    generation: i64,
    filesystem: Option<FilesystemBackend>,
}

impl Reach {
    /// For the agent `agent` on `node`, probing every `interval`.
    pub fn new(
        client: &Client,
        node: &str,
        agent: AgentInfo,
        owner: Option<OwnerReference>,
        stores: Arc<Stores>,
        interval: Duration,
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
            probing: BTreeMap::new(),
            reports: BTreeMap::new(),
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
        let mut probes: JoinSet<StoreReport> = JoinSet::new();
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
                Some(answer) = probes.join_next() => {
                    if let Ok(report) = answer {
                        self.reports.insert(report.name.clone(), report);
                    }
                    self.write_when_all_answered(&probes).await;
                    continue;
                }
                _ = ticks.tick() => {}
            }
            if let Some(known) = &known {
                self.look(known, &mut probes).await;
                self.write_when_all_answered(&probes).await;
            }
        }
    }

    /// Begins to probe every store of this node.
    async fn look(&mut self, known: &BTreeMap<String, ImageStore>, probes: &mut JoinSet<StoreReport>) {
        self.stores.forget_all_but(|name| known.contains_key(name));
        let labels = self.labels().await;
        let sweep = self.swept.elapsed() >= SWEEP_INTERVAL;
        if sweep {
            self.swept = Instant::now();
        }
        let subjects: Vec<_> =
            known.values().filter(|store| matches(store, labels.as_ref())).filter_map(subject).collect();
        let names: BTreeSet<_> = subjects.iter().map(|subject| subject.name.clone()).collect();
        self.reports.retain(|name, _| names.contains(name));
        for subject in subjects.into_iter().take(MAX_STORES) {
            if self.probing.get(&subject.name).is_some_and(|probe| !probe.is_finished()) {
                continue;
            }
            let name = subject.name.clone();
            let handle = probes.spawn(probe(self.stores.clone(), subject, sweep));
            self.probing.insert(name, handle);
        }
    }

    /// One write for all that is probed at the same time. Probes have a deadline, so this does not wait for ever.
    async fn write_when_all_answered(&mut self, probes: &JoinSet<StoreReport>) {
        if probes.is_empty()
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
        let reports: Vec<_> = self.reports.values().cloned().collect();
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

/// Follows the watch. True if stores should be looked at again: the operator's writes to their status are no reason.
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
            let generation = store.metadata.generation;
            let last = known.get_or_insert_default().insert(name(&store), store);
            last.is_none_or(|last| last.metadata.generation != generation)
        }
        Event::Delete(store) => known.get_or_insert_default().remove(&name(&store)).is_some(),
    }
}

/// Whether the store is one of a node with `labels`.
fn matches(store: &ImageStore, labels: Option<&BTreeMap<String, String>>) -> bool {
    labels.is_none_or(|labels| store.spec.node_selector.iter().all(|(key, value)| labels.get(key) == Some(value)))
}

fn subject(store: &ImageStore) -> Option<Subject> {
    Some(Subject {
        name: store.metadata.name.clone()?,
        generation: store.metadata.generation.unwrap_or_default(),
        filesystem: store.spec.filesystem.clone(),
    })
}

async fn probe(stores: Arc<Stores>, subject: Subject, sweep: bool) -> StoreReport {
    let Subject { name, generation, filesystem } = subject;
    let look = async {
        let store = stores.open(&name, filesystem.as_ref()).await?;
        store.probe().await?;
        if sweep {
            store.sweep(SWEEP_INTERVAL).await?;
        }
        store.capacity().await
    };
    let result = tokio::time::timeout(PROBE_DEADLINE, look).await.unwrap_or_else(|_| {
        let message =
            format!("store {name} has not answered for {} s: is its volume mounted?", PROBE_DEADLINE.as_secs());
        Err(Error::new(Kind::Unavailable, message))
    });
    let (ready, message, capacity) = match result {
        Ok(capacity) => (true, String::new(), capacity),
        Err(error) => (false, failure::shorten(&error.to_string(), MAX_MESSAGE), None),
    };
    StoreReport {
        name,
        observed_generation: generation,
        ready,
        message,
        capacity: capacity.map(|capacity| signed(capacity.total)),
        available: capacity.map(|capacity| signed(capacity.available)),
        probed_at: Time(Timestamp::now()),
    }
}

/// Whether `now` says something that `last` did not.
fn is_news(last: &[StoreReport], now: &[StoreReport]) -> bool {
    let same = |(a, b): (&StoreReport, &StoreReport)| {
        let key = |report: &StoreReport| {
            let StoreReport { name, observed_generation, ready, message, capacity, available: _, probed_at: _ } =
                report;
            (name.clone(), *observed_generation, *ready, message.clone(), *capacity)
        };
        key(a) == key(b) && !moved(a, b)
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
    use super::*;

    fn report(name: &str, ready: bool, available: i64) -> StoreReport {
        StoreReport {
            name: name.to_owned(),
            observed_generation: 1,
            ready,
            message: String::new(),
            capacity: Some(1000),
            available: Some(available),
            probed_at: Time(Timestamp::now()),
        }
    }

    #[test]
    fn only_news_is_written() {
        let last = [report("a", true, 500)];
        assert!(!is_news(&last, &[report("a", true, 495)]), "half a percent is noise, and so is the time");
        assert!(is_news(&last, &[report("a", true, 400)]));
        assert!(is_news(&last, &[report("a", false, 500)]));
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
        let steps = [
            (Event::Init, false),
            (Event::InitApply(store("a", 1)), false),
            (Event::InitDone, true),
            (Event::Apply(store("a", 1)), false),
            (Event::Apply(store("a", 2)), true),
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
}
