//! Several stores: some that fail, some that come later, and where their copies come from.

use std::time::Duration;

use super::*;
use crate::api::{CopyOrder, Location, LocationPhase};

fn order(world: &World) -> CopyOrder {
    world.only_task().spec.copy.clone().unwrap_or_else(|| panic!("a copy: {:?}", world.only_task().spec))
}

fn from(world: &World) -> Vec<String> {
    order(world).from.into_iter().map(|store| store.name).collect()
}

fn targets(world: &World) -> Vec<String> {
    world.only_task().spec.targets().iter().map(|target| target.name.clone()).collect()
}

/// Store, phase and message of each location in status.
fn locations(world: &World) -> Vec<(String, LocationPhase, String)> {
    let of = |l: Location| (l.store, l.phase, l.message.unwrap_or_default());
    world.status().locations.into_iter().map(of).collect()
}

/// An Image in stores `a` and `b` that every node reaches, of which one is enough.
fn lenient() -> World {
    let mut world = World::new(&["n", "m"], &["a", "b"]);
    ["a", "b"].iter().for_each(|name| world.share_store(name));
    world.edit(|spec| spec.require_all_stores = false);
    world
}

#[test]
fn one_store_is_enough_and_the_other_is_filled_by_a_copy() {
    let mut world = lenient();
    world.step();
    assert!(!world.only_task().spec.import.as_ref().unwrap().require_all_stores);
    world.agent_succeeds_but(&["b"], &failure("NoSpace", true));
    world.step();
    assert_eq!((kstatus(&world), world.phase()), ("Current", ImagePhase::Active));
    assert!(ready(&world).1.contains("not in b: store b: it broke"), "{:?}", ready(&world));
    let shown = locations(&world);
    assert_eq!((shown[0].0.as_str(), shown[0].1), ("a", LocationPhase::Active));
    assert_eq!((shown[1].0.as_str(), shown[1].1), ("b", LocationPhase::Missing));
    assert!(shown[1].2.contains("it broke"), "{shown:?}");
    assert!(world.tasks.is_empty() && world.told().contains(&events::STORE_FAILED));
    assert_eq!(world.status().display.unwrap().stores.unwrap(), "a");

    world.pass(Duration::from_secs(6));
    world.renew("n");
    world.step();
    assert_eq!((from(&world), targets(&world)), (vec!["a".to_owned()], vec!["b".to_owned()]));
    assert_eq!((order(&world).content_digest.as_str(), world.only_task().spec.attempt), ("blake3:one", 2));
    assert_eq!(kstatus(&world), "Current", "it serves all the while");
    world.agent_succeeds("blake3:one");
    world.step();
    assert_eq!(world.status().locations.len(), 2);
    assert!(world.is_settled() && world.status().revisions[0].gaps.is_empty());
}

#[test]
fn a_store_that_fails_again_and_again_is_tried_ever_less_often_and_for_ever() {
    let mut world = lenient();
    world.step();
    world.agent_succeeds_but(&["b"], &failure("NoSpace", true));
    world.step();
    for wait in [5, 10, 20, 40, 80, 160, 300, 300, 300] {
        world.pass(Duration::from_secs(wait - 1));
        world.renew("n");
        world.step();
        assert!(world.tasks.is_empty(), "before {wait} s");
        world.pass(Duration::from_secs(1));
        world.renew("n");
        world.step();
        world.agent_fails(&failure("NoSpace", true));
        world.step();
        assert_eq!(kstatus(&world), "Current");
    }
    // What cannot pass by itself waits for a person.
    world.pass(Duration::from_secs(300));
    world.renew("n");
    world.step();
    world.agent_fails(&failure("InvalidInput", false));
    world.step();
    world.pass(Duration::from_secs(10_000));
    world.renew("n");
    world.step();
    // What it may have left is removed.
    world.agent_succeeds("");
    world.step();
    assert!(world.tasks.is_empty() && locations(&world)[1].2.contains("mend the cause"), "{:?}", locations(&world));
    world.annotate(identity::ANNOTATION_RETRY, "1");
    world.step();
    assert_eq!(targets(&world), ["b"]);
}

#[test]
fn a_store_that_no_node_reaches_keeps_nobody_waiting() {
    let mut world = lenient();
    world.change_store("b", |store| store.spec.node_selector = [("rack".to_owned(), "9".to_owned())].into());
    world.step();
    assert_eq!(targets(&world), ["a"]);
    world.agent_succeeds("blake3:one");
    world.step();
    assert_eq!((kstatus(&world), locations(&world)[1].1), ("Current", LocationPhase::Missing));
    assert!(locations(&world)[1].2.contains("labels that store b asks for"), "{:?}", locations(&world));
    // With all stores required, it waits for one node that reaches both.
    let mut world = World::new(&["n"], &["a", "b"]);
    world.change_store("b", |store| store.spec.node_selector = [("rack".to_owned(), "9".to_owned())].into());
    world.step();
    assert!(world.tasks.is_empty() && kstatus(&world) == "InProgress");
}

