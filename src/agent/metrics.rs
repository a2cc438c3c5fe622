//! What this agent counts: tasks, bytes, how long stages take, what stores answer. `docs/metrics.md` says what each means.

use std::{collections::BTreeMap, time::Duration};

use metrics::{counter, gauge, histogram};
use vitrine_engine::pipeline::{Progress, Snapshot};

use super::{
    queue::{Entry, Lane, Running},
    report::Outcome,
};
use crate::api::{Action, StoreReport};

/// A task that ended after `took`.
pub fn ended(action: Action, outcome: &Outcome, took: Duration) {
    let (result, reason) = match outcome {
        Outcome::Imported(..) | Outcome::Removed => ("succeeded", String::new()),
        Outcome::Verified(faults) if faults.is_empty() => ("succeeded", String::new()),
        Outcome::Verified(_) => ("failed", "Rotten".to_owned()),
        Outcome::Failed(failure, _) => ("failed", failure.reason.clone()),
    };
    counter!("vitrine_tasks_total", "action" => name(action), "result" => result, "reason" => reason).increment(1);
    histogram!("vitrine_task_duration_seconds", "action" => name(action), "result" => result).record(took);
}

/// A task that was begun, which is a retry if an earlier attempt failed.
pub fn begun(action: Action, attempt: i64) {
    if attempt > 1 {
        counter!("vitrine_task_retries_total", "action" => name(action)).increment(1);
    }
}

/// How many tasks run, and how many of `tasks` wait for their turn, in each lane.
pub fn queue(tasks: &[Entry], running: &BTreeMap<String, Running>) {
    for (lane, label) in [(Lane::Short, "short"), (Lane::Long, "long"), (Lane::Aside, "aside")] {
        let runs = running.values().filter(|running| running.lane == lane).count();
        let waits = |task: &&Entry| task.lane() == lane && !task.ended && !running.contains_key(&task.uid);
        let waiting = tasks.iter().filter(waits).count();
        gauge!("vitrine_tasks_running", "lane" => label).set(count(runs));
        gauge!("vitrine_tasks_waiting", "lane" => label).set(count(waiting));
    }
}

/// What a store answered to a probe that took so long.
pub fn probed(report: &StoreReport, took: Duration) {
    let store = || report.name.clone();
    histogram!("vitrine_store_probe_duration_seconds", "store" => store()).record(took);
    gauge!("vitrine_store_reachable", "store" => store()).set(f64::from(u8::from(report.ready)));
    if let Some(capacity) = report.capacity {
        gauge!("vitrine_store_capacity_bytes", "store" => store()).set(bytes(capacity));
    }
    if let Some(available) = report.available {
        gauge!("vitrine_store_available_bytes", "store" => store()).set(bytes(available));
    }
}

/// The bytes of one task, counted while they move.
pub struct Flow {
    action: Action,
    received: u64,
    written: u64,
}

impl Flow {
    /// Nothing has moved yet.
    pub fn new(action: Action) -> Self {
        Self { action, received: 0, written: 0 }
    }

    /// Counts what has moved since the last time.
    pub fn count(&mut self, now: &Snapshot) {
        // What began all over since then is less than before, and moved since then.
        let since = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
        let (received, written) = (since(now.received, self.received), since(now.written, self.written));
        counter!("vitrine_received_bytes_total", "action" => name(self.action)).increment(received);
        counter!("vitrine_written_bytes_total", "action" => name(self.action)).increment(written);
        (self.received, self.written) = (now.received, now.written);
    }

    /// The task has moved all that it will.
    pub fn end(mut self, progress: &Progress) {
        self.count(&progress.snapshot());
        for (stage, spent) in progress.end() {
            let (action, stage) = (name(self.action), stage.name());
            histogram!("vitrine_task_stage_duration_seconds", "action" => action, "stage" => stage).record(spent);
        }
    }
}

const fn name(action: Action) -> &'static str {
    match action {
        Action::Import => "Import",
        Action::Copy => "Copy",
        Action::Verify => "Verify",
        Action::Delete => "Delete",
    }
}

#[expect(clippy::cast_precision_loss, reason = "metrics are floating-point numbers")]
const fn bytes(count: i64) -> f64 {
    count as f64
}

#[expect(clippy::cast_precision_loss, reason = "metrics are floating-point numbers")]
const fn count(count: usize) -> f64 {
    count as f64
}
