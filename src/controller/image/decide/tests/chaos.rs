//! Whatever happens in whatever order, and wherever the operator dies: one attempt at a time, and in the end one copy, or a reason why
//! not, and nothing left behind.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proptest::prelude::*;

use super::world::{Reach, World, failure};
use crate::api::{Backend, ImageTask, ImageTaskSpec, identity};

#[derive(Clone, Debug)]
enum Deed {
    Step,
    Die(Reach),
    Run,
    Publish(usize),
    Succeed(usize),
    Fail(usize, bool),
    FailStore(usize, usize, bool),
    Find(usize, usize, bool),
    Verify(u8),
    Require(bool),
    Obey,
    Edit(u8),
    Choose(usize),
    Pass(u64),
    Silence(usize),
    DeleteTask(usize),
}

const STORES: [&str; 2] = ["fast", "wide"];
const NODES: [&str; 3] = ["a", "b", "c"];

/// One store that each node has for itself, and one that all reach.
const CHOICES: [&[&str]; 3] = [&["fast", "wide"], &["fast"], &["wide"]];

/// What lies in the stores: revision, store, and the node if it is on that one's disk.
type Disks = BTreeSet<(i64, String, Option<String>)>;

struct Chaos {
    world: World,
    disks: Disks,
    /// Names of imports that have published something and not said so.
    published: BTreeSet<String>,
    silent: BTreeSet<&'static str>,
}

impl Chaos {
    fn act(&mut self, deed: &Deed) {
        match deed {
            Deed::Step => drop(self.world.step()),
            Deed::Die(reach) => drop(self.world.step_and_die(*reach)),
            Deed::Run => self.world.agent_runs(50),
            Deed::Publish(at) => self.publish(*at),
            Deed::Succeed(at) => self.end(*at, |world| world.agent_succeeds("blake3:x")),
            Deed::Fail(at, retryable) => self.end(*at, |world| world.agent_fails(&failure("Unavailable", *retryable))),
            Deed::FailStore(at, store, retryable) => self.fail_store(*at, STORES[store % STORES.len()], *retryable),
            Deed::Find(at, store, rotten) => self.find(*at, STORES[store % STORES.len()], *rotten),
            Deed::Verify(value) => self.world.annotate(identity::ANNOTATION_VERIFY, &value.to_string()),
            Deed::Require(all) => self.world.edit(|spec| spec.require_all_stores = *all),
            Deed::Obey => self.obey(),
            Deed::Edit(version) => {
                self.world
                    .edit(|spec| spec.source.http.as_mut().unwrap().url = format!("https://images.example/{version}"));
            }
            Deed::Choose(choice) => {
                let stores = CHOICES[choice % CHOICES.len()].iter().map(|name| (*name).to_owned()).collect();
                self.world.edit(|spec| spec.stores = stores);
            }
            Deed::Pass(seconds) => self.pass(*seconds),
            Deed::Silence(at) => drop(self.silent.insert(NODES[at % NODES.len()])),
            Deed::DeleteTask(at) => self.delete_task(*at),
        }
        self.check();
    }

    /// One task ends: its agent is alive, and what it did is on its disk.
    fn end(&mut self, at: usize, how: impl FnOnce(&mut World)) {
        if self.world.tasks.is_empty() {
            return;
        }
        let at = at % self.world.tasks.len();
        if self.silent.contains(self.world.tasks[at].spec.node_name.as_str()) {
            return;
        }
        let task = self.world.tasks.swap_remove(at);
        let others = std::mem::replace(&mut self.world.tasks, vec![task]);
        let open = self.world.unfinished().next().is_some();
        how(&mut self.world);
        let ends = open && self.world.unfinished().next().is_none();
        let task = self.world.tasks[0].clone();
        match &task.status {
            Some(status) if ends && status.failure.is_none() => self.touch_disks(&task),
            Some(status) if ends && status.failure.is_some() => self.clear_up(&task),
            _ => {}
        }
        self.world.tasks.extend(others);
    }

