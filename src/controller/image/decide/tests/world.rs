//! A cluster in memory: one Image, its tasks, stores, agents, and time that passes when told.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time},
};
use tokio::time::Instant;
use vitrine_engine::model::{ContainerFormat, DiskFormat};

use super::super::{Decision, Observed, RetryPolicy, decide};
use crate::{
    api::{
        Content, Image, ImagePhase, ImageSpec, ImageStatus, ImageStore, ImageTask, ImageTaskStatus, ImportResult,
        Progress, StoreFailure, StoreFault, StoreReport, TaskFailure, TaskLocation, TaskPhase, identity,
    },
    controller::{
        fleet::Fleet,
        image::{
            testing,
            validate::{References, validate},
        },
    },
    kube::{backoff::Backoff, condition::whole_seconds},
};

pub const SHA256: &str = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

const GRACE: Duration = Duration::from_secs(40);

/// How far carrying out a decision comes before the operator dies; see `apply`.
#[derive(Clone, Copy, Debug)]
pub enum Reach {
    Nothing,
    Status,
    Cancels,
    Removals,
    Everything,
}

pub struct World {
    pub image: Image,
    pub tasks: Vec<ImageTask>,
    pub stores: BTreeMap<String, Arc<ImageStore>>,
    pub fleet: Fleet,
    pub references: References,
    /// What the API server says to tasks that are made, if it takes none.
    pub refused: Option<String>,
    pub now: Timestamp,
    pub at: Instant,
    pub released: bool,
    uids: u32,
    told: Vec<&'static str>,
}

pub fn failure(reason: &str, retryable: bool) -> TaskFailure {
    TaskFailure { reason: reason.into(), rule: None, message: "it broke".into(), retryable }
}

impl World {
    /// A new Image that shall be in all `stores`, and live agents on `nodes`.
    pub fn new(nodes: &[&str], stores: &[&str]) -> Self {
        let (now, at) = (whole_seconds(Timestamp::now()), Instant::now());
        let mut image = testing::image();
        image.spec.stores = stores.iter().map(|name| (*name).to_owned()).collect();
        let fleet = Fleet::new(at, GRACE);
        let stores = BTreeMap::new();
        let references = References::default();
        let mut world = Self {
            image,
            tasks: vec![],
            stores,
            fleet,
            references,
            refused: None,
            now,
            at,
            released: false,
            uids: 0,
            told: vec![],
        };
        for name in world.image.spec.stores.clone() {
            world.add_store(&name);
        }
        nodes.iter().for_each(|node| world.renew(node));
        world
    }

    /// The same, imported.
    pub fn active(nodes: &[&str], stores: &[&str]) -> Self {
        let mut world = Self::new(nodes, stores);
        world.step();
        world.agent_succeeds("blake3:one");
        world.step();
        assert!(world.is_settled());
        world.told.clear();
        world
    }

    /// The operator looks and acts. Returns whether it let the Image go.
    pub fn step(&mut self) -> bool {
        self.step_and_die(Reach::Everything)
    }

    /// The operator looks, begins to act, and dies.
    pub fn step_and_die(&mut self, reach: Reach) -> bool {
        self.fleet.confirm(self.at);
        self.told.clear();
        let decision = self.decide();
        self.carry_out(decision, reach)
    }

    pub fn decide(&self) -> Decision {
        let stores: Vec<_> = self.stores.values().cloned().collect();
        let wanted = validate(&self.image, &stores, self.references.clone());
        let backoff = Backoff { base: Duration::from_secs(5), limit: Duration::from_secs(300) };
        decide(&Observed {
            image: &self.image,
            tasks: &self.tasks,
            wanted: &wanted,
            stores: &self.stores,
            fleet: &self.fleet,
            refused: self.refused.as_deref(),
            retry: RetryPolicy { backoff, limit: 5 },
            namespace: "vitrine-system",
            now: self.now,
            at: self.at,
        })
    }

