//! Data that no Image knows: found by holding what agents list against the Images, and removed when it has been that for long enough.
//!
//! An Image's data goes with it by its finalizer, so this is for Images whose finalizer was taken off by force, for those that were lost
//! with the cluster's memory, and for what agents left behind that were killed at the wrong moment. What Vitrine did not name is none
//! of its business. All Images of the cluster count, whoever serves them.
//!
//! The time of grace counts from when this was found, not from when the data was stored: who has lost Images, or restores them from a
//! copy under other uids, has all of it to notice.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::{Api, Resource as _, ResourceExt as _, api::ListParams};
use tokio::time::Instant;

use crate::{
    api::{
        Action, DeleteOrder, HIGHEST_ATTEMPT, Image, ImageIdentity, ImageStore, ImageTask, ImageTaskSpec, Orphans,
        StoreRef, TaskPhase, condition::events, identity,
    },
    controller::{context::Context, fleet::Demand},
    kube::{Doing as _, Result, condition::whole_seconds, event::Happening},
};

/// How many orphans status names, by its schema.
const NAMED: usize = 10;
/// How many removals are under way at once for one store.
const AT_ONCE: usize = 4;

/// One object that no Image knows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Orphan {
    /// The Image's uid.
    pub uid: String,
    /// The revision.
    pub revision: i64,
    /// The node whose disk holds it; none if the store is one and the same everywhere.
    pub node: Option<String>,
    /// For how long it has not been changed, in seconds.
    pub age: i64,
}

impl Orphan {
    /// What status calls it.
    fn name(&self) -> String {
        let node = self.node.as_ref().map(|node| format!(" on node {node}")).unwrap_or_default();
        format!("{}-r{}{node}", self.uid, self.revision)
    }
}

/// Since when each orphan has been known to be one, by store and name.
#[derive(Debug, Default)]
pub struct Found(BTreeMap<(String, String), Timestamp>);

impl Found {
    /// Notes `orphans`, which are all that `store` has now, and forgets its other ones. Gives them with their times, the longest known
    /// first. What was not known here and stands in status was found by an earlier leader, which wrote down when.
    pub fn note(&mut self, store: &ImageStore, orphans: Vec<Orphan>, now: Timestamp) -> Vec<(Timestamp, Orphan)> {
        let uid = store.uid().unwrap_or_default();
        let told = store.status.as_ref().and_then(|status| status.orphans.as_ref());
        let since = |name: &str| {
            let told = told.filter(|told| told.names.iter().any(|told| told == name));
            told.and_then(|told| told.since.as_ref()).map_or(now, |since| since.0.min(now))
        };
        let time = |orphan: Orphan| {
            let name = orphan.name();
            let found = self.0.get(&(uid.clone(), name.clone())).copied();
            (found.unwrap_or_else(|| since(&name)), orphan)
        };
        let mut all: Vec<_> = orphans.into_iter().map(time).collect();
        all.sort();
        self.0.retain(|(store, _), _| *store != uid);
        self.0.extend(all.iter().map(|(since, orphan)| ((uid.clone(), orphan.name()), *since)));
        all
    }

    /// Forgets stores that are no more.
    fn forget_all_but(&mut self, stores: &[Arc<ImageStore>]) {
        let there: BTreeSet<_> = stores.iter().filter_map(|store| store.uid()).collect();
        self.0.retain(|(store, _), _| there.contains(store));
    }
}

/// What is known to be somebody's: uids and revisions.
#[derive(Debug, Default)]
pub struct Known(BTreeSet<(String, i64)>);

impl Known {
    /// What `images` and `tasks` speak of.
    pub fn of(images: &[Image], tasks: &[ImageTask]) -> Self {
        let mut known = BTreeSet::new();
        for image in images {
            let uid = image.uid().unwrap_or_default();
            let Some(status) = &image.status else { continue };
            let kept = status.revisions.iter().map(|revision| revision.number);
            let leaving = status.cleanup.iter().map(|item| item.revision);
            known.extend(kept.chain(leaving).map(|number| (uid.clone(), number)));
        }
        known.extend(tasks.iter().map(|task| (task.spec.image.uid.clone(), task.spec.revision)));
        Self(known)
    }

    fn has(&self, orphan: &Orphan) -> bool {
        self.0.contains(&(orphan.uid.clone(), orphan.revision))
    }
}

/// What status says of `orphans`, the longest known of which come first.
pub fn describe(orphans: &[(Timestamp, Orphan)]) -> Option<Orphans> {
    let named = orphans.get(..NAMED).unwrap_or(orphans);
    let names = named.iter().map(|(_, orphan)| orphan.name()).collect();
    let since = named.iter().map(|(since, _)| *since).max().map(Time);
    let count = i64::try_from(orphans.len()).unwrap_or(i64::MAX);
    (count > 0).then_some(Orphans { count, since, names })
}

