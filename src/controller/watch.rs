//! Follows what controllers do not own and yet depend on: tasks, agents' leases, nodes, their reports, stores. Feeds the fleet and rings
//! the bells. It decides nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt as _, pin_mut};
use jiff::Timestamp;
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Node};
use kube::{
    Api, Resource, ResourceExt,
    api::ListParams,
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt as _,
        reflector::{reflector, store::Writer},
        watcher::{self, Error, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};

use super::{
    context::Context,
    fleet::{Fleet, Liveness},
    image::validate,
};
use crate::api::{Image, ImageStore, ImageTask, NodeCache, condition::reasons, identity};

/// How often leases are looked at: an expiry is noticed this much late at worst.
const TICK: Duration = Duration::from_secs(1);
/// How long the API server may take to confirm an expiry before it counts as away.
const CONFIRM_WITHIN: Duration = Duration::from_secs(5);

/// One change to one object, or the end of a first or repeated full listing.
enum Change<K> {
    Present(K),
    Absent(K),
    /// Everything there is was listed; what was not among it is no more.
    Listed(Vec<K>),
}

/// Calls `act` for every change, for ever; `ready` fires after the first full listing.
async fn follow<K, S>(stream: S, mut act: impl FnMut(Change<K>), ready: oneshot::Sender<()>)
where
    S: futures::Stream<Item = watcher::Result<watcher::Event<K>>>,
    K: Clone + Debug,
{
    let (mut ready, mut listing) = (Some(ready), Vec::new());
    let stream = stream.default_backoff();
    pin_mut!(stream);
    while let Some(event) = stream.next().await {
        match event {
            Ok(watcher::Event::Init) => listing.clear(),
            Ok(watcher::Event::InitApply(object)) => listing.push(object),
            Ok(watcher::Event::InitDone) => {
                act(Change::Listed(std::mem::take(&mut listing)));
                // The receiver may have given up; then nobody waits.
                let _ = ready.take().map(|ready| ready.send(()));
            }
            Ok(watcher::Event::Apply(object)) => act(Change::Present(object)),
            Ok(watcher::Event::Delete(object)) => act(Change::Absent(object)),
            Err(error) => tracing::warn!(%error, "a watch broke off; it is begun again"),
        }
    }
}

/// Everything to follow, as one future that never ends, and what fires when all of it was listed once. `stores` is kept up to date:
/// it has a change before anybody is woken because of it.
pub fn follow_all(
    context: &Arc<Context>,
    stores: Writer<ImageStore>,
) -> (impl Future<Output = ()> + use<>, impl Future<Output = ()> + use<>) {
    let mut readies = Vec::new();
    let mut next = || {
        let (send, receive) = oneshot::channel();
        readies.push(receive);
        send
    };
    let (tasks, leases, nodes, reports, stores) = (
        tasks(Arc::clone(context), next()),
        leases(Arc::clone(context), next()),
        nodes(Arc::clone(context), next()),
        reports(Arc::clone(context), next()),
        follow_stores(Arc::clone(context), stores, next()),
    );
    let ticks = watch_leases_expire(Arc::clone(context));
    let all = async move {
        tokio::join!(tasks, leases, nodes, reports, stores, ticks);
    };
    let listed = async move {
        futures::future::join_all(readies).await;
    };
    (all, listed)
}

fn watch<K>(api: Api<K>, selector: &str) -> impl futures::Stream<Item = watcher::Result<watcher::Event<K>>> + use<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let config = watcher::Config::default();
    watcher(api, if selector.is_empty() { config } else { config.labels(selector) })
}

async fn tasks(context: Arc<Context>, ready: oneshot::Sender<()>) {
    let api: Api<ImageTask> = Api::namespaced(context.client.clone(), &context.settings.namespace);
    let ring = |task: &ImageTask| context.bells.image(&task.spec.image.namespace, &task.spec.image.name);
    let seen = |task: &ImageTask| {
        context.with_fleet(|fleet| fleet.observe_task(task));
        ring(task);
    };
    let act = |change| match change {
        Change::Present(task) => seen(&task),
        Change::Listed(tasks) => {
            tasks.iter().for_each(seen);
            let names = tasks.iter().map(ResourceExt::name_any).collect();
            let vanished = context.with_fleet(|fleet| fleet.keep_tasks(&names));
            vanished.iter().for_each(|(namespace, name)| context.bells.image(namespace, name));
        }
        Change::Absent(task) => {
            context.with_fleet(|fleet| fleet.forget_task(&task.name_any()));
            ring(&task);
        }
    };
    follow(watch(api, ""), act, ready).await;
}

