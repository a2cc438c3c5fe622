use std::time::Duration;

use futures::{FutureExt as _, channel::mpsc};
use http::{Request, Response};
use kube::{Client, client::Body, runtime::reflector};
use serde_json::{Value, json};
use tower::{BoxError, service_fn};

use super::*;
use crate::controller::{Settings, context::Bells, fleet::Fleet};

/// An API server in which there is one ImageStore, and which takes its time to list it.
fn slow_server() -> Client {
    let answer = |request: Request<Body>| async move {
        let (path, query) = (request.uri().path().to_owned(), request.uri().query().unwrap_or_default().to_owned());
        if query.contains("watch=true") {
            std::future::pending::<()>().await;
        }
        let items = if path.ends_with("/imagestores") {
            sleep(Duration::from_secs(20)).await;
            json!([{ "metadata": { "name": "fast", "resourceVersion": "1" }, "spec": { "filesystem": { "path": "/srv/fast" } } }])
        } else {
            json!([])
        };
        let list: Value =
            json!({ "kind": "List", "apiVersion": "v1", "metadata": { "resourceVersion": "1" }, "items": items });
        Ok::<_, BoxError>(Response::new(Body::from(list.to_string().into_bytes())))
    };
    Client::new(service_fn(answer), "default")
}

#[tokio::test(start_paused = true)]
async fn nothing_is_decided_before_the_stores_are_known() {
    let (stores, writer) = reflector::store();
    let (bell, mut rung) = mpsc::unbounded();
    let bells = Bells { images: Vec::new(), stores: bell };
    let fleet = Fleet::new(Instant::now(), Duration::from_secs(40));
    let settings = Settings::new("system", "me");
    let context = Arc::new(Context::new(slow_server(), settings, fleet, (stores, Vec::new()), bells));
    let (followed, listed) = follow_all(&context, writer);
    tokio::select! {
        () = followed => panic!("it follows for ever"),
        () = listed => {}
    }
    // Controllers begin now: an empty cache would say that every store is gone.
    assert_eq!(context.stores.state().len(), 1);
    // Whoever is woken because of a change finds it: this bell is rung for the stores that are known at that moment.
    assert_eq!(rung.next().now_or_never().flatten().map(|store| store.name), Some("fast".to_owned()));
}
