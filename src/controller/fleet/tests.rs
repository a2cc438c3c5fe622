use k8s_openapi::{
    api::coordination::v1::LeaseSpec,
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time},
};

use super::*;

const GRACE: Duration = Duration::from_secs(40);

fn lease(node: &str, renewed: Timestamp) -> Lease {
    Lease {
        metadata: ObjectMeta {
            name: Some(identity::agent_lease_name(node)),
            annotations: Some([(identity::ANNOTATION_NODE.to_owned(), node.to_owned())].into()),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some("start-1".into()),
            lease_duration_seconds: Some(40),
            renew_time: Some(MicroTime(renewed)),
            ..LeaseSpec::default()
        }),
    }
}

fn after(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn fleet(nodes: &[&str], now: Instant) -> Fleet {
    let mut fleet = Fleet::new(now, GRACE);
    for node in nodes {
        fleet.observe_lease(&lease(node, Timestamp::now()), now, Timestamp::now());
    }
    fleet
}

fn load(fleet: &mut Fleet, task: &str, node: &str) {
    let image = ("tenant".to_owned(), format!("of-{task}"));
    fleet.assignments.insert(task.to_owned(), Assignment { node: node.to_owned(), image });
}

fn report(store: &str, ready: bool) -> StoreReport {
    StoreReport {
        uid: None,
        id: None,
        name: store.into(),
        observed_generation: 1,
        ready,
        read_only: false,
        message: if ready { String::new() } else { "no such folder".into() },
        capacity: None,
        available: None,
        probed_at: Time(Timestamp::now()),
        asked: None,
        listing: None,
    }
}

#[test]
fn a_lease_is_judged_by_our_clock() {
    let (start, wall) = (Instant::now(), Timestamp::now());
    let mut fleet = Fleet::new(start, GRACE);
    // The agent's clock is 50 s behind: by the wall its lease has expired, and yet it is alive.
    let skewed = wall.checked_sub(jiff::SignedDuration::from_secs(50)).unwrap();
    fleet.observe_lease(&lease("a", skewed), start, wall);
    assert_eq!(fleet.liveness("a", start + after(39)), Liveness::Live);
    assert_eq!(fleet.liveness("a", start + after(40)), Liveness::Silent);
    assert!(fleet.is_in_doubt(start + after(40)) && !fleet.is_in_doubt(start + after(39)));
    fleet.confirm(start + after(40));
    assert_eq!(fleet.liveness("a", start + after(40)), Liveness::Stale);
    assert!(!fleet.is_in_doubt(start + after(41)));
    let renewed = skewed.checked_add(jiff::SignedDuration::from_secs(10)).unwrap();
    fleet.observe_lease(&lease("a", renewed), start + after(45), wall);
    assert_eq!(fleet.liveness("a", start + after(46)), Liveness::Live);
    // Seeing the same again is no renewal.
    fleet.observe_lease(&lease("a", renewed), start + after(80), wall);
    assert_eq!(fleet.liveness("a", start + after(86)), Liveness::Silent);
}

#[test]
fn a_lease_long_dead_when_first_seen_gets_nothing_and_loses_nothing_before_its_term_is_over() {
    let (start, wall) = (Instant::now(), Timestamp::now());
    let mut fleet = Fleet::new(start, GRACE);
    fleet.observe_lease(&lease("a", wall.checked_sub(jiff::SignedDuration::from_hours(1)).unwrap()), start, wall);
    assert_eq!(fleet.liveness("a", start), Liveness::Silent);
    assert!(fleet.choose(&Demand::default(), start).is_err());
    fleet.confirm(start + after(39));
    assert_eq!(fleet.liveness("a", start + after(60)), Liveness::Silent, "the API server may have been away");
    fleet.confirm(start + after(40));
    assert_eq!(fleet.liveness("a", start + after(60)), Liveness::Stale);
}

#[test]
fn a_lease_under_another_name_than_its_nodes_is_nobodys() {
    let (start, wall) = (Instant::now(), Timestamp::now());
    let mut fleet = Fleet::new(start, GRACE);
    let mut forged = lease("victim", wall);
    forged.metadata.name = Some(identity::agent_lease_name("attacker"));
    fleet.observe_lease(&forged, start, wall);
    assert_eq!(fleet.nodes().count(), 0);
}

#[test]
fn tasks_that_vanished_unseen_are_no_load() {
    let now = Instant::now();
    let mut fleet = fleet(&["a", "b"], now);
    load(&mut fleet, "t1", "a");
    load(&mut fleet, "t2", "b");
    assert_eq!(fleet.keep_tasks(&["t2".to_owned()].into()), [("tenant".to_owned(), "of-t1".to_owned())]);
    assert_eq!(fleet.choose(&Demand::default(), now).unwrap().node, "a");
}

#[test]
fn a_missing_lease_means_gone_after_the_grace_only() {
    let start = Instant::now();
    let mut fleet = fleet(&["a"], start);
    fleet.forget_lease(&lease("a", Timestamp::now()), start + after(10));
    fleet.confirm(start + after(39));
    assert_eq!(fleet.liveness("never-seen", start + after(60)), Liveness::Silent);
    assert!(fleet.is_in_doubt(start + after(40)) && !fleet.knows_all());
    fleet.confirm(start + after(49));
    assert_eq!(fleet.liveness("a", start + after(60)), Liveness::Silent);
    assert_eq!(fleet.liveness("never-seen", start + after(60)), Liveness::Gone);
    assert!(fleet.knows_all());
    fleet.confirm(start + after(50));
    assert_eq!(fleet.liveness("a", start + after(50)), Liveness::Gone);
    assert_eq!(fleet.missing.len(), 0, "it is like one that was never seen");
    fleet.observe_lease(&lease("a", Timestamp::now()), start + after(60), Timestamp::now());
    assert_eq!(fleet.liveness("a", start + after(60)), Liveness::Live);
}

#[test]
fn an_outage_of_the_api_server_is_nobodys_fault() {
    let start = Instant::now();
    let mut fleet = fleet(&["a"], start);
    fleet.note_outage();
    assert!(fleet.is_in_doubt(start + after(1)), "whether it is back has to be found out");
    fleet.confirm(start + after(79));
    assert!(!fleet.is_in_doubt(start + after(80)));
    // It came back a moment ago, and "a" has had no time to renew.
    assert_eq!(fleet.liveness("a", start + after(118)), Liveness::Live);
    fleet.confirm(start + after(118));
    assert_eq!(fleet.liveness("never-seen", start + after(118)), Liveness::Silent);
    fleet.confirm(start + after(120));
    assert_eq!(fleet.liveness("a", start + after(120)), Liveness::Stale);
}

#[test]
fn the_least_loaded_fitting_node_is_chosen() {
    let now = Instant::now();
    let nodes = ["a", "b", "c", "d"];
    let mut fleet = fleet(&nodes, now);
    for (task, node) in [("t1", "a"), ("t2", "a"), ("t3", "b")] {
        load(&mut fleet, task, node);
    }
    for node in nodes {
        fleet.observe_reports(node, Some(&[report("s", true)]));
    }
    fleet.observe_labels("d", Some([("disk".to_owned(), "ssd".to_owned())].into()));
    let (none, ssd) = (BTreeMap::new(), BTreeMap::from([("disk".to_owned(), "ssd".to_owned())]));
    let choose = |fleet: &Fleet, demand: &Demand<'_>| fleet.choose(demand, now);
    let any = Demand { stores: vec![("s", &none)], ..Demand::default() };
    assert_eq!(choose(&fleet, &any).unwrap().node, "c");
    assert_eq!(choose(&fleet, &Demand { avoid: Some("c"), ..any.clone() }).unwrap().node, "d");
    assert_eq!(choose(&fleet, &Demand { exclude: ["c", "d"].into(), ..any.clone() }).unwrap().node, "b");
    assert_eq!(
        choose(&fleet, &Demand { stores: vec![("s", &ssd)], avoid: Some("d"), ..any.clone() }).unwrap().node,
        "d"
    );
    assert_eq!(fleet.observe_reports("d", Some(&[report("s", false)])), ["s"]);
    assert_eq!(fleet.observe_reports("d", Some(&[report("s", false)])), Vec::<String>::new());
    let why = choose(&fleet, &Demand { stores: vec![("s", &ssd)], ..Demand::default() }).unwrap_err();
    assert!(why.contains("d cannot use store s: no such folder"), "{why}");
    assert!(why.contains("a does not have the labels that store s asks for"), "{why}");
}

#[test]
fn a_node_that_has_not_reported_on_a_store_or_has_no_room_in_it_is_given_nothing_to_write() {
    let now = Instant::now();
    let mut fleet = fleet(&["a"], now);
    let none = BTreeMap::new();
    let [reads, writes] =
        [false, true].map(|writes| Demand { stores: vec![("s", &none)], writes, ..Demand::default() });
    let why = fleet.choose(&writes, now).unwrap_err();
    assert!(why.ends_with("a has not reported on store s yet"), "{why}");
    fleet.observe_reports("a", Some(&[report("s", true)]));
    assert_eq!(fleet.choose(&writes, now).unwrap().node, "a");
    let full = StoreReport { available: Some(0), ..report("s", true) };
    assert_eq!(fleet.observe_reports("a", Some(&[full])), ["s"], "who waits for room is woken by this");
    let why = fleet.choose(&writes, now).unwrap_err();
    assert!(why.contains("no room left in store s"), "{why}");
    assert_eq!(fleet.choose(&reads, now).unwrap().node, "a", "what makes room needs none");
    let read_only = StoreReport { read_only: true, message: "client.x may not".into(), ..report("s", true) };
    fleet.observe_reports("a", Some(&[read_only]));
    let why = fleet.choose(&writes, now).unwrap_err();
    assert!(why.contains("can read store s and not write to it: client.x may not"), "{why}");
    assert_eq!(fleet.choose(&reads, now).unwrap().node, "a");
    let many: Vec<_> = (0..128).map(|n| report(&format!("other-{n}"), true)).collect();
    fleet.observe_reports("a", Some(&many));
    let why = fleet.choose(&writes, now).unwrap_err();
    assert!(why.contains("an agent reports on 128 stores at most"), "{why}");
}

#[test]
fn what_is_said_of_a_silent_node_does_not_change_by_itself() {
    let now = Instant::now();
    let fleet = fleet(&["a"], now);
    let why = |seconds| fleet.choose(&Demand::default(), now + after(seconds)).unwrap_err();
    assert!(why(50).contains("a has not renewed its lease since 2"), "{}", why(50));
    assert_eq!(why(50), why(90));
}

#[test]
fn without_agents_the_message_says_what_to_look_at() {
    let now = Instant::now();
    let why = Fleet::new(now, GRACE).choose(&Demand::default(), now).unwrap_err();
    assert!(why.contains("DaemonSet"), "{why}");
}