#[test]
fn with_all_stores_required_a_missing_one_is_no_success() {
    let mut world = World::new(&["n"], &["a"]);
    world.share_store("a");
    world.step();
    world.agent_succeeds("blake3:one");
    world.step();
    world.add_store("b");
    world.edit(|spec| spec.stores.push("b".into()));
    world.step();
    assert_eq!((from(&world), kstatus(&world)), (vec!["a".to_owned()], "InProgress"));
    assert!(ready(&world).1.contains("copied from a into b by node n"), "{:?}", ready(&world));
    world.agent_fails(&failure("NoSpace", true));
    world.step();
    assert_eq!((kstatus(&world), ready(&world).0.as_str()), ("InProgress", reasons::TRANSIENT_ERROR));
    assert_eq!(world.phase(), ImagePhase::Active, "what there is goes on serving");
    world.pass(Duration::from_secs(6));
    world.renew("n");
    world.step();
    world.agent_fails(&failure("InvalidInput", false));
    world.step();
    assert_eq!((kstatus(&world), ready(&world).0.as_str()), ("Failed", reasons::UNRECOVERABLE_ERROR));
}

#[test]
fn copies_are_read_from_the_store_with_the_greatest_weight_first() {
    let mut world = World::new(&["n"], &["a", "b", "c"]);
    ["a", "b", "c"].iter().for_each(|name| world.share_store(name));
    world.change_store("b", |store| store.spec.weight = 5);
    world.change_store("c", |store| store.spec.weight = -1);
    world.step();
    world.agent_succeeds("blake3:one");
    world.step();
    let shown: Vec<_> = locations(&world).into_iter().map(|(store, ..)| store).collect();
    assert_eq!(shown, ["b", "a", "c"]);
    world.add_store("d");
    world.edit(|spec| spec.stores.push("d".into()));
    world.step();
    assert_eq!(from(&world), ["b", "a", "c"]);
}

#[test]
fn a_copy_on_a_nodes_disk_is_read_there() {
    let mut world = World::active(&["n"], &["disk"]);
    world.renew("m");
    world.add_store("wide");
    world.share_store("wide");
    world.edit(|spec| spec.stores.push("wide".into()));
    world.step();
    assert_eq!((world.only_task().spec.node_name.as_str(), from(&world)), ("n", vec!["disk".to_owned()]));
}

#[test]
fn where_no_node_reaches_both_the_source_is_asked_again() {
    let mut world = World::active(&["n"], &["disk"]);
    world.add_store("wide");
    world.share_store("wide");
    world.edit(|spec| spec.stores.push("wide".into()));
    world.pass(Duration::from_secs(41));
    world.renew("m");
    world.step();
    let task = world.only_task();
    let import = task.spec.import.as_ref().unwrap();
    assert_eq!((task.spec.node_name.as_str(), import.stores[0].name.as_str()), ("m", "wide"));
    assert!(import.checksums.contains(&world::SHA256.to_owned()), "it must still be what it was: {import:?}");
    assert_eq!(world.told(), [events::COPY_IMPOSSIBLE]);
    assert!(ready(&world).1.contains("from its source again"), "{:?}", ready(&world));
    // An operator that has just begun does not know yet who reaches what.
    let mut world = World::active(&["n"], &["disk"]);
    world.add_store("wide");
    world.share_store("wide");
    world.edit(|spec| spec.stores.push("wide".into()));
    world.change_operator(&["m"], Duration::ZERO);
    world.step();
    assert!(world.tasks.is_empty() && ready(&world).1.contains("no node can copy it now"), "{:?}", ready(&world));
}

#[test]
fn only_when_no_copy_can_be_read_the_source_is_asked_again() {
    let mut world = World::new(&["n"], &["a", "b"]);
    ["a", "b"].iter().for_each(|name| world.share_store(name));
    world.step();
    world.agent_succeeds("blake3:one");
    world.step();
    world.add_store("c");
    world.edit(|spec| spec.stores.push("c".into()));
    world.pass(Duration::from_secs(41));
    world.renew("n");
    world.step();
    assert_eq!(from(&world), ["a", "b"]);
    world.agent_finds("a", false);
    world.agent_fails(&failure("Unavailable", true));
    world.step();
    world.pass(Duration::from_secs(6));
    world.renew("n");
    world.step();
    assert_eq!(from(&world), ["b"]);
    world.agent_finds("b", false);
    world.agent_fails(&failure("Unavailable", true));
    world.step();
    world.pass(Duration::from_secs(11));
    world.renew("n");
    world.step();
    assert_eq!(world.only_task().spec.action, Action::Import);
    world.agent_succeeds("blake3:one");
    world.step();
    assert_eq!(world.status().locations.len(), 3);
    assert!(world.is_settled());
}

#[test]
fn an_operator_that_dies_before_it_orders_a_copy_is_continued() {
    let mut world = World::active(&["n"], &["disk"]);
    world.add_store("more");
    world.edit(|spec| spec.stores.push("more".into()));
    world.step_and_die(world::Reach::Status);
    assert!(world.tasks.is_empty());
    world.step();
    assert_eq!((from(&world), world.only_task().spec.attempt), (vec!["disk".to_owned()], 2));
    world.step();
    assert_eq!(world.tasks.len(), 1);
}

