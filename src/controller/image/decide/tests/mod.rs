//! Decisions, one situation after another, in a world without a cluster.

mod chaos;
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
fn a_missing_secret_matters_to_who_is_about_to_import_and_to_nobody_else() {
    let missing = References { headers: Some(Err("there is no Secret mirror".into())), bundle: None };
    let mut world = World::active(&["a"], &["fast"]);
    world.references = missing.clone();
    assert!(world.is_settled() && kstatus(&world) == "Current", "what is there needs no headers");
    world.edit(|spec| spec.source.http.as_mut().unwrap().url.push('2'));
    world.step();
    assert_eq!((kstatus(&world), ready(&world).0.as_str()), ("Failed", reasons::INVALID_CONFIGURATION));
    assert!(ready(&world).1.contains("there is no Secret mirror; revision 1 goes on serving"), "{:?}", ready(&world));
    world.references = References::default();
    world.step();
    assert_eq!((kstatus(&world), world.only_task().spec.revision), ("InProgress", 2));
    world.references = missing;
    world.step();
    assert_eq!(kstatus(&world), "InProgress", "what is under way has its headers already");
    // The operator died before it made the task.
    world.tasks.clear();
    world.step();
    assert_eq!((kstatus(&world), world.tasks.len()), ("Failed", 0));
    world.references = References::default();
    world.step();
    world.agent_succeeds("blake3:two");
    world.step();
    assert_eq!(kstatus(&world), "Current");
}

#[test]
fn what_is_under_way_is_not_called_a_failure_because_of_a_store_that_is_gone() {
    let mut world = World::new(&["a"], &["fast", "slow"]);
    world.step();
    world.stores.remove("slow");
    world.step();
    assert_eq!(kstatus(&world), "InProgress");
    world.agent_succeeds("blake3:one");
    world.step();
    assert_eq!(kstatus(&world), "Failed", "now nothing goes on");
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
    // Longer than what is kept of it.
    world.annotate(identity::ANNOTATION_RETRY, &"1".repeat(2000));
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
fn a_task_that_the_api_server_does_not_take_is_a_failed_attempt() {
    let mut world = World::new(&["a"], &["fast"]);
    world.step();
    for wait in [5, 10, 20, 40] {
        world.tasks.clear();
        world.refused = Some("Secret is invalid: too long".into());
        world.step();
        assert_eq!((kstatus(&world), ready(&world).0.as_str()), ("InProgress", reasons::TRANSIENT_ERROR));
        assert!(ready(&world).1.contains("too long") && world.tasks.is_empty(), "{:?}", ready(&world));
        world.refused = None;
        world.pass(Duration::from_secs(wait));
        world.renew("a");
        world.step();
        assert_eq!(world.tasks.len(), 1);
    }
    world.tasks.clear();
    world.refused = Some("Secret is invalid: too long".into());
    world.step();
    assert_eq!((kstatus(&world), ready(&world).0.as_str()), ("Failed", reasons::RETRIES_EXHAUSTED));
}

#[test]
fn what_shall_be_in_more_stores_than_one_attempt_can_serve_takes_several() {
    let mut world = World::new(&["a"], &[]);
    (0..20).for_each(|n| world.add_store(&format!("s{n:02}")));
    world.edit(|spec| spec.all_stores = true);
    world.step();
    let stores = |world: &World| world.only_task().spec.import.as_ref().unwrap().stores.len();
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
fn what_an_import_may_have_left_in_a_store_that_others_reach_is_removed_when_nobody_takes_it_over() {
    let begun = || {
        let mut world = World::new(&["a", "b"], &["fast"]);
        world.share_store("fast");
        world.step();
        assert_eq!(world.status().revisions[0].tried, ["fast"]);
        world
    };
    let deletes = |world: &World| -> Vec<i64> {
        world.tasks.iter().filter(|t| t.spec.action == Action::Delete).map(|t| t.spec.revision).collect()
    };
    // Deleted while the agent is in its commit: the removal waits for it to end.
    let mut world = begun();
    world.delete();
    assert!(!world.step() && deletes(&world).is_empty());
    world.agent_obeys();
    assert!(!world.step());
    assert_eq!(deletes(&world), [1]);
    world.agent_succeeds("");
    assert!(world.step());
    // Edited: the next revision does not wait for it.
    let mut world = begun();
    world.edit(|spec| spec.source.http.as_mut().unwrap().url.push('2'));
    world.step();
    world.agent_obeys();
    world.step();
    assert_eq!(deletes(&world), [1]);
    // Killed after the commit, and away until the Image is deleted.
    let mut world = begun();
    world.pass(Duration::from_secs(41));
    world.step();
    assert!(world.tasks.is_empty() && world.status().cleanup.is_empty());
    world.renew("b");
    world.delete();
    assert!(!world.step());
    assert_eq!((deletes(&world), world.only_task().spec.node_name.as_str()), (vec![1], "b"));
    // Given up.
    let mut world = begun();
    world.agent_fails(&failure("Refused", false));
    world.step();
    assert_eq!((deletes(&world), kstatus(&world)), (vec![1], "Failed"));
    world.annotate(identity::ANNOTATION_RETRY, "1");
    world.step();
    assert_eq!(world.only_task().spec.action, Action::Delete, "the next attempt waits for the removal");
    world.agent_succeeds("");
    world.step();
    assert_eq!((world.only_task().spec.action, world.only_task().spec.attempt), (Action::Import, 2));
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
fn an_operator_that_was_cut_off_blames_no_agent_for_it() {
    let mut world = World::new(&["a", "b"], &["fast"]);
    world.step();
    world.agent_runs(50);
    // The API server was away: nobody could renew, and another operator begins.
    world.pass(Duration::from_secs(300));
    world.change_operator(&["a", "b"], Duration::from_secs(300));
    world.step();
    world.pass(Duration::from_secs(39));
    world.step();
    assert_eq!((world.only_task().spec.attempt, world.only_task().spec.cancelled), (1, false));
    world.renew("a");
    world.agent_succeeds("blake3:one");
    world.step();
    assert_eq!((kstatus(&world), world.status().revisions[0].attempts), ("Current", 1));
    // One that is really dead is found out when its term is over.
    let mut world = World::new(&["a"], &["fast"]);
    world.step();
    world.change_operator(&["a"], Duration::from_secs(300));
    world.pass(Duration::from_secs(40));
    world.step();
    assert!(world.told().contains(&events::NODE_LOST));
}

#[test]
fn nobody_is_lost_before_the_api_server_has_said_so() {
    let mut world = World::new(&["a"], &["fast"]);
    world.step();
    world.pass(Duration::from_secs(41));
    let decision = world.decide();
    assert!(decision.orders.is_empty() && decision.status.attempt.unwrap().node.is_some());
    world.step();
    assert!(world.told().contains(&events::NODE_LOST));
}

#[test]
fn an_old_revision_that_served_from_a_node_that_is_gone_serves_no_more() {
    let mut world = World::active(&["a", "b"], &["fast"]);
    world.edit(|spec| spec.source.http.as_mut().unwrap().url.push('2'));
    world.step();
    world.agent_fails(&failure("Refused", false));
    world.step();
    assert!(ready(&world).1.contains("revision 1 goes on serving"));
    world.delete_lease("a");
    world.pass(Duration::from_secs(41));
    world.renew("b");
    world.step();
    assert!(world.told().contains(&events::LOCATION_LOST));
    let status = world.status();
    assert_eq!((status.revision, status.locations.len(), world.phase()), (None, 0, ImagePhase::Failed));
    assert_eq!(status.revisions.iter().map(|revision| revision.number).collect::<Vec<_>>(), [2]);
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
