//! The operator: decides, and never touches image bytes.
//!
//! Each controller is five verbs: fetch, validate, decide, apply, status (which `apply` writes). `decide` and `validate` hold no client.

pub mod agents;
mod authority;
mod context;
mod fleet;
pub mod image;
mod metrics;
mod settings;
pub mod store;
pub mod task;
mod watch;

use std::{sync::Arc, time::Duration};

use futures::{Stream, StreamExt as _, channel::mpsc};
use kube::{
    Api, Client,
    runtime::{
        Controller,
        controller::{self, Action, Config},
        reflector::{self, ObjectRef},
        watcher,
    },
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use crate::api::identity::LEADER_LEASE as LEADER_LEASE_NAME;
pub use settings::{AuthorityTerms, Settings};

use crate::{
    api::{Image, ImageStore},
    kube::{
        Error,
        leader::{Election, Leadership, Terms},
        readiness::Readiness,
    },
};
use context::{Bells, Context};
use fleet::Fleet;

/// Objects of one kind that are worked on at once: the work is waiting for the API server.
const CONCURRENCY: u16 = 8;
/// The wait after a conflict: the watch has what changed in a moment.
const CONFLICT_DELAY: Duration = Duration::from_millis(200);
/// How long what is under way may take when asked to stop; kubelets wait 30 s.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// Runs the operator until `stop` is cancelled. It acts while it is the leader; when it is not (any more), it waits to be.
/// `readiness` tells whether it could.
pub async fn run(client: Client, settings: Settings, readiness: Readiness, stop: CancellationToken) {
    let terms = Terms { duration: settings.leader_lease };
    let election = Election::new(client.clone(), &settings.namespace, LEADER_LEASE_NAME, &settings.identity, terms)
        .with_readiness(readiness);
    loop {
        metrics::leads(false);
        let leadership = tokio::select! {
            leadership = election.win() => leadership,
            () = stop.cancelled() => return,
        };
        let term = Box::pin(lead(client.clone(), settings.clone(), stop.clone(), leadership));
        match term.await {
            Some(lost) => tracing::warn!(error = %lost, "this operator stops acting and stands for election again"),
            None => return,
        }
    }
}

/// One leadership: why it was lost, or nothing if it was given up because of `stop`. Nothing of it outlives this: what controllers
/// know is learnt anew by the next one, and what they were about to write is not written.
async fn lead(
    client: Client,
    settings: Settings,
    stop: CancellationToken,
    mut leadership: Leadership,
) -> Option<Error> {
    let guarded = leadership.mandate().guard(client);
    // Dropping the controllers' future stops them at once, in the middle of what they do: that is what losing leadership asks for.
    let lost = tokio::select! {
        biased;
        lost = leadership.keep() => Some(lost),
        () = control(guarded, settings, stop.clone()) => None,
        () = async { stop.cancelled().await; tokio::time::sleep(STOP_WITHIN).await } => None,
    };
    if lost.is_none() {
        leadership.release().await;
    }
    lost
}

/// The controllers, until `stop` is cancelled and what is under way is done.
async fn control(client: Client, settings: Settings, stop: CancellationToken) {
    let namespaces: Vec<_> = match settings.watch_namespaces.as_slice() {
        [] => vec![None],
        some => some.iter().cloned().map(Some).collect(),
    };
    let images: Vec<_> = namespaces
        .iter()
        .map(|namespace| Controller::new(api_in(&client, namespace.as_deref()), watcher::Config::default()))
        .collect();
    let stores = Controller::new(Api::<ImageStore>::all(client.clone()), selected(&settings.store_selector));
    let (image_bells, image_streams): (Vec<_>, Vec<_>) = namespaces
        .into_iter()
        .map(|namespace| {
            let (bell, stream) = mpsc::unbounded();
            ((namespace, bell), stream)
        })
        .unzip();
    let (store_bell, store_stream) = mpsc::unbounded();
    let fleet = Fleet::new(Instant::now(), settings.agent_grace);
    let (known_stores, store_writer) = reflector::store();
    let caches = (known_stores, images.iter().map(Controller::store).collect());
    let bells = Bells { images: image_bells, stores: store_bell };
    let context = Arc::new(Context::new(client, settings, fleet, caches, bells));

    let (followed, listed) = watch::follow_all(&context, store_writer);
    let controllers = async {
        listed.await;
        let images = images.into_iter().zip(image_streams).map(|(controller, bells)| {
            let controller = configure(controller, bells, &stop);
            let reconcile = |image, context| metrics::reconciling("Image", image::reconcile(image, context));
            drain(controller.run(reconcile, again, Arc::clone(&context)), &context)
        });
        let stores = configure(stores, store_stream, &stop);
        let reconcile = |store, context| metrics::reconciling("ImageStore", store::reconcile(store, context));
        let stores = drain(stores.run(reconcile, again, Arc::clone(&context)), &context);
        tokio::join!(futures::future::join_all(images), stores);
    };
    tokio::select! {
        () = controllers => {}
        () = followed => {}
        () = task::sweep(Arc::clone(&context)) => {}
        () = agents::keep(Arc::clone(&context)) => {}
        () = store::first::make(Arc::clone(&context)) => {}
        () = store::orphans::collect(Arc::clone(&context)) => {}
        () = metrics::census(Arc::clone(&context)) => {}
        () = authority::keep(Arc::clone(&context)) => {}
    }
}

fn api_in(client: &Client, namespace: Option<&str>) -> Api<Image> {
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

fn selected(selector: &str) -> watcher::Config {
    let config = watcher::Config::default();
    if selector.is_empty() { config } else { config.labels(selector) }
}

fn configure<K>(
    controller: Controller<K>,
    bells: mpsc::UnboundedReceiver<ObjectRef<K>>,
    stop: &CancellationToken,
) -> Controller<K>
where
    K: Clone + kube::Resource<DynamicType = ()> + serde::de::DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
{
    let stop = stop.clone();
    controller
        .with_config(Config::default().concurrency(CONCURRENCY))
        .reconcile_on(bells)
        .graceful_shutdown_on(async move { stop.cancelled().await })
}

#[expect(clippy::needless_pass_by_value, reason = "kube's controllers pass values")]
fn again<K: kube::Resource<DynamicType = ()>>(object: Arc<K>, error: &Error, context: Arc<Context>) -> Action {
    let delay = || context.failed(ObjectRef::from_obj(object.as_ref()).to_string());
    Action::requeue(if error.is_conflict() { CONFLICT_DELAY } else { delay() })
}

async fn drain<K>(
    results: impl Stream<Item = std::result::Result<(ObjectRef<K>, Action), controller::Error<Error, watcher::Error>>>,
    context: &Context,
) where
    K: kube::Resource<DynamicType = ()>,
{
    results
        .for_each(|result| async {
            match result {
                Ok((object, _)) => context.succeeded(&object.to_string()),
                // Who tells of an object need not know whether it is still there.
                Err(error @ controller::Error::ObjectNotFound(_)) => tracing::debug!(%error, "reconcile"),
                Err(error) => tracing::warn!(%error, "reconcile"),
            }
        })
        .await;
}
