//! Clears away tasks whose Image is no more. An Image waits for its tasks by its finalizer, so this is for Images whose finalizer
//! somebody took off by force.

use std::{sync::Arc, time::Duration};

use kube::{Api, ResourceExt as _, api::ListParams};

use super::context::Context;
use crate::{
    api::{Action, Image, ImageTask, TaskPhase},
    kube::{Doing as _, Result},
};

/// How often to look. Nothing waits for it.
const INTERVAL: Duration = Duration::from_secs(60);

/// Clears away orphaned tasks for ever.
pub async fn sweep(context: Arc<Context>) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        if let Err(error) = sweep_once(&context).await {
            tracing::warn!(%error, "sweeping tasks");
        }
    }
}

async fn sweep_once(context: &Context) -> Result<()> {
    let tasks: Api<ImageTask> = Api::namespaced(context.client.clone(), &context.settings.namespace);
    for task in tasks.list(&ListParams::default()).await.doing(|| "list tasks")?.items {
        if is_needless(&task) && is_orphan(context, &task).await? {
            tracing::info!(task = task.name_any(), image = task.spec.image.name, "a task without an Image is deleted");
            context.image_writer.delete(&tasks, &task.name_any(), task.uid()).await?;
        }
    }
    Ok(())
}

/// A Delete that is not done yet still serves: nobody else would remove the data.
fn is_needless(task: &ImageTask) -> bool {
    let phase = task.status.as_ref().and_then(|status| status.phase).unwrap_or_default();
    match task.spec.action {
        Action::Import => true,
        Action::Delete => phase == TaskPhase::Succeeded,
    }
}

async fn is_orphan(context: &Context, task: &ImageTask) -> Result<bool> {
    let identity = &task.spec.image;
    let watched = &context.settings.watch_namespaces;
    if !watched.is_empty() && !watched.contains(&identity.namespace) {
        return Ok(false);
    }
    let images: Api<Image> = Api::namespaced(context.client.clone(), &identity.namespace);
    let image = images.get_opt(&identity.name).await.doing(|| format!("read Image {}", identity.name))?;
    Ok(image.is_none_or(|image| image.metadata.uid.as_ref() != Some(&identity.uid)))
}
