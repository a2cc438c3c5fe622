//! Of which version everything is.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::Deployment;
use kube::{Api, ResourceExt as _};
use serde::Serialize;
use vitrine_engine::error::Result;

use super::{connect::Cluster, explain::Explain as _, probe};
use crate::api::{NodeCache, identity::OPERATOR_DEPLOYMENT};

/// This program's version.
pub const CLIENT: &str = env!("CARGO_PKG_VERSION");
/// The label that says which version an object is of.
pub const LABEL: &str = "app.kubernetes.io/version";

/// What was found.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Versions {
    /// This program.
    pub client: String,
    /// The operator, as its Deployment says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operator: Option<String>,
    /// The agents, by version: on how many nodes.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub agents: BTreeMap<String, usize>,
    /// The API server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<String>,
}

impl Default for Versions {
    fn default() -> Self {
        Self { client: CLIENT.to_owned(), operator: None, agents: BTreeMap::new(), kubernetes: None }
    }
}

/// Asks the cluster. What the person may not see is left out.
///
/// # Errors
/// If the API server does not answer.
pub async fn ask(cluster: &Cluster, site: &str) -> Result<Versions> {
    let kubernetes = cluster.client.apiserver_version().await.explain(|| "asking the API server for its version")?;
    let deployments: Api<Deployment> = Api::namespaced(cluster.client.clone(), site);
    let operator = deployments.get_opt(OPERATOR_DEPLOYMENT).await.ok().flatten();
    let caches = probe::caches(cluster).await.unwrap_or_default();
    Ok(Versions {
        operator: operator.and_then(|deployment| deployment.labels().get(LABEL).cloned()),
        agents: count(&caches),
        kubernetes: Some(kubernetes.git_version),
        ..Versions::default()
    })
}

/// How many nodes have an agent of each version.
pub fn count(caches: &[NodeCache]) -> BTreeMap<String, usize> {
    let mut versions = BTreeMap::new();
    for agent in caches.iter().filter_map(|cache| cache.status.as_ref()?.agent.as_ref()) {
        *versions.entry(agent.version.clone()).or_insert(0) += 1;
    }
    versions
}
