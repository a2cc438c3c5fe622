//! What a store's status says, from what agents report.

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
        uid: None,
        id: None,
        ready,
        read_only: false,
        message: if ready { String::new() } else { "/srv/fast: no such folder".into() },
        capacity: Some(100),
        available: Some(available),
        probed_at: Time(Timestamp::now()),
        asked: None,
        listing: None,
    }
}

fn look(store: &ImageStore, fleet: &Fleet, users: &[String]) -> Decision {
    let stores = [Arc::new(store.clone())];
    let now = Timestamp::now();
    decide(&Observed { store, stores: &stores, users, held: 0, orphans: None, fleet, now, at: Instant::now() })
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
    store.spec.backend.filesystem.as_mut().unwrap().shared = true;
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

/// What is decided of `store`, which an agent reaches, while there is an `other` one.
fn look_beside(store: &ImageStore, other: ImageStore) -> Decision {
    let mut agents = fleet(&["a"]);
    agents.observe_reports("a", Some(&[report(true, 1)]));
    let stores = [Arc::new(other), Arc::new(store.clone())];
    decide(&Observed {
        store,
        stores: &stores,
        users: &[],
        held: 0,
        orphans: None,
        fleet: &agents,
        now: Timestamp::now(),
        at: Instant::now(),
    })
}

#[test]
fn of_two_defaults_the_newer_says_so() {
    let [mut old, mut new] = [testing::store("old"), testing::store("fast")];
    for (store, seconds) in [(&mut old, 100), (&mut new, 200)] {
        store.spec.default = true;
        store.metadata.creation_timestamp = Timestamp::from_second(seconds).ok().map(Into::into);
    }
    let decision = look_beside(&new, old);
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

fn writable(decision: &Decision) -> (String, String, String) {
    let c = find(&decision.status.conditions, types::WRITABLE).unwrap();
    (c.status.clone(), c.reason.clone(), c.message.clone())
}

#[test]
fn a_full_store_is_ready_and_not_writable() {
    let store = testing::store("fast");
    let mut agents = fleet(&["a", "b"]);
    agents.observe_reports("a", Some(&[report(true, 0)]));
    agents.observe_reports("b", Some(&[report(true, 0)]));
    let decision = look(&store, &agents, &[]);
    assert_eq!(ready(&decision).0, "True");
    let (status, reason, message) = writable(&decision);
    assert_eq!((status.as_str(), reason.as_str()), ("False", reasons::NO_SPACE));
    assert!(message.contains("/srv/fast on a, b: delete Images"), "{message}");
    assert_eq!(decision.status.capacity.unwrap().available, 0);
    let told = StoreReport { message: "raise the quota".into(), ..report(true, 0) };
    agents.observe_reports("b", Some(&[told]));
    let (_, _, message) = writable(&look(&store, &agents, &[]));
    assert!(message.contains("/srv/fast on a, b: raise the quota."), "what agents say is more precise: {message}");
    agents.observe_reports("b", Some(&[report(true, 1)]));
    assert_eq!(writable(&look(&store, &agents, &[])).0, "True", "one node has room");
}

#[test]
fn a_store_that_no_agent_may_write_to_is_ready_and_says_why() {
    let store = testing::store("fast");
    let mut agents = fleet(&["a", "b"]);
    let reader = StoreReport { read_only: true, message: "give client.x more rights".into(), ..report(true, 9) };
    agents.observe_reports("a", Some(&[reader]));
    let decision = look(&store, &agents, &[]);
    assert_eq!(ready(&decision).0, "True");
    let (status, reason, message) = writable(&decision);
    assert_eq!((status.as_str(), reason.as_str()), ("False", reasons::READ_ONLY));
    assert!(message.contains("a: give client.x more rights"), "{message}");
    agents.observe_reports("b", Some(&[report(true, 0)]));
    assert_eq!(writable(&look(&store, &agents, &[])).1, reasons::NO_SPACE, "the other is full");
    agents.observe_reports("b", Some(&[report(true, 9)]));
    assert_eq!(writable(&look(&store, &agents, &[])).0, "True", "another may");
}

#[test]
fn an_image_that_is_on_its_way_or_going_is_not_held() {
    let (mut image, has) = (testing::image(), |image: &Image| (is_held_in(image, "s"), uses_store(image, "s")));
    assert_eq!(has(&image), (false, false));
    let item = crate::api::Cleanup { revision: 1, store: "s".into(), node: None, attempt: 1 };
    image.status = Some(crate::api::ImageStatus { cleanup: vec![item], ..Default::default() });
    assert_eq!(has(&image), (false, true));
    let revision = serde_json::json!({
        "number": 1, "specHash": "x", "phase": "Importing", "attempts": 1, "tried": ["s"], "locations": [],
    });
    let mut revision: crate::api::Revision = serde_json::from_value(revision).unwrap();
    let status = |revision: &crate::api::Revision| {
        Some(crate::api::ImageStatus { revisions: vec![revision.clone()], ..Default::default() })
    };
    image.status = status(&revision);
    assert_eq!(has(&image), (false, true));
    revision.locations.push(crate::api::Location { store: "s".into(), ..Default::default() });
    image.status = status(&revision);
    assert_eq!(has(&image), (true, true));
}

#[test]
fn a_store_that_is_being_deleted_takes_nothing() {
    let mut store = testing::store("fast");
    store.metadata.deletion_timestamp = Some(Time(Timestamp::now()));
    let mut agents = fleet(&["a"]);
    agents.observe_reports("a", Some(&[report(true, 1)]));
    let (status, reason, _) = writable(&look(&store, &agents, &["tenant/image".to_owned()]));
    assert_eq!((status.as_str(), reason.as_str()), ("False", reasons::DELETING));
}

#[test]
fn a_store_in_the_folder_of_another_is_stalled() {
    let [mut old, mut new] = [testing::store("old"), testing::store("fast")];
    old.spec.backend.filesystem.clone_from(&new.spec.backend.filesystem);
    for (store, seconds) in [(&mut old, 100), (&mut new, 200)] {
        store.metadata.creation_timestamp = Timestamp::from_second(seconds).ok().map(Into::into);
    }
    let decision = look_beside(&new, old);
    let stalled = find(&decision.status.conditions, types::STALLED).unwrap();
    assert_eq!(stalled.reason, reasons::INVALID_CONFIGURATION);
    assert!(stalled.message.contains("is the folder of ImageStore old"), "{}", stalled.message);
    assert_eq!(writable(&decision).0, "False");
}

fn marked(digit: &str, second: i64) -> StoreReport {
    let time = Time(Timestamp::from_second(second).unwrap());
    StoreReport { id: Some(digit.repeat(32)), probed_at: time, ..report(true, 5) }
}

#[test]
fn a_shared_store_is_the_one_that_was_found_first() {
    let mut store = testing::store("fast");
    store.spec.backend.filesystem.as_mut().unwrap().shared = true;
    let mut agents = fleet(&["a", "b"]);
    agents.observe_reports("a", Some(&[marked("b", 200)]));
    agents.observe_reports("b", Some(&[marked("a", 100)]));
    let decision = look(&store, &agents, &[]);
    let id = "a".repeat(32);
    assert_eq!(decision.status.id.as_deref(), Some(id.as_str()));
    let nodes = decision.status.nodes.as_ref().unwrap();
    assert_eq!((nodes.reachable, nodes.unreachable), (1, 1));
    assert!(nodes.problems[0].starts_with(&format!("a: holds store {} instead of {id}", "b".repeat(32))), "{nodes:?}");
    // From now on it stays so, whoever is there.
    store.status = Some(decision.status);
    let mut others = fleet(&["a"]);
    others.observe_reports("a", Some(&[marked("b", 50)]));
    let decision = look(&store, &others, &[]);
    assert_eq!(decision.status.id, Some(id));
    assert_eq!(ready(&decision).1, reasons::UNREACHABLE);
}

#[test]
fn local_stores_have_no_common_id_and_old_reports_do_not_count() {
    let mut store = testing::store("fast");
    store.metadata.uid = Some("new".into());
    let mut agents = fleet(&["a"]);
    agents.observe_reports("a", Some(&[marked("a", 100)]));
    let decision = look(&store, &agents, &[]);
    assert_eq!((ready(&decision).0.as_str(), decision.status.id), ("True", None));
    agents.observe_reports("a", Some(&[StoreReport { uid: Some("old".into()), ..marked("a", 100) }]));
    assert_eq!(ready(&look(&store, &agents, &[])).1, reasons::PROGRESSING);
}
