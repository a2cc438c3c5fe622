//! Which tasks to begin and which to stop: a pure function of what the API server says and what runs.

use std::collections::{BTreeMap, BTreeSet};

use crate::api::{Action, ImageTask, ImageTaskSpec, TaskPhase};

/// Deletes that run at once. They are short, and must not wait behind imports that take an hour; but a thousand of them at once
/// would only fight over the disk.
const CONCURRENT_REMOVALS: usize = 4;

/// Verifications that run at once: they are nobody's hurry, and imports need the disks and the network.
const CONCURRENT_VERIFICATIONS: usize = 1;

/// Uploads that wait or flow at once. Those that wait for somebody to send bytes cost nothing, and must not keep imports from running;
/// how many flow is bounded where they flow.
const CONCURRENT_UPLOADS: usize = 256;

/// What is written to or removed from stores: one revision of one image. Two tasks for one of these never run at once. To verify what
/// is there is another thing, for it keeps nobody from anything.
pub type Object = (String, i64);

/// What the queue needs to know of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The task's uid.
    pub uid: String,
    /// The task's name, for a stable order among those created in one second.
    pub name: String,
    /// When it was created, in seconds.
    pub created: i64,
    /// What it is about.
    pub object: Object,
    /// What is to be done.
    pub action: Action,
    /// Number of the attempt.
    pub attempt: i64,
    /// Somebody is to send the bytes.
    pub upload: bool,
    /// Its status is final.
    pub ended: bool,
    /// It is not wanted any more, but has no final status.
    pub cancelled: bool,
}

impl Entry {
    /// What the queue needs to know of `task`; nothing for an object without the metadata that every stored object has.
    pub fn of(task: &ImageTask) -> Option<Self> {
        let (metadata, spec) = (&task.metadata, &task.spec);
        let phase = task.status.as_ref().and_then(|status| status.phase).unwrap_or(TaskPhase::Pending);
        Some(Self {
            uid: metadata.uid.clone()?,
            name: metadata.name.clone()?,
            created: metadata.creation_timestamp.as_ref()?.0.as_second(),
            object: (object_name(spec), spec.revision),
            action: spec.action,
            attempt: spec.attempt,
            upload: spec.import.as_ref().is_some_and(|order| order.source.upload.is_some()),
            ended: phase.is_final(),
            cancelled: spec.cancelled,
        })
    }

    /// Its place among the tasks of its object.
    fn turn(&self) -> u8 {
        match (self.cancelled, self.action) {
            (true, _) => 0,
            (false, Action::Delete) => 1,
            (false, Action::Import | Action::Copy | Action::Verify) => 2,
        }
    }

    /// In which lane it waits and runs. Cancelled tasks are only cleaned up after, which is short whatever their action.
    pub fn lane(&self) -> Lane {
        match self.action {
            Action::Import | Action::Copy | Action::Verify if self.cancelled => Lane::Short,
            Action::Delete => Lane::Short,
            Action::Import if self.upload => Lane::Patient,
            Action::Import | Action::Copy => Lane::Long,
            Action::Verify => Lane::Aside,
        }
    }
}

fn object_name(spec: &ImageTaskSpec) -> String {
    match &spec.verify {
        None => spec.image.uid.clone(),
        Some(order) => format!("{}@{}", spec.image.uid, order.store.name),
    }
}

/// Tasks of one lane wait for each other, and for no others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Over in seconds.
    Short,
    /// Moves an image.
    Long,
    /// Waits until somebody sends one.
    Patient,
    /// Reads an image, while nobody waits for it.
    Aside,
}

/// A task that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// What it is about.
    pub object: Object,
    /// In which lane it was begun.
    pub lane: Lane,
}

/// Why work is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The task says so.
    Cancelled,
    /// The task is gone or was replaced.
    Gone,
    /// The agent ends.
    Shutdown,
}

/// What to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Uids of tasks to begin, in this order, each with what it will be as a running one.
    pub start: Vec<(String, Running)>,
    /// Uids of tasks to stop.
    pub stop: Vec<(String, Stop)>,
}

