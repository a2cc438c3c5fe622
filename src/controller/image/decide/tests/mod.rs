//! Decisions, one situation after another, in a world without a cluster.

mod chaos;
mod copies;
mod lost;
mod orders;
mod trouble;
mod uploads;
mod verify;
mod world;

use std::time::Duration;

use vitrine_engine::model::DiskFormat;
use world::{World, failure};

use crate::{
    api::{
        Action, Conversion, ImagePhase, TaskPhase,
        condition::{events, reasons, types},
        identity,
    },
    controller::image::validate::References,
    kube::condition::find,
};

/// What kstatus makes of the Image.
fn kstatus(world: &World) -> &'static str {
    let status = world.status();
    let is = |type_, value: &str| find(&status.conditions, type_).is_some_and(|c| c.status == value);
    match () {
        () if world.image.metadata.deletion_timestamp.is_some() => "Terminating",
        () if status.observed_generation != world.image.metadata.generation => "InProgress",
        () if is(types::RECONCILING, "True") => "InProgress",
        () if is(types::STALLED, "True") => "Failed",
        () if is(types::READY, "True") => "Current",
        () => "InProgress",
    }
}

fn ready(world: &World) -> (String, String) {
    let status = world.status();
    let ready = find(&status.conditions, types::READY).unwrap();
    (ready.reason.clone(), ready.message.clone())
}

#[test]
fn a_new_image_is_imported_by_a_live_node() {
    let mut world = World::new(&["a", "b"], &["fast"]);
    world.step();
    let task = world.only_task();
    assert_eq!((task.spec.action, task.spec.attempt, task.spec.revision), (Action::Import, 1, 1));
    let order = task.spec.import.clone().unwrap();
    assert_eq!(order.source.http.unwrap().url, "https://images.example/debian.qcow2");
    assert_eq!(order.stores[0].backend.filesystem.as_ref().unwrap().path, "/srv/fast");
    assert_eq!((kstatus(&world), world.phase()), ("InProgress", ImagePhase::Queued));
    assert_eq!(world.told(), [events::IMPORT_STARTED]);

    world.agent_runs(40);
    world.step();
    assert_eq!((kstatus(&world), world.phase()), ("InProgress", ImagePhase::Importing));
    assert_eq!(world.status().display.unwrap().progress.unwrap(), "40%");

    world.agent_succeeds("blake3:one");
    world.step();
    assert_eq!((kstatus(&world), world.phase()), ("Current", ImagePhase::Active));
    let status = world.status();
    assert_eq!((status.revision, status.content.unwrap().content_digest), (Some(1), "blake3:one".into()));
    assert_eq!(status.locations[0].node.as_deref(), Some("a"));
    assert_eq!((status.attempt, status.progress), (None, None));
    assert!(world.tasks.is_empty());
    assert_eq!(world.told(), [events::IMPORT_SUCCEEDED]);
    assert!(world.is_settled());
}

#[test]
fn an_edited_source_is_imported_while_the_old_content_serves() {
    let mut world = World::active(&["a", "b"], &["fast"]);
    world.edit(|spec| spec.source.http.as_mut().unwrap().url = "https://images.example/new".into());
    assert_eq!(kstatus(&world), "InProgress", "before the operator has even seen it");
    world.step();
    assert_eq!((kstatus(&world), world.phase()), ("InProgress", ImagePhase::Active));
    assert!(ready(&world).1.contains("revision 1 goes on serving"), "{:?}", ready(&world));
    assert_eq!(world.status().content.unwrap().content_digest, "blake3:one");
    assert_eq!(world.only_task().spec.revision, 2);

    world.agent_succeeds("blake3:two");
    world.step();
    assert_eq!((kstatus(&world), world.status().revision), ("Current", Some(2)));
    let task = world.only_task();
    assert_eq!((task.spec.action, task.spec.revision, task.spec.node_name.as_str()), (Action::Delete, 1, "a"));
    world.agent_succeeds("");
    world.step();
    assert!(world.is_settled() && world.status().cleanup.is_empty());
    assert_eq!(world.status().revisions.len(), 1);
}

