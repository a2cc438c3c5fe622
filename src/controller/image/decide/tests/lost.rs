//! Nodes and operators that are lost, and what they leave behind.

use super::*;

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
    // Edited while a revision that serves gets into one more store.
    let mut world = World::active(&["a", "b"], &["other"]);
    world.add_store("fast");
    world.share_store("fast");
    world.edit(|spec| spec.stores.push("fast".into()));
    world.step();
    world.edit(|spec| spec.source.http.as_mut().unwrap().url.push('2'));
    world.step();
    world.agent_fails(&failure("Refused", false));
    world.step();
    world.step();
    assert!(deletes(&world).contains(&1) && world.status().revisions[0].tried.is_empty());
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
fn an_operator_that_died_between_status_and_task_is_continued() {
    let mut world = World::new(&["a"], &["fast"]);
    world.step();
    let made = world.only_task().clone();
    world.tasks.clear();
    world.step();
    assert_eq!(world.only_task().metadata.name, made.metadata.name, "the same attempt, not a second one");
    assert_eq!(world.only_task().spec, made.spec);
}