/// What to begin and what to stop, given all `tasks` of the node, those that are `running` by uid, those that were `settled` by
/// this process though the view may not show it yet, and how many `imports` may run at once.
pub fn plan(tasks: &[Entry], running: &BTreeMap<String, Running>, settled: &BTreeSet<String>, imports: usize) -> Plan {
    let mut plan = Plan { stop: stops(tasks, running), start: Vec::new() };
    let mut busy: BTreeSet<&Object> = running.values().map(|running| &running.object).collect();
    let mut count = |lane: Lane| running.values().filter(|running| running.lane == lane).count();
    let [mut short, mut long, mut patient, mut aside] =
        [Lane::Short, Lane::Long, Lane::Patient, Lane::Aside].map(&mut count);
    for task in waiting(tasks, running, settled) {
        let (count, most) = match task.lane() {
            Lane::Short => (&mut short, CONCURRENT_REMOVALS),
            Lane::Long => (&mut long, imports.max(1)),
            Lane::Patient => (&mut patient, CONCURRENT_UPLOADS),
            Lane::Aside => (&mut aside, CONCURRENT_VERIFICATIONS),
        };
        // A task whose object is busy also blocks later ones for the same object, and nothing else.
        if busy.insert(&task.object) && *count < most {
            *count = count.saturating_add(1);
            plan.start.push((task.uid.clone(), Running { object: task.object.clone(), lane: task.lane() }));
        }
    }
    plan
}

fn stops(tasks: &[Entry], running: &BTreeMap<String, Running>) -> Vec<(String, Stop)> {
    let known: BTreeMap<&str, &Entry> = tasks.iter().map(|task| (task.uid.as_str(), task)).collect();
    running
        .keys()
        .filter_map(|uid| match known.get(uid.as_str()) {
            None => Some((uid.clone(), Stop::Gone)),
            Some(task) if task.cancelled => Some((uid.clone(), Stop::Cancelled)),
            Some(_) => None,
        })
        .collect()
}