    fn carry_out(&mut self, decision: Decision, reach: Reach) -> bool {
        let reach = reach as usize;
        if reach >= Reach::Status as usize {
            self.image.status = Some(decision.status);
            self.told = decision.events.iter().map(|event| event.reason).collect();
        }
        if reach >= Reach::Cancels as usize {
            for task in &mut self.tasks {
                task.spec.cancelled |= decision.orders.cancel.contains(task.metadata.name.as_ref().unwrap());
            }
        }
        if reach >= Reach::Removals as usize {
            self.tasks.retain(|task| !decision.orders.removes(task));
        }
        if reach >= Reach::Everything as usize {
            for order in decision.orders.create {
                let mut task = order.task;
                if !self.tasks.iter().any(|other| other.metadata.name == task.metadata.name) {
                    self.uids += 1;
                    task.metadata.uid = Some(format!("task-{}", self.uids));
                    self.tasks.push(task);
                }
            }
            self.released = decision.released;
        }
        self.tasks.iter().for_each(|task| self.fleet.observe_task(task));
        self.released
    }

    /// Nothing is left to do.
    pub fn is_settled(&self) -> bool {
        let decision = self.decide();
        decision.orders.is_empty() && decision.events.is_empty() && Some(&decision.status) == self.image.status.as_ref()
    }

    pub fn status(&self) -> ImageStatus {
        self.image.status.clone().unwrap_or_default()
    }

    pub fn phase(&self) -> ImagePhase {
        self.status().phase.unwrap()
    }