/// Looks for orphans for ever.
pub async fn collect(context: Arc<Context>) {
    let mut found = Found::default();
    loop {
        tokio::time::sleep(context.settings.sweep_interval).await;
        if let Err(error) = look(&context, &mut found).await {
            tracing::warn!(%error, "looking for data that no Image knows");
        }
    }
}

async fn look(context: &Context, found: &mut Found) -> Result<()> {
    let stores = context.stores.state();
    let listed: BTreeMap<_, _> = stores.iter().map(|store| (store.name_any(), objects(context, store))).collect();
    // Most of the time everything listed is known from the caches, and nothing need be read.
    let cached: Vec<Image> =
        context.images.iter().flat_map(kube::runtime::reflector::Store::state).map(|image| (*image).clone()).collect();
    let tasks: Api<ImageTask> = Api::namespaced(context.client.clone(), &context.settings.namespace);
    let all = tasks.list(&ListParams::default()).await.doing(|| "list tasks")?.items;
    let (ours, others): (Vec<_>, Vec<_>) = all.into_iter().partition(is_ours);
    let mut known = Known::of(&cached, &others);
    if listed.values().flatten().any(|object| !known.has(object)) {
        // Read after the listings were taken, so nothing looks forsaken whose Image came in between.
        let images: Api<Image> = Api::all(context.client.clone());
        let images = images.list(&ListParams::default()).await.doing(|| "list Images")?.items;
        known = Known::of(&images, &others);
    }
    found.forget_all_but(&stores);
    for store in &stores {
        let mut orphans = listed.get(&store.name_any()).cloned().unwrap_or_default();
        orphans.retain(|object| !known.has(object));
        let orphans = found.note(store, orphans, whole_seconds(Timestamp::now()));
        context.note_orphans(&store.name_any(), describe(&orphans));
        remove(context, &tasks, store, &orphans, &ours).await?;
    }
    Ok(())
}

/// What agents have listed of `store`.
fn objects(context: &Context, store: &ImageStore) -> Vec<Orphan> {
    let (local, name, now) = (store.spec.backend.is_local(), store.name_any(), Timestamp::now());
    context.with_fleet(|fleet| {
        let nodes: Vec<_> = fleet.live_matching(&store.spec.node_selector, Instant::now());
        let mut all = BTreeMap::new();
        for node in nodes {
            let Some(report) = fleet.report(node, &name).filter(|report| report.uid == store.metadata.uid) else {
                continue;
            };
            let Some(page) = &report.listing else { continue };
            let passed = now.duration_since(page.taken_at.0).as_secs().max(0);
            for held in &page.entries {
                let node = local.then(|| node.to_owned());
                let age = held.age_seconds.saturating_add(passed);
                let orphan = Orphan { uid: held.uid.clone(), revision: held.revision, node, age };
                all.insert((orphan.uid.clone(), orphan.revision, orphan.node.clone()), orphan);
            }
        }
        all.into_values().collect()
    })
}

fn is_ours(task: &ImageTask) -> bool {
    task.labels().contains_key(identity::LABEL_ORPHAN)
}

/// Orders away what is old enough, a few at a time, and lets go of orders that have ended.
async fn remove(
    context: &Context,
    tasks: &Api<ImageTask>,
    store: &ImageStore,
    orphans: &[(Timestamp, Orphan)],
    ours: &[ImageTask],
) -> Result<()> {
    let name = store.name_any();
    let mut open = BTreeSet::new();
    for task in ours.iter().filter(|task| task.spec.stores().any(|found| found == name)) {
        let phase = task.status.as_ref().and_then(|status| status.phase).unwrap_or_default();
        let lost = context.with_fleet(|fleet| {
            fleet.liveness(&task.spec.node_name, Instant::now()) == crate::controller::fleet::Liveness::Gone
        });
        if phase == TaskPhase::Succeeded {
            let note = format!("{}-r{}, which no Image knew, was removed", task.spec.image.uid, task.spec.revision);
            let event = Happening::normal(events::ORPHAN_REMOVED, "Collect", note);
            context.events.publish(&store.object_ref(&()), &event).await;
        }
        if phase.is_final() || lost {
            context.store_writer.delete(tasks, &task.name_any(), task.uid()).await?;
        } else {
            open.insert(task.name_any());
        }
    }
    if store.spec.read_only || store.metadata.deletion_timestamp.is_some() {
        return Ok(());
    }
    let (grace, now) = (context.settings.orphan_grace, Timestamp::now());
    let old = orphans.iter().filter(|(since, orphan)| is_old(orphan, *since, now, grace)).map(|(_, orphan)| orphan);
    for orphan in old.take(AT_ONCE.saturating_sub(open.len())) {
        if let Some(task) = order(context, store, orphan)
            && !open.contains(&task.name_any())
        {
            tracing::info!(store = name, ?orphan, "data that no Image knows is ordered away");
            context.store_writer.create(tasks, &task).await?;
        }
    }
    Ok(())
}

/// Whether it has been there for so long that whoever made it would have said so, and known to be nobody's for so long that whoever
/// misses it would have.
pub fn is_old(orphan: &Orphan, since: Timestamp, now: Timestamp, grace: Duration) -> bool {
    let known = now.duration_since(since).as_secs();
    u64::try_from(orphan.age.min(known)).is_ok_and(|age| age >= grace.as_secs())
}

