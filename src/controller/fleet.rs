//! What is known of the agents: who is alive, which labels their nodes have, how they see the stores, how much they have to do.
//!
//! Pure bookkeeping: watches feed it, decisions read it. It must not know a client, or the time but from its callers.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use tokio::time::Instant;

use crate::{
    api::{ImageTask, StoreReport, TaskPhase, identity},
    kube::condition::whole_seconds,
};

/// How much the clocks of agents may be off before a Lease that was never seen to change counts as long dead.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);
/// How many stores an agent reports on at most: the schema of NodeCache has this bound.
const MOST_REPORTS: usize = 128;
/// How many nodes a message names; more would be no help.
const NAMED_NODES: usize = 5;

/// Whether an agent is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// Its Lease is renewed.
    Live,
    /// It has not been heard of in time, and nobody has made sure yet that this is its own fault: it gets nothing new, and keeps what
    /// it has.
    Silent,
    /// Its Lease is there and was surely not renewed in time: it may come back.
    Stale,
    /// Its Lease was surely deleted: it will not come back.
    Gone,
}

/// The agents and what is known of their nodes.
#[derive(Debug)]
pub struct Fleet {
    agents: BTreeMap<String, Agent>,
    labels: BTreeMap<String, BTreeMap<String, String>>,
    reports: BTreeMap<String, BTreeMap<String, StoreReport>>,
    /// Unfinished tasks by name.
    assignments: BTreeMap<String, Assignment>,
    /// Since when agents without a Lease are missing; for those never seen, `started` counts.
    missing: BTreeMap<String, Instant>,
    started: Instant,
    /// When the API server was last asked for all Leases, and answered: what was overdue then is so for certain.
    confirmed: Option<Instant>,
    /// Whether the API server was away when it was last heard of.
    away: bool,
    /// How long a Lease must be missing before its node counts as gone: an agent that lives makes it anew much sooner.
    grace: Duration,
}

#[derive(Debug)]
struct Agent {
    renewed: Option<Timestamp>,
    holder: Option<String>,
    /// When the Lease was last seen to change, by our clock.
    changed: Instant,
    duration: Duration,
    /// Long expired when first seen, by the clock on the wall. It gets nothing to do before it renews; and yet it may be an API server
    /// that was away, so it is not declared lost sooner than any other.
    dead_on_arrival: bool,
}

#[derive(Debug)]
struct Assignment {
    node: String,
    /// Namespace and name.
    image: (String, String),
}

/// A store, by its name and the labels of the nodes that reach it.
pub type Wish<'a> = (&'a str, &'a BTreeMap<String, String>);

/// What a node must have to be given a task.
#[derive(Clone, Debug, Default)]
pub struct Demand<'a> {
    /// Stores it must reach.
    pub stores: Vec<Wish<'a>>,
    /// Whether one of the stores is enough.
    pub partly: bool,
    /// Stores it must be able to read.
    pub sources: Vec<Wish<'a>>,
    /// No other node will do.
    pub only: Option<&'a str>,
    /// The node to take only if there is no other.
    pub avoid: Option<&'a str>,
    /// Nodes not to take.
    pub exclude: BTreeSet<&'a str>,
    /// It writes, so a store without any room will not do.
    pub writes: bool,
}

/// A node for a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Its name.
    pub node: String,
    /// Which of the stores that it was chosen for it reaches.
    pub stores: Vec<String>,
}

impl Fleet {
    /// An empty fleet. `grace` is how long a Lease must be missing before its node counts as gone.
    pub fn new(started: Instant, grace: Duration) -> Self {
        Self {
            agents: BTreeMap::new(),
            labels: BTreeMap::new(),
            reports: BTreeMap::new(),
            assignments: BTreeMap::new(),
            missing: BTreeMap::new(),
            started,
            confirmed: None,
            away: false,
            grace,
        }
    }

