//! Carries a decision out. The second of the two steps that hold a client.
//!
//! The order matters: the finalizer before anything is stored anywhere; status before tasks, because status says which attempt is under
//! way and a successor makes the task if we die between; cancelling and deleting before making, because that is the fence.

use std::collections::BTreeMap;

use k8s_openapi::{
    ByteString,
    api::core::v1::Secret,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{Api, Resource as _, ResourceExt as _};
use serde_json::json;

use super::decide::{Decision, NewTask};
use crate::{
    api::{Image, ImageTask, identity},
    kube::{Result, apply::Writer, event::Events},
};

/// Where a decision is carried out.
#[derive(Debug)]
pub struct Target<'a> {
    /// Writes as the image controller.
    pub writer: &'a Writer,
    /// Tells people.
    pub events: &'a Events,
    /// The Image's namespace.
    pub images: Api<Image>,
    /// The operator's namespace.
    pub tasks: Api<ImageTask>,
    /// The operator's namespace.
    pub secrets: Api<Secret>,
}

/// How far a decision was carried out.
#[derive(Debug)]
pub enum Applied {
    /// All of it.
    Done,
    /// The API server does not take the Import called `task`: why, in its words. A decision must be made anew with this in mind.
    Refused {
        /// Its name.
        task: String,
        /// Why.
        why: String,
    },
}

/// Carries `decision` about `image` out.
///
/// # Errors
/// What the API server says; what was done stays done, and the next pass does the rest.
pub async fn apply(target: &Target<'_>, image: &Image, decision: &Decision) -> Result<Applied> {
    let mut image = image.clone();
    if !decision.orders.create.is_empty() && image.metadata.deletion_timestamp.is_none() {
        image = target.writer.set_finalizer(&target.images, &image, identity::FINALIZER, true).await?;
    }
    if image.status.as_ref() != Some(&decision.status) {
        image = target.writer.apply_status(&target.images, &image, &decision.status).await?;
    }
    for event in &decision.events {
        target.events.publish(&image.object_ref(&()), event).await;
    }
    for name in &decision.orders.cancel {
        target.writer.merge_spec(&target.tasks, name, json!({ "cancelled": true })).await?;
    }
    for (name, uid) in &decision.orders.remove {
        target.writer.delete(&target.tasks, name, uid.clone()).await?;
    }
    for order in &decision.orders.create {
        match create(target, order).await {
            Err(error) if error.is_refusal() && order.task.spec.action.brings() => {
                return Ok(Applied::Refused { task: order.task.name_any(), why: error.to_string() });
            }
            made => made?,
        }
    }
    if decision.released {
        target.writer.set_finalizer(&target.images, &image, identity::FINALIZER, false).await?;
    }
    Ok(Applied::Done)
}

/// The Secret first, for the agent may begin at once; and once more when the task has a uid to be its owner, so that both go together.
async fn create(target: &Target<'_>, order: &NewTask) -> Result<()> {
    let NewTask { task, secret } = order;
    if secret.is_empty() {
        return target.writer.create(&target.tasks, task).await.map(drop);
    }
    target.writer.apply(&target.secrets, &task_secret(task, secret, None)).await?;
    let made = target.writer.create(&target.tasks, task).await?;
    target.writer.apply(&target.secrets, &task_secret(task, secret, Some(&made))).await.map(drop)
}

fn task_secret(task: &ImageTask, data: &BTreeMap<String, Vec<u8>>, owner: Option<&ImageTask>) -> Secret {
    let owner = owner.map(|owner| OwnerReference {
        api_version: ImageTask::api_version(&()).into_owned(),
        kind: ImageTask::kind(&()).into_owned(),
        name: owner.name_any(),
        uid: owner.uid().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: None,
    });
    Secret {
        metadata: ObjectMeta {
            name: task.metadata.name.clone(),
            labels: task.metadata.labels.clone(),
            owner_references: owner.map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        data: Some(data.iter().map(|(key, value)| (key.clone(), ByteString(value.clone()))).collect()),
        ..Secret::default()
    }
}