fn order(context: &Context, store: &ImageStore, orphan: &Orphan) -> Option<ImageTask> {
    let name = store.name_any();
    let (node, store_id) = context.with_fleet(|fleet| {
        let demand = Demand {
            stores: vec![(name.as_str(), &store.spec.node_selector)],
            only: orphan.node.as_deref(),
            ..Demand::default()
        };
        let node = fleet.choose(&demand, Instant::now()).ok()?.node;
        let local = fleet.report(&node, &name).and_then(|report| report.id.clone());
        let shared = store.status.as_ref().and_then(|status| status.id.clone());
        let id = if store.spec.backend.is_local() { local } else { shared };
        Some((node, id))
    })?;
    let place = format!("orphan@{name}@{}", orphan.node.as_deref().unwrap_or_default());
    let target = StoreRef { name, store_id, backend: store.spec.backend.clone() };
    let spec = ImageTaskSpec {
        action: Action::Delete,
        image: ImageIdentity {
            namespace: context.settings.namespace.clone(),
            name: "orphan".to_owned(),
            uid: orphan.uid.clone(),
            generation: 0,
        },
        revision: orphan.revision,
        node_name: node,
        attempt: 1,
        import: None,
        copy: None,
        verify: None,
        delete: Some(DeleteOrder { stores: vec![target], fence: HIGHEST_ATTEMPT }),
        cancelled: false,
    };
    let metadata = ObjectMeta {
        name: Some(identity::task_name(&orphan.uid, orphan.revision, Action::Delete, Some(&place), 1)),
        // Not the label of an Image's tasks: no Image's controller has anything to do with it.
        labels: Some([(identity::LABEL_ORPHAN.to_owned(), "true".to_owned())].into()),
        ..ObjectMeta::default()
    };
    Some(ImageTask { metadata, spec, status: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::{Cleanup, ImageStatus, ImageStoreStatus},
        controller::image::testing,
    };

    fn orphan(uid: &str, revision: i64, age: i64) -> Orphan {
        Orphan { uid: uid.to_owned(), revision, node: None, age }
    }

    #[test]
    fn what_an_image_keeps_or_is_removing_is_known_and_nothing_else() {
        let mut image = testing::image();
        let item = Cleanup { revision: 3, store: "s".into(), node: None, attempt: 1 };
        image.status = Some(ImageStatus { cleanup: vec![item], ..ImageStatus::default() });
        let known = Known::of(&[image], &[]);
        assert!(known.has(&orphan(testing::UID, 3, 0)));
        assert!(!known.has(&orphan(testing::UID, 1, 0)) && !known.has(&orphan("other", 3, 0)));
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn only_what_is_old_and_has_long_been_known_is_removed() {
        let grace = Duration::from_secs(100);
        let is_old = |age, since| is_old(&orphan("u", 1, age), at(since), at(1000), grace);
        assert!(is_old(100, 900) && is_old(5000, 0));
        assert!(!is_old(99, 900) && !is_old(100, 901) && !is_old(5000, 2000));
    }

    #[test]
    fn the_longest_known_are_named_first() {
        let (mut found, store) = (Found::default(), ImageStore::new("s", serde_json::from_value(spec()).unwrap()));
        let of = |names: std::ops::Range<usize>| names.map(|n| orphan(&format!("u{n:02}"), 1, 0)).collect::<Vec<_>>();
        found.note(&store, of(5..7), at(10));
        let told = describe(&found.note(&store, of(0..12), at(20))).unwrap();
        assert_eq!((told.count, told.names.len()), (12, 10));
        assert_eq!(
            (told.names[0].as_str(), told.names[2].as_str(), told.since),
            ("u05-r1", "u00-r1", Some(Time(at(20))))
        );
        // What was away for a while begins anew.
        found.note(&store, of(0..6), at(30));
        let again = found.note(&store, of(5..7), at(40));
        assert_eq!(again.iter().map(|(since, _)| *since).collect::<Vec<_>>(), [at(10), at(40)]);
        assert!(describe(&[]).is_none());
    }

    #[test]
    fn a_new_leader_goes_on_with_what_the_last_one_wrote_down() {
        let mut store = ImageStore::new("s", serde_json::from_value(spec()).unwrap());
        let told = Orphans { count: 1, since: Some(Time(at(10))), names: vec!["u00-r1".to_owned()] };
        store.status = Some(ImageStoreStatus { orphans: Some(told), ..ImageStoreStatus::default() });
        let all = Found::default().note(&store, vec![orphan("u00", 1, 0), orphan("u01", 1, 0)], at(50));
        assert_eq!(all.iter().map(|(since, _)| *since).collect::<Vec<_>>(), [at(10), at(50)]);
    }

    fn spec() -> serde_json::Value {
        serde_json::json!({ "filesystem": { "path": "/var/lib/vitrine" } })
    }
}
