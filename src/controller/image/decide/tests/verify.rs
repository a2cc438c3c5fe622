//! Copies that are verified, that have rotted, and that are made anew.

use std::time::Duration;

use super::*;
use crate::api::{ImageTask, LocationPhase, VerifySchedule};

fn verifications(world: &World) -> Vec<&ImageTask> {
    world.tasks.iter().filter(|task| task.spec.action == Action::Verify).collect()
}

/// An Image that is in stores `a` and `b`, which every node reaches.
fn kept_twice() -> World {
    let mut world = World::new(&["n"], &["a", "b"]);
    ["a", "b"].iter().for_each(|name| world.share_store(name));
    world.step();
    world.agent_succeeds("blake3:one");
    world.step();
    world
}

/// The verification of the copy in `store` finds that it is rotten; the others are sound.
fn rot(world: &mut World, store: &str) {
    world.annotate(identity::ANNOTATION_VERIFY, &format!("{}", world.now));
    world.step();
    let of = |task: &ImageTask| task.spec.verify.as_ref().is_some_and(|order| order.store.name == store);
    let (hit, others) = std::mem::take(&mut world.tasks).into_iter().partition(of);
    world.tasks = hit;
    world.agent_finds(store, true);
    world.tasks.extend(others);
    world.agent_succeeds("blake3:one");
    world.step();
}

#[test]
fn every_copy_is_verified_when_somebody_asks_and_once() {
    let mut world = kept_twice();
    world.annotate(identity::ANNOTATION_VERIFY, "now");
    world.step();
    let orders: Vec<_> = verifications(&world).iter().map(|task| task.spec.verify.clone().unwrap()).collect();
    let stores: Vec<_> = orders.iter().map(|order| order.store.name.as_str()).collect();
    assert_eq!((stores.as_slice(), orders[0].content_digest.as_str()), (&["a", "b"][..], "blake3:one"));
    assert_eq!(kstatus(&world), "Current");
    world.pass(Duration::from_secs(5));
    world.renew("n");
    world.agent_succeeds("");
    world.step();
    assert!(world.tasks.is_empty());
    assert!(world.status().locations.iter().all(|l| l.verified_at.as_ref().is_some_and(|time| time.0 == world.now)));
    assert!(world.is_settled());
    world.annotate(identity::ANNOTATION_VERIFY, "again");
    world.step();
    assert_eq!(verifications(&world).len(), 2);
}

#[test]
fn a_schedule_verifies_what_was_not_for_that_long() {
    let mut world = kept_twice();
    world.change_store("b", |store| store.spec.verify = Some(VerifySchedule { interval: "1h".into() }));
    world.step();
    assert!(world.tasks.is_empty() && world.decide().recheck.is_some());
    world.pass(Duration::from_secs(3600 + 360));
    world.renew("n");
    world.step();
    assert_eq!(world.only_task().spec.verify.as_ref().unwrap().store.name, "b");
    world.agent_succeeds("");
    world.step();
    assert!(world.tasks.is_empty());
    world.pass(Duration::from_secs(3599));
    world.renew("n");
    world.step();
    assert!(world.tasks.is_empty());
}

#[test]
fn a_rotten_copy_is_removed_and_made_anew_from_a_good_one() {
    let mut world = kept_twice();
    rot(&mut world, "a");
    assert!(world.told().contains(&events::LOCATION_CORRUPT));
    assert_eq!(world.only_task().spec.action, Action::Delete, "first it goes");
    let status = world.status();
    let shown: Vec<_> = status.locations.iter().map(|l| (l.store.as_str(), l.phase)).collect();
    assert_eq!(shown, [("b", LocationPhase::Active), ("a", LocationPhase::Corrupt)]);
    assert!(status.locations[1].message.as_ref().unwrap().contains("it smells"), "{status:?}");
    assert_eq!((kstatus(&world), world.phase()), ("InProgress", ImagePhase::Active));
    world.agent_succeeds("");
    world.step();
    let order = world.only_task().spec.copy.clone().unwrap();
    assert_eq!(order.from.iter().map(|store| store.name.as_str()).collect::<Vec<_>>(), ["b"]);
    assert_eq!(order.stores[0].name, "a");
    world.agent_succeeds("blake3:one");
    world.step();
    assert!(world.is_settled() && kstatus(&world) == "Current");
    assert!(world.status().locations.iter().all(|l| l.phase == LocationPhase::Active));
}

#[test]
fn a_copy_that_a_copy_finds_to_be_rotten_is_made_anew_as_well() {
    let mut world = kept_twice();
    world.add_store("c");
    world.edit(|spec| spec.stores.push("c".into()));
    world.step();
    world.agent_finds("a", true);
    world.agent_succeeds("blake3:one");
    world.step();
    let kept: Vec<_> = world.status().revisions[0].locations.iter().map(|l| l.store.clone()).collect();
    assert_eq!(kept, ["b", "c"]);
    assert_eq!(world.only_task().spec.action, Action::Delete);
}

/// An Image whose only copy has rotted.
fn rotted() -> World {
    let mut world = World::new(&["n"], &["a"]);
    world.share_store("a");
    world.step();
    world.agent_succeeds("blake3:one");
    world.step();
    rot(&mut world, "a");
    world
}

fn kept(world: &World) -> Vec<(i64, LocationPhase)> {
    let revisions = world.status().revisions;
    revisions.iter().flat_map(|r| r.locations.iter().map(|l| (r.number, l.phase))).collect()
}

