//! The ImageStore controller: fetch, decide, apply.

mod decide;
pub mod first;
pub mod folder;
pub mod orphans;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::{
    Api, Resource as _, ResourceExt as _, api::ListParams, runtime::controller::Action, runtime::reflector::Store,
};
use tokio::time::Instant;

use super::context::Context;
use crate::{
    api::{Image, ImageStore, ImageTask, identity},
    kube::{Doing as _, Result},
};
use decide::{Decision, Observed, decide, is_held_in, uses_store};

/// The field manager of this controller.
pub const MANAGER: &str = "vitrine-store";
/// How often capacity and the number of images are brought up to date.
const REFRESH: Duration = Duration::from_secs(10);
/// How often a store that is being deleted is looked at.
const DELETION_POLL: Duration = Duration::from_secs(2);

/// Brings one ImageStore's status up to date, and keeps it from vanishing while it holds images.
///
/// # Errors
/// What the API server says; the caller tries again.
pub async fn reconcile(store: Arc<ImageStore>, context: Arc<Context>) -> Result<Action> {
    let api: Api<ImageStore> = Api::all(context.client.clone());
    let name = store.name_any();
    let Some(store) = api.get_opt(&name).await.doing(|| format!("read ImageStore {name}"))? else {
        return Ok(Action::await_change());
    };
    let deleting = store.metadata.deletion_timestamp.is_some();
    let users = if deleting { users_for_certain(&context, &name).await? } else { users_as_cached(&context, &name) };
    let stores = context.stores.state();
    let decision = context.with_fleet(|fleet| {
        decide(&Observed {
            store: &store,
            stores: &stores,
            users: &users,
            held: held_as_cached(&context, &name),
            orphans: context.orphans(&store),
            fleet,
            now: Timestamp::now(),
            at: Instant::now(),
        })
    });
    apply(&context, &api, store, &decision).await?;
    Ok(Action::requeue(if deleting { DELETION_POLL } else { REFRESH }))
}

async fn apply(context: &Context, api: &Api<ImageStore>, store: ImageStore, decision: &Decision) -> Result<()> {
    let mut store = store;
    if store.metadata.deletion_timestamp.is_none() {
        store = context.store_writer.set_finalizer(api, &store, identity::FINALIZER, true).await?;
    }
    if store.status.as_ref() != Some(&decision.status) {
        store = context.store_writer.apply_status(api, &store, &decision.status).await?;
    }
    for event in &decision.events {
        context.events.publish(&store.object_ref(&()), event).await;
    }
    if decision.released {
        context.store_writer.set_finalizer(api, &store, identity::FINALIZER, false).await?;
    }
    Ok(())
}

fn users_as_cached(context: &Context, store: &str) -> Vec<String> {
    let images = context.images.iter().flat_map(Store::state).filter(|image| uses_store(image, store));
    images.map(|image| full_name(&image)).collect()
}

fn held_as_cached(context: &Context, store: &str) -> usize {
    context.images.iter().flat_map(Store::state).filter(|image| is_held_in(image, store)).count()
}

/// Reads Images and tasks anew: a store must not be let go on what a cache has not heard yet.
async fn users_for_certain(context: &Context, store: &str) -> Result<Vec<String>> {
    let mut users = Vec::new();
    let namespaces = &context.settings.watch_namespaces;
    let apis: Vec<Api<Image>> = if namespaces.is_empty() {
        vec![Api::all(context.client.clone())]
    } else {
        namespaces.iter().map(|namespace| Api::namespaced(context.client.clone(), namespace)).collect()
    };
    for api in apis {
        let images = api.list(&ListParams::default()).await.doing(|| "list Images")?.items;
        users.extend(images.iter().filter(|image| uses_store(image, store)).map(full_name));
    }
    let tasks: Api<ImageTask> = Api::namespaced(context.client.clone(), &context.settings.namespace);
    for task in tasks.list(&ListParams::default()).await.doing(|| "list tasks")?.items {
        if task.spec.stores().any(|name| name == store) {
            users.push(format!("{}/{}", task.spec.image.namespace, task.spec.image.name));
        }
    }
    users.sort();
    users.dedup();
    Ok(users)
}

fn full_name(image: &Image) -> String {
    format!("{}/{}", image.namespace().unwrap_or_default(), image.name_any())
}
