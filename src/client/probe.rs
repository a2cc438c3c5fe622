//! Has every node look at a store now, and tells what each finds.

use std::time::Duration;

use kube::{
    Api,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vitrine_engine::error::{Error, Kind, Result};

use super::{FIELD_MANAGER, connect::Cluster, explain::Explain as _, view::store::reports_of};
use crate::api::{ImageStore, NodeCache, StoreReport, identity::ANNOTATION_PROBE};

/// How often is looked for answers.
const POLL: Duration = Duration::from_millis(300);

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answers {
    /// What each node says that has answered.
    pub reports: Vec<(String, StoreReport)>,
    /// The nodes that have not, with what they said before.
    pub silent: Vec<(String, StoreReport)>,
    /// Whether as many have answered as ought to reach it.
    pub complete: bool,
}

/// Asks, and waits for as many answers as there are nodes that ought to reach the store, `limit` at most.
///
/// # Errors
/// If there is no such store, or the person may not ask: that is for administrators of the cluster.
pub async fn probe(cluster: &Cluster, name: &str, limit: Duration, cancel: &CancellationToken) -> Result<Answers> {
    let request = format!("{:016x}", rand::random::<u64>());
    let patch = json!({ "metadata": { "annotations": { ANNOTATION_PROBE: request } } });
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    let asked = cluster.stores().patch(name, &params, &Patch::Merge(patch)).await;
    let store = asked.explain(|| format!("asking for a probe of ImageStore {name}"))?;
    let began = Instant::now();
    loop {
        let answers = sort(&store, &request, &caches(cluster).await?);
        if answers.complete || began.elapsed() > limit {
            return Ok(answers);
        }
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            () = cancel.cancelled() => return Err(Error::new(Kind::Cancelled, "interrupted; the nodes go on probing")),
        }
    }
}

/// What nodes report, of all of them.
///
/// # Errors
/// If the person may not see that.
pub async fn caches(cluster: &Cluster) -> Result<Vec<NodeCache>> {
    let caches: Api<NodeCache> = Api::all(cluster.client.clone());
    let listed = caches.list(&ListParams::default()).await;
    listed.map(|list| list.items).explain(|| "reading what nodes report")
}

fn sort(store: &ImageStore, request: &str, caches: &[NodeCache]) -> Answers {
    let name = store.metadata.name.as_deref().unwrap_or_default();
    let of_this = |(_, report): &(String, StoreReport)| report.uid.is_none() || report.uid == store.metadata.uid;
    let reports = reports_of(name, caches).into_iter().filter(of_this);
    let (reports, silent): (Vec<_>, Vec<_>) = reports.partition(|(_, report)| report.asked.as_deref() == Some(request));
    let nodes = store.status.clone().unwrap_or_default().nodes.unwrap_or_default();
    let wanted = usize::try_from(nodes.reachable.saturating_add(nodes.unreachable)).unwrap_or(usize::MAX);
    let complete = reports.len() >= wanted.max(1);
    Answers { reports, silent, complete }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{ImageStoreSpec, ImageStoreStatus, NodeCacheSpec, NodeCacheStatus, NodeReach};

    #[test]
    fn answers_are_told_from_older_reports() {
        let mut store = ImageStore::new("s", ImageStoreSpec::default());
        let nodes = Some(NodeReach { reachable: 1, unreachable: 1, problems: Vec::new() });
        store.status = Some(ImageStoreStatus { nodes, ..ImageStoreStatus::default() });
        let cache = |node: &str, asked: Option<&str>| {
            let report = serde_json::from_value(serde_json::json!({
                "name": "s", "ready": true, "probedAt": "2026-01-01T00:00:00Z", "asked": asked,
            }))
            .unwrap();
            let mut cache = NodeCache::new(node, NodeCacheSpec::default());
            cache.status = Some(NodeCacheStatus { stores: vec![report], ..NodeCacheStatus::default() });
            cache
        };
        let answers = sort(&store, "new", &[cache("a", Some("new")), cache("b", Some("old"))]);
        assert_eq!((answers.reports.len(), answers.silent.len(), answers.complete), (1, 1, false));
        assert!(sort(&store, "new", &[cache("a", Some("new")), cache("b", Some("new"))]).complete);
    }
}