#[test]
fn a_history_limit_keeps_old_revisions_and_going_back_needs_no_import() {
    let mut world = World::active(&["a"], &["fast"]);
    world.edit(|spec| {
        spec.revision_history_limit = 2;
        spec.source.http.as_mut().unwrap().url = "https://images.example/new".into();
    });
    world.step();
    world.agent_succeeds("blake3:two");
    world.step();
    assert!(world.tasks.is_empty(), "revision 1 is kept");
    world.edit(|spec| spec.source.http.as_mut().unwrap().url = "https://images.example/debian.qcow2".into());
    world.step();
    assert_eq!((kstatus(&world), world.status().revision), ("Current", Some(1)));
    assert!(world.tasks.is_empty(), "nothing is imported again");
}

#[test]
fn an_edit_in_the_middle_of_an_import_starts_over() {
    let mut world = World::new(&["a"], &["fast"]);
    world.step();
    world.agent_runs(10);
    world.edit(|spec| {
        spec.convert_to =
            Some(Conversion { disk_format: DiskFormat::Qcow2, subformat: None, compression: None, cluster_size: None });
    });
    world.step();
    assert!(world.tasks[0].spec.cancelled);
    assert_eq!(world.tasks.len(), 2, "another revision is another object, so it need not wait");
    world.agent_obeys();
    world.step();
    let task = world.only_task();
    assert_eq!(
        (task.spec.revision, task.spec.import.as_ref().unwrap().stores[0].output.disk_format),
        (2, DiskFormat::Qcow2)
    );
    // A cancelled attempt that was through already leaves data that nobody wants.
    let mut world = World::new(&["a"], &["fast"]);
    world.step();
    world.edit(|spec| spec.source.http.as_mut().unwrap().url.push('2'));
    world.step();
    world.agent_succeeds("blake3:unwanted");
    world.step();
    let deletes: Vec<_> =
        world.tasks.iter().filter(|t| t.spec.action == Action::Delete).map(|t| t.spec.revision).collect();
    assert_eq!(deletes, [1]);
}

#[test]
fn it_is_never_ready_with_another_revision_than_spec_asks_for() {
    let mut world = World::active(&["a"], &["fast"]);
    world.add_store("slow");
    world.edit(|spec| spec.source.http.as_mut().unwrap().url.push('2'));
    world.step();
    // The operator died before it made the task, and the stores are others by now.
    world.tasks.clear();
    world.edit(|spec| spec.stores = vec!["slow".into()]);
    world.step();
    assert_eq!((kstatus(&world), world.status().revision), ("InProgress", Some(1)));
    world.step();
    assert_eq!((world.only_task().spec.revision, kstatus(&world)), (2, "InProgress"));
}

#[test]
fn what_shall_be_in_more_stores_than_one_attempt_can_serve_takes_several() {
    let mut world = World::new(&["a"], &[]);
    (0..20).for_each(|n| world.add_store(&format!("s{n:02}")));
    world.edit(|spec| spec.all_stores = true);
    world.step();
    let stores = |world: &World| world.only_task().spec.targets().len();
    assert_eq!((stores(&world), world.status().attempt.unwrap().stores.len()), (16, 16));
    world.agent_succeeds("blake3:one");
    world.step();
    assert_eq!((stores(&world), kstatus(&world)), (4, "InProgress"));
    world.agent_succeeds("blake3:one");
    world.step();
    assert_eq!((world.status().locations.len(), kstatus(&world)), (20, "Current"));
    (20..65).for_each(|n| world.add_store(&format!("s{n:02}")));
    world.step();
    assert!(ready(&world).1.contains("there are 65 ImageStores, of which 64 are the most"), "{:?}", ready(&world));
}

#[test]
fn stores_are_added_before_others_are_left() {
    let mut world = World::active(&["a"], &["fast"]);
    world.add_store("slow");
    world.edit(|spec| spec.stores = vec!["slow".into()]);
    world.step();
    let task = world.only_task();
    assert_eq!((task.spec.action, task.spec.revision, task.spec.attempt), (Action::Copy, 1, 2));
    assert_eq!((world.phase(), world.status().revisions[0].locations.len()), (ImagePhase::Active, 1));
    world.agent_succeeds("blake3:one");
    world.step();
    assert_eq!(world.only_task().spec.action, Action::Delete);
    assert_eq!(world.status().locations.iter().map(|l| l.store.as_str()).collect::<Vec<_>>(), ["slow"]);
    world.agent_succeeds("");
    world.step();
    assert!(world.is_settled());
}

