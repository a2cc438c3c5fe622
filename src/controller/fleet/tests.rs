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

fn report(store: &str, ready: bool) -> StoreReport {
    StoreReport {
        uid: None,
        id: None,
        name: store.into(),
        observed_generation: 1,
        ready,
        message: if ready { String::new() } else { "no such folder".into() },
        capacity: None,
        available: None,
        probed_at: Time(Timestamp::now()),
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
    assert_eq!(fleet.liveness("a", start + after(40)), Liveness::Stale);
    let renewed = skewed.checked_add(jiff::SignedDuration::from_secs(10)).unwrap();
    fleet.observe_lease(&lease("a", renewed), start + after(45), wall);
    assert_eq!(fleet.liveness("a", start + after(46)), Liveness::Live);
    // Seeing the same again is no renewal.
    fleet.observe_lease(&lease("a", renewed), start + after(80), wall);
    assert_eq!(fleet.liveness("a", start + after(86)), Liveness::Stale);
}

#[test]
fn a_lease_long_dead_when_first_seen_is_stale_at_once() {
    let (start, wall) = (Instant::now(), Timestamp::now());
    let mut fleet = Fleet::new(start, GRACE);
    fleet.observe_lease(&lease("a", wall.checked_sub(jiff::SignedDuration::from_hours(1)).unwrap()), start, wall);
    assert_eq!(fleet.liveness("a", start), Liveness::Stale);
}

#[test]
fn a_missing_lease_means_gone_after_the_grace_only() {
    let start = Instant::now();
    let mut fleet = fleet(&["a"], start);
    fleet.forget_lease(&lease("a", Timestamp::now()), start + after(10));
    assert_eq!(fleet.liveness("a", start + after(49)), Liveness::Stale);
    assert_eq!(fleet.liveness("a", start + after(50)), Liveness::Gone);
    assert_eq!(fleet.liveness("never-seen", start + after(39)), Liveness::Stale);
    assert_eq!(fleet.liveness("never-seen", start + after(40)), Liveness::Gone);
    fleet.observe_lease(&lease("a", Timestamp::now()), start + after(60), Timestamp::now());
    assert_eq!(fleet.liveness("a", start + after(60)), Liveness::Live);
}

#[test]
fn an_outage_of_the_api_server_is_nobodys_fault() {
    let start = Instant::now();
    let mut fleet = fleet(&["a"], start);
    fleet.pardon(start + after(39));
    assert_eq!(fleet.liveness("a", start + after(78)), Liveness::Live);
    assert_eq!(fleet.liveness("never-seen", start + after(78)), Liveness::Stale);
}

#[test]
fn the_least_loaded_fitting_node_is_chosen() {
    let now = Instant::now();
    let mut fleet = fleet(&["a", "b", "c", "d"], now);
    for (task, node) in [("t1", "a"), ("t2", "a"), ("t3", "b")] {
        fleet.assignments.insert(task.into(), node.into());
    }
    fleet.observe_labels("d", Some([("disk".to_owned(), "ssd".to_owned())].into()));
    let (none, ssd) = (BTreeMap::new(), BTreeMap::from([("disk".to_owned(), "ssd".to_owned())]));
    let choose = |fleet: &Fleet, demand: &Demand<'_>| fleet.choose(demand, now);
    let any = Demand { stores: vec![("s", &none)], ..Demand::default() };
    assert_eq!(choose(&fleet, &any).unwrap(), "c");
    assert_eq!(choose(&fleet, &Demand { avoid: Some("c"), ..any.clone() }).unwrap(), "d");
    assert_eq!(choose(&fleet, &Demand { exclude: ["c", "d"].into(), ..any.clone() }).unwrap(), "b");
    assert_eq!(choose(&fleet, &Demand { stores: vec![("s", &ssd)], avoid: Some("d"), ..any.clone() }).unwrap(), "d");
    assert_eq!(fleet.observe_reports("d", Some(&[report("s", false)])), ["s"]);
    assert_eq!(fleet.observe_reports("d", Some(&[report("s", false)])), Vec::<String>::new());
    let why = choose(&fleet, &Demand { stores: vec![("s", &ssd)], ..Demand::default() }).unwrap_err();
    assert!(why.contains("d cannot use store s: no such folder"), "{why}");
    assert!(why.contains("a does not have the labels that store s asks for"), "{why}");
}

#[test]
fn without_agents_the_message_says_what_to_look_at() {
    let now = Instant::now();
    let why = Fleet::new(now, GRACE).choose(&Demand::default(), now).unwrap_err();
    assert!(why.contains("DaemonSet"), "{why}");
}