async fn leases(context: Arc<Context>, ready: oneshot::Sender<()>) {
    let api: Api<Lease> = Api::namespaced(context.client.clone(), &context.settings.namespace);
    let act = |change| {
        let (now, wall) = (Instant::now(), Timestamp::now());
        context.with_fleet(|fleet| match change {
            Change::Present(lease) => fleet.observe_lease(&lease, now, wall),
            Change::Absent(lease) => fleet.forget_lease(&lease, now),
            Change::Listed(leases) => fleet.observe_all_leases(&leases, now, wall),
        });
    };
    // An outage that ends before anybody is overdue makes agents late as well.
    let stream = watch(api, &agent_selector()).inspect(|event| {
        if let Err(Error::InitialListFailed(_) | Error::WatchStartFailed(_) | Error::WatchFailed(_)) = event {
            context.with_fleet(Fleet::note_outage);
        }
    });
    follow(stream, act, ready).await;
}

async fn nodes(context: Arc<Context>, ready: oneshot::Sender<()>) {
    let api: Api<PartialObjectMeta<Node>> = Api::all(context.client.clone());
    let labels = |node: &PartialObjectMeta<Node>| (node.name_any(), node.labels().clone());
    let act = |change: Change<PartialObjectMeta<Node>>| {
        let changed = context.with_fleet(|fleet| match change {
            Change::Present(node) => fleet.observe_labels(&node.name_any(), Some(labels(&node).1)),
            Change::Absent(node) => fleet.observe_labels(&node.name_any(), None),
            Change::Listed(nodes) => fleet.observe_all_labels(nodes.iter().map(labels).collect()),
        });
        if changed {
            context.ring_stores();
            context.ring_images(is_waiting);
        }
    };
    follow(watch(api, ""), act, ready).await;
}

async fn reports(context: Arc<Context>, ready: oneshot::Sender<()>) {
    let api: Api<NodeCache> = Api::all(context.client.clone());
    let note = |cache: &NodeCache, present: bool| {
        context.requests.observe(cache, &context.settings.namespace, present);
        let status = cache.status.as_ref().filter(|_| present);
        let reports = status.map(|status| status.stores.as_slice());
        let changed = context.with_fleet(|fleet| fleet.observe_reports(&cache.name_any(), reports));
        changed.iter().for_each(|store| context.bells.store(store));
        if !changed.is_empty() {
            context.ring_images(is_waiting);
        }
    };
    let act = |change| match change {
        Change::Present(cache) => note(&cache, true),
        Change::Absent(cache) => note(&cache, false),
        Change::Listed(caches) => {
            context.with_fleet(|fleet| fleet.keep_reports(&caches.iter().map(ResourceExt::name_any).collect()));
            caches.iter().for_each(|cache| note(cache, true));
        }
    };
    follow(watch(api, ""), act, ready).await;
}

/// What of a store matters to Images.
#[derive(PartialEq)]
struct StoreView {
    generation: Option<i64>,
    deleting: bool,
    prepared: bool,
    invalid: bool,
}

async fn follow_stores(context: Arc<Context>, known: Writer<ImageStore>, ready: oneshot::Sender<()>) {
    let api: Api<ImageStore> = Api::all(context.client.clone());
    let mut views: BTreeMap<String, StoreView> = BTreeMap::new();
    let act = |change: Change<ImageStore>| {
        let (changed, listed) = match change {
            Change::Present(store) => (vec![(store.name_any(), Some(view(&store)))], false),
            Change::Absent(store) => (vec![(store.name_any(), None)], false),
            Change::Listed(stores) => {
                (stores.iter().map(|store| (store.name_any(), Some(view(store)))).collect(), true)
            }
        };
        if listed {
            views.retain(|name, _| changed.iter().any(|(listed, _)| listed == name));
        }
        for (name, view) in changed {
            let same = views.get(&name) == view.as_ref();
            match view {
                Some(view) => views.insert(name.clone(), view),
                None => views.remove(&name),
            };
            if !same {
                context.ring_images(|image| depends_on(image, &name));
                // Which store is the default may have changed.
                context.ring_stores();
            }
        }
    };
    follow(reflector(known, watch(api, &context.settings.store_selector)), act, ready).await;
}