#[test]
fn when_no_good_copy_is_left_the_source_must_give_the_same_again() {
    let mut world = rotted();
    assert_ne!(world.phase(), ImagePhase::Active, "nothing of it can be used");
    let import = world.only_task().spec.import.clone().unwrap();
    assert!(import.checksums.contains(&world::SHA256.to_owned()), "{import:?}");
    world.agent_fails(&failure("Refused", false));
    world.step();
    assert_eq!((kstatus(&world), world.phase()), ("Failed", ImagePhase::Failed));
    assert!(ready(&world).1.contains("every copy of revision 1 is lost or corrupt"), "{:?}", ready(&world));
}

#[test]
fn the_last_copy_stays_rotten_as_it_is_until_something_takes_its_place() {
    let mut world = rotted();
    assert_eq!((world.only_task().spec.revision, kept(&world)), (2, vec![(1, LocationPhase::Corrupt)]));
    assert_eq!(
        (world.status().locations.len(), world.status().cleanup.len()),
        (0, 0),
        "it is neither served nor removed"
    );
    world.agent_fails(&failure("Refused", false));
    world.step();
    let delete = &world.only_task().spec;
    assert_eq!((delete.action, delete.revision), (Action::Delete, 2), "only what the attempt may have left goes");
    world.agent_succeeds("");
    world.step();
    assert_eq!((kept(&world), world.tasks.len()), (vec![(1, LocationPhase::Corrupt)], 0));
    world.annotate(identity::ANNOTATION_RETRY, "1");
    world.step();
    world.agent_succeeds("blake3:one");
    world.step();
    assert_eq!((kept(&world), world.phase()), (vec![(2, LocationPhase::Active)], ImagePhase::Active));
    let delete = world.only_task();
    assert_eq!((delete.spec.action, delete.spec.revision), (Action::Delete, 1));
    world.agent_succeeds("");
    world.step();
    assert!(world.is_settled() && kstatus(&world) == "Current");
}

#[test]
fn a_rotten_last_copy_goes_with_its_image_and_when_another_source_has_taken_its_place() {
    let mut world = rotted();
    world.delete();
    world.step();
    world.agent_obeys();
    for _ in 0..4 {
        world.step();
        world.agent_succeeds("");
    }
    world.step();
    assert!(world.status().cleanup.is_empty() && world.status().revisions.is_empty());

    let mut world = rotted();
    world.edit(|spec| spec.source.http.as_mut().unwrap().url = "https://images.example/other.img".into());
    world.step();
    assert_eq!(kept(&world), [(1, LocationPhase::Corrupt)]);
    world.agent_obeys();
    world.step();
    let import = world.tasks.iter().find(|task| task.spec.action == Action::Import).unwrap();
    assert_eq!(
        (import.spec.revision, import.spec.import.as_ref().unwrap().checksums.len()),
        (3, 0),
        "it is another image"
    );
    world.agent_succeeds("blake3:two");
    world.step();
    assert_eq!(kept(&world), [(3, LocationPhase::Active)]);
}

#[test]
fn a_copy_that_cannot_be_read_is_no_rotten_one() {
    let mut world = kept_twice();
    world.annotate(identity::ANNOTATION_VERIFY, "now");
    world.step();
    world.agent_fails(&failure("Unavailable", true));
    world.step();
    assert!(world.status().locations.iter().all(|l| l.phase == LocationPhase::Unreadable && l.message.is_some()));
    assert_eq!((kstatus(&world), world.phase(), world.status().cleanup.len()), ("Current", ImagePhase::Active, 0));
    assert!(world.told().contains(&events::LOCATION_UNREADABLE));
    world.pass(Duration::from_secs(6));
    world.renew("n");
    world.step();
    assert_eq!(verifications(&world).iter().map(|task| task.spec.attempt).collect::<Vec<_>>(), [2, 2]);
    world.agent_succeeds("");
    world.step();
    assert!(world.status().locations.iter().all(|l| l.phase == LocationPhase::Active && l.message.is_none()));
    assert!(world.is_settled());
}

#[test]
fn a_doubtful_copy_is_read_last() {
    let mut world = kept_twice();
    world.annotate(identity::ANNOTATION_VERIFY, "now");
    world.step();
    world.tasks.retain(|task| task.spec.verify.as_ref().unwrap().store.name == "a");
    world.agent_fails(&failure("Unavailable", true));
    world.step();
    world.add_store("c");
    world.edit(|spec| spec.stores.push("c".into()));
    world.step();
    let copy = world.tasks.iter().find_map(|task| task.spec.copy.clone()).unwrap();
    assert_eq!(copy.from.iter().map(|store| store.name.as_str()).collect::<Vec<_>>(), ["b", "a"]);
}

#[test]
fn nobody_waits_for_a_verification_of_what_goes() {
    let mut world = kept_twice();
    world.annotate(identity::ANNOTATION_VERIFY, "now");
    world.step();
    world.edit(|spec| spec.stores = vec!["b".into()]);
    world.step();
    assert_eq!(verifications(&world).len(), 1);
    world.delete();
    world.step();
    assert!(verifications(&world).is_empty());
    world.agent_succeeds("");
    assert!(world.step());
}

#[test]
fn a_verification_on_a_lost_node_goes_to_another() {
    let mut world = kept_twice();
    world.annotate(identity::ANNOTATION_VERIFY, "now");
    world.step();
    world.pass(Duration::from_secs(41));
    world.renew("m");
    world.step();
    assert!(verifications(&world).iter().all(|task| task.spec.node_name == "m" && task.spec.attempt == 2));
}
