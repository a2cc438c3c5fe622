//! The agent as a whole: begins, keeps going, ends.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::Arc,
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::{Namespace, Node},
    apimachinery::pkg::apis::meta::v1::{OwnerReference, Time},
    jiff::Timestamp,
};
use kube::{Api, Client, api::ListParams, core::PartialObjectMeta};
use tokio::task::{Id, JoinError, JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use vitrine_engine::model::ObjectKey;

use super::{
    Config,
    heartbeat::{Heartbeat, Pulse, Superseded},
    import, metrics,
    permit::Halt,
    queue::{self, Entry, Running, Stop},
    reach::Reach,
    report::Reporter,
    request::{self, RequestError},
    stores::Stores,
    view::{Pauses, View},
    work,
    workplace::{Folder, Workplace},
};
use crate::{
    api::{Action, AgentInfo, ImageTask, NodeCache, StoreReport, TaskPhase},
    kube::readiness::Readiness,
};

/// How often reading the Node may be refused before that is believed: with the pauses between, for some ten seconds.
const REFUSALS: u32 = 5;
/// The namespace whose uid tells clusters apart.
const CLUSTER: &str = "kube-system";
/// The pause after an answer that makes no sense.
const RETRY: Duration = Duration::from_secs(5);

/// Why an agent ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Its folder cannot be used.
    #[error("the work folder {0} cannot be used: {1}; name another one with --work-dir, or correct its rights")]
    Folder(String, #[source] io::Error),
    /// Another agent runs on the node.
    #[error(transparent)]
    Superseded(#[from] Superseded),
    /// A part of it ended.
    #[error("a part of the agent failed: {0}")]
    Failed(#[from] JoinError),
}

/// Runs the agent until `stop`. Work that runs then is stopped and left to the next start: its tasks stay `Running`, and nothing
/// of it stays in stores. `lend` is given the node's stores once they are known, for others that read from them. `readiness` tells
/// whether it can be given work: its Lease holds, and it knows its tasks.
///
/// # Errors
/// What makes it impossible to work, or to go on.
pub async fn run(
    config: Config,
    client: Client,
    readiness: &Readiness,
    stop: CancellationToken,
    lend: impl FnOnce(Arc<Stores>),
) -> Result<(), AgentError> {
    let folder = match Folder::claim(&config.work_dir, &stop).await {
        Ok(folder) => folder,
        Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
        Err(error) => return Err(AgentError::Folder(config.work_dir.display().to_string(), error)),
    };
    let Some(owner) = owner(&client, &config.node, &stop).await else { return Ok(()) };
    let id = format!("{}-{:016x}", config.node.chars().take(100).collect::<String>(), rand::random::<u64>());
    let leases = Api::namespaced(client.clone(), &config.namespace);
    let (heartbeat, pulse) = Heartbeat::new(leases, &config.node, &id, owner.clone(), config.lease);
    let end = CancellationToken::new();
    let heart = tokio::spawn(heartbeat.keep(end.clone()));
    let Some(before) = reported_before(&client, &config.node, &stop).await else { return Ok(()) };
    let Some(cluster) = cluster(&client, &stop).await else { return Ok(()) };
    let tasks: Api<ImageTask> = Api::namespaced(client.clone(), &config.namespace);
    let Some(spared) = begun_before(&tasks, &config.node, &stop).await else { return Ok(()) };
    let secrets = Api::namespaced(client.clone(), &config.namespace);
    let stores = Stores::new(config.store_roots.clone()).with_secrets(secrets.clone()).with_owner(cluster);
    let stores = Arc::new(stores.with_spared(spared));
    for report in &before {
        if let Some(id) = &report.id {
            stores.remember(&report.name, report.uid.as_deref(), id);
        }
    }
    lend(stores.clone());
    let agent =
        AgentInfo { id: id.clone(), version: env!("CARGO_PKG_VERSION").to_owned(), started_at: Time(Timestamp::now()) };
    let intervals = (config.probe_interval, config.list_interval);
    let reach = Reach::new(&client, &config.node, agent, owner, stores.clone(), before, intervals);
    let reach = tokio::spawn(reach.keep());
    tracing::info!(node = config.node, id, "the agent runs");
    let place = Workplace { tasks, secrets, id, stores, pulse, scratch: folder.scratch(), end: end.clone(), config };
    let result = Crew::new(Arc::new(place)).serve(heart, readiness, &stop).await;
    end.cancel();
    reach.abort();
    tracing::info!("the agent ends");
    result
}

/// What an earlier agent on the node reported of its stores: which of them must be found again. No task is begun without it, for an
/// empty folder might be taken for a new store. `None` once `stop` is cancelled.
async fn reported_before(client: &Client, node: &str, stop: &CancellationToken) -> Option<Vec<StoreReport>> {
    let caches: Api<NodeCache> = Api::all(client.clone());
    let what = "reading what was reported of this node's stores";
    loop {
        match request::until_answered(what, stop, || caches.get_opt(node)).await? {
            Ok(found) => return Some(found.and_then(|cache| cache.status).unwrap_or_default().stores),
            Err(error) => tracing::warn!(%error, "{what} failed; trying again"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// The objects that an earlier agent on the node was copying: what it left of them is not to be removed. `None` once `stop` is cancelled.
async fn begun_before(tasks: &Api<ImageTask>, node: &str, stop: &CancellationToken) -> Option<BTreeSet<ObjectKey>> {
    let what = "reading what was begun on this node";
    let ours = ListParams::default().fields(&format!("spec.nodeName={node}"));
    match request::until_answered(what, stop, || tasks.list(&ours)).await? {
        Ok(found) => Some(found.items.iter().filter(|task| is_begun_copy(task)).filter_map(key_of).collect()),
        Err(error) => {
            tracing::warn!(%error, "{what} failed; copies begin again");
            Some(BTreeSet::new())
        }
    }
}

fn is_begun_copy(task: &ImageTask) -> bool {
    let phase = task.status.as_ref().and_then(|status| status.phase).unwrap_or_default();
    task.spec.action == Action::Copy && !task.spec.cancelled && phase == TaskPhase::Running
}

fn key_of(task: &ImageTask) -> Option<ObjectKey> {
    import::key(&task.spec).ok()
}

/// The uid of an object that `ask` looks for; nothing inside if it is not there or may not be read, which `without` says the meaning of.
/// `None` once `stop` is cancelled.
async fn uid<K, F>(
    mut ask: impl FnMut() -> F,
    what: &str,
    without: &str,
    stop: &CancellationToken,
) -> Option<Option<String>>
where
    F: Future<Output = kube::Result<Option<PartialObjectMeta<K>>>>,
{
    let (mut pauses, mut refusals) = (Pauses::default(), 0_u32);
    loop {
        let found = tokio::select! {
            found = request::once(ask()) => found,
            () = stop.cancelled() => return None,
        };
        match found {
            Ok(found) => return Some(found.and_then(|found| found.metadata.uid)),
            Err(error @ (RequestError::Unavailable(_) | RequestError::Late)) => {
                tracing::warn!(%error, "waiting for the API server");
            }
            // An API server that has just started does not know all rights yet.
            Err(error) if refusals < REFUSALS => {
                refusals = refusals.saturating_add(1);
                tracing::warn!(%error, "reading {what} was refused; trying again");
            }
            Err(error) => {
                tracing::warn!(%error, "this agent may not read {what}; {without}");
                return Some(None);
            }
        }
        tokio::time::sleep(pauses.next().unwrap_or_default()).await;
    }
}

/// The reference by which the node's objects go with their Node.
async fn owner(client: &Client, node: &str, stop: &CancellationToken) -> Option<Option<OwnerReference>> {
    let nodes: Api<Node> = Api::all(client.clone());
    let found = uid(|| nodes.get_metadata_opt(node), "its Node", "its objects will have no owner", stop).await?;
    Some(found.map(|uid| reference(node, uid)))
}

/// The mark of this cluster in the stores that it writes to: as long as there is a cluster, its namespace `kube-system` is the same one.
async fn cluster(client: &Client, stop: &CancellationToken) -> Option<Option<String>> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let without = "no other cluster is kept from writing to its stores";
    uid(|| namespaces.get_metadata_opt(CLUSTER), "the namespace kube-system", without, stop).await
}

fn reference(node: &str, uid: String) -> OwnerReference {
    OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.to_owned(),
        uid,
        ..OwnerReference::default()
    }
}

/// The work that runs.
struct Crew {
    place: Arc<Workplace>,
    jobs: JoinSet<()>,
    /// Uid of the task behind each job.
    names: BTreeMap<Id, String>,
    running: BTreeMap<String, Running>,
    halts: BTreeMap<String, Halt>,
    /// Uids of tasks that this process is done with, though the view may not show it yet.
    settled: BTreeSet<String>,
}

impl Crew {
    fn new(place: Arc<Workplace>) -> Self {
        Self {
            place,
            jobs: JoinSet::new(),
            names: BTreeMap::new(),
            running: BTreeMap::new(),
            halts: BTreeMap::new(),
            settled: BTreeSet::new(),
        }
    }

    async fn serve(
        mut self,
        mut heart: JoinHandle<Result<(), Superseded>>,
        readiness: &Readiness,
        stop: &CancellationToken,
    ) -> Result<(), AgentError> {
        let mut view = View::open(self.place.tasks.clone(), &self.place.config.node);
        let mut pulse = self.place.pulse.clone();
        let mut lapses = 0;
        loop {
            tokio::select! {
                () = view.next() => {}
                () = pulse.next() => {}
                Some(ended) = self.jobs.join_next_with_id() => self.settle(ended),
                () = stop.cancelled() => break,
                ended = &mut heart => {
                    self.end().await;
                    return Ok(ended??);
                }
            }
            if pulse.lapses() != lapses {
                lapses = pulse.lapses();
                view.reopen();
            }
            if let Some(tasks) = view.tasks() {
                if pulse.holds() {
                    readiness.hold(self.place.config.lease.duration);
                }
                self.balance(&tasks, &pulse);
            }
        }
        self.end().await;
        Ok(())
    }

    /// Stops what is not wanted any more, and begins what waits, if the Lease holds.
    fn balance(&mut self, tasks: &[Entry], pulse: &Pulse) {
        let known: BTreeSet<&str> = tasks.iter().map(|task| task.uid.as_str()).collect();
        self.settled.retain(|uid| known.contains(uid.as_str()));
        metrics::queue(tasks, &self.running);
        let plan = queue::plan(tasks, &self.running, &self.settled, self.place.config.concurrent_imports);
        for (uid, why) in plan.stop {
            if let Some(halt) = self.halts.get(&uid) {
                halt.stop(why);
            }
        }
        if !pulse.holds() {
            return;
        }
        for (uid, running) in plan.start {
            if let Some(task) = tasks.iter().find(|task| task.uid == uid) {
                self.begin(task, running);
            }
        }
    }

    fn begin(&mut self, task: &Entry, running: Running) {
        let (place, halt) = (self.place.clone(), Halt::default());
        let reporter = Reporter::new(place.tasks.clone(), task.name.clone(), task.uid.clone());
        self.halts.insert(task.uid.clone(), halt.clone());
        self.running.insert(task.uid.clone(), running);
        let job = self.jobs.spawn(async move { work::carry_out(&place, reporter, halt).await });
        self.names.insert(job.id(), task.uid.clone());
    }

    fn settle(&mut self, ended: Result<(Id, ()), JoinError>) {
        let id = match ended {
            Ok((id, ())) => id,
            Err(error) => {
                tracing::error!(%error, "work on a task broke off");
                error.id()
            }
        };
        if let Some(uid) = self.names.remove(&id) {
            self.running.remove(&uid);
            self.halts.remove(&uid);
            self.settled.insert(uid);
        }
    }

    /// Stops all work and waits for it to clean up, within the grace period.
    async fn end(&mut self) {
        for halt in self.halts.values() {
            halt.stop(Stop::Shutdown);
        }
        let all = async { while self.jobs.join_next().await.is_some() {} };
        if tokio::time::timeout(self.place.config.grace, all).await.is_err() {
            tracing::warn!("work did not end in time; what it leaves is removed at the next start");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use http::{Request, Response};
    use kube::client::Body;
    use tower::{BoxError, service_fn};

    use super::*;

    /// An API server that refuses the first `refusals` requests.
    fn client(refusals: u32) -> Client {
        let asked = Arc::new(AtomicU32::new(0));
        let answer = move |_: Request<Body>| {
            let refused = asked.fetch_add(1, Ordering::SeqCst) < refusals;
            let (code, body) = if refused {
                (403, serde_json::json!({ "kind": "Status", "status": "Failure", "reason": "Forbidden", "code": 403 }))
            } else {
                (200, serde_json::json!({ "kind": "PartialObjectMetadata", "metadata": { "name": "n", "uid": "u" } }))
            };
            let answer = Response::builder().status(code).body(Body::from(body.to_string().into_bytes()));
            std::future::ready(answer.map_err(BoxError::from))
        };
        Client::new(service_fn(answer), "default")
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_does_not_know_all_rights_yet_is_asked_again() {
        let stop = CancellationToken::new();
        for refusals in [0, 1, REFUSALS] {
            let owner = owner(&client(refusals), "n", &stop).await.unwrap();
            assert_eq!(owner.map(|owner| owner.uid).as_deref(), Some("u"), "{refusals}");
        }
        assert!(owner(&client(u32::MAX), "n", &stop).await.unwrap().is_none(), "no rights at all: it works without");
    }
}
