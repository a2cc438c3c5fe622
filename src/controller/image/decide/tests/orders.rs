//! What orders say of the stores they are for.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::world::{World, failure};
use crate::api::{Action, ImageTaskSpec, StoreReport};

fn seen(id: &str, uid: &str) -> StoreReport {
    StoreReport {
        name: "fast".into(),
        observed_generation: 1,
        uid: Some(uid.into()),
        id: Some(id.repeat(32)),
        ready: true,
        read_only: false,
        message: String::new(),
        capacity: None,
        available: None,
        probed_at: Time(Timestamp::now()),
        asked: None,
        listing: None,
    }
}

fn spec(world: &World, action: Action) -> &ImageTaskSpec {
    &world.tasks.iter().find(|task| task.spec.action == action).unwrap().spec
}

fn import_id(world: &World) -> Option<&str> {
    spec(world, Action::Import).import.as_ref().unwrap().stores[0].store_id.as_deref()
}

#[test]
fn the_agent_is_told_which_store_it_must_find() {
    let mut world = World::new(&["a"], &["fast"]);
    world.change_store("fast", |store| store.metadata.uid = Some("new".into()));
    world.fleet.observe_reports("a", Some(&[seen("1", "new")]));
    world.step();
    assert_eq!(import_id(&world), Some("1".repeat(32).as_str()), "what the node itself has seen");

    let mut world = World::new(&["a"], &["fast"]);
    world.change_store("fast", |store| store.metadata.uid = Some("new".into()));
    world.fleet.observe_reports("a", Some(&[seen("1", "old")]));
    world.step();
    assert_eq!(import_id(&world), None, "a store that was made anew is another");

    let mut world = World::new(&["a"], &["fast"]);
    world.share_store("fast");
    world.change_store("fast", |store| store.status.get_or_insert_default().id = Some("2".repeat(32)));
    world.fleet.observe_reports("a", Some(&[seen("1", "x")]));
    world.step();
    assert_eq!(import_id(&world), Some("2".repeat(32).as_str()), "what all nodes agree on");
}

#[test]
fn a_delete_is_fenced_by_the_last_attempt_and_told_which_store_it_is_for() {
    let mut world = World::new(&["a"], &["fast"]);
    world.share_store("fast");
    world.change_store("fast", |store| store.status.get_or_insert_default().id = Some("2".repeat(32)));
    world.step();
    world.agent_fails(&failure("Unavailable", true));
    world.step();
    world.pass(std::time::Duration::from_secs(20));
    world.renew("a");
    world.step();
    assert_eq!(spec(&world, Action::Import).attempt, 2);
    world.agent_succeeds("blake3:one");
    world.step();
    world.delete();
    world.step();
    assert_eq!(world.status().cleanup[0].attempt, 2, "kept when the revision is not there any more");
    let order = spec(&world, Action::Delete).delete.clone().unwrap();
    assert_eq!((order.fence, order.stores[0].store_id.as_deref()), (2, Some("2".repeat(32).as_str())));
}

#[test]
fn a_delete_that_knew_too_little_is_ordered_again() {
    let mut world = World::active(&["a"], &["fast"]);
    world.delete();
    world.step();
    let fence = |world: &World| spec(world, Action::Delete).delete.as_ref().unwrap().fence;
    assert_eq!(fence(&world), 1);
    // An attempt that nobody knew of when the order was made.
    world.image.status.as_mut().unwrap().cleanup[0].attempt = 3;
    world.agent_succeeds("none");
    for _ in 0..3 {
        world.step();
    }
    assert!(!world.released);
    assert_eq!(fence(&world), 3);
}

#[test]
fn the_agent_is_told_whether_zeros_are_left_out() {
    let mut world = World::new(&["a"], &["fast", "slow"]);
    world.change_store("slow", |store| store.spec.thin_provisioning = false);
    world.step();
    let order = spec(&world, Action::Import).import.as_ref().unwrap();
    let thin: Vec<_> = order.stores.iter().map(|target| (target.name.as_str(), target.thin_provisioning)).collect();
    assert_eq!(thin, [("fast", true), ("slow", false)]);
}
