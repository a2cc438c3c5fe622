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

/// An API server that is away from second 20 to second 79, and knows an agent that has not renewed since second 0.
fn server_with_an_outage(start: Instant) -> Client {
    let answer = move |request: Request<Body>| async move {
        assert!(request.uri().path().ends_with("/leases"), "{}", request.uri());
        if (20..79).contains(&start.elapsed().as_secs()) {
            return Err(BoxError::from("connection refused"));
        }
        let list =
            json!({ "kind": "List", "apiVersion": "v1", "metadata": { "resourceVersion": "1" }, "items": [lease()] });
        Ok(Response::new(Body::from(list.to_string().into_bytes())))
    };
    Client::new(service_fn(answer), "default")
}

fn lease() -> Value {
    json!({
        "metadata": {
            "name": identity::agent_lease_name("a"), "resourceVersion": "1", "annotations": { identity::ANNOTATION_NODE: "a" },
        },
        "spec": { "holderIdentity": "x", "leaseDurationSeconds": 40 },
    })
}

#[tokio::test(start_paused = true)]
async fn after_an_outage_agents_have_a_full_term_to_renew() {
    let (start, (stores, _)) = (Instant::now(), reflector::store());
    let bells = Bells { images: Vec::new(), stores: mpsc::unbounded().0 };
    let mut fleet = Fleet::new(start, Duration::from_secs(40));
    fleet.observe_lease(&serde_json::from_value(lease()).unwrap(), start, Timestamp::now());
    let settings = Settings::new("system", "me");
    let context = Arc::new(Context::new(server_with_an_outage(start), settings, fleet, (stores, Vec::new()), bells));
    let watched = tokio::spawn(watch_leases_expire(Arc::clone(&context)));
    let liveness = async |second: u64| {
        sleep(Duration::from_secs(second).saturating_sub(start.elapsed())).await;
        context.with_fleet(|fleet| fleet.liveness("a", Instant::now()))
    };
    assert_eq!(liveness(60).await, Liveness::Silent);
    // The server was back a second ago: the agent may be on its way.
    assert_eq!(liveness(82).await, Liveness::Live);
    assert_eq!(liveness(115).await, Liveness::Live);
    assert_eq!(liveness(125).await, Liveness::Stale);
    watched.abort();
}
