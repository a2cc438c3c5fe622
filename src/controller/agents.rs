//! The agents' DaemonSet: kept as a file has it that whoever installed the operator wrote, whoever changes or deletes it.
//!
//! It belongs to the operator's Deployment, and goes with it. Knows nothing of what agents do; on which nodes they run is Kubernetes'
//! business.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use futures::{Stream, StreamExt as _};
use k8s_openapi::{
    api::apps::v1::{DaemonSet, Deployment},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, Client, Resource as _, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::context::Context;
use crate::{
    api::{condition::events, identity::AGENTS_DAEMON_SET as NAME},
    kube::{Doing as _, Error, Result, event::Happening},
};

/// The field manager.
const MANAGER: &str = "vitrine-agents";
/// On the DaemonSet: the digest of the file that it was made from.
const DIGEST: &str = "vitrine.dev/agents-digest";
/// How often the file is read again: a mounted ConfigMap changes in place, within a minute or so.
const REFRESH: Duration = Duration::from_secs(10);
/// The wait after a failure.
const AGAIN: Duration = Duration::from_secs(5);
/// How often a rollout is looked at.
const POLL: Duration = Duration::from_secs(1);

/// What the operator is told of the agents' DaemonSet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// The file with the manifest.
    pub file: PathBuf,
    /// The Deployment that it belongs to, in the operator's namespace.
    pub owner: String,
}

/// What somebody else may have changed.
type Shape = (Option<String>, Option<i64>, BTreeMap<String, String>, Option<String>, Option<Vec<OwnerReference>>);

/// Keeps the DaemonSet, for ever; for ever does nothing if the operator was told of none.
pub async fn keep(context: Arc<Context>) {
    let Some(order) = &context.settings.agents else { return std::future::pending().await };
    let api: Api<DaemonSet> = Api::namespaced(context.client.clone(), &context.settings.namespace);
    let only = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
    let mut changes = pin!(watcher(api.clone(), only).default_backoff());
    loop {
        let applied = apply(&context, &api, order).await;
        let wait = if applied.is_ok() { REFRESH } else { AGAIN };
        if let Err(error) = &applied {
            tracing::warn!(%error, "the agents' DaemonSet could not be applied; trying again");
            tell(&context, &order.owner, events::AGENTS_NOT_APPLIED, error).await;
        }
        let shape = applied.ok().map(|set| shape(&set));
        tokio::select! {
            () = sleep(wait) => {}
            () = change(&mut changes, shape.as_ref()) => {}
        }
    }
}

/// Waits until the DaemonSet is not as it was applied.
async fn change(
    changes: &mut (impl Stream<Item = watcher::Result<Event<DaemonSet>>> + Unpin),
    applied: Option<&Shape>,
) {
    let Some(applied) = applied else { return std::future::pending().await };
    while let Some(event) = changes.next().await {
        match event {
            Ok(Event::Apply(set) | Event::InitApply(set)) if shape(&set) == *applied => {}
            Ok(Event::Init | Event::InitDone) => {}
            Ok(Event::Apply(_) | Event::InitApply(_) | Event::Delete(_)) => return,
            Err(error) => tracing::warn!(%error, "watching the agents' DaemonSet broke off; trying again"),
        }
    }
}

/// Status left out: it changes with every pod.
fn shape(set: &DaemonSet) -> Shape {
    let metadata = &set.metadata;
    let digest = set.annotations().get(DIGEST).cloned();
    (metadata.uid.clone(), metadata.generation, set.labels().clone(), digest, metadata.owner_references.clone())
}

async fn apply(context: &Context, api: &Api<DaemonSet>, order: &Order) -> Result<DaemonSet> {
    let (mut manifest, digest) = read(&order.file)?;
    let deployments: Api<Deployment> = Api::namespaced(context.client.clone(), &context.settings.namespace);
    let owner = &order.owner;
    let deployment = deployments.get(owner).await.doing(|| format!("read Deployment {owner}"))?;
    let reference = deployment.owner_ref(&()).ok_or_else(|| Error::Setup(format!("Deployment {owner} has no uid")))?;
    let metadata = manifest.get_mut("metadata").and_then(Value::as_object_mut);
    let metadata = metadata.ok_or_else(|| invalid(&order.file, "it has no metadata"))?;
    metadata.insert("namespace".to_owned(), json!(context.settings.namespace));
    metadata.insert("ownerReferences".to_owned(), json!([reference]));
    match metadata.entry("annotations").or_insert_with(|| json!({})) {
        Value::Object(annotations) => drop(annotations.insert(DIGEST.to_owned(), json!(digest))),
        _ => return Err(invalid(&order.file, "its annotations are no map")),
    }
    let params = PatchParams::apply(MANAGER).force();
    api.patch(NAME, &params, &Patch::Apply(&manifest)).await.doing(|| format!("apply DaemonSet {NAME}"))
}

