//! Traces, as a collector of OpenTelemetry gets them from an agent.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{Router, extract::State, routing::post};
use serde_json::{Value, json};
use vitrine_harness::{Route, port::PortLease};

use super::{several::make, site::Site};
use crate::node::{
    disks::raw,
    lab::{PATIENCE, until},
};

type Spans = Arc<Mutex<Vec<Value>>>;

/// Takes what is sent to it, in the protocol's JSON, and keeps the spans, each with the name of who sent it.
async fn collector() -> (SocketAddr, Spans) {
    async fn take(State(spans): State<Spans>, body: String) -> &'static str {
        let sent: Value = serde_json::from_str(&body).unwrap();
        for resource in sent["resourceSpans"].as_array().unwrap() {
            let service = attribute(&resource["resource"], "service.name").clone();
            for scope in resource["scopeSpans"].as_array().unwrap() {
                for span in scope["spans"].as_array().unwrap() {
                    let mut span = span.clone();
                    span["service"] = service.clone();
                    spans.lock().unwrap().push(span);
                }
            }
        }
        "{}"
    }
    let spans = Spans::default();
    let router = Router::new().route("/v1/traces", post(take)).with_state(spans.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    (address, spans)
}

fn attribute<'v>(of: &'v Value, key: &str) -> &'v Value {
    let found = of["attributes"].as_array().unwrap().iter().find(|attribute| attribute["key"] == key);
    found.map_or(&Value::Null, |attribute| &attribute["value"]["stringValue"])
}

#[tokio::test]
async fn a_collector_gets_each_task_with_its_stages_and_how_it_ended() {
    let (address, spans) = collector().await;
    let site = Site::shared("traces").await;
    let node = site.lab.node("n").await;
    let _operator = site.operator(&[]);
    let endpoint = format!("OTEL_EXPORTER_OTLP_ENDPOINT=http://{address}");
    let environment = ["env", &endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL=http/json", "OTEL_BSP_SCHEDULE_DELAY=100"];
    let _agent = site.lab.start_in(&node, &environment, &[]);
    site.store("s", &node.store(), false, None).await;
    site.lab.server.put("/disk", Route::bytes(raw(1, 3 << 20)));
    make(&site, "disk", &["s"], json!({})).await;
    site.active("t", "disk").await;
    site.lab.server.put("/page", Route::bytes(b"<!DOCTYPE html><title>Log in</title>".repeat(100)));
    make(&site, "page", &["s"], json!({})).await;
    site.stalled("t", "page").await;

    let task = async |name: &str| {
        let image = format!("{}/{name}", site.tenant("t"));
        until(&format!("the collector has the task of {image}"), async || {
            let spans = spans.lock().unwrap();
            spans.iter().find(|span| span["name"] == "task" && attribute(span, "image") == image.as_str()).cloned()
        })
        .await
    };
    let imported = task("disk").await;
    assert_eq!((&imported["service"], attribute(&imported, "action")), (&json!("vitrine-agent"), &json!("Import")));
    assert!(imported["status"]["code"].as_u64().is_none_or(|code| code == 0), "{imported}");
    let says = |span: &Value, what: &str| span["events"].as_array().unwrap().iter().any(|event| event["name"] == what);
    assert!(says(&imported, "begun") && says(&imported, "imported"), "{imported}");
    // The stages lie within it, one after the other.
    let nanos = |span: &Value, key: &str| span[key].as_str().unwrap().parse::<u64>().unwrap();
    let stages: Vec<_> = {
        let spans = spans.lock().unwrap();
        spans.iter().filter(|span| span["parentSpanId"] == imported["spanId"]).cloned().collect()
    };
    let names: Vec<_> = stages.iter().map(|span| attribute(span, "stage")).collect();
    assert_eq!(names, ["Connecting", "Transferring", "Publishing"]);
    let times = stages.iter().flat_map(|span| ["startTimeUnixNano", "endTimeUnixNano"].map(|key| nanos(span, key)));
    let times: Vec<_> = times.collect();
    assert!(times.is_sorted(), "{times:?}");
    assert!(nanos(&imported, "startTimeUnixNano") <= times[0] && times[5] <= nanos(&imported, "endTimeUnixNano"));

    let refused = task("page").await;
    assert_eq!((&refused["status"]["code"], &refused["status"]["message"]), (&json!(2), &json!("Refused")));
    assert!(says(&refused, "failed"), "{refused}");
}

#[tokio::test]
async fn a_collector_that_is_away_costs_a_task_nothing_and_the_log_says_so() {
    let port = PortLease::reserve().unwrap();
    let site = Site::shared("untraced").await;
    let node = site.lab.node("n").await;
    let _operator = site.operator(&[]);
    let endpoint = format!("OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:{}", port.port());
    let agent = site.lab.start_in(&node, &["env", &endpoint, "OTEL_BSP_SCHEDULE_DELAY=100"], &[]);
    site.store("s", &node.store(), false, None).await;
    site.lab.server.put("/disk", Route::bytes(raw(1, 3 << 20)));
    make(&site, "disk", &["s"], json!({})).await;
    site.active("t", "disk").await;
    until("the log says that traces are not taken", async || {
        agent.log().lines().any(|line| line.contains("opentelemetry") && line.contains("rror")).then_some(())
    })
    .await;
    agent.terminate(PATIENCE).await.unwrap();
}
