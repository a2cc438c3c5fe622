//! Sees that the wanted revision is in the wanted stores, and hands out the next attempt if it is not.

use std::{collections::BTreeSet, time::Duration};

use super::{Draft, orders::import_task, phase_of};
use crate::{
    api::{
        Action, Attempt,
        condition::{events, reasons},
        identity,
    },
    controller::{
        fleet::Demand,
        image::validate::{Wanted, WantedStore},
    },
    kube::{condition::Health, event::Happening},
};

/// Into how many stores one attempt brings a revision, by the schemas of Attempt and ImportOrder; the next one brings it into more.
const MOST_STORES: usize = 16;
/// How much of a request to retry is compared and kept, in characters, by the schema of status.
const MAX_RETRY: usize = 1024;
/// How often to look again for what no watch announces in time.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

impl Draft<'_> {
    /// Sees that revision `number` is where it shall be.
    pub(super) fn place(&mut self, number: i64) {
        let Ok(wanted) = self.seen.wanted else { return };
        let held: BTreeSet<_> =
            self.revision(number).iter().flat_map(|r| &r.locations).map(|location| location.store.clone()).collect();
        let mut missing: Vec<_> = wanted.stores.iter().filter(|store| !held.contains(&store.name)).collect();
        missing.truncate(MOST_STORES);
        if missing.is_empty() {
            self.status.attempt = None;
            self.status.progress = None;
            self.note_retry();
            self.discard_tried(number, &[]);
            self.leave_other_stores(number, wanted);
        } else {
            self.pursue(number, wanted, &missing);
        }
    }

    /// Everything wanted is there, so what is in other stores can go.
    fn leave_other_stores(&mut self, number: i64, wanted: &Wanted) {
        let Some(revision) = self.revision(number) else { return };
        let all = std::mem::take(&mut revision.locations);
        let (kept, extra): (Vec<_>, _) =
            all.into_iter().partition(|l| wanted.stores.iter().any(|store| store.name == l.store));
        revision.locations = kept;
        extra.iter().for_each(|location| self.discard(number, location));
    }

    fn note_retry(&mut self) -> bool {
        let annotations = self.seen.image.metadata.annotations.as_ref();
        let asked = annotations.and_then(|all| all.get(identity::ANNOTATION_RETRY));
        let asked: Option<String> = asked.map(|value| value.chars().take(MAX_RETRY).collect());
        let new = asked.is_some() && asked != self.status.last_handled_retry;
        if new {
            self.status.last_handled_retry = asked;
        }
        new
    }

    /// Brings the revision into the missing stores, attempt by attempt.
    fn pursue(&mut self, number: i64, wanted: &Wanted, missing: &[&WantedStore]) {
        let names: Vec<_> = missing.iter().map(|store| store.name.clone()).collect();
        let afresh = self.note_retry();
        let tried = self.revision(number).map_or(0, |revision| revision.attempts);
        let attempt = self.status.attempt.get_or_insert_with(Attempt::default);
        if attempt.revision != number || (attempt.node.is_none() && (afresh || attempt.stores != names)) {
            *attempt = Attempt { revision: number, number: tried, stores: names, ..Attempt::default() };
        }
        if attempt.node.is_some() {
            return self.keep_going(number, wanted);
        }
        if !self.may_begin(number, wanted, missing) {
            return;
        }
        match self.seen.fleet.choose(&self.demand(number, missing), self.seen.at) {
            Ok(node) => self.start(number, wanted, missing, node),
            Err(why) => {
                self.recheck_in(LOOK_AGAIN);
                self.hold(Health::Hindered(reasons::WAITING, format!("no node can import it now: {why}")));
            }
        }
    }

    /// An attempt is under way. If its task is not there, the operator died before making it, or somebody deleted it: make it.
    fn keep_going(&mut self, number: i64, wanted: &Wanted) {
        let Some(attempt) = self.status.attempt.clone() else { return };
        let Some(node) = attempt.node.filter(|_| self.attempt_task().is_none()) else { return };
        let stores: Vec<_> = wanted.stores.iter().filter(|store| attempt.stores.contains(&store.name)).collect();
        if stores.is_empty() {
            // What it was for is no longer wanted; the next look begins anew.
            self.status.attempt = None;
            self.recheck_in(Duration::ZERO);
            return self.hold(Health::Progressing("the stores have changed".into()));
        }
        if self.lacks_references(wanted) {
            self.status.attempt.iter_mut().for_each(|attempt| attempt.node = None);
            return;
        }
        let known = self.revision(number).map(|revision| revision.digests()).unwrap_or_default();
        let order = import_task(self.seen, wanted, &stores, &known, (number, attempt.number), &node);
        self.orders.create.push(order);
    }

    fn may_begin(&mut self, number: i64, wanted: &Wanted, missing: &[&WantedStore]) -> bool {
        let attempt = self.status.attempt.clone().unwrap_or_default();
        if let Some(store) = missing.iter().find(|store| !store.writable) {
            let message =
                format!("ImageStore {} is read-only: name another in spec.stores, or clear readOnly there", store.name);
            self.hold(Health::Stalled(reasons::INVALID_CONFIGURATION, message));
            return false;
        }
        if self.lacks_references(wanted) {
            return false;
        }
        if let Some(failure) = &attempt.last_failure {
            if !failure.retryable || attempt.failures >= self.seen.retry.limit {
                let stalled = self.stalled(&attempt, failure);
                self.hold(stalled);
                self.discard_tried(number, &[]);
                return false;
            }
            let left = attempt.retry_at.as_ref().map_or(Duration::ZERO, |time| until(self.seen.now, time.0));
            if left > Duration::ZERO {
                self.recheck_in(left);
                self.hold(Health::Hindered(
                    reasons::TRANSIENT_ERROR,
                    retry_message(&attempt, failure, self.seen.retry.limit),
                ));
                return false;
            }
        }
        if let Some(store) = missing.iter().find(|store| !store.prepared) {
            self.recheck_in(LOOK_AGAIN);
            let message = format!("ImageStore {} was made just now and is being prepared", store.name);
            self.hold(Health::Hindered(reasons::WAITING, message));
            return false;
        }
        !self.is_being_vacated(number, missing)
    }

    /// Whether something is missing that spec refers to and an import needs.
    fn lacks_references(&mut self, wanted: &Wanted) -> bool {
        let Err(why) = &wanted.secret else { return false };
        // Secrets and ConfigMaps are not watched, for the operator may read those it is told of and list none.
        self.recheck_in(LOOK_AGAIN);
        self.hold(Health::Stalled(reasons::INVALID_CONFIGURATION, why.clone()));
        true
    }

    /// An earlier attempt still stops, or a removal from the very place is still to be done: both must end first.
    fn is_being_vacated(&mut self, number: i64, missing: &[&WantedStore]) -> bool {
        let stopping = self.tasks().any(|task| {
            task.spec.action == Action::Import && task.spec.revision == number && !phase_of(task).is_final()
        });
        let removing = self.status.cleanup.iter().any(|item| {
            item.revision == number && item.node.is_none() && missing.iter().any(|store| store.name == item.store)
        });
        if stopping || removing {
            self.hold(Health::Progressing("waits until what came before is stopped and removed".into()));
        }
        stopping || removing
    }

    fn demand<'d>(&'d self, number: i64, missing: &[&'d WantedStore]) -> Demand<'d> {
        let leftovers = self.status.cleanup.iter().filter(|item| item.revision == number);
        let last = self.status.attempt.as_ref().and_then(|attempt| attempt.last_failure.as_ref());
        Demand {
            stores: missing.iter().map(|store| (store.name.as_str(), &store.node_selector)).collect(),
            avoid: last.map(|failure| failure.node.as_str()),
            writes: true,
            exclude: leftovers.filter_map(|item| item.node.as_deref()).collect(),
        }
    }

    fn start(&mut self, number: i64, wanted: &Wanted, missing: &[&WantedStore], node: String) {
        let shared: Vec<_> = missing.iter().filter(|s| s.backend.is_shared()).map(|store| store.name.clone()).collect();
        self.discard_tried(number, &shared);
        let Some(revision) = self.revision(number) else { return };
        revision.tried = shared;
        revision.attempts = revision.attempts.saturating_add(1);
        let (ordinal, known) = (revision.attempts, revision.digests());
        let order = import_task(self.seen, wanted, missing, &known, (number, ordinal), &node);
        let names = missing.iter().map(|store| store.name.as_str()).collect::<Vec<_>>().join(", ");
        let note = format!("node {node} imports revision {number} into {names} (attempt {ordinal})");
        self.orders.create.push(order);
        self.tell(Happening::normal(events::IMPORT_STARTED, "Import", note));
        if let Some(attempt) = &mut self.status.attempt {
            attempt.number = ordinal;
            attempt.node = Some(node);
            attempt.retry_at = None;
        }
    }

    fn stalled(&self, attempt: &Attempt, failure: &crate::api::FailureReport) -> Health {
        let retry = format!(
            "then change spec, or ask for another try with `kubectl annotate images.vitrine.dev {} --overwrite {}=\"$(date)\"`",
            self.seen.image.metadata.name.as_deref().unwrap_or_default(),
            identity::ANNOTATION_RETRY
        );
        if failure.retryable {
            let message = format!(
                "gave up after {} attempts, the last: {}; mend the cause, {retry}",
                attempt.failures, failure.message
            );
            Health::Stalled(reasons::RETRIES_EXHAUSTED, message)
        } else {
            Health::Stalled(reasons::UNRECOVERABLE_ERROR, format!("{}; mend the cause, {retry}", failure.message))
        }
    }
}

fn until(now: jiff::Timestamp, then: jiff::Timestamp) -> Duration {
    then.duration_since(now).try_into().unwrap_or(Duration::ZERO)
}

fn retry_message(attempt: &Attempt, failure: &crate::api::FailureReport, limit: i64) -> String {
    let at = attempt.retry_at.as_ref().map(|time| format!(" at {}", time.0)).unwrap_or_default();
    format!(
        "attempt {} of {limit} on node {} failed: {}; the next begins{at}",
        attempt.failures, failure.node, failure.message
    )
}