/// Tasks that could begin, by age; those of one object one after the other: what is only to be cleaned up after, then removals (what
/// is to go must not be brought anew before), then imports, lower attempts first.
fn waiting<'a>(
    tasks: &'a [Entry],
    running: &BTreeMap<String, Running>,
    settled: &BTreeSet<String>,
) -> impl Iterator<Item = &'a Entry> {
    let mut waiting: Vec<_> = tasks
        .iter()
        .filter(|task| !task.ended && !running.contains_key(&task.uid) && !settled.contains(&task.uid))
        .collect();
    // An object stands in the queue where its oldest task does.
    let mut oldest: BTreeMap<&Object, (i64, &str)> = BTreeMap::new();
    for task in &waiting {
        let age = (task.created, task.name.as_str());
        oldest.entry(&task.object).and_modify(|first| *first = age.min(*first)).or_insert(age);
    }
    waiting.sort_by_key(|task| (oldest.get(&task.object).copied(), task.turn(), task.attempt, task.name.as_str()));
    waiting.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(uid: &str, created: i64, object: &str, action: Action, attempt: i64) -> Entry {
        Entry {
            uid: uid.to_owned(),
            name: format!("task-{uid}"),
            created,
            object: (object.to_owned(), 1),
            action,
            attempt,
            upload: false,
            ended: false,
            cancelled: false,
        }
    }

    fn import(uid: &str, created: i64) -> Entry {
        task(uid, created, uid, Action::Import, 1)
    }

    fn run(tasks: &[&Entry]) -> BTreeMap<String, Running> {
        let running = |task: &Entry| Running { object: task.object.clone(), lane: task.lane() };
        tasks.iter().map(|task| (task.uid.clone(), running(task))).collect()
    }

    fn started(plan: &Plan) -> Vec<&str> {
        plan.start.iter().map(|(uid, _)| uid.as_str()).collect()
    }

    fn nothing() -> BTreeSet<String> {
        BTreeSet::new()
    }

    #[test]
    fn imports_begin_in_order_of_creation_up_to_the_limit() {
        let tasks = [import("c", 3), import("a", 1), import("d", 3), import("b", 2)];
        assert_eq!(started(&plan(&tasks, &run(&[]), &nothing(), 2)), ["a", "b"]);
        assert_eq!(started(&plan(&tasks, &run(&[&tasks[1]]), &nothing(), 2)), ["b"]);
        assert_eq!(started(&plan(&tasks, &run(&[&tasks[1], &tasks[3]]), &nothing(), 2)), [""; 0]);
        assert_eq!(started(&plan(&tasks, &run(&[]), &nothing(), 9)), ["a", "b", "c", "d"]);
        assert_eq!(started(&plan(&tasks, &run(&[]), &nothing(), 0)), ["a"], "a limit of 0 would wait for ever");
    }

    #[test]
    fn what_ended_or_was_settled_here_never_begins_again() {
        let mut ended = import("a", 1);
        ended.ended = true;
        let tasks = [ended, import("b", 2), import("c", 3)];
        let settled = BTreeSet::from(["b".to_owned()]);
        assert_eq!(started(&plan(&tasks, &run(&[]), &settled, 2)), ["c"]);
    }

    #[test]
    fn removals_do_not_wait_behind_imports() {
        let running = import("a", 1);
        let tasks = [running.clone(), import("b", 2), task("x", 3, "old", Action::Delete, 4)];
        assert_eq!(started(&plan(&tasks, &run(&[&running]), &nothing(), 1)), ["x"]);
        let many: Vec<_> = (0..9).map(|n| task(&n.to_string(), n, &n.to_string(), Action::Delete, 1)).collect();
        assert_eq!(started(&plan(&many, &run(&[]), &nothing(), 1)).len(), CONCURRENT_REMOVALS);
    }

    #[test]
    fn tasks_for_one_object_run_one_after_the_other_removals_first() {
        let (delete, again) = (task("d", 9, "x", Action::Delete, 7), task("i", 1, "x", Action::Import, 3));
        let other = import("o", 5);
        let tasks = [again.clone(), other.clone(), delete.clone()];
        assert_eq!(started(&plan(&tasks, &run(&[]), &nothing(), 2)), ["d", "o"]);
        assert_eq!(started(&plan(&tasks, &run(&[&delete]), &nothing(), 2)), ["o"]);
        assert_eq!(started(&plan(&tasks, &run(&[&delete, &other]), &nothing(), 2)), [""; 0]);
    }

    #[test]
    fn cancelled_and_vanished_work_is_stopped() {
        let (mut cancelled, gone) = (import("a", 1), import("b", 2));
        let running = run(&[&cancelled, &gone]);
        cancelled.cancelled = true;
        let plan = plan(&[cancelled], &running, &nothing(), 2);
        assert_eq!(plan.stop, [("a".to_owned(), Stop::Cancelled), ("b".to_owned(), Stop::Gone)]);
        assert!(plan.start.is_empty());
    }

    #[test]
    fn a_cancelled_task_that_does_not_run_is_brought_to_its_end_at_once() {
        let (busy, mut cancelled) = (import("a", 1), import("b", 2));
        cancelled.cancelled = true;
        let plan = plan(&[busy.clone(), cancelled], &run(&[&busy]), &nothing(), 1);
        assert_eq!(started(&plan), ["b"]);
        assert!(plan.start.iter().all(|(_, running)| running.lane == Lane::Short));
    }

    #[test]
    fn what_was_cancelled_is_cleaned_up_after_before_it_is_tried_again() {
        let (mut first, second) = (task("1", 5, "x", Action::Import, 1), task("2", 5, "x", Action::Import, 2));
        first.cancelled = true;
        let tasks = [second, first.clone()];
        assert_eq!(started(&plan(&tasks, &run(&[]), &nothing(), 2)), ["1"]);
        assert_eq!(started(&plan(&tasks, &run(&[]), &BTreeSet::from(["1".to_owned()]), 2)), ["2"]);
    }

    #[test]
    fn an_object_whose_import_waits_for_room_holds_back_its_later_tasks() {
        let busy = import("a", 1);
        let (first, second) = (task("1", 2, "x", Action::Import, 1), task("2", 3, "x", Action::Import, 2));
        let plan = plan(&[busy.clone(), first, second], &run(&[&busy]), &nothing(), 1);
        assert_eq!(started(&plan), [""; 0]);
    }
}
