//! An agent that moves no bytes: it keeps the contract (see `vitrine::api::ImageTask`) and does what the test tells it.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use vitrine::api::{Action, ImageStore, ImageTask, NodeCache, identity};

/// Short, so that a lost agent is noticed while a test waits.
pub const LEASE_SECONDS: i32 = 4;
const TICK: Duration = Duration::from_millis(150);
const BEAT: Duration = Duration::from_secs(1);

/// What the agent does with imports.
#[derive(Clone, Debug)]
pub enum Script {
    /// Takes them up and gets no further.
    Hold,
    /// Finishes them; the content digest is made of this.
    Succeed(&'static str),
    /// Fails them: reason, retryable.
    Fail(&'static str, bool),
}

#[derive(Debug)]
struct State {
    script: Script,
    silent: bool,
    /// What lies on this node's disk: uid, revision, store.
    disk: BTreeSet<(String, i64, String)>,
    /// Names of imports that were taken up, in order.
    taken: Vec<String>,
    /// Why the API server refused something, if it did.
    refusals: Vec<String>,
}

#[derive(Clone)]
pub struct Agent {
    pub node: String,
    client: Client,
    namespace: String,
    lab: String,
    state: Arc<Mutex<State>>,
    stop: CancellationToken,
}

impl Agent {
    pub fn start(client: Client, namespace: &str, node: &str, lab: &str) -> Self {
        let state =
            State { script: Script::Hold, silent: false, disk: BTreeSet::new(), taken: vec![], refusals: vec![] };
        let agent = Self {
            node: node.to_owned(),
            client,
            namespace: namespace.to_owned(),
            lab: lab.to_owned(),
            state: Arc::new(Mutex::new(state)),
            stop: CancellationToken::new(),
        };
        // As with a real agent, no work holds up the heartbeat.
        let (heart, hands) = (agent.clone(), agent.clone());
        let (stop, stop_) = (agent.stop.clone(), agent.stop.clone());
        tokio::spawn(async move { stop.run_until_cancelled(heart.live()).await });
        tokio::spawn(async move { stop_.run_until_cancelled(hands.labour()).await });
        agent
    }

    pub fn stop(&self) {
        self.stop.cancel();
    }

    pub fn script(&self, script: Script) {
        self.state.lock().unwrap().script = script;
    }

    pub fn silence(&self, silent: bool) {
        self.state.lock().unwrap().silent = silent;
    }

    pub fn disk(&self) -> BTreeSet<(String, i64, String)> {
        self.state.lock().unwrap().disk.clone()
    }

    pub fn taken(&self) -> Vec<String> {
        self.state.lock().unwrap().taken.clone()
    }

    pub fn refusals(&self) -> Vec<String> {
        self.state.lock().unwrap().refusals.clone()
    }

    async fn live(self) {
        loop {
            if !self.is_silent() {
                let beat = self.beat().await;
                self.note(beat);
            }
            tokio::time::sleep(BEAT).await;
        }
    }

    async fn labour(self) {
        let mut reported: Option<Instant> = None;
        loop {
            tokio::time::sleep(TICK).await;
            if self.is_silent() {
                continue;
            }
            if reported.is_none_or(|at| at.elapsed() > BEAT) {
                let report = self.report().await;
                self.note(report);
                reported = Some(Instant::now());
            }
            let work = self.work().await;
            self.note(work);
        }
    }

    fn is_silent(&self) -> bool {
        self.state.lock().unwrap().silent
    }

    fn note(&self, result: kube::Result<()>) {
        if let Err(kube::Error::Api(status)) = result {
            self.state.lock().unwrap().refusals.push(status.message);
        }
    }

    async fn beat(&self) -> kube::Result<()> {
        let name = identity::agent_lease_name(&self.node);
        let leases: Api<k8s_openapi::api::coordination::v1::Lease> =
            Api::namespaced(self.client.clone(), &self.namespace);
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {
                "name": name,
                "labels": { identity::LABEL_AGENT: "true" },
                "annotations": { identity::ANNOTATION_NODE: self.node },
            },
            "spec": {
                "holderIdentity": "start-1",
                "leaseDurationSeconds": LEASE_SECONDS,
                "renewTime": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string(),
            },
        });
        leases.patch(&name, &apply(), &Patch::Apply(lease)).await.map(drop)
    }

