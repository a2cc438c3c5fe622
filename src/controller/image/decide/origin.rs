//! Where a revision comes from that gets into further stores: from a copy of it, or, if none can be had, from its source again.

use super::{Draft, orders::Bringing, orders::copy_task, orders::import_task, place::LOOK_AGAIN};
use crate::{
    api::{ImageStore, Location, LocationPhase, condition::reasons},
    controller::{
        fleet::{Choice, Demand, Wish},
        image::validate::{Wanted, WantedStore},
    },
    kube::condition::Health,
};

/// From how many stores a copy may be read, by the schema of CopyOrder.
const MOST_SOURCES: usize = 16;

/// How a revision gets into stores.
#[derive(Debug)]
pub struct Plan {
    /// Who does it, and into which stores.
    pub choice: Choice,
    /// The stores to copy it from, best first; none if it comes from its source.
    pub from: Vec<String>,
    /// Why it comes from its source though there are copies.
    pub why: Option<String>,
}

impl Draft<'_> {
    /// How revision `number` gets into `stores`, or as many of them as one node reaches; `None` if it cannot now. `copied` says whether
    /// there are copies of it.
    pub(super) fn plan(
        &mut self,
        number: i64,
        wanted: &Wanted,
        stores: &[&WantedStore],
        (partly, copied): (bool, bool),
    ) -> Option<Plan> {
        let mut why = None;
        if copied {
            match self.plan_copy(number, stores) {
                Ok(plan) => return Some(plan),
                Err(reason) => why = Some(reason),
            }
            // Right after a start, not all have reported yet.
            if !self.seen.fleet.knows_all() {
                self.recheck_in(LOOK_AGAIN);
                let reason = why.unwrap_or_default();
                self.hold(Health::Hindered(reasons::WAITING, format!("no node can copy it now: {reason}")));
                return None;
            }
        }
        if self.lacks_references(wanted) {
            return None;
        }
        let demand = Demand { partly, stores: wishes(stores), ..self.demand(number) };
        match self.seen.fleet.choose(&demand, self.seen.at) {
            Ok(choice) => Some(Plan { choice, from: Vec::new(), why }),
            Err(reason) => {
                let copying = why.map(|why| format!("; nor copy it: {why}")).unwrap_or_default();
                self.recheck_in(LOOK_AGAIN);
                self.hold(Health::Hindered(reasons::WAITING, format!("no node can import it now: {reason}{copying}")));
                None
            }
        }
    }

    /// The first copy, best first, that some node can read who also reaches one of `stores`.
    fn plan_copy(&self, number: i64, stores: &[&WantedStore]) -> Result<Plan, String> {
        let (sources, mut reasons) = (self.sources(number), Vec::new());
        for source in &sources {
            let Some(store) = self.seen.stores.get(&source.store) else { continue };
            let demand = Demand {
                sources: vec![wish(&source.store, store)],
                only: source.node.as_deref(),
                partly: true,
                stores: wishes(stores),
                ..self.demand(number)
            };
            match self.seen.fleet.choose(&demand, self.seen.at) {
                Ok(choice) => {
                    let from = self.readable(&sources, &choice.node);
                    return Ok(Plan { choice, from, why: None });
                }
                Err(why) => reasons.push(format!("from store {}: {why}", source.store)),
            }
        }
        if reasons.is_empty() { Err("none of its copies can be read".to_owned()) } else { Err(reasons.join("; ")) }
    }

    /// The stores of those `sources` that `node` can read.
    fn readable(&self, sources: &[Location], node: &str) -> Vec<String> {
        let here = |source: &&Location| {
            let store = self.seen.stores.get(&source.store);
            source.node.as_deref().is_none_or(|held| held == node)
                && store.is_some_and(|store| self.seen.fleet.cannot_read(node, wish(&source.store, store)).is_none())
        };
        let mut stores: Vec<String> = sources.iter().filter(here).map(|source| source.store.clone()).collect();
        stores.truncate(MOST_SOURCES);
        stores
    }

    /// The copies of a revision that were not found unreadable of late, best first.
    fn sources(&self, number: i64) -> Vec<Location> {
        let unreadable = self.status.attempt.as_ref().map(|attempt| attempt.unreadable.as_slice()).unwrap_or_default();
        let revision = self.status.revisions.iter().find(|revision| revision.number == number);
        let copies = revision.iter().flat_map(|revision| revision.copies());
        let mut sources: Vec<_> = copies.filter(|location| !unreadable.contains(&location.store)).cloned().collect();
        self.sort_best_first(&mut sources);
        sources
    }

    /// Sorts by how they stand, by the weight of their stores, and by name.
    pub(super) fn sort_best_first(&self, locations: &mut [Location]) {
        let weight = |store: &str| self.seen.stores.get(store).map_or(0, |store| store.spec.weight);
        locations.sort_by_cached_key(|location| {
            let doubtful = location.phase != LocationPhase::Active;
            (doubtful, std::cmp::Reverse(weight(&location.store)), location.store.clone(), location.node.clone())
        });
    }

    /// Makes the task of the attempt under way. False if there is nothing left to copy from.
    pub(super) fn order(&mut self, wanted: &Wanted, from: &[String], bringing: Bringing<'_>) -> bool {
        let revision = self.status.revisions.iter().find(|revision| revision.number == bringing.revision);
        let Some(revision) = revision else { return false };
        let order = if from.is_empty() {
            import_task(self.seen, wanted, &self.known_digests(bringing.revision), bringing)
        } else {
            let stores: Vec<_> = from.iter().filter_map(|name| self.seen.stores.get(name)).map(AsRef::as_ref).collect();
            let Some(content) = revision.content.as_ref().filter(|_| !stores.is_empty()) else { return false };
            copy_task(self.seen, &stores, &content.content_digest, bringing)
        };
        self.orders.create.push(order);
        true
    }
}

/// A store as a demand names it.
pub(super) fn wish<'s>(name: &'s str, store: &'s ImageStore) -> Wish<'s> {
    (name, &store.spec.node_selector)
}

fn wishes<'s>(stores: &[&'s WantedStore]) -> Vec<Wish<'s>> {
    stores.iter().map(|store| (store.name.as_str(), &store.node_selector)).collect()
}
