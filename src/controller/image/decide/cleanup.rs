//! Sees that what is to be removed is removed, place by place.

use std::time::Duration;

use super::{Draft, orders::delete_task, phase_of};
use crate::{
    api::{Action, Cleanup, ImageStore, ImageTask, TaskPhase, condition::events},
    controller::fleet::{Demand, Liveness},
    kube::event::Happening,
};

/// How often to look again for nodes that are not there.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// How many places a message names.
const NAMED_PLACES: usize = 5;

/// What became of one place.
enum Outcome {
    /// It is being removed, or an order to do so was given.
    Underway,
    /// It has to wait: why.
    Waits(String),
    /// There is nothing left that could be removed: why.
    Forgotten(String),
}

impl<'a> Draft<'a> {
    /// Orders the removal of everything on the list.
    pub(super) fn clean_up(&mut self) {
        self.drop_needless_deletes();
        let mut waits = Vec::new();
        for item in self.status.cleanup.clone() {
            match self.clean_place(&item) {
                Outcome::Underway => {}
                Outcome::Waits(why) => waits.push(why),
                Outcome::Forgotten(why) => {
                    self.status.cleanup.retain(|other| *other != item);
                    self.tell(Happening::warning(events::LOCATION_LOST, "Remove", why));
                }
            }
        }
        if !waits.is_empty() {
            self.recheck_in(LOOK_AGAIN);
        }
        self.waits = name_some(&waits);
    }

    fn clean_place(&mut self, item: &Cleanup) -> Outcome {
        let gone = item.node.as_ref().is_some_and(|node| self.liveness(node) == Liveness::Gone);
        let task = self.delete_task_for(item);
        let Some(store) = self.seen.stores.get(&item.store).filter(|_| !gone) else {
            task.into_iter().for_each(|task| self.orders.remove(task));
            let what = if gone { "the node is gone" } else { "the ImageStore is gone" };
            return Outcome::Forgotten(format!("{} was forgotten, because {what}", describe(item)));
        };
        match task {
            None => self.order_delete(item, store, 1),
            Some(task) if phase_of(task) == TaskPhase::Failed => self.try_again(item, store, task),
            Some(task) => self.watch_delete(item, store, task),
        }
    }

    fn watch_delete(&mut self, item: &Cleanup, store: &ImageStore, task: &ImageTask) -> Outcome {
        match self.liveness(&task.spec.node_name) {
            Liveness::Live | Liveness::Silent => Outcome::Underway,
            Liveness::Stale | Liveness::Gone if item.node.is_none() => {
                // Any other node can do it as well.
                self.orders.remove(task);
                self.order_delete(item, store, task.spec.attempt.saturating_add(1))
            }
            Liveness::Stale | Liveness::Gone => Outcome::Waits(absent(item)),
        }
    }

    fn try_again(&mut self, item: &Cleanup, store: &ImageStore, task: &ImageTask) -> Outcome {
        let status = task.status.as_ref();
        let ended = status.and_then(|status| status.finished_at.as_ref()).map_or(self.seen.now, |time| time.0);
        let since: Duration = self.seen.now.duration_since(ended).try_into().unwrap_or(Duration::ZERO);
        let left = self.seen.retry.backoff.delay(task.spec.attempt).saturating_sub(since);
        let why = status
            .and_then(|status| status.failure.as_ref())
            .map_or("no reason given", |failure| failure.message.as_str());
        if left > Duration::ZERO {
            self.recheck_in(left);
            return Outcome::Waits(format!("{} failed on node {}: {why}", describe(item), task.spec.node_name));
        }
        self.orders.remove(task);
        self.order_delete(item, store, task.spec.attempt.saturating_add(1))
    }

    fn order_delete(&mut self, item: &Cleanup, store: &ImageStore, attempt: i64) -> Outcome {
        let node = match &item.node {
            Some(node) if self.liveness(node) == Liveness::Live => node.clone(),
            Some(_) => return Outcome::Waits(absent(item)),
            // What it publishes in the last moment would stay.
            None if self.is_being_written(item) => return Outcome::Underway,
            None => {
                let stores = vec![(item.store.as_str(), &store.spec.node_selector)];
                // Removing needs no room, and makes some.
                let demand = Demand { stores, writes: false, ..Demand::default() };
                match self.seen.fleet.choose(&demand, self.seen.at) {
                    Ok(choice) => choice.node,
                    Err(why) => return Outcome::Waits(format!("{} waits for an agent: {why}", describe(item))),
                }
            }
        };
        let order = delete_task(self.seen, item, store, &place(item), attempt, &node);
        self.orders.create.push(order);
        Outcome::Underway
    }

    /// Whether an import that is being stopped may still publish there. That it ended makes us look again.
    fn is_being_written(&self, item: &Cleanup) -> bool {
        self.tasks().any(|task| {
            let mut targets = task.spec.targets().iter();
            task.spec.revision == item.revision
                && !phase_of(task).is_final()
                && targets.any(|target| target.name == item.store)
        })
    }

    /// The last order to remove `item`; earlier ones are let go.
    fn delete_task_for(&mut self, item: &Cleanup) -> Option<&'a ImageTask> {
        let mut tasks: Vec<_> = self.tasks().filter(|task| serves(task, item)).collect();
        tasks.sort_by_key(|task| task.spec.attempt);
        let last = tasks.pop();
        tasks.into_iter().for_each(|task| self.orders.remove(task));
        last
    }

    /// Lets go of orders to remove what is not on the list, because it was forgotten.
    fn drop_needless_deletes(&mut self) {
        let needed = |task: &&ImageTask| self.status.cleanup.iter().any(|item| serves(task, item));
        let deletes = self.tasks().filter(|task| task.spec.action == Action::Delete);
        let needless: Vec<_> = deletes.filter(|task| !needed(task)).collect();
        needless.into_iter().for_each(|task| self.orders.remove(task));
    }
}

/// Whether `task` is an order to remove `item`.
fn serves(task: &ImageTask, item: &Cleanup) -> bool {
    let targets = task.spec.delete.iter().flat_map(|order| &order.stores);
    let mut local = targets.filter(|target| target.name == item.store).map(|target| target.backend.is_local());
    let node_fits = |local: bool| match &item.node {
        Some(node) => local && *node == task.spec.node_name,
        None => !local,
    };
    task.spec.revision == item.revision && local.any(node_fits)
}

fn name_some(waits: &[String]) -> Option<String> {
    let more = waits.len().saturating_sub(NAMED_PLACES);
    let named = waits.iter().take(NAMED_PLACES).cloned().collect::<Vec<_>>().join("; ");
    match (waits.is_empty(), more) {
        (true, _) => None,
        (false, 0) => Some(named),
        (false, _) => Some(format!("{named}; and {more} more")),
    }
}

fn describe(item: &Cleanup) -> String {
    let Cleanup { revision, store, node, attempt: _ } = item;
    match node {
        Some(node) => format!("removing revision {revision} from store {store} on node {node}"),
        None => format!("removing revision {revision} from store {store}"),
    }
}

fn absent(item: &Cleanup) -> String {
    format!(
        "{} waits for the agent there, whose lease has expired: bring the node back, or delete its lease if it is gone for good",
        describe(item)
    )
}

fn place(item: &Cleanup) -> String {
    format!("{}@{}", item.store, item.node.as_deref().unwrap_or_default())
}