    /// One of several stores fails, and takes nothing; the others get the image.
    fn fail_store(&mut self, at: usize, store: &str, retryable: bool) {
        let Some(task) = self.pick(at) else { return };
        let ended = task.status.as_ref().and_then(|status| status.phase).unwrap_or_default().is_final();
        let several =
            !ended && task.spec.targets().len() > 1 && !self.published.contains(task.metadata.name.as_ref().unwrap());
        let strict = task.spec.import.as_ref().is_some_and(|order| order.require_all_stores);
        if several && !strict {
            self.end(at, |world| world.agent_succeeds_but(&[store], &failure("NoSpace", retryable)));
            let spared = task.spec.targets().iter().find(|target| target.name == store);
            if let Some(target) = spared.filter(|_| !self.silent.contains(task.spec.node_name.as_str())) {
                self.disks.remove(&(task.spec.revision, store.to_owned(), node_of(&target.backend, &task.spec)));
            }
        }
    }

    /// What is stored is found to be rotten, or cannot be read: a verification ends so, or a copy, which fails then.
    fn find(&mut self, at: usize, store: &str, rotten: bool) {
        let Some(task) = self.pick(at) else { return };
        let reads =
            task.spec.verify.iter().map(|order| &order.store).chain(task.spec.copy.iter().flat_map(|o| &o.from));
        if !reads.into_iter().any(|source| source.name == store) {
            return;
        }
        let verifies = task.spec.verify.is_some();
        self.end(at, |world| match (verifies, rotten) {
            (true, false) => world.agent_fails(&failure("Unavailable", true)),
            (true, true) => {
                world.agent_finds(store, true);
                world.agent_succeeds("");
            }
            (false, _) => {
                world.agent_finds(store, rotten);
                world.agent_fails(&failure("Unavailable", true));
            }
        });
    }

    fn pick(&self, at: usize) -> Option<ImageTask> {
        let tasks = &self.world.tasks;
        tasks.get(at.checked_rem(tasks.len())?).cloned()
    }

    /// Every cancelled task is given up.
    fn obey(&mut self) {
        for at in 0..self.world.tasks.len() {
            self.end(at, World::agent_obeys);
        }
    }

    /// An agent is in the middle of its commits, or was killed after them: the data is there, and nobody has said so. It may have been
    /// cancelled a moment ago.
    fn publish(&mut self, at: usize) {
        if self.world.tasks.is_empty() {
            return;
        }
        let task = self.world.tasks[at % self.world.tasks.len()].clone();
        let ended = task.status.as_ref().and_then(|status| status.phase).unwrap_or_default().is_final();
        let deaf = self.silent.contains(task.spec.node_name.as_str()) || ended;
        if task.spec.action.brings() && !deaf {
            self.published.extend(task.metadata.name.clone());
            self.touch_disks(&task);
        }
    }

    /// What an agent does whose import came to nothing: its own disk is in order afterwards, and what others reach it leaves alone.
    fn clear_up(&mut self, task: &ImageTask) {
        let spec = &task.spec;
        for target in spec.targets() {
            self.disks.remove(&(spec.revision, target.name.clone(), Some(spec.node_name.clone())));
        }
    }

    /// Somebody deletes a task by hand. One that has published is the only record of what it left, so that is not forgiven.
    fn delete_task(&mut self, at: usize) {
        let published = &self.published;
        let open = |task: &ImageTask| {
            let silent = task.metadata.name.as_ref().is_some_and(|name| published.contains(name));
            !silent && task.status.as_ref().is_none_or(|status| status.result.is_none())
        };
        let names: Vec<_> =
            self.world.tasks.iter().filter(|task| open(task)).map(|task| task.metadata.name.clone()).collect();
        if !names.is_empty() {
            let name = &names[at % names.len()];
            self.world.tasks.retain(|task| task.metadata.name != *name);
        }
    }

    fn touch_disks(&mut self, task: &ImageTask) {
        let spec = &task.spec;
        for target in spec.targets() {
            self.disks.insert((spec.revision, target.name.clone(), node_of(&target.backend, spec)));
        }
        for target in spec.delete.iter().flat_map(|order| &order.stores) {
            self.disks.remove(&(spec.revision, target.name.clone(), node_of(&target.backend, spec)));
        }
    }

    fn pass(&mut self, seconds: u64) {
        self.world.pass(Duration::from_secs(seconds));
        for node in NODES.into_iter().filter(|node| !self.silent.contains(node)).collect::<Vec<_>>() {
            self.world.renew(node);
        }
    }