    async fn report(&self) -> kube::Result<()> {
        let caches: Api<NodeCache> = Api::all(self.client.clone());
        let head =
            json!({ "apiVersion": "vitrine.dev/v1alpha1", "kind": "NodeCache", "metadata": { "name": self.node } });
        let mut whole = head.clone();
        whole["spec"] = json!({});
        caches.patch(&self.node, &apply(), &Patch::Apply(whole)).await?;
        let stores: Api<ImageStore> = Api::all(self.client.clone());
        let ours = ListParams::default().labels(&format!("vitrine.dev/lab={}", self.lab));
        let reports: Vec<_> = stores.list(&ours).await?.iter().map(report_on).collect();
        let mut status = head;
        status["status"] = json!({ "stores": reports });
        caches.patch_status(&self.node, &apply(), &Patch::Apply(status)).await?;
        Ok(())
    }

    async fn work(&self) -> kube::Result<()> {
        let tasks: Api<ImageTask> = Api::namespaced(self.client.clone(), &self.namespace);
        let ours = ListParams::default().fields(&format!("spec.nodeName={}", self.node));
        for task in tasks.list(&ours).await?.items {
            let phase = task.status.as_ref().and_then(|status| status.phase).unwrap_or_default();
            if phase.is_final() {
                continue;
            }
            if let Some(status) = self.act(&task) {
                match tasks
                    .patch_status(&task.name_any(), &PatchParams::default(), &Patch::Merge(json!({ "status": status })))
                    .await
                {
                    // Taken away meanwhile.
                    Err(kube::Error::Api(status)) if status.is_not_found() => {}
                    other => other.map(drop)?,
                }
            }
        }
        Ok(())
    }

    /// What to say of a task now.
    fn act(&self, task: &ImageTask) -> Option<Value> {
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let mut state = self.state.lock().unwrap();
        let fail = |reason: &str, retryable: bool| json!({ "phase": "Failed", "finishedAt": now, "failure": { "reason": reason, "message": "it broke", "retryable": retryable } });
        if task.spec.cancelled {
            return Some(fail("Cancelled", false));
        }
        let key = |store: &str| (task.spec.image.uid.clone(), task.spec.revision, store.to_owned());
        match (task.spec.action, &task.status) {
            (Action::Delete, _) => {
                for target in &task.spec.delete.as_ref().unwrap().stores {
                    state.disk.remove(&key(&target.name));
                }
                Some(json!({ "phase": "Succeeded", "finishedAt": now }))
            }
            (Action::Verify, _) => Some(json!({ "phase": "Succeeded", "finishedAt": now })),
            (Action::Import | Action::Copy, status)
                if status.as_ref().is_none_or(|status| status.started_at.is_none()) =>
            {
                state.taken.push(task.name_any());
                // Of what somebody is to send, nothing has come yet.
                let waits = task.spec.import.as_ref().is_some_and(|order| order.source.upload.is_some());
                let done = if waits { 0 } else { 34 };
                let progress = json!({ "stage": "Transferring", "bytesDone": done, "bytesTotal": 100 });
                Some(json!({ "phase": "Running", "startedAt": now, "agent": "start-1", "progress": progress }))
            }
            (Action::Import | Action::Copy, _) => match state.script.clone() {
                Script::Hold => None,
                Script::Fail(reason, retryable) => Some(fail(reason, retryable)),
                Script::Succeed(content) => {
                    let stores = task.spec.targets();
                    state.disk.extend(stores.iter().map(|target| key(&target.name)));
                    let locations: Vec<_> = stores.iter().map(|target| json!({
                        "store": target.name, "url": format!("file:///{}", target.name), "format": target.output,
                        "size": 10_i64 << 30, "allocatedSize": 1_i64 << 30,
                    })).collect();
                    Some(json!({ "phase": "Succeeded", "finishedAt": now, "result": {
                        "diskFormat": "qcow2", "containerFormat": "bare", "virtualSize": 10_i64 << 30, "size": 600 << 20,
                        "digests": [format!("sha256:{}", "0a".repeat(32))], "contentDigest": format!("blake3:{content}"),
                        "locations": locations,
                    } }))
                }
            },
        }
    }
}

fn apply() -> PatchParams {
    PatchParams::apply("vitrine-agent").force()
}

/// What an agent says of a store that it can use.
fn report_on(store: &ImageStore) -> Value {
    json!({
        "name": store.name_any(), "observedGeneration": store.metadata.generation, "ready": true, "message": "",
        "capacity": 1000 << 20, "available": 400 << 20, "probedAt": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    })
}
