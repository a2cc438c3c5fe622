//! Probes, metrics, alerts and the dashboard, with a real Prometheus that scrapes a real operator and a real agent.

use std::{collections::BTreeSet, fs, path::PathBuf, process::Command};

use serde_json::{Value, json};
use vitrine_harness::{ControlPlane, Fault, Process, Route, Scope, port::PortLease, tools};

use crate::{
    node::{disks::raw, lab::until},
    whole::site::Site,
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const ANYWHERE: [&str; 2] = ["--telemetry-address", "127.0.0.1:0"];

fn program(name: &str) -> PathBuf {
    tools::cache_dir().unwrap().join("prometheus/bin").join(name)
}

fn promtool(args: &[&str]) {
    let output = Command::new(program("promtool")).current_dir(ROOT).args(args).output();
    let output = output.expect("promtool, which tests/prometheus/install.sh puts there");
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn rules() -> serde_yaml::Value {
    serde_yaml::from_str(&fs::read_to_string(format!("{ROOT}/config/monitoring/rules.yaml")).unwrap()).unwrap()
}

fn alerts() -> BTreeSet<String> {
    let rules = rules();
    let groups = rules["groups"].as_sequence().unwrap().iter();
    let rules = groups.flat_map(|group| group["rules"].as_sequence().unwrap());
    rules.map(|rule| rule["alert"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn every_alert_is_raised_by_what_it_is_for_and_by_nothing_else() {
    promtool(&["check", "rules", "config/monitoring/rules.yaml"]);
    promtool(&["test", "rules", "tests/prometheus/rules.test.yaml"]);
    let tested = fs::read_to_string(format!("{ROOT}/tests/prometheus/rules.test.yaml")).unwrap();
    for alert in alerts() {
        assert!(tested.contains(&format!("alertname: {alert}\n")), "{alert} is not tested");
    }
}

#[test]
fn every_alert_has_a_runbook_and_every_runbook_an_alert() {
    let books = fs::read_dir(format!("{ROOT}/docs/runbooks")).unwrap().map(|entry| entry.unwrap().file_name());
    let books = books.map(|name| name.into_string().unwrap()).filter(|name| name != "README.md");
    let books: BTreeSet<_> = books.map(|name| name.strip_suffix(".md").unwrap().to_owned()).collect();
    assert_eq!(books, alerts());
    let list = fs::read_to_string(format!("{ROOT}/docs/runbooks/README.md")).unwrap();
    assert!(books.iter().all(|book| list.contains(&format!("({book}.md)"))), "{list}");
}

#[tokio::test]
async fn the_chart_installs_the_same_rules_and_dashboard() {
    let plane = ControlPlane::shared().await.unwrap();
    let chart = format!("{ROOT}/charts/vitrine");
    let all = ["podMonitors", "rules", "dashboard"].map(|what| format!("monitoring.{what}.enabled=true"));
    let mut args =
        vec!["template", "vitrine", &chart, "-n", "vitrine-system", "--set", "monitoring.labels.release=prom"];
    args.extend(all.iter().flat_map(|value| ["--set", value.as_str()]));
    let text = plane.helm(&args).await.unwrap().success().unwrap();
    let manifests: Vec<Value> = text
        .split("\n---\n")
        .filter_map(|part| serde_yaml::from_str::<Value>(part).ok())
        .filter(Value::is_object)
        .collect();
    let of = |kind: &str| manifests.iter().filter(|manifest| manifest["kind"] == kind).collect::<Vec<_>>();
    let rule = of("PrometheusRule");
    assert_eq!(rule.len(), 1);
    assert_eq!(rule[0]["spec"], serde_json::to_value(rules()).unwrap());
    assert_eq!(rule[0]["metadata"]["labels"]["release"], "prom");
    // A port of that name is on the pods that the monitor selects.
    for (monitor, owner) in of("PodMonitor").iter().zip(["operator", "agent"]) {
        assert_eq!(monitor["spec"]["podMetricsEndpoints"][0]["port"], "telemetry");
        assert_eq!(monitor["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"], format!("vitrine-{owner}"));
    }
    assert_eq!(of("PodMonitor").len(), 2);
    let dashboard = of("ConfigMap").into_iter().find(|map| map["metadata"]["labels"]["grafana_dashboard"] == "1");
    let file = fs::read_to_string(format!("{ROOT}/config/monitoring/dashboard.json")).unwrap();
    assert_eq!(dashboard.unwrap()["data"]["vitrine.json"].as_str().unwrap(), file);
}

/// Where a process serves probes and metrics, by its log.
async fn address(process: &Process) -> String {
    until("it says where it is scraped", async || {
        let log = process.log();
        let line = log.lines().find(|line| line.contains("serves /metrics"))?.to_owned();
        let port: String = line.rsplit_once("127.0.0.1:")?.1.chars().take_while(char::is_ascii_digit).collect();
        Some(format!("127.0.0.1:{port}"))
    })
    .await
}

/// Status and body.
async fn ask(address: &str, path: &str) -> (u16, String) {
    let answer = reqwest::get(format!("http://{address}{path}")).await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

/// A Prometheus with the project's rules.
struct Prometheus {
    _process: Process,
    port: PortLease,
}

impl Prometheus {
    fn start(scope: &Scope, operator: &str, agent: &str) -> Self {
        let (folder, port) = (scope.dir().join("prometheus"), PortLease::reserve().unwrap());
        fs::create_dir(&folder).unwrap();
        let job = |name: &str, target: &str| {
            let labels = json!({ "pod": format!("{name}-0") });
            json!({ "job_name": format!("vitrine-system/{name}"), "static_configs": [{ "targets": [target], "labels": labels }] })
        };
        let config = json!({
            "global": { "scrape_interval": "1s", "evaluation_interval": "1s" },
            "rule_files": [format!("{ROOT}/config/monitoring/rules.yaml")],
            "scrape_configs": [job("vitrine-operator", operator), job("vitrine-agent", agent)],
        });
        fs::write(folder.join("prometheus.yml"), config.to_string()).unwrap();
        let mut command = scope.command(program("prometheus"));
        command.arg(format!("--config.file={}", folder.join("prometheus.yml").display()));
        command.arg(format!("--storage.tsdb.path={}", folder.join("data").display()));
        command.arg(format!("--web.listen-address=127.0.0.1:{}", port.port()));
        Self { _process: scope.spawn("prometheus", command).unwrap(), port }
    }

    async fn get(&self, path: &str, query: &[(&str, &str)]) -> Option<Value> {
        let mut url = url::Url::parse(&format!("http://127.0.0.1:{}/api/v1/{path}", self.port.port())).unwrap();
        url.query_pairs_mut().extend_pairs(query);
        let answer: Value = serde_json::from_str(&reqwest::get(url).await.ok()?.text().await.ok()?).ok()?;
        assert_eq!(answer["status"], "success", "{query:?}: {answer}");
        Some(answer["data"].clone())
    }

    /// Waits until `query` gives something.
    async fn shows(&self, query: &str) {
        until(&format!("Prometheus knows {query}"), async || {
            let data = self.get("query", &[("query", query)]).await?;
            (!data["result"].as_array()?.is_empty()).then_some(())
        })
        .await;
    }
}

fn dashboard_queries() -> Vec<String> {
    let text = fs::read_to_string(format!("{ROOT}/config/monitoring/dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().unwrap());
    targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn prometheus_has_an_answer_to_every_query_of_the_dashboard_and_the_alerts() {
    let site = Site::shared("scraped").await;
    let node = site.lab.node("n").await;
    let (operator, agent) = (site.operator(&ANYWHERE), site.lab.start(&node, &ANYWHERE));
    let (to_operator, to_agent) = (address(&operator).await, address(&agent).await);
    let prometheus = Prometheus::start(site.lab.plane.scope(), &to_operator, &to_agent);
    site.store("s", &node.store(), false, None).await;
    // One that comes in two parts, and one that does not come, and is tried again.
    site.lab.server.put("/cut", Route::bytes(raw(1, 3 << 20)).first(1, Fault::CutAfter(2 << 20)));
    site.lab.server.put("/away", Route::bytes(raw(2, 1 << 20)).always(Fault::Unavailable(None)));
    site.image("t", "cut", "/cut", "s").await;
    site.image("t", "away", "/away", "s").await;
    site.active("t", "cut").await;
    for query in dashboard_queries() {
        prometheus.shows(&query).await;
    }
    for (query, least) in [
        ("sum(vitrine_received_bytes_total{action=\"Import\"})", 3 << 20),
        ("sum(vitrine_written_bytes_total{action=\"Import\"})", 1 << 20),
        ("vitrine_images{phase=\"Active\"}", 1),
        ("sum(vitrine_source_interruptions_total)", 1),
        ("vitrine_tasks_total{action=\"Import\",result=\"succeeded\"}", 1),
        ("vitrine_tasks_total{action=\"Import\",reason=\"Unavailable\"}", 1),
        ("sum(vitrine_task_stage_duration_seconds_count{stage=\"Publishing\"})", 1),
        ("sum(vitrine_store_request_duration_seconds_count{operation=\"publish\"})", 1),
        ("sum(vitrine_store_written_bytes_total)", 1 << 20),
        (&format!("vitrine_store_ready{{store=\"{}\"}}", site.store_name("s")), 1),
    ] {
        prometheus.shows(&format!("{query} >= {least}")).await;
    }
    let rules = until("every rule was evaluated", async || {
        let data = prometheus.get("rules", &[]).await?;
        let groups = data["groups"].as_array()?.clone();
        let rules: Vec<Value> = groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect();
        rules.iter().all(|rule| rule["health"] != "unknown").then_some(rules)
    })
    .await;
    assert_eq!(rules.len(), alerts().len());
    assert!(rules.iter().all(|rule| rule["health"] == "ok"), "{rules:?}");
}

#[tokio::test]
async fn probes_tell_whether_operator_and_agent_can_work() {
    let plane = ControlPlane::start().await.unwrap();
    let site = Site::open(&plane, "probed").await;
    let node = site.lab.node("n").await;
    let leader = site.operator(&ANYWHERE);
    let lease = ["--lease-duration", "3", "--lease-renew", "1"];
    let agent = site.lab.start(&node, &[ANYWHERE.as_slice(), &lease].concat());
    let first = address(&leader).await;
    until("one leads", async || ask(&first, "/metrics").await.1.contains("vitrine_operator_leading 1").then_some(()))
        .await;
    let waiting = site.operator(&ANYWHERE);
    let all = [first, address(&waiting).await, address(&agent).await];
    for each in &all {
        until("it is ready", async || (ask(each, "/readyz").await.0 == 200).then_some(())).await;
        assert_eq!(ask(each, "/healthz").await, (200, "ok\n".to_owned()));
        assert_eq!(ask(each, "/nothing").await.0, 404);
    }
    assert!(
        ask(&all[1], "/metrics").await.1.contains("vitrine_operator_leading 0"),
        "one that waits is ready and does not lead"
    );
    plane.stop_apiserver().await.unwrap();
    for each in &all {
        until("it is not ready", async || (ask(each, "/readyz").await.0 == 503).then_some(())).await;
        assert!(ask(each, "/readyz").await.1.contains("API server"), "it says why");
        assert_eq!(ask(each, "/healthz").await.0, 200, "to end it would help nobody");
    }
    plane.start_apiserver().await.unwrap();
    for each in &all {
        until("it is ready again", async || (ask(each, "/readyz").await.0 == 200).then_some(())).await;
    }
}

#[tokio::test]
async fn an_address_that_is_taken_is_said() {
    let site = Site::shared("taken").await;
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = port.local_addr().unwrap().to_string();
    let operator = site.operator(&["--telemetry-address", &address]);
    until("it ends", async || operator.ended()).await;
    let log = operator.log();
    assert!(log.contains(&address) && log.contains("--telemetry-address"), "{log}");
}
