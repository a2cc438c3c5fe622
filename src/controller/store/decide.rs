//! How an ImageStore stands, from what the agents report. Pure.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::ResourceExt as _;
use tokio::time::Instant;

use crate::{
    api::{
        Image, ImageStore, ImageStoreStatus, NodeReach, StoreCapacity, StoreReport,
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
    /// The Images that have data there, `namespace/name`.
    pub users: &'a [String],
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

/// Decides.
pub fn decide(seen: &Observed<'_>) -> Decision {
    let store = seen.store;
    let before = store.status.clone().unwrap_or_default();
    let reach = Reach::of(seen);
    let is_default = default_store(seen.stores).is_some_and(|first| first.name_any() == store.name_any());
    let (health, released) = health(seen, &reach, is_default);
    let generation = store.metadata.generation.unwrap_or_default();
    let mut conditions = health.conditions(generation, &before.conditions, seen.now);
    let (writable, reason, message) = writable(store, &reach);
    conditions.push(condition(types::WRITABLE, writable, reason, message, generation, &before.conditions, seen.now));
    let status = ImageStoreStatus {
        observed_generation: Some(generation),
        type_: store.spec.filesystem.as_ref().map(|_| "filesystem".to_owned()),
        default: is_default,
        capacity: reach.capacity(store),
        images: i64::try_from(seen.users.len()).unwrap_or(i64::MAX),
        last_probe: reach.ready.iter().map(|(_, report)| report.probed_at.clone()).max(),
        nodes: Some(reach.summary()),
        conditions,
    };
    Decision { events: transitions(&before, &status, &health), status, released }
}

/// The live agents that ought to reach a store, by what they say of it.
struct Reach<'a> {
    ready: Vec<(&'a str, &'a StoreReport)>,
    unready: Vec<(&'a str, &'a StoreReport)>,
    silent: Vec<&'a str>,
}

impl<'a> Reach<'a> {
    fn of(seen: &Observed<'a>) -> Self {
        let mut reach = Self { ready: Vec::new(), unready: Vec::new(), silent: Vec::new() };
        let name = seen.store.name_any();
        for node in seen.fleet.live_matching(&seen.store.spec.node_selector, seen.at) {
            match seen.fleet.report(node, &name) {
                Some(report) if report.ready => reach.ready.push((node, report)),
                Some(report) => reach.unready.push((node, report)),
                None => reach.silent.push(node),
            }
        }
        reach
    }

    fn all(&self) -> usize {
        self.ready.len() + self.unready.len() + self.silent.len()
    }

    fn problems(&self) -> Vec<String> {
        let reported = self.unready.iter().map(|(node, report)| format!("{node}: {}", report.message));
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
        let shared = store.spec.filesystem.as_ref().is_some_and(|backend| backend.shared);
        let (total, available) = if shared {
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

fn writable(store: &ImageStore, reach: &Reach<'_>) -> (&'static str, &'static str, &'static str) {
    if store.spec.read_only {
        ("False", reasons::READ_ONLY, "spec.readOnly is set: nothing new is kept here")
    } else if reach.ready.is_empty() {
        ("False", reasons::UNREACHABLE, "no agent reaches it")
    } else {
        ("True", reasons::SUCCEEDED, "takes new images")
    }
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
mod tests {
    use k8s_openapi::{
        api::coordination::v1::{Lease, LeaseSpec},
        apimachinery::pkg::apis::meta::v1::{MicroTime, Time},
    };

    use super::*;
    use crate::{api::identity, controller::image::testing};

    fn fleet(nodes: &[&str]) -> Fleet {
        let mut fleet = Fleet::new(Instant::now(), Duration::from_secs(40));
        for node in nodes {
            let mut lease = Lease::default();
            lease.metadata.name = Some(identity::agent_lease_name(node));
            lease.metadata.annotations = Some([(identity::ANNOTATION_NODE.to_owned(), (*node).to_owned())].into());
            lease.spec = Some(LeaseSpec { renew_time: Some(MicroTime(Timestamp::now())), ..LeaseSpec::default() });
            fleet.observe_lease(&lease, Instant::now(), Timestamp::now());
        }
        fleet
    }

    fn report(ready: bool, available: i64) -> StoreReport {
        StoreReport {
            name: "fast".into(),
            observed_generation: 1,
            ready,
            message: if ready { String::new() } else { "/srv/fast: no such folder".into() },
            capacity: Some(100),
            available: Some(available),
            probed_at: Time(Timestamp::now()),
        }
    }

    fn look(store: &ImageStore, fleet: &Fleet, users: &[String]) -> Decision {
        let stores = [Arc::new(store.clone())];
        let now = Timestamp::now();
        decide(&Observed { store, stores: &stores, users, fleet, now, at: Instant::now() })
    }

    fn ready(decision: &Decision) -> (String, String, String) {
        let c = find(&decision.status.conditions, types::READY).unwrap();
        (c.status.clone(), c.reason.clone(), c.message.clone())
    }

    #[test]
    fn ready_follows_the_agents_reports() {
        let store = testing::store("fast");
        let mut agents = fleet(&["a", "b"]);
        assert_eq!(ready(&look(&store, &fleet(&[]), &[])).1, reasons::WAITING);
        assert_eq!(ready(&look(&store, &agents, &[])).1, reasons::PROGRESSING);
        agents.observe_reports("a", Some(&[report(false, 0)]));
        let decision = look(&store, &agents, &[]);
        assert_eq!(ready(&decision).1, reasons::UNREACHABLE);
        assert!(ready(&decision).2.contains("a: /srv/fast: no such folder"));
        agents.observe_reports("a", Some(&[report(true, 40)]));
        agents.observe_reports("b", Some(&[report(true, 30)]));
        let decision = look(&store, &agents, &[]);
        assert_eq!(ready(&decision).0, "True");
        assert_eq!(decision.status.capacity.as_ref().unwrap().available, 70);
        assert_eq!(decision.status.nodes.as_ref().unwrap().reachable, 2);
        assert_eq!(decision.events.len(), 1);
    }

    #[test]
    fn a_shared_folder_is_counted_once() {
        let mut store = testing::store("fast");
        store.spec.filesystem.as_mut().unwrap().shared = true;
        let mut agents = fleet(&["a", "b"]);
        agents.observe_reports("a", Some(&[report(true, 40)]));
        agents.observe_reports("b", Some(&[report(true, 39)]));
        let capacity = look(&store, &agents, &[]).status.capacity.unwrap();
        assert_eq!((capacity.total, capacity.available), (100, 39));
    }

    #[test]
    fn deletion_waits_for_images_and_names_them() {
        let mut store = testing::store("fast");
        let long_ago = Timestamp::now().checked_sub(jiff::SignedDuration::from_secs(60)).unwrap();
        store.metadata.deletion_timestamp = Some(Time(long_ago));
        let users: Vec<_> = (0..7).map(|n| format!("tenant/image-{n}")).collect();
        let decision = look(&store, &fleet(&[]), &users);
        assert!(!decision.released);
        let (status, reason, message) = ready(&decision);
        assert_eq!((status.as_str(), reason.as_str()), ("False", reasons::IN_USE));
        assert!(
            message.contains("7 Images") && message.contains("tenant/image-0") && message.contains("and 2 more"),
            "{message}"
        );
        assert!(look(&store, &fleet(&[]), &[]).released);
        store.metadata.deletion_timestamp = Some(Time(Timestamp::now()));
        assert!(
            !look(&store, &fleet(&[]), &[]).released,
            "an import decided on a moment ago must have time to be written down"
        );
    }

    #[test]
    fn of_two_defaults_the_newer_says_so() {
        let [mut old, mut new] = [testing::store("old"), testing::store("fast")];
        for (store, seconds) in [(&mut old, 100), (&mut new, 200)] {
            store.spec.default = true;
            store.metadata.creation_timestamp = Timestamp::from_second(seconds).ok().map(Into::into);
        }
        let mut agents = fleet(&["a"]);
        agents.observe_reports("a", Some(&[report(true, 1)]));
        let stores = [Arc::new(old), Arc::new(new.clone())];
        let now = Timestamp::now();
        let decision =
            decide(&Observed { store: &new, stores: &stores, users: &[], fleet: &agents, now, at: Instant::now() });
        assert!(!decision.status.default);
        assert!(ready(&decision).2.contains("ImageStore old says so too and is older"));
    }

    #[test]
    fn read_only_stores_are_ready_and_not_writable() {
        let mut store = testing::store("fast");
        store.spec.read_only = true;
        let mut agents = fleet(&["a"]);
        agents.observe_reports("a", Some(&[report(true, 1)]));
        let decision = look(&store, &agents, &[]);
        assert_eq!(ready(&decision).0, "True");
        assert_eq!(find(&decision.status.conditions, types::WRITABLE).unwrap().reason, reasons::READ_ONLY);
    }
}