fn view(store: &ImageStore) -> StoreView {
    StoreView {
        generation: store.metadata.generation,
        deleting: store.metadata.deletion_timestamp.is_some(),
        prepared: store.finalizers().iter().any(|f| f == identity::FINALIZER),
        invalid: validate::invalid(store).is_some(),
    }
}

fn depends_on(image: &Image, store: &str) -> bool {
    let status = image.status.as_ref();
    let unsettled = status.is_none_or(|status| {
        status.cleanup.iter().any(|item| item.store == store) || status.locations.iter().any(|l| l.store == store)
    });
    let chosen =
        image.spec.all_stores || image.spec.stores.is_empty() || image.spec.stores.iter().any(|name| name == store);
    chosen || unsettled
}

/// Waits for an agent or for a store that answers.
fn is_waiting(image: &Image) -> bool {
    let conditions = image.status.iter().flat_map(|status| &status.conditions);
    let waits = conditions.into_iter().any(|c| c.reason == reasons::WAITING || c.reason == reasons::TRANSIENT_ERROR);
    waits || image.status.as_ref().is_none_or(|status| status.conditions.is_empty() || !status.cleanup.is_empty())
}

/// Works on `node`, keeps data there, or has some to remove there.
fn is_bound_to(image: &Image, node: &str) -> bool {
    nodes_of(image).any(|bound| bound == node)
}

fn nodes_of(image: &Image) -> impl Iterator<Item = &str> {
    image.status.iter().flat_map(|status| {
        let attempt = status.attempt.iter().filter_map(|attempt| attempt.node.as_deref());
        let cleanup = status.cleanup.iter().filter_map(|item| item.node.as_deref());
        let locations = status.revisions.iter().flat_map(|revision| &revision.locations);
        attempt.chain(cleanup).chain(locations.filter_map(|location| location.node.as_deref()))
    })
}

/// Notices that agents fall silent, which no watch tells, and that they are back.
async fn watch_leases_expire(context: Arc<Context>) {
    let mut known: BTreeMap<String, Liveness> = BTreeMap::new();
    let mut knew_all = false;
    loop {
        sleep(TICK).await;
        if context.with_fleet(|fleet| fleet.is_in_doubt(Instant::now())) && !confirm(&context).await {
            continue;
        }
        let now = liveness_of_all(&context, known.keys());
        let changed: Vec<_> = now.iter().filter(|(node, liveness)| known.get(*node) != Some(liveness)).collect();
        for (node, liveness) in &changed {
            tracing::info!(node, ?liveness, "agent");
            context
                .ring_images(|image| is_bound_to(image, node) || (**liveness == Liveness::Live && is_waiting(image)));
        }
        if !changed.is_empty() {
            context.ring_stores();
        }
        if !knew_all && context.with_fleet(|fleet| fleet.knows_all()) {
            // Nodes that were lost before we began are on no list: they are noticed now.
            knew_all = true;
            context.ring_images(|image| nodes_of(image).any(|node| !now.contains_key(node)));
        }
        known = now;
        known.retain(|_, liveness| *liveness != Liveness::Gone);
    }
}

/// Of all agents, and of those `known` before.
fn liveness_of_all<'k>(context: &Context, known: impl Iterator<Item = &'k String>) -> BTreeMap<String, Liveness> {
    let (at, mut nodes) = (Instant::now(), known.cloned().collect::<BTreeSet<_>>());
    context.with_fleet(|fleet| {
        nodes.extend(fleet.nodes().cloned());
        nodes.into_iter().map(|node| (node.clone(), fleet.liveness(&node, at))).collect()
    })
}

/// Reads the leases anew before anybody is declared lost: while the API server is away, nobody can renew, and no watch tells.
async fn confirm(context: &Context) -> bool {
    let asked = Instant::now();
    let api: Api<Lease> = Api::namespaced(context.client.clone(), &context.settings.namespace);
    let agents = ListParams::default().labels(&agent_selector());
    let Ok(Ok(leases)) = tokio::time::timeout(CONFIRM_WITHIN, api.list(&agents)).await else {
        tracing::warn!("the API server is away: agents get a full term from when it is back");
        context.with_fleet(Fleet::note_outage);
        return false;
    };
    context.with_fleet(|fleet| {
        fleet.observe_all_leases(&leases.items, Instant::now(), Timestamp::now());
        fleet.confirm(asked);
    });
    true
}

fn agent_selector() -> String {
    format!("{}=true", identity::LABEL_AGENT)
}

#[cfg(test)]
mod tests;