/// The manifest in the file, with the file's digest. Read as it is and not as a type: what this version does not know is the API
/// server's business.
fn read(file: &Path) -> Result<(Value, String)> {
    let text = std::fs::read_to_string(file).map_err(|error| invalid(file, &error.to_string()))?;
    let manifest: Value = serde_yaml::from_str(&text).map_err(|error| invalid(file, &error.to_string()))?;
    let is = |path: &str, wanted: &str| manifest.pointer(path).and_then(Value::as_str) == Some(wanted);
    if !(is("/apiVersion", "apps/v1") && is("/kind", "DaemonSet") && is("/metadata/name", NAME)) {
        return Err(invalid(file, &format!("it is no DaemonSet of apps/v1 called {NAME}")));
    }
    Ok((manifest, blake3::hash(text.as_bytes()).to_hex().to_string()))
}

fn invalid(file: &Path, why: &str) -> Error {
    Error::Setup(format!("{} cannot be used as the agents' DaemonSet: {why}", file.display()))
}

/// Tells whoever looks at the operator's Deployment.
pub(super) async fn tell(context: &Context, owner: &str, reason: &'static str, error: &Error) {
    let deployments: Api<Deployment> = Api::namespaced(context.client.clone(), &context.settings.namespace);
    if let Ok(deployment) = deployments.get(owner).await {
        let what = Happening::warning(reason, "Apply", error.to_string());
        context.events.publish(&deployment.object_ref(&()), &what).await;
    }
}

/// Waits until the DaemonSet is as `file` has it and all of its pods are ready; says how many there are.
///
/// # Errors
/// `Setup` if that is not so within `limit`; the message says how far it has come.
pub async fn await_rollout(client: &Client, namespace: &str, file: &Path, limit: Duration) -> Result<i32> {
    let (api, began): (Api<DaemonSet>, _) = (Api::namespaced(client.clone(), namespace), Instant::now());
    loop {
        // Read each time: the file and the DaemonSet may both be replaced meanwhile.
        let (_, digest) = read(file)?;
        let state = match api.get_opt(NAME).await.doing(|| format!("read DaemonSet {NAME}")) {
            Ok(set) => state(set.as_ref(), &digest),
            Err(error) => Err(error.to_string()),
        };
        match state {
            Ok(nodes) => return Ok(nodes),
            Err(state) if began.elapsed() > limit => {
                return Err(Error::Setup(format!(
                    "the agents are not ready after {} s: {state}. See: kubectl --namespace {namespace} describe daemonset {NAME}",
                    limit.as_secs()
                )));
            }
            Err(_) => sleep(POLL).await,
        }
    }
}

/// On how many nodes agents of this very manifest are ready, if that is all; or how far it has come.
fn state(set: Option<&DaemonSet>, digest: &str) -> Result<i32, String> {
    let Some(set) = set else { return Err("the operator has not made the DaemonSet yet".to_owned()) };
    if set.annotations().get(DIGEST).map(String::as_str) != Some(digest) {
        return Err("the operator has not applied the new DaemonSet yet".to_owned());
    }
    let status = set.status.clone().unwrap_or_default();
    if status.observed_generation != set.metadata.generation {
        return Err("the DaemonSet was not looked at yet".to_owned());
    }
    let (wanted, updated) = (status.desired_number_scheduled, status.updated_number_scheduled.unwrap_or(0));
    let ready = status.number_available.unwrap_or(0);
    if updated < wanted || ready < wanted {
        return Err(format!("of {wanted} nodes, {updated} have the new agent and {ready} a ready one"));
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::DaemonSetStatus;

    use super::*;

    fn set(observed: i64, updated: i32, available: i32) -> DaemonSet {
        let mut set = DaemonSet::default();
        set.metadata.generation = Some(2);
        set.metadata.annotations = Some([(DIGEST.to_owned(), "d".to_owned())].into());
        set.status = Some(DaemonSetStatus {
            observed_generation: Some(observed),
            desired_number_scheduled: 3,
            updated_number_scheduled: Some(updated),
            number_available: Some(available),
            ..DaemonSetStatus::default()
        });
        set
    }

    #[test]
    fn a_rollout_is_done_when_every_node_has_a_ready_agent_of_this_manifest() {
        assert_eq!(state(Some(&set(2, 3, 3)), "d"), Ok(3));
        for (set, digest, said) in [
            (None, "d", "not made"),
            (Some(set(2, 3, 3)), "other", "not applied"),
            (Some(set(1, 3, 3)), "d", "not looked at"),
            (Some(set(2, 2, 3)), "d", "2 have the new"),
            (Some(set(2, 3, 1)), "d", "1 a ready"),
        ] {
            let state = state(set.as_ref(), digest).unwrap_err();
            assert!(state.contains(said), "{state}");
        }
    }

    #[test]
    fn only_the_agents_daemonset_is_taken_from_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("agents.yaml");
        assert!(read(&file).unwrap_err().to_string().contains("agents.yaml"));
        for (text, good) in [
            ("{apiVersion: apps/v1, kind: DaemonSet, metadata: {name: vitrine-agent}}", true),
            ("{apiVersion: apps/v1, kind: DaemonSet, metadata: {name: other}}", false),
            ("{apiVersion: apps/v1, kind: Deployment, metadata: {name: vitrine-agent}}", false),
            ("a: [", false),
        ] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(read(&file).is_ok(), good, "{text}");
        }
    }
}