#[test]
fn a_lost_node_costs_a_copy_an_attempt() {
    let mut world = World::new(&["n", "m"], &["a"]);
    world.share_store("a");
    world.step();
    world.agent_succeeds("blake3:one");
    world.step();
    world.add_store("b");
    world.share_store("b");
    world.edit(|spec| spec.stores.push("b".into()));
    world.step();
    let lost = world.only_task().spec.node_name.clone();
    let other = if lost == "n" { "m" } else { "n" };
    world.pass(Duration::from_secs(41));
    world.renew(other);
    world.step();
    assert_eq!((world.only_task().spec.node_name.as_str(), world.only_task().spec.attempt), (other, 3));
    assert_eq!(from(&world), ["a"]);
}

#[test]
fn a_location_that_was_lost_is_made_anew_from_another() {
    let mut world = World::new(&["n", "m"], &["disk", "wide"]);
    world.share_store("wide");
    world.step();
    let node = world.only_task().spec.node_name.clone();
    let other = if node == "n" { "m" } else { "n" };
    world.agent_succeeds("blake3:one");
    world.step();
    world.delete_lease(&node);
    world.pass(Duration::from_secs(41));
    world.renew(other);
    world.step();
    assert_eq!((world.only_task().spec.node_name.as_str(), from(&world)), (other, vec!["wide".to_owned()]));
    assert_eq!(targets(&world), ["disk"]);
}

#[test]
fn a_store_is_left_only_when_another_has_the_image() {
    let mut world = lenient();
    world.step();
    world.agent_succeeds("blake3:one");
    world.step();
    world.add_store("c");
    world.edit(|spec| spec.stores = vec!["c".into()]);
    world.step();
    assert_eq!((targets(&world), world.status().revisions[0].locations.len()), (vec!["c".to_owned()], 2));
    world.agent_fails(&failure("NoSpace", true));
    world.step();
    assert!(world.tasks.is_empty() && world.status().cleanup.is_empty(), "nothing goes before the new one is there");
    world.pass(Duration::from_secs(6));
    world.renew("n");
    world.step();
    world.agent_succeeds("blake3:one");
    world.step();
    assert!(world.tasks.iter().all(|task| task.spec.action == Action::Delete) && world.tasks.len() == 2);
    // Of several new ones, one is enough where one is enough to serve.
    let mut world = lenient();
    world.step();
    world.agent_succeeds("blake3:one");
    world.step();
    ["c", "d"].iter().for_each(|name| world.add_store(name));
    world.edit(|spec| spec.stores = vec!["c".into(), "d".into()]);
    world.step();
    world.agent_succeeds_but(&["d"], &failure("NoSpace", true));
    world.step();
    let kept: Vec<_> = world.status().revisions[0].locations.iter().map(|l| l.store.clone()).collect();
    assert_eq!((kept, world.status().cleanup.len()), (vec!["c".to_owned()], 2));
    assert_eq!(world.phase(), ImagePhase::Active);
}

#[test]
fn a_new_store_gets_what_shall_be_in_all() {
    let mut world = World::new(&["n"], &["a"]);
    world.edit(|spec| {
        spec.stores.clear();
        spec.all_stores = true;
    });
    world.step();
    world.agent_succeeds("blake3:one");
    world.step();
    world.add_store("b");
    world.step();
    assert_eq!((from(&world), targets(&world)), (vec!["a".to_owned()], vec!["b".to_owned()]));
}

#[test]
fn a_copy_in_a_store_that_is_to_be_left_is_not_enough() {
    let mut world = lenient();
    world.step();
    world.edit(|spec| spec.stores = vec!["b".to_owned()]);
    world.agent_succeeds_but(&["b"], &failure("Refused", false));
    for _ in 0..3 {
        world.pass(Duration::from_secs(6));
        ["n", "m"].iter().for_each(|node| world.renew(node));
        world.step();
    }
    // It serves, and what was asked for is not there, and will not be.
    assert_eq!((kstatus(&world), world.phase()), ("Failed", ImagePhase::Active), "{:?}", world.status().conditions);
    assert_eq!(locations(&world)[0].0, "a");
    assert!(ready(&world).1.contains("store b"), "{:?}", ready(&world));
}

#[test]
fn what_a_copy_left_in_a_store_that_is_given_up_is_removed() {
    let mut world = World::active(&["n", "m"], &["a"]);
    world.add_store("b");
    world.share_store("b");
    world.edit(|spec| spec.stores = vec!["a".to_owned(), "b".to_owned()]);
    world.step();
    assert_eq!(targets(&world), ["b"]);
    // It may have published before it failed; nobody will take that over.
    world.agent_fails(&failure("Denied", false));
    world.step();
    let left = world.status().cleanup;
    assert_eq!(left.iter().map(|item| item.store.as_str()).collect::<Vec<_>>(), ["b"], "{left:?}");
    assert_eq!(kstatus(&world), "Failed");
}