    /// Takes note of a Lease.
    pub fn observe_lease(&mut self, lease: &Lease, now: Instant, wall: Timestamp) {
        let Some(node) = node_of(lease) else { return };
        let spec = lease.spec.clone().unwrap_or_default();
        let seconds = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok());
        let duration = Duration::from_secs(seconds.unwrap_or(identity::LEASE_DURATION_SECONDS));
        let renewed = spec.renew_time.map(|time| time.0);
        self.missing.remove(&node);
        match self.agents.get_mut(&node) {
            Some(agent) if agent.renewed == renewed && agent.holder == spec.holder_identity => {
                agent.duration = duration;
            }
            known => {
                let first = known.is_none();
                let age = renewed
                    .map_or(Duration::ZERO, |time| wall.duration_since(time).try_into().unwrap_or(Duration::ZERO));
                let dead_on_arrival = first && age > duration + CLOCK_TOLERANCE;
                let agent = Agent { renewed, holder: spec.holder_identity, changed: now, duration, dead_on_arrival };
                self.agents.insert(node, agent);
            }
        }
    }

    /// Takes note that a Lease is no more.
    pub fn forget_lease(&mut self, lease: &Lease, now: Instant) {
        if let Some(node) = node_of(lease) {
            self.agents.remove(&node);
            self.missing.entry(node).or_insert(now);
        }
    }

    /// Takes note of all Leases that there are: others are no more.
    pub fn observe_all_leases(&mut self, leases: &[Lease], now: Instant, wall: Timestamp) {
        let present: BTreeSet<_> = leases.iter().filter_map(node_of).collect();
        let gone: Vec<_> = self.agents.keys().filter(|node| !present.contains(*node)).cloned().collect();
        for node in gone {
            self.agents.remove(&node);
            self.missing.entry(node).or_insert(now);
        }
        for lease in leases {
            self.observe_lease(lease, now, wall);
        }
    }

    /// Takes note that the API server did not answer. Nobody is declared lost before it does, and then everybody gets a full term:
    /// while it was away, nobody could renew anything.
    pub fn note_outage(&mut self) {
        self.away = true;
    }

    /// Whether the API server has to be asked: it was away, or somebody is overdue, and it is not certain yet that this is their own
    /// fault.
    pub fn is_in_doubt(&self, now: Instant) -> bool {
        let unsure = |since: Instant, term: Duration| is_over(since, term, now) && !self.is_confirmed(since, term);
        self.away
            || self.agents.values().any(|agent| unsure(agent.changed, agent.duration))
            || self.missing.values().any(|since| unsure(*since, self.grace))
            || unsure(self.started, self.grace)
    }

    /// Whether enough was seen to tell of any node that there is no agent on it.
    pub fn knows_all(&self) -> bool {
        self.is_confirmed(self.started, self.grace)
    }

    /// Takes note that the API server, asked at `asked`, told of all Leases: now those may be declared lost who were overdue then, or,
    /// after an outage, have a full term from then on.
    pub fn confirm(&mut self, asked: Instant) {
        if std::mem::take(&mut self.away) {
            return self.pardon(asked);
        }
        self.confirmed = Some(asked);
        // The same is then true of those never seen.
        self.missing.retain(|_, since| !is_over(*since, self.grace, asked));
    }

    fn is_confirmed(&self, since: Instant, term: Duration) -> bool {
        self.confirmed.is_some_and(|asked| is_over(since, term, asked))
    }

    fn pardon(&mut self, now: Instant) {
        for agent in self.agents.values_mut() {
            agent.changed = now;
        }
        for since in self.missing.values_mut() {
            *since = now;
        }
        self.started = now;
    }

    /// Takes note of a node's labels; `None` when the node is no more. Returns whether anything changed.
    pub fn observe_labels(&mut self, node: &str, labels: Option<BTreeMap<String, String>>) -> bool {
        let new = labels.clone();
        let old = match labels {
            Some(labels) => self.labels.insert(node.to_owned(), labels),
            None => self.labels.remove(node),
        };
        old != new
    }

    /// Takes note of all nodes that there are. Returns whether anything changed.
    pub fn observe_all_labels(&mut self, labels: BTreeMap<String, BTreeMap<String, String>>) -> bool {
        let changed = self.labels != labels;
        self.labels = labels;
        changed
    }

    /// Forgets the reports of all nodes but these.
    pub fn keep_reports(&mut self, nodes: &BTreeSet<String>) {
        self.reports.retain(|node, _| nodes.contains(node));
    }

    /// Takes note of a node's report on stores; `None` when there is none any more. Returns the stores whose readiness changed.
    pub fn observe_reports(&mut self, node: &str, reports: Option<&[StoreReport]>) -> Vec<String> {
        let new: BTreeMap<_, _> = reports.unwrap_or_default().iter().map(|r| (r.name.clone(), r.clone())).collect();
        let old = self.reports.insert(node.to_owned(), new.clone()).unwrap_or_default();
        if reports.is_none() {
            self.reports.remove(node);
        }
        let view = |reports: &BTreeMap<String, StoreReport>, store: &String| {
            let view = |r: &StoreReport| (r.ready, r.message.clone(), r.observed_generation, is_full(r));
            reports.get(store).map(view)
        };
        let names: BTreeSet<_> = old.keys().chain(new.keys()).cloned().collect();
        names.into_iter().filter(|store| view(&old, store) != view(&new, store)).collect()
    }

    /// Takes note of a task, so that its node counts as busy until it ends.
    pub fn observe_task(&mut self, task: &ImageTask) {
        let Some(name) = task.metadata.name.clone() else { return };
        let phase = task.status.as_ref().and_then(|status| status.phase).unwrap_or(TaskPhase::Pending);
        if phase.is_final() {
            self.assignments.remove(&name);
        } else {
            let image = (task.spec.image.namespace.clone(), task.spec.image.name.clone());
            self.assignments.insert(name, Assignment { node: task.spec.node_name.clone(), image });
        }
    }

    /// Takes note of the names of all tasks that there are. Returns namespace and name of the Images whose tasks are no more.
    pub fn keep_tasks(&mut self, names: &BTreeSet<String>) -> Vec<(String, String)> {
        let vanished = self.assignments.extract_if(.., |name, _| !names.contains(name));
        vanished.map(|(_, assignment)| assignment.image).collect()
    }

    /// Takes note that a task is no more.
    pub fn forget_task(&mut self, name: &str) {
        self.assignments.remove(name);
    }

    /// Whether the agent on `node` is there.
    pub fn liveness(&self, node: &str, now: Instant) -> Liveness {
        let Some(agent) = self.agents.get(node) else {
            let since = self.missing.get(node).copied().unwrap_or(self.started);
            return if self.is_confirmed(since, self.grace) { Liveness::Gone } else { Liveness::Silent };
        };
        if self.is_confirmed(agent.changed, agent.duration) {
            Liveness::Stale
        } else if agent.dead_on_arrival || is_over(agent.changed, agent.duration, now) {
            Liveness::Silent
        } else {
            Liveness::Live
        }
    }

    /// Every node that has an agent, or had one since we began.
    pub fn nodes(&self) -> impl Iterator<Item = &String> {
        self.agents.keys().chain(self.missing.keys())
    }

    /// What `node` said of `store`.
    pub fn report(&self, node: &str, store: &str) -> Option<&StoreReport> {
        self.reports.get(node)?.get(store)
    }

    /// Live nodes that `selector` fits.
    pub fn live_matching(&self, selector: &BTreeMap<String, String>, now: Instant) -> Vec<&str> {
        let live = self.agents.keys().filter(|node| self.liveness(node, now) == Liveness::Live);
        live.filter(|node| self.matches(node, selector)).map(String::as_str).collect()
    }

    /// The node for a task: of those that can do it, the one that reaches most of the stores, and then the one with the least to do.
    ///
    /// # Errors
    /// Why no node can, for people.
    pub fn choose(&self, demand: &Demand<'_>, now: Instant) -> Result<Choice, String> {
        let mut refusals = Vec::new();
        let mut candidates = Vec::new();
        for node in self.agents.keys().filter(|node| demand.only.is_none_or(|only| only == node.as_str())) {
            match self.fit(node, demand, now) {
                Err(why) => refusals.push(format!("{node} {why}")),
                Ok(stores) => {
                    let rank = (demand.avoid == Some(node.as_str()), Reverse(stores.len()), self.load(node), node);
                    candidates.push((rank, stores));
                }
            }
        }
        let best = candidates.into_iter().min();
        best.map(|((.., node), stores)| Choice { node: node.clone(), stores }).ok_or_else(|| match demand.only {
            Some(only) if refusals.is_empty() => format!("there is no agent on node {only}"),
            _ => explain(&refusals),
        })
    }

    /// Why `node` cannot read `store` now, if it cannot.
    pub fn cannot_read(&self, node: &str, store: Wish<'_>) -> Option<String> {
        self.cannot_use(node, store, false)
    }

    /// Which of the demanded stores `node` can use, if it can be given the task.
    fn fit(&self, node: &str, demand: &Demand<'_>, now: Instant) -> Result<Vec<String>, String> {
        if self.liveness(node, now) != Liveness::Live {
            // Since when, and not for how long: a message must not change by itself.
            let since = self.agents.get(node).and_then(|agent| agent.renewed).map(whole_seconds);
            let since = since.map_or_else(|| "it was made".to_owned(), |time| time.to_string());
            return Err(format!("has not renewed its lease since {since}"));
        }
        if demand.exclude.contains(node) {
            return Err("has leftovers of an earlier attempt to remove first".to_owned());
        }
        if let Some(why) = demand.sources.iter().find_map(|source| self.cannot_read(node, *source)) {
            return Err(why);
        }
        let (mut usable, mut first) = (Vec::new(), None);
        for store in &demand.stores {
            match self.cannot_use(node, *store, demand.writes) {
                None => usable.push(store.0.to_owned()),
                Some(why) => first = first.or(Some(why)),
            }
        }
        match first {
            Some(why) if !demand.partly || usable.is_empty() => Err(why),
            _ => Ok(usable),
        }
    }

    fn cannot_use(&self, node: &str, (store, selector): Wish<'_>, writes: bool) -> Option<String> {
        if !self.matches(node, selector) {
            return Some(format!("does not have the labels that store {store} asks for"));
        }
        match self.report(node, store) {
            None => Some(format!("has not reported on store {store} yet{}", self.explain_silence(node))),
            Some(report) if !report.ready => Some(format!("cannot use store {store}: {}", report.message)),
            Some(report) if writes && report.read_only => {
                Some(format!("can read store {store} and not write to it: {}", report.message))
            }
            Some(report) if writes && is_full(report) => {
                let why = if report.message.is_empty() { String::new() } else { format!(": {}", report.message) };
                Some(format!("has no room left in store {store}{why}"))
            }
            Some(_) => None,
        }
    }

    fn explain_silence(&self, node: &str) -> String {
        let full = self.reports.get(node).is_some_and(|reports| reports.len() >= MOST_REPORTS);
        if full { format!(" (an agent reports on {MOST_REPORTS} stores at most)") } else { String::new() }
    }

    fn matches(&self, node: &str, selector: &BTreeMap<String, String>) -> bool {
        let labels = self.labels.get(node);
        selector.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
    }

    /// How many unfinished tasks `node` has.
    pub fn load(&self, node: &str) -> usize {
        self.assignments.values().filter(|assignment| assignment.node == node).count()
    }
}

fn explain(refusals: &[String]) -> String {
    if refusals.is_empty() {
        return "no agent has a lease: is the agents' DaemonSet running?".to_owned();
    }
    let more = refusals.len().saturating_sub(NAMED_NODES);
    let named = refusals.iter().take(NAMED_NODES).cloned().collect::<Vec<_>>().join("; ");
    if more == 0 { named } else { format!("{named}; and {more} more") }
}

/// The node of an agent's Lease. The name proves it, for a policy lets no agent write the Lease of another; the annotation says it.
fn node_of(lease: &Lease) -> Option<String> {
    let node = lease.metadata.annotations.as_ref()?.get(identity::ANNOTATION_NODE)?;
    (lease.metadata.name.as_deref() == Some(&identity::agent_lease_name(node))).then(|| node.clone())
}

fn is_over(since: Instant, term: Duration, now: Instant) -> bool {
    now.saturating_duration_since(since) >= term
}

fn is_full(report: &StoreReport) -> bool {
    report.available == Some(0)
}

#[cfg(test)]
mod tests;
