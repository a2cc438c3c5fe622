//! Sees that the wanted revision is in the wanted stores, and hands out the next attempt if it is not.
//!
//! The first time, a revision gets into all its stores in one attempt or into none, if spec requires all. What is missing later, and
//! everything if spec does not, is filled as it can be: each store is for itself, and one that fails has its own count (a gap).

use std::{collections::BTreeSet, time::Duration};

use super::{Draft, orders::Bringing, origin::Plan, phase_of};
use crate::{
    api::{
        Attempt, Gap,
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
/// How much is kept of why a revision comes from its source again, in characters, by the schema of Attempt.
const MAX_WHY: usize = 4096;
/// How often to look again for what no watch announces in time.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(30);

impl Draft<'_> {
    /// Sees that revision `number` is where it shall be.
    pub(super) fn place(&mut self, number: i64) {
        let Ok(wanted) = self.seen.wanted else { return };
        let Some(revision) = self.revision(number) else { return };
        let held: BTreeSet<_> = revision.copies().map(|location| location.store.clone()).collect();
        let missing: Vec<_> = wanted.stores.iter().filter(|store| !held.contains(&store.name)).collect();
        revision.gaps.retain(|gap| missing.iter().any(|store| store.name == gap.store));
        if missing.is_empty() {
            self.status.attempt = None;
            self.status.progress = None;
            self.note_retry();
            self.discard_tried(number, &[]);
            self.leave_other_stores(number, wanted);
            return;
        }
        if !wanted.require_all && missing.len() < wanted.stores.len() {
            self.leave_other_stores(number, wanted);
        }
        self.pursue(number, wanted, &missing, !held.is_empty());
        self.note_lacking(number, &missing);
    }

    /// What is wanted is there, or as much of it as is required: what is in other stores can go.
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

    /// Brings the revision into the missing stores, attempt by attempt. `copied` says whether there are copies of it.
    fn pursue(&mut self, number: i64, wanted: &Wanted, missing: &[&WantedStore], copied: bool) {
        let all_at_once = wanted.require_all && !copied;
        self.renew_attempt(number, missing, all_at_once);
        if self.status.attempt.as_ref().is_some_and(|attempt| attempt.node.is_some()) {
            return self.keep_going(number, wanted, all_at_once);
        }
        let mut stores = if all_at_once {
            missing.to_vec()
        } else {
            self.give_up(number, missing);
            self.fillable(number, missing)
        };
        stores.truncate(MOST_STORES);
        if stores.is_empty() || !self.may_begin(number, &stores) {
            return;
        }
        let Some(plan) = self.plan(number, wanted, &stores, (!all_at_once, copied)) else { return };
        stores.retain(|store| plan.choice.stores.contains(&store.name));
        self.start(number, wanted, &stores, plan, all_at_once, missing);
    }

    /// Begins to count anew where what failed before says nothing any more.
    fn renew_attempt(&mut self, number: i64, missing: &[&WantedStore], all_at_once: bool) {
        let names: Vec<_> = missing.iter().take(MOST_STORES).map(|store| store.name.clone()).collect();
        let (afresh, now, generation) = (self.note_retry(), self.time(), self.seen.image.metadata.generation);
        let mut tried = 0;
        if let Some(revision) = self.revision(number) {
            tried = revision.attempts;
            for gap in revision.gaps.iter_mut().filter(|_| afresh) {
                (gap.failures, gap.retry_at) = (0, Some(now.clone()));
            }
        }
        let attempt = self.status.attempt.get_or_insert_with(Attempt::default);
        let others = if all_at_once {
            attempt.stores != names
        } else {
            attempt.generation != generation
                || !attempt.stores.iter().all(|name| missing.iter().any(|store| store.name == *name))
        };
        if attempt.revision != number || (attempt.node.is_none() && (afresh || others)) {
            *attempt = Attempt { revision: number, number: tried, stores: names, generation, ..Attempt::default() };
        }
    }

    /// Removes what attempts may have left where no other takes it over: in stores that are no longer asked for, or given up.
    fn give_up(&mut self, number: i64, missing: &[&WantedStore]) {
        let gaps = self.revision(number).map(|revision| revision.gaps.clone()).unwrap_or_default();
        let given_up = |name: &String| gaps.iter().any(|gap| gap.store == *name && gap.retry_at.is_none());
        let names = missing.iter().map(|store| store.name.clone()).filter(|name| !given_up(name));
        self.discard_tried(number, &names.collect::<Vec<_>>());
    }

    /// Those of the missing stores that nothing stands in the way of. If there is none, says what does.
    fn fillable<'w>(&mut self, number: i64, missing: &[&'w WantedStore]) -> Vec<&'w WantedStore> {
        let (mut stores, mut obstacles) = (Vec::new(), Vec::new());
        for store in missing {
            match self.obstacle(number, store) {
                None => stores.push(*store),
                Some(health) => obstacles.push((store.name.clone(), health)),
            }
        }
        let severity = |health: &Health| match health {
            Health::Stalled(..) => 0,
            Health::Hindered(..) => 1,
            Health::Current(_) | Health::Progressing(_) | Health::Deleting(..) => 2,
        };
        self.lacking.extend(obstacles.iter().map(|(store, health)| (store.clone(), health.message().to_owned())));
        if stores.is_empty()
            && let Some((_, worst)) = obstacles.into_iter().min_by_key(|(_, health)| severity(health))
        {
            self.hold(worst);
        }
        stores
    }

    /// What stands in the way of filling one store.
    fn obstacle(&mut self, number: i64, store: &WantedStore) -> Option<Health> {
        if !store.writable {
            return Some(read_only(store));
        }
        let gap = self.revision(number).and_then(|revision| revision.gaps.iter().find(|gap| gap.store == store.name));
        if let Some(gap) = gap.cloned()
            && let Some(health) = self.wait_for(&gap)
        {
            return Some(health);
        }
        if !store.prepared {
            self.recheck_in(LOOK_AGAIN);
            return Some(unprepared(store));
        }
        let item = self
            .status
            .cleanup
            .iter()
            .find(|item| item.revision == number && item.node.is_none() && item.store == store.name)?;
        Some(Health::Progressing(format!("store {}: what was there is removed first", item.store)))
    }

    fn wait_for(&mut self, gap: &Gap) -> Option<Health> {
        let (store, message) = (&gap.store, &gap.last_failure.message);
        let Some(at) = &gap.retry_at else {
            let how = self.how_to_retry();
            let message = format!("{}; mend the cause, {how}", of_store(store, message));
            return Some(Health::Stalled(reasons::UNRECOVERABLE_ERROR, message));
        };
        let left = until(self.seen.now, at.0);
        if left == Duration::ZERO {
            return None;
        }
        self.recheck_in(left);
        Some(Health::Hindered(
            reasons::TRANSIENT_ERROR,
            format!("{}; it is tried again at {}", of_store(store, message), at.0),
        ))
    }

    /// Says of every missing store why it is missing: what happened, and what happens now.
    fn note_lacking(&mut self, number: i64, missing: &[&WantedStore]) {
        let attempt = self.status.attempt.clone().unwrap_or_default();
        let obstacles = std::mem::take(&mut self.lacking);
        for store in missing {
            let gap = self.revision(number).and_then(|r| r.gaps.iter().find(|gap| gap.store == store.name));
            let before = gap.map(|gap| gap.last_failure.message.clone());
            let obstacle = obstacles.iter().find(|(known, _)| *known == store.name).map(|(_, why)| why.clone());
            let now = match (&attempt.node, obstacle) {
                (Some(node), _) if attempt.stores.contains(&store.name) => format!("node {node} is bringing it"),
                (_, Some(why)) => why,
                _ => self.health.as_ref().map_or("it comes next", Health::message).to_owned(),
            };
            let told = before.filter(|before| !now.contains(before.as_str()));
            self.lacking.push((store.name.clone(), told.map(|before| format!("{before}; {now}")).unwrap_or(now)));
        }
    }

    /// An attempt is under way. If its task is not there, the operator died before making it, or somebody deleted it: make it.
    fn keep_going(&mut self, number: i64, wanted: &Wanted, require_all: bool) {
        let Some(attempt) = self.status.attempt.clone() else { return };
        let Some(node) = attempt.node.filter(|_| self.attempt_task().is_none()) else { return };
        let stores: Vec<_> = wanted.stores.iter().filter(|store| attempt.stores.contains(&store.name)).collect();
        if stores.is_empty() {
            // What it was for is no longer wanted; the next look begins anew.
            self.status.attempt = None;
            self.recheck_in(Duration::ZERO);
            return self.hold(Health::Progressing("the stores have changed".into()));
        }
        let lacks = attempt.from.is_empty() && self.lacks_references(wanted);
        let bringing =
            Bringing { revision: number, attempt: attempt.number, node: &node, stores: &stores, require_all };
        if lacks || !self.order(wanted, &attempt.from, bringing) {
            self.status.attempt.iter_mut().for_each(|attempt| attempt.node = None);
            self.recheck_in(LOOK_AGAIN);
        }
    }

    fn may_begin(&mut self, number: i64, stores: &[&WantedStore]) -> bool {
        let attempt = self.status.attempt.clone().unwrap_or_default();
        if let Some(store) = stores.iter().find(|store| !store.writable) {
            self.hold(read_only(store));
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
        if let Some(store) = stores.iter().find(|store| !store.prepared) {
            self.recheck_in(LOOK_AGAIN);
            self.hold(unprepared(store));
            return false;
        }
        !self.is_being_vacated(number, stores)
    }

    /// Whether something is missing that spec refers to and an import needs.
    pub(super) fn lacks_references(&mut self, wanted: &Wanted) -> bool {
        let Err(why) = &wanted.secret else { return false };
        // Secrets and ConfigMaps are not watched, for the operator may read those it is told of and list none.
        self.recheck_in(LOOK_AGAIN);
        self.hold(Health::Stalled(reasons::INVALID_CONFIGURATION, why.clone()));
        true
    }

    /// An earlier attempt still stops, or a removal from the very place is still to be done: both must end first.
    fn is_being_vacated(&mut self, number: i64, stores: &[&WantedStore]) -> bool {
        let stopping = self
            .tasks()
            .any(|task| task.spec.action.brings() && task.spec.revision == number && !phase_of(task).is_final());
        let removing = self.status.cleanup.iter().any(|item| {
            item.revision == number && item.node.is_none() && stores.iter().any(|store| store.name == item.store)
        });
        if stopping || removing {
            self.hold(Health::Progressing("waits until what came before is stopped and removed".into()));
        }
        stopping || removing
    }

    /// What any attempt at a revision asks of a node.
    pub(super) fn demand(&self, number: i64) -> Demand<'_> {
        let leftovers = self.status.cleanup.iter().filter(|item| item.revision == number);
        let last = self.status.attempt.as_ref().and_then(|attempt| attempt.last_failure.as_ref());
        Demand {
            avoid: last.map(|failure| failure.node.as_str()),
            writes: true,
            exclude: leftovers.filter_map(|item| item.node.as_deref()).collect(),
            ..Demand::default()
        }
    }

    fn start(
        &mut self,
        number: i64,
        wanted: &Wanted,
        stores: &[&WantedStore],
        plan: Plan,
        require_all: bool,
        missing: &[&WantedStore],
    ) {
        let shared = |stores: &[&WantedStore]| -> Vec<String> {
            stores.iter().filter(|s| s.backend.is_shared()).map(|store| store.name.clone()).collect()
        };
        // What is still to be filled is taken over there, by this attempt or by a later one.
        self.discard_tried(number, &shared(if require_all { stores } else { missing }));
        let Some(revision) = self.revision(number) else { return };
        for name in shared(stores) {
            if !revision.tried.contains(&name) {
                revision.tried.push(name);
            }
        }
        revision.attempts = revision.attempts.saturating_add(1);
        let attempt = revision.attempts;
        let Plan { choice, from, why } = plan;
        let bringing = Bringing { revision: number, attempt, node: &choice.node, stores, require_all };
        if !self.order(wanted, &from, bringing) {
            return;
        }
        self.tell(started(bringing, &from, why.as_deref()));
        if let Some(current) = &mut self.status.attempt {
            current.number = attempt;
            current.stores = stores.iter().map(|store| store.name.clone()).collect();
            current.node = Some(choice.node);
            current.from = from;
            current.why = why.map(|why| why.chars().take(MAX_WHY).collect());
            current.retry_at = None;
        }
    }

    fn how_to_retry(&self) -> String {
        format!(
            "then change spec, or ask for another try with `kubectl annotate images.vitrine.dev {} --overwrite {}=\"$(date)\"`",
            self.seen.image.metadata.name.as_deref().unwrap_or_default(),
            identity::ANNOTATION_RETRY
        )
    }

    fn stalled(&self, attempt: &Attempt, failure: &crate::api::FailureReport) -> Health {
        let retry = self.how_to_retry();
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

pub(super) fn until(now: jiff::Timestamp, then: jiff::Timestamp) -> Duration {
    then.duration_since(now).try_into().unwrap_or(Duration::ZERO)
}

fn retry_message(attempt: &Attempt, failure: &crate::api::FailureReport, limit: i64) -> String {
    let at = attempt.retry_at.as_ref().map(|time| format!(" at {}", time.0)).unwrap_or_default();
    format!(
        "attempt {} of {limit} on node {} failed: {}; the next begins{at}",
        attempt.failures, failure.node, failure.message
    )
}

/// Why a revision comes from its source, of which there are copies.
pub(super) fn from_its_source(why: &str) -> String {
    format!("; from its source again, for it cannot be copied: {why}")
}

fn read_only(store: &WantedStore) -> Health {
    let message =
        format!("ImageStore {} is read-only: name another in spec.stores, or clear readOnly there", store.name);
    Health::Stalled(reasons::INVALID_CONFIGURATION, message)
}

/// What a store said: most of them name themselves.
fn of_store(store: &str, message: &str) -> String {
    if message.starts_with(&format!("store {store}")) {
        message.to_owned()
    } else {
        format!("store {store}: {message}")
    }
}

fn unprepared(store: &WantedStore) -> Health {
    let message = format!("ImageStore {} was made just now and is being prepared", store.name);
    Health::Hindered(reasons::WAITING, message)
}

fn started(bringing: Bringing<'_>, from: &[String], why: Option<&str>) -> Happening {
    let Bringing { revision, attempt, node, stores, .. } = bringing;
    let names = stores.iter().map(|store| store.name.as_str()).collect::<Vec<_>>().join(", ");
    if !from.is_empty() {
        let note =
            format!("node {node} copies revision {revision} from {} into {names} (attempt {attempt})", from.join(", "));
        return Happening::normal(events::COPY_STARTED, "Copy", note);
    }
    let note = format!("node {node} imports revision {revision} into {names} (attempt {attempt})");
    match why {
        None => Happening::normal(events::IMPORT_STARTED, "Import", note),
        Some(why) => Happening::warning(events::COPY_IMPOSSIBLE, "Import", format!("{note}{}", from_its_source(why))),
    }
}
