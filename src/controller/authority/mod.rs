//! The authority: keeps the keys that sign agents' certificates, publishes who signs, and signs.
//!
//! The keys are in a Secret of the operator's namespace. Agents may read Secrets there, each by its name, and may not list them; so this
//! one's name cannot be guessed, and it is found by its label. See `docs/decisions/0024-the-operator-signs-what-agents-serve-with.md`.

mod ring;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
};
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, ObjectMeta, Patch, PatchParams},
};
use serde_json::json;
use tokio::sync::Notify;

use self::ring::{Ring, RingError, Subject};
use super::context::Context;
use crate::{
    api::{
        NodeCache,
        identity::{CA_BUNDLE, DATA_SERVICE, LABEL_AUTHORITY, SECRET_CA_KEY},
    },
    kube::{Doing as _, Error, apply::Writer},
};

/// Field manager of what the authority writes.
const MANAGER: &str = "vitrine-authority";
/// Secrets and requests are looked at this often, or as often as a signer's time has such parts, if that is more often.
const ROUND: Duration = Duration::from_mins(1);
const PARTS: u32 = 128;
/// Changes that arrive within this time are dealt with together.
const GATHER: Duration = Duration::from_millis(200);
/// Certificates that are signed at once: the work is waiting for the API server.
const CONCURRENCY: usize = 8;

/// What the watch knows of agents that are to have a certificate.
#[derive(Debug, Default)]
pub struct Requests {
    open: Mutex<BTreeMap<String, Request>>,
    news: Notify,
}

/// One agent's.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Request {
    public_key: String,
    certificate: Option<String>,
}

impl Requests {
    /// Takes note of what a NodeCache says, if it is one of the installation in `namespace`.
    pub fn observe(&self, cache: &NodeCache, namespace: &str, present: bool) {
        let data = cache.status.as_ref().and_then(|status| status.data.as_ref());
        let request = data
            .filter(|data| present && data.namespace == namespace)
            .map(|data| Request { public_key: data.public_key.clone(), certificate: cache.spec.certificate.clone() });
        let (mut open, node) = (self.open.lock().unwrap_or_else(PoisonError::into_inner), cache.name_any());
        if open.get(&node) == request.as_ref() {
            return;
        }
        match request {
            Some(request) => drop(open.insert(node, request)),
            None => drop(open.remove(&node)),
        }
        self.news.notify_one();
    }

    fn all(&self) -> Vec<(String, Request)> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.iter().map(|(node, request)| (node.clone(), request.clone())).collect()
    }
}

/// Why a round came to nothing.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Kubernetes(#[from] Error),
    #[error("the keys that sign agents' certificates: {0}")]
    Keys(#[from] RingError),
}

/// Keeps the keys and signs, for ever.
pub async fn keep(context: Arc<Context>) {
    let round = ROUND.min(context.settings.authority.validity / PARTS).max(GATHER);
    loop {
        if let Err(error) = tend(&context).await {
            tracing::warn!(%error, "agents' certificates are not looked after; trying again");
        }
        tokio::select! {
            () = tokio::time::sleep(round) => {}
            () = context.requests.news.notified() => tokio::time::sleep(GATHER.min(round)).await,
        }
    }
}

/// One round: the keys, who signs, and what is to be signed.
async fn tend(context: &Context) -> Result<(), Failure> {
    let writer = Writer::new(context.client.clone(), MANAGER);
    let ring = keys(context).await?;
    publish(context, &writer, &ring).await?;
    let names = names(context);
    let now = Timestamp::now().as_second();
    let due = context.requests.all().into_iter().filter(|(node, request)| {
        let subject = Subject { node, names: &names, public_key: &request.public_key };
        !request.certificate.as_ref().is_some_and(|certificate| ring.is_good(certificate, &subject, now))
    });
    let caches: Api<NodeCache> = Api::all(context.client.clone());
    let sign = async |(node, request): (String, Request)| {
        let subject = Subject { node: &node, names: &names, public_key: &request.public_key };
        let signed = match ring.sign(&subject, now) {
            Ok(certificate) => writer.merge_spec(&caches, &node, json!({ "certificate": certificate })).await,
            Err(error) => return tracing::warn!(node, %error, "the key of this node's agent cannot be signed"),
        };
        match signed {
            Ok(()) => tracing::info!(node, "signed a certificate for this node's agent"),
            Err(error) => tracing::warn!(node, %error, "this node's agent gets no certificate yet"),
        }
    };
    for some in due.collect::<Vec<_>>().chunks(CONCURRENCY) {
        futures::future::join_all(some.iter().cloned().map(&sign)).await;
    }
    Ok(())
}