#[test]
fn a_read_only_store_keeps_what_it_has_and_takes_nothing() {
    let mut world = World::active(&["a"], &["fast"]);
    world.change_store("fast", |store| store.spec.read_only = true);
    world.step();
    assert_eq!(kstatus(&world), "Current");
    world.edit(|spec| spec.source.http.as_mut().unwrap().url.push('2'));
    world.step();
    assert_eq!((kstatus(&world), ready(&world).0.as_str()), ("Failed", reasons::INVALID_CONFIGURATION));
    assert!(ready(&world).1.contains("read-only") && world.tasks.is_empty());
}

#[test]
fn a_store_that_could_vanish_under_an_import_is_waited_for() {
    let mut world = World::new(&["a"], &["fast"]);
    world.change_store("fast", |store| store.metadata.finalizers = None);
    world.step();
    assert_eq!((kstatus(&world), ready(&world).0.as_str()), ("InProgress", reasons::WAITING));
    assert!(ready(&world).1.contains("ImageStore fast") && world.tasks.is_empty(), "{:?}", ready(&world));
    world.change_store("fast", |store| store.metadata.finalizers = Some(vec![identity::FINALIZER.to_owned()]));
    world.step();
    assert_eq!(world.only_task().spec.action, Action::Import);
}

#[test]
fn a_store_that_is_left_and_named_again_is_vacated_first() {
    let mut world = World::new(&["a"], &["fast", "slow"]);
    world.share_store("slow");
    world.step();
    world.agent_succeeds("blake3:one");
    world.step();
    world.edit(|spec| spec.stores = vec!["fast".into()]);
    world.step();
    assert_eq!(world.only_task().spec.action, Action::Delete);
    world.edit(|spec| spec.stores = vec!["fast".into(), "slow".into()]);
    world.step();
    assert_eq!(world.only_task().spec.action, Action::Delete, "or it would remove what is imported meanwhile");
    world.agent_succeeds("");
    world.step();
    assert_eq!(world.only_task().spec.action, Action::Copy);
}

#[test]
fn a_revision_number_is_never_used_twice() {
    let mut world = World::new(&["a"], &["fast"]);
    world.step();
    world.edit(|spec| {
        spec.source.http.as_mut().unwrap().url.push('2');
        spec.stores = vec!["nowhere".into()];
    });
    world.step();
    world.agent_obeys();
    world.step();
    assert!(world.status().revisions.is_empty());
    world.edit(|spec| spec.stores = vec!["fast".into()]);
    world.step();
    assert_eq!(world.only_task().spec.revision, 2);
}

#[test]
fn another_default_store_sets_no_image_in_motion() {
    let mut world = World::new(&["a"], &["fast"]);
    world.edit(|spec| spec.stores.clear());
    world.change_store("fast", |store| store.spec.default = true);
    world.step();
    world.agent_succeeds("blake3:one");
    world.step();
    world.add_store("new");
    world.change_store("fast", |store| store.spec.default = false);
    world.change_store("new", |store| store.spec.default = true);
    assert!(world.is_settled() && kstatus(&world) == "Current");
    world.change_store("new", |store| store.spec.default = false);
    assert!(world.is_settled(), "no default at all is no matter to who has a place");
}

#[test]
fn a_copy_in_a_store_that_becomes_read_only_is_kept() {
    let mut world = World::new(&["a"], &["fast"]);
    world.add_store("slow");
    world.edit(|spec| {
        spec.stores.clear();
        spec.all_stores = true;
    });
    world.step();
    world.agent_succeeds("blake3:one");
    world.step();
    assert_eq!(world.status().locations.len(), 2);
    world.change_store("slow", |store| store.spec.read_only = true);
    assert!(world.is_settled());
}

#[test]
fn deletion_removes_every_copy_and_then_lets_go() {
    let mut world = World::active(&["a"], &["fast", "slow"]);
    world.delete();
    assert!(!world.step());
    assert_eq!((kstatus(&world), world.phase()), ("Terminating", ImagePhase::Deleting));
    assert!(world.tasks.iter().all(|task| task.spec.action == Action::Delete));
    assert_eq!(world.tasks.len(), 2);
    world.agent_succeeds("");
    assert!(world.step());
    assert!(world.tasks.is_empty());
}

#[test]
fn deletion_in_the_middle_of_an_import_stops_it_first() {
    let mut world = World::new(&["a"], &["fast"]);
    world.step();
    world.agent_runs(50);
    world.delete();
    assert!(!world.step());
    assert!(world.only_task().spec.cancelled);
    assert!(!world.step(), "not before the agent has cleaned up");
    world.agent_obeys();
    assert!(world.step());
}
