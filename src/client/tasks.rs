//! What nodes are at. Tasks are internal: who may see them administers Vitrine.

use kube::{Api, ResourceExt as _, api::ListParams};
use vitrine_engine::error::{Error, Kind, Result};

use super::{connect::Cluster, explain::explain};
use crate::api::ImageTask;

/// Which tasks are meant.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// For Images of this namespace.
    pub namespace: Option<String>,
    /// For this Image.
    pub image: Option<String>,
    /// On this node.
    pub node: Option<String>,
}

/// The tasks in Vitrine's namespace `site` that are meant, the oldest first.
///
/// # Errors
/// If the person may not see them.
pub async fn list(cluster: &Cluster, site: &str, filter: &Filter) -> Result<Vec<ImageTask>> {
    let api: Api<ImageTask> = Api::namespaced(cluster.client.clone(), site);
    let mut params = ListParams::default();
    if let Some(node) = &filter.node {
        params = params.fields(&format!("spec.nodeName={node}"));
    }
    let mut tasks = match api.list(&params).await {
        Ok(list) => list.items,
        Err(error) => return Err(refusal(&error, site)),
    };
    tasks.retain(|task| filter.fits(task));
    tasks.sort_by_key(|task| (task.creation_timestamp(), task.name_any()));
    Ok(tasks)
}

/// Why tasks are not to be seen.
pub fn refusal(error: &kube::Error, site: &str) -> Error {
    match error {
        kube::Error::Api(status) if status.is_forbidden() => Error::new(
            Kind::Denied,
            format!(
                "tasks are for who administers Vitrine, and you may not list imagetasks in namespace {site}; `image show` has what \
                 concerns an Image of yours"
            ),
        ),
        other => explain(other).context(format!("listing the tasks in namespace {site}")),
    }
}

impl Filter {
    fn fits(&self, task: &ImageTask) -> bool {
        let image = &task.spec.image;
        self.namespace.as_ref().is_none_or(|namespace| *namespace == image.namespace)
            && self.image.as_ref().is_none_or(|name| *name == image.name)
            && self.node.as_ref().is_none_or(|node| *node == task.spec.node_name)
    }
}
