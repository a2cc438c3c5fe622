//! Decisions, one situation after another, in a world without a cluster.

mod chaos;
mod orders;
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
    assert_eq!(order.stores[0].filesystem.as_ref().unwrap().path, "/srv/fast");
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
    assert_eq!((status.revision, status.content_digest.as_deref()), (Some(1), Some("blake3:one")));
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
    assert_eq!(world.status().content_digest.as_deref(), Some("blake3:one"));
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
        spec.convert_to = Some(Conversion { disk_format: DiskFormat::Qcow2, compression: None, cluster_size: None });
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
fn what_cannot_be_carried_out_says_why_and_recovers() {
    let mut world = World::new(&["a"], &["fast"]);
    world.edit(|spec| spec.stores = vec!["fats".into()]);
    world.step();
    assert_eq!(
        (kstatus(&world), world.phase(), ready(&world).0.as_str()),
        ("Failed", ImagePhase::Failed, reasons::INVALID_CONFIGURATION)
    );
    assert_eq!(world.told(), [reasons::INVALID_CONFIGURATION]);
    world.step();
    assert!(world.told().is_empty(), "said once");
    world.add_store("fats");
    world.step();
    assert_eq!((kstatus(&world), world.tasks.len()), ("InProgress", 1));
}

#[test]
fn refusals_are_final_until_something_changes() {
    let mut world = World::new(&["a", "b"], &["fast"]);
    world.step();
    world.agent_fails(&failure("Refused", false));
    world.step();
    assert_eq!(
        (kstatus(&world), world.phase(), ready(&world).0.as_str()),
        ("Failed", ImagePhase::Failed, reasons::UNRECOVERABLE_ERROR)
    );
    assert!(ready(&world).1.contains(identity::ANNOTATION_RETRY), "says how to retry: {:?}", ready(&world));
    world.pass(Duration::from_secs(86400));
    ["a", "b"].iter().for_each(|node| world.renew(node));
    world.step();
    assert!(world.tasks.is_empty());
    world.annotate(identity::ANNOTATION_RETRY, "1");
    world.step();
    assert_eq!((world.only_task().spec.attempt, kstatus(&world)), (2, "InProgress"));
    world.agent_fails(&failure("Refused", false));
    world.step();
    world.step();
    assert!(world.tasks.is_empty(), "the same request counts once");
    world.edit(|spec| spec.source.http.as_mut().unwrap().url.push('2'));
    world.step();
    assert_eq!((world.only_task().spec.revision, world.only_task().spec.attempt), (2, 1));
}

#[test]
fn passing_failures_are_retried_elsewhere_with_growing_waits_and_an_end() {
    let mut world = World::new(&["a", "b"], &["fast"]);
    world.step();
    let mut nodes = Vec::new();
    for (attempt, wait) in [(1, 5), (2, 10), (3, 20), (4, 40)] {
        nodes.push(world.only_task().spec.node_name.clone());
        assert_eq!(world.only_task().spec.attempt, attempt);
        world.agent_fails(&failure("Unavailable", true));
        world.step();
        assert_eq!((kstatus(&world), ready(&world).0.as_str()), ("InProgress", reasons::TRANSIENT_ERROR));
        assert!(world.tasks.is_empty());
        world.pass(Duration::from_secs(wait - 1));
        world.step();
        assert!(world.tasks.is_empty(), "not before {wait} s");
        world.pass(Duration::from_secs(2));
        ["a", "b"].iter().for_each(|node| world.renew(node));
        world.step();
    }
    assert_eq!(nodes, ["a", "b", "a", "b"]);
    world.agent_fails(&failure("Unavailable", true));
    world.step();
    assert_eq!((kstatus(&world), ready(&world).0.as_str()), ("Failed", reasons::RETRIES_EXHAUSTED));
}

#[test]
fn a_lost_node_is_fenced_and_its_disk_cleaned_when_it_returns() {
    let mut world = World::new(&["a", "b"], &["fast"]);
    world.step();
    assert_eq!(world.only_task().spec.node_name, "a");
    world.agent_runs(50);
    world.pass(Duration::from_secs(30));
    world.renew("b");
    world.step();
    assert_eq!(world.only_task().spec.node_name, "a", "30 s of silence are nothing");
    world.pass(Duration::from_secs(11));
    world.step();
    let task = world.only_task();
    assert_eq!((task.spec.node_name.as_str(), task.spec.attempt), ("b", 2), "the older task is gone");
    assert!(world.told().contains(&events::NODE_LOST));
    world.agent_succeeds("blake3:one");
    world.step();
    assert_eq!(kstatus(&world), "Current");
    assert_eq!(world.status().locations[0].node.as_deref(), Some("b"));
    assert!(world.tasks.is_empty(), "the leftovers on a must wait for a");
    assert!(ready(&world).1.contains("on node a waits for the agent"), "{:?}", ready(&world));
    world.renew("a");
    world.step();
    assert_eq!((world.only_task().spec.action, world.only_task().spec.node_name.as_str()), (Action::Delete, "a"));
    world.agent_succeeds("");
    world.step();
    assert!(world.is_settled() && world.status().cleanup.is_empty());
}

