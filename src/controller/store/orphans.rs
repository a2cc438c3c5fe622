//! Data that no Image knows: found by holding what agents list against the Images, and removed when it is old enough.
//!
//! An Image's data goes with it by its finalizer, so this is for Images whose finalizer was taken off by force, for those that were lost
//! with the cluster's memory, and for what agents left behind that were killed at the wrong moment. What Vitrine did not name is none
//! of its business. All Images of the cluster count, whoever serves them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, Resource as _, ResourceExt as _, api::ListParams};
use tokio::time::Instant;

use crate::{
    api::{
        Action, DeleteOrder, HIGHEST_ATTEMPT, Image, ImageIdentity, ImageStore, ImageTask, ImageTaskSpec, Orphans,
        StoreRef, TaskPhase, condition::events, identity,
    },
    controller::{context::Context, fleet::Demand},
    kube::{Doing as _, Result, event::Happening},
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

/// What status says of `orphans`.
pub fn describe(orphans: &[Orphan]) -> Option<Orphans> {
    let name = |orphan: &Orphan| {
        let node = orphan.node.as_ref().map(|node| format!(" on node {node}")).unwrap_or_default();
        format!("{}-r{}{node}", orphan.uid, orphan.revision)
    };
    let names = orphans.iter().take(NAMED).map(name).collect();
    let count = i64::try_from(orphans.len()).unwrap_or(i64::MAX);
    (count > 0).then_some(Orphans { count, names })
}

/// Looks for orphans for ever.
pub async fn collect(context: Arc<Context>) {
    loop {
        tokio::time::sleep(context.settings.sweep_interval).await;
        if let Err(error) = look(&context).await {
            tracing::warn!(%error, "looking for data that no Image knows");
        }
    }
}

async fn look(context: &Context) -> Result<()> {
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
    for store in &stores {
        let mut orphans = listed.get(&store.name_any()).cloned().unwrap_or_default();
        orphans.retain(|object| !known.has(object));
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
    orphans: &[Orphan],
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
    let old = orphans.iter().filter(|orphan| is_old(orphan, context.settings.orphan_grace));
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

/// Whether it has been there for so long that whoever made it would have said so.
pub fn is_old(orphan: &Orphan, grace: Duration) -> bool {
    u64::try_from(orphan.age).is_ok_and(|age| age >= grace.as_secs())
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
        api::{Cleanup, ImageStatus},
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

    #[test]
    fn only_what_is_old_is_removed_and_the_first_are_named() {
        let grace = Duration::from_secs(100);
        assert!(!is_old(&orphan("u", 1, 99), grace) && is_old(&orphan("u", 1, 100), grace));
        let many: Vec<_> = (0..12).map(|n| orphan(&format!("u{n:02}"), 1, 0)).collect();
        let told = describe(&many).unwrap();
        assert_eq!((told.count, told.names.len(), told.names[0].as_str()), (12, 10, "u00-r1"));
        assert!(describe(&[]).is_none());
    }
}
