//! Clears away tasks whose Image is no more, and Secrets whose task is. An Image waits for its tasks by its finalizer, so this is for
//! Images whose finalizer somebody took off by force, and for operators that were killed between making a Secret and its task.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{Api, ResourceExt, api::ListParams};

use super::context::Context;
use crate::{
    api::{Action, Image, ImageTask, TaskPhase, identity},
    kube::{Doing as _, Result},
};

/// Clears away orphans for ever.
pub async fn sweep(context: Arc<Context>) {
    loop {
        tokio::time::sleep(context.settings.sweep_interval).await;
        for result in [sweep_tasks(&context).await, sweep_secrets(&context).await] {
            if let Err(error) = result {
                tracing::warn!(%error, "sweeping");
            }
        }
    }
}

async fn sweep_tasks(context: &Context) -> Result<()> {
    let tasks: Api<ImageTask> = Api::namespaced(context.client.clone(), &context.settings.namespace);
    for task in tasks.list(&ListParams::default()).await.doing(|| "list tasks")?.items {
        // Orders to remove what no Image knows have no Image either; who gave them lets go of them.
        let orphans = task.labels().contains_key(identity::LABEL_ORPHAN);
        if !orphans && is_needless(&task) && is_orphan(context, &task).await? {
            tracing::info!(task = task.name_any(), image = task.spec.image.name, "a task without an Image is deleted");
            context.image_writer.delete(&tasks, &task.name_any(), task.uid()).await?;
        }
    }
    Ok(())
}

async fn sweep_secrets(context: &Context) -> Result<()> {
    let namespace = &context.settings.namespace;
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), namespace);
    let tasks: Api<ImageTask> = Api::namespaced(context.client.clone(), namespace);
    let made = ListParams::default().labels(identity::LABEL_IMAGE_UID);
    let held = secrets.list_metadata(&made).await.doing(|| "list the Secrets of tasks")?.items;
    // Listed after the Secrets, so that none looks forsaken whose task came in between.
    let all = tasks.list(&ListParams::default()).await.doing(|| "list tasks")?.items;
    let names: BTreeSet<_> = all.iter().map(ResourceExt::name_any).collect();
    for secret in held.iter().filter(|secret| !names.contains(&secret.name_any())) {
        if is_older(&secret.metadata, context.settings.sweep_interval) {
            tracing::info!(secret = secret.name_any(), "a Secret without a task is deleted");
            context.image_writer.delete(&secrets, &secret.name_any(), secret.uid()).await?;
        }
    }
    Ok(())
}

/// A Secret is made right before its task.
fn is_older(metadata: &ObjectMeta, than: Duration) -> bool {
    let made = metadata.creation_timestamp.as_ref();
    let age = made.and_then(|made| Duration::try_from(Timestamp::now().duration_since(made.0)).ok());
    age.is_some_and(|age| age >= than)
}

/// A Delete that is not done yet still serves: nobody else would remove the data.
fn is_needless(task: &ImageTask) -> bool {
    let phase = task.status.as_ref().and_then(|status| status.phase).unwrap_or_default();
    match task.spec.action {
        Action::Import | Action::Copy | Action::Verify => true,
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
