//! How an ImageStore stands, from what the agents report. Pure.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::ResourceExt as _;
use tokio::time::Instant;

use super::folder;
use crate::{
    api::{
        Image, ImageStore, ImageStoreStatus, NodeReach, Orphans, StoreCapacity, StoreReport,
        condition::{events, reasons, types},
    },
    controller::{
        fleet::Fleet,
        image::{decide::human_size, validate::default_store},
    },
    kube::{
        condition::{Health, condition, find},
        event::Happening,
    },
};

/// How many Images a message names.
const NAMED_IMAGES: usize = 5;
/// How many nodes a message names.
const NAMED_NODES: usize = 5;
/// How many problems status lists; its schema allows as many.
const LISTED_PROBLEMS: usize = 32;
/// How long a store that is being deleted is kept at least: an Image that was decided on a moment before is written down by then.
const DELETION_GRACE: Duration = Duration::from_secs(3);

/// All that is known when a decision is made.
#[derive(Debug)]
pub struct Observed<'a> {
    /// The store, as read just now.
    pub store: &'a ImageStore,
    /// All stores.
    pub stores: &'a [Arc<ImageStore>],
    /// The Images that have data there, or may have some, `namespace/name`.
    pub users: &'a [String],
    /// How many Images have a copy there.
    pub held: usize,
    /// What it holds that no Image knows.
    pub orphans: Option<Orphans>,
    /// The agents and their reports.
    pub fleet: &'a Fleet,
    /// The time of day.
    pub now: Timestamp,
    /// The time that runs evenly.
    pub at: Instant,
}

/// What to do.
#[derive(Debug)]
pub struct Decision {
    /// The status to write.
    pub status: ImageStoreStatus,
    /// What to tell people.
    pub events: Vec<Happening>,
    /// Deleting, and nothing is held there.
    pub released: bool,
}

/// Whether an Image has, or is about to have, data in a store.
pub fn uses_store(image: &Image, store: &str) -> bool {
    let Some(status) = &image.status else { return false };
    status.revisions.iter().flat_map(|revision| &revision.locations).any(|location| location.store == store)
        || status.revisions.iter().flat_map(|revision| &revision.tried).any(|tried| tried == store)
        || status.cleanup.iter().any(|item| item.store == store)
        || status
            .attempt
            .as_ref()
            .is_some_and(|attempt| attempt.node.is_some() && attempt.stores.iter().any(|s| s == store))
}

/// Whether an Image has a copy in a store, or had one that has rotted and is still there.
pub fn is_held_in(image: &Image, store: &str) -> bool {
    let revisions = image.status.iter().flat_map(|status| &status.revisions);
    revisions.flat_map(|revision| &revision.locations).any(|location| location.store == store)
}

/// Decides.
pub fn decide(seen: &Observed<'_>) -> Decision {
    let store = seen.store;
    let before = store.status.clone().unwrap_or_default();
    let id = shared_id(seen, &before);
    let reach = Reach::of(seen, id.as_deref());
    let is_default = default_store(seen.stores).is_some_and(|first| first.name_any() == store.name_any());
    let (health, released) = health(seen, &reach, is_default);
    let generation = store.metadata.generation.unwrap_or_default();
    let mut conditions = health.conditions(generation, &before.conditions, seen.now);
    let (writable, reason, message) = writable(seen, &reach);
    conditions.push(condition(types::WRITABLE, writable, reason, &message, generation, &before.conditions, seen.now));
    let status = ImageStoreStatus {
        observed_generation: Some(generation),
        type_: store.spec.backend.kind().map(str::to_owned),
        id,
        default: is_default,
        lister: lister(seen, &reach, &before),
        orphans: seen.orphans.clone(),
        capacity: reach.capacity(store),
        images: i64::try_from(seen.held).unwrap_or(i64::MAX),
        last_probe: reach.ready.iter().map(|(_, report)| report.probed_at.clone()).max(),
        nodes: Some(reach.summary()),
        conditions,
    };
    Decision { events: transitions(&before, &status, &health), status, released }
}

/// Which store it is, if it is one and the same everywhere: what the first agent found that reached it. Never changed afterwards, for
/// the images are in that one.
fn shared_id(seen: &Observed<'_>, before: &ImageStoreStatus) -> Option<String> {
    if !is_shared(seen.store) || before.id.is_some() || folder::is_taken(seen.store, seen.stores).is_some() {
        return before.id.clone();
    }
    let reach = Reach::of(seen, None);
    let first = reach.ready.iter().filter(|(_, report)| report.id.is_some());
    first.min_by_key(|(node, report)| (report.probed_at.0, *node)).and_then(|(_, report)| report.id.clone())
}

