//! Imports that nobody waits for any more, and imports whose node is lost.
//!
//! Fencing: before another node gets the next attempt, the task of this one is deleted, and an agent that returns finds it gone. What
//! it may have left on a disk of its own is put down for cleanup; in a store that others reach, the next attempt's token shuts it out,
//! and `Revision::tried` remembers it for the case that there is none.

use super::{Draft, phase_of};
use crate::{
    api::{FailureReport, ImageTask},
    controller::fleet::Liveness,
};

/// The reason in the report of an attempt whose node is lost.
pub(super) const NODE_LOST: &str = "NodeLost";
/// The reason that agents give for a task that was cancelled.
const CANCELLED: &str = "Cancelled";

pub(super) fn was_cancelled(task: &ImageTask) -> bool {
    task.status.as_ref().and_then(|status| status.failure.as_ref()).is_some_and(|failure| failure.reason == CANCELLED)
}

impl Draft<'_> {
    /// Gives up the attempt if its node is lost, and ends every other import.
    pub(super) fn end_strays(&mut self) {
        self.give_up_lost_attempt();
        let current = self.attempt_task().and_then(|task| task.metadata.name.clone());
        let running = |task: &&ImageTask| task.spec.action.brings() && !phase_of(task).is_final();
        let strays: Vec<_> = self.tasks().filter(running).filter(|task| task.metadata.name != current).collect();
        for task in strays {
            match self.liveness(&task.spec.node_name) {
                Liveness::Live | Liveness::Silent => self.orders.cancel(task),
                Liveness::Stale | Liveness::Gone => self.lose(task),
            }
        }
    }

    pub(super) fn liveness(&self, node: &str) -> Liveness {
        self.seen.fleet.liveness(node, self.seen.at)
    }

    fn give_up_lost_attempt(&mut self) {
        let Some(node) = self.status.attempt.as_ref().and_then(|attempt| attempt.node.clone()) else { return };
        if matches!(self.liveness(&node), Liveness::Live | Liveness::Silent) {
            return;
        }
        if let Some(task) = self.attempt_task() {
            self.lose(task);
        }
        let message = format!("the agent on node {node} stopped renewing its lease, so its work was given up");
        let report =
            FailureReport { reason: NODE_LOST.into(), rule: None, message, retryable: true, node, at: self.time() };
        // The lease's duration was wait enough.
        self.fail_attempt(report, false);
    }

    /// Takes a task from a node that is not there.
    fn lose(&mut self, task: &ImageTask) {
        self.orders.cancel(task);
        self.orders.remove(task);
        let node = &task.spec.node_name;
        if self.liveness(node) == Liveness::Gone {
            return;
        }
        for target in task.spec.targets().iter().filter(|target| target.backend.is_local()) {
            self.discard_at(task.spec.revision, &target.name, Some(node));
        }
    }
}
