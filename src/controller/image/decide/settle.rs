//! Takes over what ended tasks say, and lets the tasks go.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Draft, phase_of, strays};
use crate::{
    api::{
        Action, FailureReport, Gap, ImageTask, ImportResult, Location, LocationPhase, Progress, Revision,
        RevisionPhase, StoreFailure, StoreFault, TaskFailure, TaskPhase, condition::events,
    },
    kube::event::Happening,
};

/// The reason in the report of an attempt whose task could not be made.
const TASK_REFUSED: &str = "TaskRefused";
/// The reason of an agent that finds something else under the revision's number.
const ALREADY_EXISTS: &str = "AlreadyExists";
/// How much is kept of what the API server says, in characters: it repeats what it refuses.
const MAX_REFUSAL: usize = 2048;

impl Draft<'_> {
    /// Takes over every task that has ended, but for Deletes and Verifies that failed: those wait where they are (see
    /// `cleanup` and `verify`).
    pub(super) fn settle(&mut self) {
        for task in self.seen.tasks {
            match (task.spec.action, phase_of(task)) {
                (Action::Import | Action::Copy, TaskPhase::Succeeded) => self.import_succeeded(task),
                (Action::Import | Action::Copy, TaskPhase::Failed) => self.import_failed(task),
                (Action::Import | Action::Copy, TaskPhase::Pending | TaskPhase::Running) => self.import_goes_on(task),
                (Action::Delete, TaskPhase::Succeeded) => self.delete_succeeded(task),
                (Action::Verify, TaskPhase::Succeeded) => self.verify_succeeded(task),
                (Action::Delete | Action::Verify, TaskPhase::Pending | TaskPhase::Running | TaskPhase::Failed) => {}
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
        self.note_faults(task);
        let locations = self.locations(task, &result);
        let (ours, number) = (self.is_attempt(task), task.spec.revision);
        self.orders.remove(task);
        let time = self.time();
        match self.revision(number).filter(|_| ours) {
            Some(revision) => {
                let first = revision.phase == RevisionPhase::Importing;
                let failures = result.failures.clone();
                record(revision, result, locations);
                if first {
                    revision.phase = RevisionPhase::Active;
                    revision.imported_at = Some(time);
                }
                self.status.attempt = None;
                self.status.progress = None;
                self.tell(succeeded(task));
                let node = &task.spec.node_name;
                failures.into_iter().for_each(|StoreFailure { store, failure }| {
                    self.note_gap(number, &store, report(failure, node, self.time()));
                });
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
        self.note_faults(task);
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
        // The operator has not cancelled this one, so whatever stopped it may be over.
        let failure = TaskFailure { retryable: failure.retryable || strays::was_cancelled(task), ..failure };
        let report = report(failure, &task.spec.node_name, self.time());
        let faultless = task.status.as_ref().is_none_or(|status| status.faults.is_empty());
        if task.spec.action == Action::Copy && faultless && !strays::was_cancelled(task) {
            // Nothing is wrong with where it comes from: it is these stores that failed, each for itself.
            self.status.attempt = None;
            self.status.progress = None;
            for target in task.spec.targets() {
                self.note_gap(task.spec.revision, &target.name, report.clone());
            }
            return;
        }
        let taken = report.reason == ALREADY_EXISTS;
        let report = match taken.then(|| self.take_another_number(task.spec.revision)).flatten() {
            Some(next) => {
                let message = format!("{}; that is left there, and this becomes revision {next}", report.message);
                FailureReport { retryable: true, message, ..report }
            }
            None => report,
        };
        self.fail_attempt(report, true);
    }

    /// Gives a revision that is nowhere yet another number, for a store holds something else under the one that it had: what was stored
    /// before an older state of the Image was restored. That is left to those who look for what no Image knows.
    fn take_another_number(&mut self, number: i64) -> Option<i64> {
        let next = self.status.latest_revision.unwrap_or(number).max(number).checked_add(1)?;
        let fresh = |r: &&mut Revision| r.phase == RevisionPhase::Importing && r.locations.is_empty();
        self.revision(number).filter(fresh)?.number = next;
        self.status.latest_revision = Some(next);
        self.status.attempt.iter_mut().for_each(|attempt| attempt.revision = next);
        Some(next)
    }

    /// Takes over what a task says of the copies that it read.
    fn note_faults(&mut self, task: &ImageTask) {
        let faults = task.status.as_ref().map(|status| status.faults.clone()).unwrap_or_default();
        let (number, node, ours) = (task.spec.revision, &task.spec.node_name, self.is_attempt(task));
        for StoreFault { store, message, rotten } in faults {
            if rotten {
                self.condemn(number, &store, node, &message);
            } else if let Some(attempt) = self.status.attempt.as_mut().filter(|_| ours) {
                attempt.unreadable.retain(|known| *known != store);
                attempt.unreadable.push(store);
            }
        }
    }

    /// Marks what a store holds of a revision, as seen from `node`, as not what was stored.
    pub(super) fn condemn(&mut self, number: i64, store: &str, node: &str, message: &str) {
        let Some(revision) = self.revision(number) else { return };
        let is_it = |l: &&mut Location| l.store == store && l.node.as_deref().is_none_or(|held| held == node);
        let Some(location) = revision.locations.iter_mut().find(is_it) else { return };
        location.phase = LocationPhase::Corrupt;
        location.message = Some(message.to_owned());
        let note = format!("the copy of revision {number} in store {store} is not used any more: {message}");
        self.tell(Happening::warning(events::LOCATION_CORRUPT, "Verify", note));
    }

    /// Takes note that a store did not take the revision.
    fn note_gap(&mut self, number: i64, store: &str, report: FailureReport) {
        let (retry, now) = (self.seen.retry, self.seen.now);
        let Some(revision) = self.revision(number) else { return };
        let failures = revision.gaps.iter().find(|gap| gap.store == store).map_or(0, |gap| gap.failures);
        let failures = failures.saturating_add(1);
        let delay = retry.backoff.delay(failures);
        let retry_at = report.retryable.then(|| now.checked_add(delay).ok().map(Time)).flatten();
        let next = match &retry_at {
            Some(_) => format!("it is tried again in {} s", delay.as_secs()),
            None => "trying again cannot help".to_owned(),
        };
        let note = format!("store {store} did not get revision {number}: {} ({next})", report.message);
        revision.gaps.retain(|gap| gap.store != store);
        revision.gaps.push(Gap { store: store.to_owned(), failures, last_failure: report, retry_at });
        self.tell(Happening::warning(events::STORE_FAILED, "Import", note));
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
        revision.gaps.retain(|gap| gap.store != location.store);
        revision.locations.push(location);
    }
}

fn report(failure: TaskFailure, node: &str, at: Time) -> FailureReport {
    let TaskFailure { reason, rule, message, retryable } = failure;
    FailureReport { reason, rule, message, retryable, node: node.to_owned(), at }
}

fn succeeded(task: &ImageTask) -> Happening {
    let (number, node) = (task.spec.revision, &task.spec.node_name);
    if task.spec.action == Action::Copy {
        let note = format!("revision {number} was copied, verified and stored by node {node}");
        return Happening::normal(events::COPY_SUCCEEDED, "Copy", note);
    }
    let note = format!("revision {number} was imported, verified and stored by node {node}");
    Happening::normal(events::IMPORT_SUCCEEDED, "Import", note)
}

impl Draft<'_> {
    /// Where the task put it: a store that each node has for itself is named with the node.
    fn locations(&self, task: &ImageTask, result: &ImportResult) -> Vec<Location> {
        let target = |name: &str| task.spec.targets().iter().find(|target| target.name == name);
        let make = |found: &crate::api::TaskLocation| {
            let local = target(&found.store).is_none_or(|target| target.backend.is_local());
            Location {
                store: found.store.clone(),
                node: local.then(|| task.spec.node_name.clone()),
                url: Some(found.url.clone()),
                format: Some(found.format),
                size: Some(found.size),
                allocated_size: Some(found.allocated_size),
                phase: LocationPhase::Active,
                message: None,
                stored_at: Some(self.time()),
                verified_at: None,
                verify: false,
            }
        };
        result.locations.iter().map(make).collect()
    }
}