/// Who lists what a shared store holds: one node is enough. It stays the same while it can.
fn lister(seen: &Observed<'_>, reach: &Reach<'_>, before: &ImageStoreStatus) -> Option<String> {
    let mut ready = reach.ready.iter().map(|(node, _)| *node).filter(|_| is_shared(seen.store));
    let same = ready.clone().find(|node| before.lister.as_deref() == Some(*node));
    same.or_else(|| ready.next()).map(str::to_owned)
}

fn is_shared(store: &ImageStore) -> bool {
    store.spec.backend.is_shared()
}

/// The live agents that ought to reach a store, by what they say of it.
struct Reach<'a> {
    ready: Vec<(&'a str, &'a StoreReport)>,
    /// Each with why it does not reach it.
    unready: Vec<(&'a str, String)>,
    silent: Vec<&'a str>,
}

impl<'a> Reach<'a> {
    /// `id` is which store every node must find.
    fn of(seen: &Observed<'a>, id: Option<&str>) -> Self {
        let mut reach = Self { ready: Vec::new(), unready: Vec::new(), silent: Vec::new() };
        let name = seen.store.name_any();
        for node in seen.fleet.live_matching(&seen.store.spec.node_selector, seen.at) {
            match seen.fleet.report(node, &name) {
                // Of a store that was deleted and made anew under the same name.
                Some(report) if report.uid.is_some() && report.uid != seen.store.metadata.uid => {
                    reach.silent.push(node);
                }
                Some(report) if !report.ready => reach.unready.push((node, report.message.clone())),
                Some(report) => match (id, report.id.as_deref()) {
                    (Some(id), Some(found)) if found != id => reach.unready.push((node, instead(found, id))),
                    _ => reach.ready.push((node, report)),
                },
                None => reach.silent.push(node),
            }
        }
        reach
    }

    fn all(&self) -> usize {
        self.ready.len() + self.unready.len() + self.silent.len()
    }

    fn problems(&self) -> Vec<String> {
        let reported = self.unready.iter().map(|(node, why)| format!("{node}: {why}"));
        let silent = self.silent.iter().map(|node| format!("{node}: has not reported yet"));
        reported.chain(silent).take(LISTED_PROBLEMS).map(|text| text.chars().take(1024).collect()).collect()
    }

    fn summary(&self) -> NodeReach {
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        NodeReach {
            reachable: count(self.ready.len()),
            unreachable: count(self.all().saturating_sub(self.ready.len())),
            problems: self.problems(),
        }
    }

    /// One folder seen from everywhere has the room that any node sees; folders of their own add up.
    fn capacity(&self, store: &ImageStore) -> Option<StoreCapacity> {
        let known = self.ready.iter().filter_map(|(_, report)| Some((report.capacity?, report.available?)));
        let (total, available) = if is_shared(store) {
            known.min_by_key(|(_, available)| *available)?
        } else {
            known.reduce(|a, b| (a.0.saturating_add(b.0), a.1.saturating_add(b.1)))?
        };
        Some(StoreCapacity { total, available, display: format!("{} of {}", human_size(available), human_size(total)) })
    }
}

fn health(seen: &Observed<'_>, reach: &Reach<'_>, is_default: bool) -> (Health, bool) {
    if let Some(since) = &seen.store.metadata.deletion_timestamp {
        let age: Duration = seen.now.duration_since(since.0).try_into().unwrap_or(Duration::ZERO);
        return match in_use(seen.users) {
            Some(message) => (Health::Deleting(reasons::IN_USE, message), false),
            None => (Health::Deleting(reasons::DELETING, "nothing is kept here".into()), age >= DELETION_GRACE),
        };
    }
    if let Some(why) = folder::is_taken(seen.store, seen.stores) {
        return (Health::Stalled(reasons::INVALID_CONFIGURATION, why), false);
    }
    let (ready, all) = (reach.ready.len(), reach.all());
    let health = if ready > 0 {
        let note = second_default(seen, is_default);
        Health::Current(format!("{ready} of {all} agents reach it{note}"))
    } else if !reach.unready.is_empty() {
        Health::Hindered(reasons::UNREACHABLE, format!("no agent reaches it: {}", reach.problems().join("; ")))
    } else if all > 0 {
        Health::Progressing(format!("waits for the first report of {all} agents"))
    } else if seen.store.spec.node_selector.is_empty() {
        Health::Hindered(reasons::WAITING, "no agent is alive: is the agents' DaemonSet running?".into())
    } else {
        let message =
            "no live agent is on a node with the labels of nodeSelector: label a node, or change nodeSelector";
        Health::Hindered(reasons::WAITING, message.into())
    };
    (health, false)
}