/// The keys as they ought to be now. There is one Secret: only the leader makes it.
async fn keys(context: &Context) -> Result<Ring, Failure> {
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), &context.settings.namespace);
    let (validity, now) = (context.settings.authority.validity, Timestamp::now().as_second());
    let labelled = ListParams::default().labels(&format!("{LABEL_AUTHORITY}=true"));
    let found = secrets.list(&labelled).await.doing(|| "list the Secrets with keys for agents' certificates")?.items;
    // Should there be several, somebody copied one: the oldest counts.
    let Some(secret) = found.into_iter().min_by_key(|secret| (secret.creation_timestamp(), secret.name_any())) else {
        let ring = Ring::new(validity, now)?;
        make(context, &secrets, &ring).await?;
        return Ok(ring);
    };
    let data = secret.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone())).collect();
    let mut ring = Ring::read(&data)?;
    if ring.turn(validity, now)? {
        let values =
            ring.write().into_iter().map(|(key, value)| (key, value.map(|value| ByteString(value.into_bytes()))));
        let data: BTreeMap<_, _> = values.collect();
        let patch = json!({ "metadata": { "resourceVersion": secret.resource_version() }, "data": data });
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let patched = secrets.patch(&secret.name_any(), &params, &Patch::Merge(patch)).await;
        patched.doing(|| "change the Secret with keys for agents' certificates")?;
        tracing::info!("the keys that sign agents' certificates have moved on");
    }
    Ok(ring)
}

async fn make(context: &Context, secrets: &Api<Secret>, ring: &Ring) -> Result<(), Failure> {
    let secret = Secret {
        metadata: ObjectMeta {
            // 128 bits: who may not list Secrets does not find it.
            name: Some(format!("{CA_BUNDLE}-{:032x}", rand::random::<u128>())),
            labels: Some(BTreeMap::from([(LABEL_AUTHORITY.to_owned(), "true".to_owned())])),
            ..ObjectMeta::default()
        },
        string_data: Some(ring.write().into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()),
        ..Secret::default()
    };
    Writer::new(context.client.clone(), MANAGER).create(secrets, &secret).await?;
    tracing::info!("made keys to sign agents' certificates with");
    Ok(())
}

async fn publish(context: &Context, writer: &Writer, ring: &Ring) -> Result<(), Failure> {
    let maps: Api<ConfigMap> = Api::namespaced(context.client.clone(), &context.settings.namespace);
    let bundle = BTreeMap::from([(SECRET_CA_KEY.to_owned(), ring.bundle())]);
    let known = maps.get_opt(CA_BUNDLE).await.doing(|| format!("read ConfigMap {CA_BUNDLE}"))?;
    if known.is_none_or(|known| known.data.as_ref() != Some(&bundle)) {
        let metadata = ObjectMeta { name: Some(CA_BUNDLE.to_owned()), ..ObjectMeta::default() };
        let map = ConfigMap { metadata, data: Some(bundle), ..ConfigMap::default() };
        writer.apply(&maps, &map).await?;
    }
    Ok(())
}

/// The names by which all agents are reached: the Service in front of them, and this machine, where a port is forwarded from.
fn names(context: &Context) -> Vec<String> {
    let (namespace, more) = (&context.settings.namespace, &context.settings.authority.names);
    let service = [
        DATA_SERVICE.to_owned(),
        format!("{DATA_SERVICE}.{namespace}"),
        format!("{DATA_SERVICE}.{namespace}.svc"),
        format!("{DATA_SERVICE}.{namespace}.svc.cluster.local"),
        "localhost".to_owned(),
    ];
    service.into_iter().chain(more.iter().cloned()).collect()
}
