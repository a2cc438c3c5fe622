//! What goes wrong, and what is said of it.

use super::*;

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
    assert_eq!(world.status().last_handled_retry.unwrap().len(), 1024);
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

/// As after an older state of the Image was restored: its number is one that was given out before.
#[test]
fn a_number_under_which_a_store_holds_something_else_is_not_used() {
    let mut world = World::new(&["a"], &["fast"]);
    let asked = |world: &World| world.only_task().spec.import.clone().unwrap().request;
    let mut requests = Vec::new();
    for (number, wait) in [(1, 5), (2, 10)] {
        world.step();
        assert_eq!((world.only_task().spec.revision, world.only_task().spec.attempt), (number, number));
        requests.push(asked(&world));
        world.agent_fails(&failure("AlreadyExists", false));
        world.step();
        assert_eq!((kstatus(&world), ready(&world).0.as_str()), ("InProgress", reasons::TRANSIENT_ERROR));
        assert!(ready(&world).1.contains(&format!("becomes revision {}", number + 1)), "{:?}", ready(&world));
        world.pass(Duration::from_secs(wait));
        world.renew("a");
    }
    world.step();
    requests.push(asked(&world));
    assert!(requests.iter().all(|request| *request == requests[0] && request.is_some()), "{requests:?}");
    world.agent_succeeds("blake3:one");
    world.step();
    assert_eq!(
        (kstatus(&world), world.status().revision, world.status().latest_revision),
        ("Current", Some(3), Some(3))
    );
    assert!(world.is_settled() && world.status().cleanup.is_empty(), "what lies under the other numbers is left alone");
    world.edit(|spec| spec.source.http.as_mut().unwrap().url.push('2'));
    world.step();
    assert_ne!(asked(&world), requests[0]);
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
