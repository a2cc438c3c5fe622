//! Takes over what ended tasks say, and lets the tasks go.

use super::{Draft, phase_of, strays};
use crate::{
    api::{
        Action, FailureReport, ImageTask, ImportResult, Location, Progress, Revision, RevisionPhase, TaskFailure,
        TaskPhase, condition::events,
    },
    kube::event::Happening,
};

/// The reason in the report of an attempt whose task could not be made.
const TASK_REFUSED: &str = "TaskRefused";
/// How much is kept of what the API server says, in characters: it repeats what it refuses.
const MAX_REFUSAL: usize = 2048;

impl Draft<'_> {
    /// Takes over every task that has ended, but for Deletes that failed: those wait where they are (see `cleanup`).
    pub(super) fn settle(&mut self) {
        for task in self.seen.tasks {
            match (task.spec.action, phase_of(task)) {
                (Action::Import, TaskPhase::Succeeded) => self.import_succeeded(task),
                (Action::Import, TaskPhase::Failed) => self.import_failed(task),
                (Action::Import, TaskPhase::Pending | TaskPhase::Running) => self.import_goes_on(task),
                (Action::Delete, TaskPhase::Succeeded) => self.delete_succeeded(task),
                (Action::Delete, TaskPhase::Pending | TaskPhase::Running | TaskPhase::Failed) => {}
            }
        }
        if let Some(why) = self.seen.refused {
            self.task_refused(why);
        }
    }

    /// The API server does not take the attempt's task. That may pass (a quota), or somebody has to change something (a Secret).
    fn task_refused(&mut self, why: &str) {
        let node = self.status.attempt.as_ref().and_then(|attempt| attempt.node.clone());
        let Some(node) = node.filter(|_| self.attempt_task().is_none()) else { return };
        let why: String = why.chars().take(MAX_REFUSAL).collect();
        let report = FailureReport {
            reason: TASK_REFUSED.into(),
            rule: None,
            message: format!("the API server does not take the order to the node: {why}"),
            retryable: true,
            node,
            at: self.time(),
        };
        self.fail_attempt(report, true);
    }

    fn is_attempt(&self, task: &ImageTask) -> bool {
        self.attempt_task().is_some_and(|current| current.metadata.name == task.metadata.name)
    }

    fn import_goes_on(&mut self, task: &ImageTask) {
        if self.is_attempt(task) {
            let progress = task.status.as_ref().and_then(|status| status.progress.clone());
            self.status.progress =
                Some(progress.unwrap_or_else(|| Progress { stage: "Waiting".into(), ..Progress::default() }));
        }
    }

    fn import_succeeded(&mut self, task: &ImageTask) {
        let Some(result) = task.status.as_ref().and_then(|status| status.result.clone()) else {
            return self.import_failed(task);
        };
        let locations = locations(task, &result);
        let (ours, number) = (self.is_attempt(task), task.spec.revision);
        self.orders.remove(task);
        let time = self.time();
        match self.revision(number).filter(|_| ours) {
            Some(revision) => {
                let first = revision.phase == RevisionPhase::Importing;
                record(revision, result, locations);
                if first {
                    revision.phase = RevisionPhase::Active;
                    revision.imported_at = Some(time);
                }
                self.status.attempt = None;
                self.status.progress = None;
                let node = &task.spec.node_name;
                let note = format!("revision {number} was imported, verified and stored by node {node}");
                self.tell(Happening::normal(events::IMPORT_SUCCEEDED, "Import", note));
            }
            None => self.discard_unknown(number, &locations),
        }
    }

    /// An import that was stopped too late: it is published, and nobody wants it. Unless it was taken over already, by an operator that
    /// died before it could delete the task.
    fn discard_unknown(&mut self, number: i64, locations: &[Location]) {
        let known = self.revision(number).map(|revision| revision.locations.clone()).unwrap_or_default();
        let is_known =
            |location: &Location| known.iter().any(|k| (&k.store, &k.node) == (&location.store, &location.node));
        locations.iter().filter(|location| !is_known(location)).for_each(|location| self.discard(number, location));
    }

    fn import_failed(&mut self, task: &ImageTask) {
        let ours = self.is_attempt(task);
        self.orders.remove(task);
        if !ours {
            return;
        }
        let failure = task.status.as_ref().and_then(|status| status.failure.clone()).unwrap_or_else(|| TaskFailure {
            reason: "Internal".into(),
            rule: None,
            message: format!("the agent on node {} ended the task without saying how", task.spec.node_name),
            retryable: true,
        });
        let report = FailureReport {
            reason: failure.reason,
            rule: failure.rule,
            message: failure.message,
            // The operator has not cancelled this one, so whatever stopped it may be over.
            retryable: failure.retryable || strays::was_cancelled(task),
            node: task.spec.node_name.clone(),
            at: self.time(),
        };
        self.fail_attempt(report, true);
    }

    fn delete_succeeded(&mut self, task: &ImageTask) {
        // What a later attempt published behind an order that could not know of it is still there, and is ordered away anew.
        let fence = task.spec.delete.as_ref().map_or(0, |order| order.fence);
        let stores = task.spec.delete.iter().flat_map(|order| &order.stores);
        for target in stores {
            let node = target.backend.is_local().then(|| task.spec.node_name.clone());
            let done = |item: &crate::api::Cleanup| {
                item.revision == task.spec.revision
                    && item.store == target.name
                    && item.node == node
                    && item.attempt <= fence
            };
            self.status.cleanup.retain(|item| !done(item));
        }
        self.orders.remove(task);
    }
}

fn record(revision: &mut Revision, result: ImportResult, locations: Vec<Location>) {
    revision.content = Some(result.content);
    for location in locations {
        revision.locations.retain(|old| (&old.store, &old.node) != (&location.store, &location.node));
        revision.tried.retain(|store| *store != location.store);
        revision.locations.push(location);
    }
}

/// Where the task put it: a store that each node has for itself is named with the node.
fn locations(task: &ImageTask, result: &ImportResult) -> Vec<Location> {
    let target =
        |name: &str| task.spec.import.iter().flat_map(|order| &order.stores).find(|target| target.name == name);
    let make = |found: &crate::api::TaskLocation| {
        let local = target(&found.store).is_none_or(|target| target.backend.is_local());
        Location {
            store: found.store.clone(),
            node: local.then(|| task.spec.node_name.clone()),
            url: Some(found.url.clone()),
            format: Some(found.format),
            size: Some(found.size),
            allocated_size: Some(found.allocated_size),
        }
    };
    result.locations.iter().map(make).collect()
}