    /// The reasons of what was told in the last step.
    pub fn told(&self) -> Vec<&'static str> {
        self.told.clone()
    }

    pub fn only_task(&self) -> &ImageTask {
        assert_eq!(self.tasks.len(), 1, "{:?}", self.tasks.iter().map(|t| t.metadata.name.clone()).collect::<Vec<_>>());
        &self.tasks[0]
    }

    pub fn edit(&mut self, change: impl FnOnce(&mut ImageSpec)) {
        change(&mut self.image.spec);
        *self.image.metadata.generation.as_mut().unwrap() += 1;
    }

    pub fn annotate(&mut self, key: &str, value: &str) {
        self.image.metadata.annotations.get_or_insert_default().insert(key.into(), value.into());
    }

    pub fn delete(&mut self) {
        self.image.metadata.deletion_timestamp = Some(Time(self.now));
    }

    pub fn add_store(&mut self, name: &str) {
        self.stores.insert(name.to_owned(), Arc::new(testing::store(name)));
        let nodes: Vec<_> = self.fleet.nodes().cloned().collect();
        nodes.iter().for_each(|node| self.report(node));
    }

    /// The agent on `node` reports that it reaches all stores.
    fn report(&mut self, node: &str) {
        let report = |name: &String| StoreReport {
            name: name.clone(),
            uid: None,
            id: None,
            observed_generation: 1,
            ready: true,
            read_only: false,
            message: String::new(),
            capacity: None,
            available: None,
            probed_at: Time(self.now),
            asked: None,
            listing: None,
        };
        let reports: Vec<_> = self.stores.keys().map(report).collect();
        self.fleet.observe_reports(node, Some(&reports));
    }

    /// Another operator takes over, and all it has of the agents on `nodes` are leases that are `age` old.
    pub fn change_operator(&mut self, nodes: &[&str], age: Duration) {
        self.fleet = Fleet::new(self.at, GRACE);
        let renewed = self.now.checked_sub(jiff::SignedDuration::try_from(age).unwrap()).unwrap();
        for node in nodes {
            self.fleet.observe_lease(&lease(node, renewed), self.at, self.now);
            self.report(node);
        }
    }

    pub fn change_store(&mut self, name: &str, change: impl FnOnce(&mut ImageStore)) {
        change(Arc::make_mut(self.stores.get_mut(name).unwrap()));
    }

    pub fn share_store(&mut self, name: &str) {
        self.change_store(name, |store| store.spec.backend.filesystem.as_mut().unwrap().shared = true);
    }

    pub fn pass(&mut self, time: Duration) {
        self.now = self.now.checked_add(jiff::SignedDuration::try_from(time).unwrap()).unwrap();
        self.at += time;
    }

    pub fn renew(&mut self, node: &str) {
        self.fleet.observe_lease(&lease(node, self.now), self.at, self.now);
        self.report(node);
    }

    pub fn delete_lease(&mut self, node: &str) {
        self.fleet.forget_lease(&lease(node, self.now), self.at);
    }

    /// Every task that has not ended is at work.
    pub fn agent_runs(&mut self, percent: i64) {
        for status in self.unfinished() {
            status.1.phase = Some(TaskPhase::Running);
            status.1.started_at = Some(Time(status.2));
            let progress = Progress {
                stage: "Transferring".into(),
                bytes_done: percent,
                bytes_total: Some(100),
                ..Progress::default()
            };
            status.1.progress = Some(progress);
        }
    }

    /// Every task that has not ended ends well.
    pub fn agent_succeeds(&mut self, content_digest: &str) {
        for (spec, status, now) in self.unfinished() {
            status.phase = Some(TaskPhase::Succeeded);
            status.finished_at = Some(Time(now));
            status.result = spec.action.brings().then(|| ImportResult {
                content: Content {
                    disk_format: DiskFormat::Qcow2,
                    container_format: ContainerFormat::Bare,
                    properties: BTreeMap::new(),
                    virtual_size: 10 << 30,
                    size: 600 << 20,
                    digests: vec![SHA256.into()],
                    content_digest: content_digest.into(),
                },
                failures: vec![],
                locations: spec
                    .targets()
                    .iter()
                    .map(|target| TaskLocation {
                        store: target.name.clone(),
                        url: format!("file:///srv/{}", target.name),
                        format: target.output,
                        size: 10 << 30,
                        allocated_size: 1 << 30,
                    })
                    .collect(),
            });
        }
    }

    /// Every task that has not ended fails.
    pub fn agent_fails(&mut self, failure: &TaskFailure) {
        for (_, status, now) in self.unfinished() {
            status.phase = Some(TaskPhase::Failed);
            status.finished_at = Some(Time(now));
            status.failure = Some(failure.clone());
        }
    }

    /// Every attempt that has not ended ends well, but for the stores in `failed`.
    pub fn agent_succeeds_but(&mut self, failed: &[&str], failure: &TaskFailure) {
        let open: Vec<_> = self.unfinished().map(|(spec, ..)| (spec.image.uid.clone(), spec.attempt)).collect();
        self.agent_succeeds("blake3:one");
        for task in &mut self.tasks {
            let ended = open.contains(&(task.spec.image.uid.clone(), task.spec.attempt));
            let Some(result) = task.status.as_mut().and_then(|status| status.result.as_mut()).filter(|_| ended) else {
                continue;
            };
            result.locations.retain(|location| !failed.contains(&location.store.as_str()));
            let failures = failed.iter().filter(|store| task.spec.targets().iter().any(|t| t.name == **store));
            result.failures =
                failures.map(|store| StoreFailure { store: (*store).to_owned(), failure: failure.clone() }).collect();
        }
    }

    /// Every task that has not ended says of the copy in `store` that it is rotten, or that it cannot be read.
    pub fn agent_finds(&mut self, store: &str, rotten: bool) {
        for (_, status, _) in self.unfinished() {
            status.faults.push(StoreFault { store: store.to_owned(), message: "it smells".into(), rotten });
        }
    }

    /// Cancelled tasks are given up.
    pub fn agent_obeys(&mut self) {
        for (spec, status, now) in self.unfinished() {
            if spec.cancelled {
                status.phase = Some(TaskPhase::Failed);
                status.finished_at = Some(Time(now));
                status.failure = Some(failure("Cancelled", false));
            }
        }
    }

    pub fn unfinished(
        &mut self,
    ) -> impl Iterator<Item = (&crate::api::ImageTaskSpec, &mut ImageTaskStatus, Timestamp)> {
        let now = self.now;
        let tasks = self.tasks.iter_mut().map(move |task| (&task.spec, task.status.get_or_insert_default(), now));
        tasks.filter(|(_, status, _)| !status.phase.unwrap_or_default().is_final())
    }
}

fn lease(node: &str, now: Timestamp) -> Lease {
    let annotations = [(identity::ANNOTATION_NODE.to_owned(), node.to_owned())].into();
    Lease {
        metadata: ObjectMeta {
            name: Some(identity::agent_lease_name(node)),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            lease_duration_seconds: Some(40),
            renew_time: Some(MicroTime(now)),
            ..LeaseSpec::default()
        }),
    }
}
