//! The Image controller: fetch, validate, decide, apply.

pub mod apply;
pub mod decide;
pub mod fetch;
#[cfg(test)]
pub(crate) mod testing;
pub mod validate;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::{
    Api, ResourceExt as _,
    runtime::{controller::Action, reflector::ObjectRef},
};
use tokio::time::Instant;

use super::context::Context;
use crate::{
    api::{Image, ImageStatus},
    kube::{Result, apply::api_of},
};
use apply::Applied;
use decide::{Decision, Observed, decide};

/// The field manager of this controller.
pub const MANAGER: &str = "vitrine-image";
/// How often progress is written at most: a person sees no difference, and etcd does.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(2);

/// Brings one Image a step nearer to its spec.
///
/// # Errors
/// What the API server says; the caller tries again.
pub async fn reconcile(image: Arc<Image>, context: Arc<Context>) -> Result<Action> {
    match step(&image, &context, None).await? {
        (_, Applied::Refused { task, why }) => {
            context.with_fleet(|fleet| fleet.forget_task(&task));
            step(&image, &context, Some(&why)).await.map(|(action, _)| action)
        }
        (action, Applied::Done) => Ok(action),
    }
}

/// One step. `refused` is what the API server said a moment ago of the task that was to be made.
async fn step(image: &Image, context: &Context, refused: Option<&str>) -> Result<(Action, Applied)> {
    let (images, name) = (api_of(&context.client, image), image.name_any());
    let tasks = Api::namespaced(context.client.clone(), &context.settings.namespace);
    let is_served = |store: &str| context.stores.get(&ObjectRef::new(store)).is_some();
    let Some(fetched) = fetch::fetch(&context.client, &images, &tasks, &name, is_served).await? else {
        return Ok((Action::await_change(), Applied::Done));
    };
    let stores = context.stores.state();
    let wanted = validate::validate(&fetched.image, &stores, fetched.references);
    let others = fetched.others.iter().cloned().map(Arc::new);
    let stores: BTreeMap<_, _> = others.chain(stores).map(|store| (store.name_any(), store)).collect();
    let decision = context.with_fleet(|fleet| {
        let observed = Observed {
            image: &fetched.image,
            tasks: &fetched.tasks,
            wanted: &wanted,
            stores: &stores,
            fleet,
            refused,
            retry: context.settings.retry,
            namespace: &context.settings.namespace,
            now: Timestamp::now(),
            at: Instant::now(),
        };
        let decision = decide(&observed);
        // Within one lock, so that two Images decided at once do not both take the idlest node.
        decision.orders.create.iter().for_each(|order| fleet.observe_task(&order.task));
        decision
    });
    if let Some(wait) = too_soon(context, &fetched.image, &decision) {
        return Ok((Action::requeue(wait), Applied::Done));
    }
    let target = apply::Target {
        writer: &context.image_writer,
        events: &context.events,
        images,
        tasks,
        secrets: Api::namespaced(context.client.clone(), &context.settings.namespace),
    };
    let applied = apply::apply(&target, &fetched.image, &decision).await?;
    let again = |delay: Duration| Action::requeue(delay.max(Duration::from_millis(100)));
    Ok((decision.recheck.map_or_else(Action::await_change, again), applied))
}

/// How long to wait, if nothing but progress would be written and it was written a moment ago.
fn too_soon(context: &Context, image: &Image, decision: &Decision) -> Option<Duration> {
    let before = image.status.clone().unwrap_or_default();
    let quiet = decision.orders.is_empty() && decision.events.is_empty() && !decision.released;
    if !quiet || without_progress(&before) != without_progress(&decision.status) || before == decision.status {
        return None;
    }
    context.progress_gate(&image.uid().unwrap_or_default(), PROGRESS_INTERVAL)
}

fn without_progress(status: &ImageStatus) -> ImageStatus {
    let mut status = status.clone();
    status.progress = None;
    if let Some(display) = &mut status.display {
        display.progress = None;
    }
    status.display = status.display.filter(|display| *display != crate::api::Display::default());
    status
}