fn in_use(users: &[String]) -> Option<String> {
    let more = users.len().saturating_sub(NAMED_IMAGES);
    let named = users.iter().take(NAMED_IMAGES).cloned().collect::<Vec<_>>().join(", ");
    let rest = if more == 0 { String::new() } else { format!(" and {more} more") };
    (!users.is_empty()).then(|| {
        format!("deletion waits for {} Images that keep data here: {named}{rest}; delete them, or name other stores in them", users.len())
    })
}

/// Two stores that say they are the default: the newer one says who is.
fn second_default(seen: &Observed<'_>, is_default: bool) -> String {
    if !seen.store.spec.default || is_default {
        return String::new();
    }
    let first = default_store(seen.stores).map(|store| store.name_any()).unwrap_or_default();
    format!("; it is not the default, though it says so, because ImageStore {first} says so too and is older")
}

fn writable(seen: &Observed<'_>, reach: &Reach<'_>) -> (&'static str, &'static str, String) {
    let store = seen.store;
    if store.metadata.deletion_timestamp.is_some() {
        ("False", reasons::DELETING, "it is being deleted: nothing new is kept here".to_owned())
    } else if let Some(why) = folder::is_taken(store, seen.stores) {
        ("False", reasons::INVALID_CONFIGURATION, why)
    } else if store.spec.read_only {
        ("False", reasons::READ_ONLY, "spec.readOnly is set: nothing new is kept here".to_owned())
    } else if reach.ready.is_empty() {
        ("False", reasons::UNREACHABLE, "no agent reaches it".to_owned())
    } else if reach.ready.iter().all(|(_, report)| report.read_only) {
        ("False", reasons::READ_ONLY, may_not_write(reach))
    } else if reach.ready.iter().all(|(_, report)| report.read_only || report.available == Some(0)) {
        ("False", reasons::NO_SPACE, full(store, reach))
    } else {
        ("True", reasons::SUCCEEDED, "takes new images".to_owned())
    }
}

fn may_not_write(reach: &Reach<'_>) -> String {
    let named = reach.ready.iter().take(NAMED_NODES).map(|(node, report)| format!("{node}: {}", report.message));
    let named = named.collect::<Vec<_>>().join("; ");
    format!("no agent may write to it: {named}. What is kept stays readable")
}

fn full(store: &ImageStore, reach: &Reach<'_>) -> String {
    let place = store.spec.backend.place().unwrap_or("its back end");
    let nodes = reach.ready.iter().take(NAMED_NODES).map(|(node, _)| *node).collect::<Vec<_>>().join(", ");
    let more = reach.ready.len().saturating_sub(NAMED_NODES);
    let rest = if more == 0 { String::new() } else { format!(" and {more} more") };
    let said = reach.ready.iter().map(|(_, report)| report.message.as_str()).find(|message| !message.is_empty());
    let advice = said.unwrap_or("delete Images that are kept here, enlarge the volume, or name another store");
    format!("no room is left in {place} on {nodes}{rest}: {advice}. What is kept stays readable and can be removed")
}

fn instead(found: &str, expected: &str) -> String {
    format!("holds store {found} instead of {expected}: is its volume mounted there?")
}

fn transitions(before: &ImageStoreStatus, after: &ImageStoreStatus, health: &Health) -> Vec<Happening> {
    let status = |s: &ImageStoreStatus| find(&s.conditions, types::READY).map(|c| c.status.clone());
    let (was, is) = (status(before), status(after));
    match is.as_deref() {
        Some("True") if was != is => vec![Happening::normal(events::STORE_READY, "Probe", health.message())],
        Some("False") if was.as_deref() == Some("True") => {
            vec![Happening::warning(events::STORE_NOT_READY, "Probe", health.message())]
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
