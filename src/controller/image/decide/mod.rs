//! What to do about an Image, from all that is known of it. Pure: no client, no clock of its own.
//!
//! One pass, in this order: take over what ended ([`settle`]), find the revision that spec asks for ([`desire`]), give up what is lost or
//! no longer asked for ([`strays`]), see that it is in its stores ([`place`], from where [`origin`] says), have what is stored verified
//! ([`verify`]), see that nothing else is anywhere ([`cleanup`]), say how it stands ([`health`]). Everything is derived from status and tasks, so an operator that dies anywhere is continued by the next.

mod cleanup;
mod desire;
mod health;
mod orders;
mod origin;
mod place;
mod settle;
mod strays;
mod verify;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tokio::time::Instant;

pub use health::human_size;
pub use orders::{NewTask, Orders};

use super::validate::Wanted;
use crate::{
    api::{FailureReport, Image, ImageStatus, ImageStore, ImageTask, Location, Revision, TaskPhase, condition::events},
    controller::fleet::Fleet,
    kube::{
        backoff::Backoff,
        condition::{Health, whole_seconds},
        event::Happening,
    },
};

/// What failing costs.
#[derive(Clone, Copy, Debug)]
pub struct RetryPolicy {
    /// The wait between attempts.
    pub backoff: Backoff,
    /// The number of attempts. What fails five times within minutes, on several nodes, wants a person.
    pub limit: i64,
}

/// All that is known when a decision is made.
#[derive(Debug)]
pub struct Observed<'a> {
    /// The Image, as read just now.
    pub image: &'a Image,
    /// All tasks for it, as read just now.
    pub tasks: &'a [ImageTask],
    /// What spec asks for, or why it cannot be had.
    pub wanted: &'a Result<Wanted, String>,
    /// All stores by name that this operator serves, and others that have data of the Image.
    pub stores: &'a BTreeMap<String, Arc<ImageStore>>,
    /// The agents.
    pub fleet: &'a Fleet,
    /// What the API server said of the task of the attempt under way, if it did not take it.
    pub refused: Option<&'a str>,
    /// What failing costs.
    pub retry: RetryPolicy,
    /// The operator's namespace.
    pub namespace: &'a str,
    /// The time of day, for what is written down.
    pub now: Timestamp,
    /// The time that runs evenly, for who is alive.
    pub at: Instant,
}

/// What to do.
#[derive(Debug)]
pub struct Decision {
    /// The status to write.
    pub status: ImageStatus,
    /// Tasks to make, cancel and delete, after status is written.
    pub orders: Orders,
    /// What to tell people, after status is written.
    pub events: Vec<Happening>,
    /// When to look again though nothing happened.
    pub recheck: Option<Duration>,
    /// Deleting, and nothing is left outside the cluster.
    pub released: bool,
}

/// A decision in the making.
struct Draft<'a> {
    seen: &'a Observed<'a>,
    status: ImageStatus,
    orders: Orders,
    events: Vec<Happening>,
    recheck: Option<Duration>,
    /// What stands in the way, most important first; becomes the health.
    health: Option<Health>,
    /// What removals wait for.
    waits: Option<String>,
    /// Stores that shall keep the wanted revision and do not, each with why.
    lacking: Vec<(String, String)>,
}

/// Decides.
pub fn decide(seen: &Observed<'_>) -> Decision {
    let deleting = seen.image.metadata.deletion_timestamp.is_some();
    let mut draft = Draft::new(seen);
    let mut target = None;
    draft.settle();
    if deleting {
        draft.abandon_everything();
    } else {
        target = draft.desire();
    }
    draft.end_strays();
    if let Some(number) = target {
        draft.place(number);
    }
    draft.verify(deleting);
    draft.clean_up();
    let released = deleting && draft.status.cleanup.is_empty() && draft.remaining_tasks() == 0;
    draft.finish(target, deleting);
    let Draft { seen: _, status, orders, events, recheck, health: _, waits: _, lacking: _ } = draft;
    Decision { status, orders, events, recheck, released }
}

impl<'a> Draft<'a> {
    fn new(seen: &'a Observed<'a>) -> Self {
        let status = seen.image.status.clone().unwrap_or_default();
        Self {
            seen,
            status,
            orders: Orders::default(),
            events: Vec::new(),
            recheck: None,
            health: None,
            waits: None,
            lacking: Vec::new(),
        }
    }

