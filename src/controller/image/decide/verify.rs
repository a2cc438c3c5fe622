//! Has what is stored read again and held against its digests: when a person asks, and as the stores' schedules say.
//!
//! Verifications keep nobody from anything. What they find to be rotten is made anew by `place`.

use std::time::Duration;

use super::{Draft, orders::verify_task, origin::wish, phase_of, place::LOOK_AGAIN, place::until};
use crate::{
    api::{Action, ImageTask, Location, LocationPhase, Revision, TaskPhase, condition::events, identity},
    controller::fleet::{Demand, Liveness},
    kube::event::Happening,
};

/// How much of a request is compared and kept, in characters, by the schema of status.
const MAX_REQUEST: usize = 1024;
/// How many unfinished tasks a node may have for a scheduled verification to be added: nobody waits for it.
const MOST_TASKS: usize = 4;
/// Images that were stored together are verified spread over a tenth of the interval.
const SPREAD: u32 = 10;

impl Draft<'_> {
    /// Orders what is due, and lets go of what nobody waits for any more.
    pub(super) fn verify(&mut self, deleting: bool) {
        self.note_request();
        let all = self.tasks().filter(|task| task.spec.action == Action::Verify);
        let needless: Vec<_> = all.filter(|task| deleting || self.copy_of(task).is_none()).collect();
        needless.into_iter().for_each(|task| self.orders.remove(task));
        if deleting {
            return;
        }
        for revision in self.status.revisions.clone() {
            for location in revision.copies() {
                self.verify_location(&revision, location);
            }
        }
    }

    fn note_request(&mut self) {
        let annotations = self.seen.image.metadata.annotations.as_ref();
        let asked = annotations.and_then(|all| all.get(identity::ANNOTATION_VERIFY));
        let asked: Option<String> = asked.map(|value| value.chars().take(MAX_REQUEST).collect());
        if asked.is_some() && asked != self.status.last_handled_verify {
            self.status.last_handled_verify = asked;
            self.status.revisions.iter_mut().flat_map(|revision| &mut revision.locations).for_each(|l| l.verify = true);
        }
    }

    /// Takes over what a verification found.
    pub(super) fn verify_succeeded(&mut self, task: &ImageTask) {
        let (number, node, at) = (task.spec.revision, &task.spec.node_name, self.time());
        self.orders.remove(task);
        let faults = task.status.as_ref().map(|status| status.faults.clone()).unwrap_or_default();
        if let Some(fault) = faults.into_iter().next() {
            return self.condemn(number, &fault.store, node, &fault.message);
        }
        if let Some(location) = self.copy_of_mut(task) {
            (location.phase, location.message) = (LocationPhase::Active, None);
            (location.verified_at, location.verify) = (Some(at), false);
        }
    }

    fn copy_of(&self, task: &ImageTask) -> Option<&Location> {
        let revision = self.status.revisions.iter().find(|revision| revision.number == task.spec.revision)?;
        revision.copies().find(|location| is_of(task, location))
    }

    fn copy_of_mut(&mut self, task: &ImageTask) -> Option<&mut Location> {
        let revision = self.revision(task.spec.revision)?;
        revision.locations.iter_mut().find(|location| location.phase.is_copy() && is_of(task, location))
    }

    fn verify_location(&mut self, revision: &Revision, location: &Location) {
        let ours = |task: &&ImageTask| task.spec.revision == revision.number && is_of(task, location);
        let Some(task) = self.tasks().filter(ours).max_by_key(|task| task.spec.attempt) else {
            return self.order_when_due(revision, location, 1);
        };
        match (phase_of(task), self.liveness(&task.spec.node_name)) {
            (TaskPhase::Failed, _) => self.verify_failed(revision, location, task),
            (TaskPhase::Pending | TaskPhase::Running, Liveness::Stale | Liveness::Gone) => {
                self.orders.remove(task);
                self.order_when_due(revision, location, task.spec.attempt.saturating_add(1));
            }
            (TaskPhase::Pending | TaskPhase::Running | TaskPhase::Succeeded, _) => {}
        }
    }

    /// It could not be read. The task stays, so that it is known when to try again.
    fn verify_failed(&mut self, revision: &Revision, location: &Location, task: &ImageTask) {
        let status = task.status.as_ref();
        let message = status.and_then(|status| status.failure.as_ref()).map(|failure| failure.message.clone());
        let message = message.unwrap_or_else(|| "no reason given".to_owned());
        if location.phase != LocationPhase::Unreadable {
            let note = format!(
                "the copy of revision {} in store {} could not be verified, and is used only where there is no other: {message}",
                revision.number, location.store
            );
            self.tell(Happening::warning(events::LOCATION_UNREADABLE, "Verify", note));
        }
        if let Some(found) = self.copy_of_mut(task) {
            (found.phase, found.message) = (LocationPhase::Unreadable, Some(message));
        }
        let ended = status.and_then(|status| status.finished_at.as_ref()).map_or(self.seen.now, |time| time.0);
        let since: Duration = self.seen.now.duration_since(ended).try_into().unwrap_or(Duration::ZERO);
        let left = self.seen.retry.backoff.delay(task.spec.attempt).saturating_sub(since);
        if left > Duration::ZERO {
            return self.recheck_in(left);
        }
        self.orders.remove(task);
        self.order_verification(revision, location, task.spec.attempt.saturating_add(1), true);
    }

    fn order_when_due(&mut self, revision: &Revision, location: &Location, attempt: i64) {
        match self.due_in(revision, location) {
            None => {}
            Some(Duration::ZERO) => self.order_verification(revision, location, attempt, location.verify),
            Some(left) => self.recheck_in(left),
        }
    }

    /// How long until the location is to be verified; `None` if nobody has asked for it.
    fn due_in(&self, revision: &Revision, location: &Location) -> Option<Duration> {
        if location.verify {
            return Some(Duration::ZERO);
        }
        let interval = self.seen.stores.get(&location.store)?.spec.verify.as_ref()?.interval()?;
        let known = [&location.verified_at, &location.stored_at, &revision.imported_at];
        let last = known.into_iter().flatten().map(|time| time.0).max()?;
        let uid = self.seen.image.metadata.uid.as_deref().unwrap_or_default();
        let share = u32::from(blake3::hash(uid.as_bytes()).as_bytes()[0]);
        let spread = (interval / SPREAD).saturating_mul(share) / 256;
        let due = last.checked_add(interval.saturating_add(spread)).ok()?;
        Some(until(self.seen.now, due))
    }

    fn order_verification(&mut self, revision: &Revision, location: &Location, attempt: i64, urgent: bool) {
        let Some(store) = self.seen.stores.get(&location.store) else { return };
        let Some(content) = &revision.content else { return };
        let demand =
            Demand { sources: vec![wish(&location.store, store)], only: location.node.as_deref(), ..Demand::default() };
        let Ok(choice) = self.seen.fleet.choose(&demand, self.seen.at) else { return self.recheck_in(LOOK_AGAIN) };
        if !urgent && self.seen.fleet.load(&choice.node) >= MOST_TASKS {
            return self.recheck_in(LOOK_AGAIN);
        }
        let place = format!("{}@{}", location.store, location.node.as_deref().unwrap_or_default());
        let numbers = (revision.number, attempt);
        let order = verify_task(self.seen, store, &content.content_digest, &place, numbers, &choice.node);
        self.orders.create.push(order);
    }
}

/// Whether `task` is to verify `location` of its revision.
fn is_of(task: &ImageTask, location: &Location) -> bool {
    let Some(order) = &task.spec.verify else { return false };
    order.store.name == location.store && location.node.as_deref().is_none_or(|node| node == task.spec.node_name)
}