    /// What must hold at every moment.
    fn check(&self) {
        let mut running: BTreeMap<i64, usize> = BTreeMap::new();
        for task in &self.world.tasks {
            let ended = task.status.as_ref().and_then(|status| status.phase).unwrap_or_default().is_final();
            if task.spec.action.brings() && !task.spec.cancelled && !ended {
                *running.entry(task.spec.revision).or_default() += 1;
            }
        }
        assert!(running.values().all(|count| *count <= 1), "two attempts at one revision: {running:?}");
        let status = self.world.status();
        let numbers: BTreeSet<_> = status.revisions.iter().map(|revision| revision.number).collect();
        assert_eq!(numbers.len(), status.revisions.len(), "one number twice");
    }

    /// Everybody comes back, nothing more happens from outside, agents do their work.
    fn calm_down(&mut self) {
        self.silent.clear();
        for _ in 0..60 {
            self.pass(10);
            self.world.step();
            self.check();
            self.obey();
            for at in 0..self.world.tasks.len() {
                self.end(at, |world| world.agent_succeeds("blake3:x"));
            }
        }
        self.world.step();
    }
}

/// The node on whose disk a task's data is.
fn node_of(backend: &Backend, spec: &ImageTaskSpec) -> Option<String> {
    backend.is_local().then(|| spec.node_name.clone())
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let reach = prop_oneof![Just(Reach::Nothing), Just(Reach::Status), Just(Reach::Cancels), Just(Reach::Removals)];
    let deed = prop_oneof![
        6 => Just(Deed::Step),
        4 => reach.prop_map(Deed::Die),
        3 => Just(Deed::Run),
        2 => any::<usize>().prop_map(Deed::Publish),
        4 => any::<usize>().prop_map(Deed::Succeed),
        2 => (any::<usize>(), any::<bool>()).prop_map(|(at, retryable)| Deed::Fail(at, retryable)),
        2 => (any::<usize>(), any::<usize>(), any::<bool>()).prop_map(|(at, s, retryable)| Deed::FailStore(at, s, retryable)),
        2 => (any::<usize>(), any::<usize>(), any::<bool>()).prop_map(|(at, s, rotten)| Deed::Find(at, s, rotten)),
        1 => (0..3_u8).prop_map(Deed::Verify),
        1 => any::<bool>().prop_map(Deed::Require),
        2 => Just(Deed::Obey),
        2 => (0..3_u8).prop_map(Deed::Edit),
        2 => any::<usize>().prop_map(Deed::Choose),
        3 => (1..60_u64).prop_map(Deed::Pass),
        1 => any::<usize>().prop_map(Deed::Silence),
        1 => any::<usize>().prop_map(Deed::DeleteTask),
    ];
    prop::collection::vec(deed, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn in_the_end_there_is_one_copy_or_a_reason(deeds in deeds(), delete in any::<bool>()) {
        let mut world = World::new(&NODES, &["fast", "wide"]);
        world.share_store("wide");
        let mut chaos = Chaos { world, disks: Disks::new(), published: BTreeSet::new(), silent: BTreeSet::new() };
        deeds.iter().for_each(|deed| chaos.act(deed));
        if delete {
            chaos.world.delete();
        }
        chaos.calm_down();
        let status = chaos.world.status();
        prop_assert!(chaos.world.tasks.is_empty(), "tasks are left: {:?}", chaos.world.tasks);
        prop_assert!(status.cleanup.is_empty(), "leftovers: {:?}", status.cleanup);
        prop_assert!(chaos.world.is_settled());
        if delete {
            prop_assert!(chaos.world.released);
            prop_assert!(chaos.disks.is_empty(), "data nobody knows of: {:?}", chaos.disks);
            return Ok(());
        }
        let known: Disks = status.revisions.iter().flat_map(|revision| {
            revision.locations.iter().map(|l| (revision.number, l.store.clone(), l.node.clone()))
        }).collect();
        prop_assert_eq!(&known, &chaos.disks);
        let kept: BTreeSet<_> = known.iter().map(|(_, store, _)| store.clone()).collect();
        prop_assert_eq!(known.len(), kept.len(), "more than one copy in a store: {:?}", known);
        let condition = &status.conditions[0];
        let stalled = status.conditions.iter().any(|c| c.type_ == "Stalled");
        let wanted: BTreeSet<_> = chaos.world.image.spec.stores.iter().cloned().collect();
        let enough = !chaos.world.image.spec.require_all_stores && !kept.is_empty() && kept.is_subset(&wanted);
        prop_assert!(condition.status != "True" || kept == wanted || enough, "it is not where it shall be: {:?}", known);
        prop_assert!(condition.status == "True" || stalled, "neither ready nor a reason why not: {:?}", condition);
    }
}