    fn tell(&mut self, what: Happening) {
        self.events.push(what);
    }

    /// Looks again after `delay`, or sooner if asked for already.
    fn recheck_in(&mut self, delay: Duration) {
        self.recheck = Some(self.recheck.map_or(delay, |other| other.min(delay)));
    }

    /// What is in the way; what was said first counts.
    fn hold(&mut self, health: Health) {
        self.health.get_or_insert(health);
    }

    fn time(&self) -> Time {
        Time(whole_seconds(self.seen.now))
    }

    fn revision(&mut self, number: i64) -> Option<&mut Revision> {
        self.status.revisions.iter_mut().find(|revision| revision.number == number)
    }

    /// Tasks that are not to be deleted by this decision.
    fn tasks(&self) -> impl Iterator<Item = &'a ImageTask> + use<'a, '_> {
        self.seen.tasks.iter().filter(|task| !self.orders.removes(task))
    }

    fn remaining_tasks(&self) -> usize {
        self.tasks().count() + self.orders.create.len()
    }

    /// The task of the attempt under way.
    fn attempt_task(&self) -> Option<&'a ImageTask> {
        let attempt = self.status.attempt.as_ref()?;
        let is_it = |task: &&ImageTask| {
            task.spec.action.brings()
                && task.spec.revision == attempt.revision
                && task.spec.attempt == attempt.number
                && attempt.node.as_deref() == Some(&task.spec.node_name)
        };
        self.tasks().find(is_it)
    }

    /// Ends the attempt under way as failed, and says when the next may begin.
    fn fail_attempt(&mut self, report: FailureReport, wait: bool) {
        let (retry, now) = (self.seen.retry, self.seen.now);
        let Some(attempt) = &mut self.status.attempt else { return };
        attempt.failures = attempt.failures.saturating_add(1);
        attempt.node = None;
        let more = report.retryable && attempt.failures < retry.limit;
        let delay = if wait { retry.backoff.delay(attempt.failures) } else { Duration::ZERO };
        attempt.retry_at = more.then(|| now.checked_add(delay).ok().map(Time)).flatten();
        let next = match (more, report.retryable) {
            (true, _) => format!(
                "attempt {} of {} follows in {} s",
                attempt.failures.saturating_add(1),
                retry.limit,
                delay.as_secs()
            ),
            (false, true) => format!("all {} attempts have failed", retry.limit),
            (false, false) => "trying again cannot help".to_owned(),
        };
        let note = format!("attempt {} on node {} failed: {} ({next})", attempt.number, report.node, report.message);
        let reason = if report.reason == strays::NODE_LOST { events::NODE_LOST } else { events::IMPORT_FAILED };
        attempt.last_failure = Some(report);
        self.status.progress = None;
        self.tell(Happening::warning(reason, "Import", note));
    }

    /// Puts a location on the list of what is to be removed.
    fn discard(&mut self, revision: i64, location: &Location) {
        self.discard_at(revision, &location.store, location.node.as_deref());
    }

    /// Puts what attempts may have left in stores that others reach on the list, but for `keep`, where the next attempt takes it over.
    fn discard_tried(&mut self, number: i64, keep: &[String]) {
        let Some(revision) = self.revision(number) else { return };
        let tried = std::mem::take(&mut revision.tried);
        let (kept, left) = tried.into_iter().partition(|store| keep.contains(store));
        revision.tried = kept;
        left.iter().for_each(|store| self.discard_at(number, store, None));
    }

    fn discard_at(&mut self, revision: i64, store: &str, node: Option<&str>) {
        let attempt = orders::last_attempt(self.seen, revision);
        let item = crate::api::Cleanup { revision, store: store.to_owned(), node: node.map(str::to_owned), attempt };
        let same = |other: &&mut crate::api::Cleanup| {
            (other.revision, &other.store, &other.node) == (revision, &item.store, &item.node)
        };
        match self.status.cleanup.iter_mut().find(same) {
            Some(known) => known.attempt = known.attempt.max(attempt),
            None => self.status.cleanup.push(item),
        }
    }
}

fn phase_of(task: &ImageTask) -> TaskPhase {
    task.status.as_ref().and_then(|status| status.phase).unwrap_or_default()
}

#[cfg(test)]
mod tests;