#[test]
fn a_lost_node_owes_nothing_in_a_store_that_others_reach() {
    let mut world = World::new(&["a", "b"], &["fast"]);
    world.share_store("fast");
    world.step();
    world.pass(Duration::from_secs(41));
    world.renew("b");
    world.step();
    assert_eq!(world.only_task().spec.node_name, "b");
    assert!(world.status().cleanup.is_empty(), "the next attempt's token shuts it out");
    world.agent_succeeds("blake3:one");
    world.step();
    assert_eq!(world.status().locations[0].node, None);
}

#[test]
fn without_agents_it_waits_and_says_so() {
    let mut world = World::new(&[], &["fast"]);
    world.step();
    assert_eq!(
        (kstatus(&world), world.phase(), ready(&world).0.as_str()),
        ("InProgress", ImagePhase::Queued, reasons::WAITING)
    );
    assert!(ready(&world).1.contains("DaemonSet"));
    world.renew("late");
    world.step();
    assert_eq!(world.only_task().spec.node_name, "late");
}

#[test]
fn stores_are_added_before_others_are_left() {
    let mut world = World::active(&["a"], &["fast"]);
    world.add_store("slow");
    world.edit(|spec| spec.stores = vec!["slow".into()]);
    world.step();
    let task = world.only_task();
    assert_eq!((task.spec.action, task.spec.revision, task.spec.attempt), (Action::Import, 1, 2));
    let checksums = &task.spec.import.as_ref().unwrap().checksums;
    assert!(checksums.contains(&world::SHA256.to_owned()), "the source must still be what it was: {checksums:?}");
    assert_eq!((world.phase(), world.status().locations.len()), (ImagePhase::Active, 1));
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
fn a_node_with_leftovers_removes_them_before_it_imports_again() {
    let mut world = World::new(&["a"], &["fast"]);
    world.step();
    world.pass(Duration::from_secs(41));
    world.step();
    assert!(world.tasks.is_empty() && world.status().cleanup.len() == 1);
    world.renew("a");
    world.step();
    assert_eq!(world.only_task().spec.action, Action::Delete);
    assert!(ready(&world).1.contains("has leftovers of an earlier attempt to remove first"), "{:?}", ready(&world));
    world.agent_succeeds("");
    world.step();
    assert_eq!((world.only_task().spec.action, world.only_task().spec.attempt), (Action::Import, 2));
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
    assert_eq!(world.only_task().spec.action, Action::Import);
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
fn a_node_that_is_gone_for_good_takes_its_copy_along() {
    let mut world = World::active(&["a", "b"], &["fast"]);
    world.delete_lease("a");
    world.pass(Duration::from_secs(10));
    world.renew("b");
    world.step();
    assert!(world.is_settled() && kstatus(&world) == "Current", "an agent that lives makes its lease anew");
    world.pass(Duration::from_secs(31));
    world.renew("b");
    world.step();
    assert!(world.told().contains(&events::LOCATION_LOST));
    let task = world.only_task();
    assert_eq!((task.spec.node_name.as_str(), task.spec.revision), ("b", 1));
    assert_eq!((kstatus(&world), world.phase()), ("InProgress", ImagePhase::Queued));
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
fn deletion_waits_for_a_silent_node_and_forgets_a_gone_one() {
    let mut world = World::active(&["a"], &["fast"]);
    world.pass(Duration::from_secs(60));
    world.delete();
    assert!(!world.step());
    assert!(ready(&world).1.contains("whose lease has expired") && world.tasks.is_empty(), "{:?}", ready(&world));
    world.delete_lease("a");
    world.pass(Duration::from_secs(41));
    assert!(world.step());
    assert!(world.told().contains(&events::LOCATION_LOST));
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

#[test]
fn failed_removals_are_tried_again() {
    let mut world = World::active(&["a"], &["fast"]);
    world.delete();
    world.step();
    world.agent_fails(&failure("Io", false));
    assert!(!world.step());
    assert_eq!(world.only_task().status.as_ref().unwrap().phase, Some(TaskPhase::Failed));
    assert!(ready(&world).1.contains("it broke"), "{:?}", ready(&world));
    world.pass(Duration::from_secs(6));
    assert!(!world.step());
    assert_eq!(world.only_task().spec.attempt, 2);
    world.agent_succeeds("");
    assert!(world.step());
}

#[test]
fn an_operator_that_died_between_status_and_task_is_continued() {
    let mut world = World::new(&["a"], &["fast"]);
    world.step();
    let made = world.only_task().clone();
    world.tasks.clear();
    world.step();
    assert_eq!(world.only_task().metadata.name, made.metadata.name, "the same attempt, not a second one");
    assert_eq!(world.only_task().spec, made.spec);
}
