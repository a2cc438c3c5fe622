//! What the agent writes to the API server, and how often.

use std::collections::BTreeSet;

use futures::StreamExt as _;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt as _, watcher},
};
use vitrine::api::{FilesystemBackend, ImageStore, ImageStoreSpec, ImageTask, NodeCache, identity};
use vitrine_harness::{Fault, Route};

use super::{
    disks::{entries, raw},
    lab::{Lab, Order, phase, until},
};

/// Seconds since the epoch at which the agent last wrote the status.
fn written(task: &ImageTask) -> Option<i64> {
    let fields = task.metadata.managed_fields.iter().flatten();
    let ours = fields.filter(|entry| entry.manager.as_deref() == Some("vitrine-agent"));
    ours.filter_map(|entry| entry.time.as_ref()).map(|time| time.0.as_second()).max()
}

#[tokio::test]
async fn progress_is_told_with_rate_and_eta_and_at_most_every_two_seconds() {
    let lab = Lab::shared("progress").await;
    let node = lab.node("n").await;
    let size: i64 = 8 << 20;
    lab.server.put("/disk", Route::bytes(raw(1, 8 << 20)).always(Fault::Rate(1 << 20)));
    let name = lab.import(&node.order("a", &lab.server.url("/disk"))).await;
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = Box::pin(watcher::watcher(lab.tasks(), config).default_backoff().applied_objects());
    let _agent = lab.start(&node, &[]);
    let (mut times, mut reports) = (Vec::new(), Vec::new());
    loop {
        let event = tokio::time::timeout(super::lab::PATIENCE, events.next()).await.expect("news of the task");
        let Some(Ok(task)) = event else { continue };
        if phase(&task).is_final() {
            break;
        }
        let Some(time) = written(&task) else { continue };
        times.push(time);
        reports.extend(task.status.and_then(|status| status.progress));
    }
    lab.succeeded(&name).await;
    // Whole seconds: two moments that are 2 s apart or more differ by 2 at least.
    assert!(times.windows(2).all(|pair| pair[1] - pair[0] >= 2), "{times:?}");
    assert!(reports.len() >= 2, "eight seconds and {} reports", reports.len());
    let unique: BTreeSet<_> = reports.iter().map(|report| report.bytes_done).collect();
    assert_eq!(unique.len(), reports.len(), "a report without news: {reports:?}");
    let last = reports.last().unwrap();
    assert_eq!((last.stage.as_str(), last.bytes_total), ("Transferring", Some(size)), "{last:?}");
    let rate = last.rate.expect("a rate");
    assert!((256 << 10..4 << 20).contains(&rate), "{rate} bytes per second of a server that sends a mebibyte");
    let left = (size - last.bytes_done + rate - 1) / rate;
    assert_eq!(last.eta_seconds, Some(left), "{last:?}");
}

#[tokio::test]
async fn the_lease_and_the_stores_of_a_node_are_reported() {
    let lab = Lab::shared("reporting").await;
    let node = lab.node("n").await;
    let stores = Api::<ImageStore>::all(lab.client.clone());
    let create = async |name: &str, path: String, host: &str| {
        let mut spec =
            ImageStoreSpec { backend: FilesystemBackend { path, shared: false }.into(), ..ImageStoreSpec::default() };
        spec.node_selector.insert("kubernetes.io/hostname".to_owned(), host.to_owned());
        stores.create(&PostParams::default(), &ImageStore::new(name, spec)).await.unwrap();
    };
    create("reporting-good", node.store().display().to_string(), &node.name).await;
    create("reporting-outside", "/etc/vitrine-test".to_owned(), &node.name).await;
    create("reporting-elsewhere", node.store().display().to_string(), "another-node").await;
    let agent = lab.start(&node, &["--lease-duration", "6", "--lease-renew", "1"]);

    let caches = Api::<NodeCache>::all(lab.client.clone());
    let mine = |cache: NodeCache| {
        let status = cache.status.unwrap_or_default();
        let reports = status.stores.into_iter().filter(|store| store.name.starts_with("reporting-"));
        (status.agent, reports.collect::<Vec<_>>())
    };
    let (info, reports) = until("two stores are reported", async || {
        let (agent, reports) = mine(caches.get(&node.name).await.ok()?);
        (reports.len() == 2).then_some((agent?, reports))
    })
    .await;
    let [good, outside] = reports.as_slice() else { panic!("{reports:?}") };
    assert!(good.ready && good.message.is_empty() && good.observed_generation == 1, "{good:?}");
    assert!(good.capacity.unwrap() >= good.available.unwrap(), "{good:?}");
    assert!(!outside.ready && outside.message.contains("--store-root"), "{outside:?}");
    assert!(!std::path::Path::new("/etc/vitrine-test").exists());
    let cache = caches.get(&node.name).await.unwrap();
    assert_eq!(cache.metadata.owner_references.unwrap()[0].kind, "Node");

    let leases = Api::<Lease>::namespaced(lab.client.clone(), &lab.namespace);
    let name = identity::agent_lease_name(&node.name);
    let lease = until("a lease", async || leases.get_opt(&name).await.ok().flatten()).await;
    let spec = lease.spec.clone().unwrap();
    assert_eq!((spec.holder_identity, spec.lease_duration_seconds), (Some(info.id), Some(6)));
    assert_eq!(lease.metadata.labels.unwrap()[identity::LABEL_AGENT], "true");
    assert_eq!(lease.metadata.annotations.unwrap()[identity::ANNOTATION_NODE], node.name);
    let renewed = async || {
        leases
            .get(&name)
            .await
            .ok()
            .and_then(|lease| lease.spec?.renew_time)
            .filter(|time| Some(time) != spec.renew_time.as_ref())
    };
    until("the lease is renewed", renewed).await;

    // A folder that vanishes is noticed, and comes back by itself.
    let away = node.stores.join("away");
    std::fs::rename(node.store(), &away).unwrap();
    let ready = async |ready: bool| {
        until("the report changes", async || {
            let (_, reports) = mine(caches.get(&node.name).await.ok()?);
            reports.into_iter().find(|report| report.name == "reporting-good" && report.ready == ready)
        })
        .await
    };
    let report = ready(false).await;
    assert!(report.message.contains("mounted"), "{report:?}");
    assert!(!node.store().exists(), "nothing was put in its place");
    std::fs::rename(&away, node.store()).unwrap();
    ready(true).await;
    drop(agent);
}

#[tokio::test]
async fn an_agent_cannot_act_for_another_node() {
    let lab = Lab::shared("other-node").await;
    let (mut mine, other) = (lab.node("mine").await, lab.node("other").await);
    lab.server.put("/disk", Route::bytes(raw(1, 1 << 20)));
    let name = lab.import(&other.order("a", &lab.server.url("/disk"))).await;
    // It has the token of its own node and claims to be on the other.
    mine.name.clone_from(&other.name);
    let agent = lab.start(&mine, &[]);
    agent.wait_for_log("may not change", super::lab::PATIENCE).await.unwrap();
    assert_eq!(lab.server.requests().len(), 0, "without a Lease nothing begins");
    let task = lab.tasks().get(&name).await.unwrap();
    assert!(!phase(&task).is_final() && task.status.unwrap().agent.is_none());
}

#[tokio::test]
async fn a_status_that_the_api_server_finds_invalid_ends_as_a_failure() {
    let lab = Lab::shared("invalid").await;
    let node = lab.node("n").await;
    // Real refusals (422) of a real API server, for what agents have to say of success in this lab.
    let policy = r#"
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: invalid-success}
spec:
  failurePolicy: Fail
  matchConstraints:
    namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: invalid}}
    resourceRules: [{apiGroups: [vitrine.dev], apiVersions: ["*"], operations: [UPDATE], resources: [imagetasks/status]}]
  validations:
    - expression: "!has(object.status.phase) || object.status.phase != 'Succeeded'"
      message: "no success in this lab"
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: invalid-success}
spec: {policyName: invalid-success, validationActions: [Deny]}
"#;
    lab.plane.apply(policy).await.unwrap();
    let probe = lab.import(&Order::new("nobody", "probe", "http://unused/", &node.store(), false)).await;
    let succeeded = Patch::Merge(serde_json::json!({ "status": { "phase": "Succeeded" } }));
    until("the policy is in force", async || {
        let params = PatchParams { dry_run: true, ..PatchParams::default() };
        let answer = lab.tasks().patch_status(&probe, &params, &succeeded).await;
        matches!(answer, Err(kube::Error::Api(status)) if status.code == 422).then_some(())
    })
    .await;
    let agent = lab.start(&node, &[]);
    lab.server.put("/disk", Route::bytes(raw(1, 1 << 20)));
    let order = node.order("a", &lab.server.url("/disk"));
    let failure = lab.failure(&lab.import(&order).await).await;
    assert_eq!((failure.reason.as_str(), failure.retryable), ("Internal", false));
    assert!(
        failure.message.contains("no success in this lab") && failure.message.contains("removed again"),
        "{failure:?}"
    );
    assert_eq!(entries(&node.store()), [""; 0], "a task that failed leaves nothing");
    let failure = lab.failure(&lab.delete(&order).await).await;
    assert!(failure.message.contains("no success in this lab"), "{failure:?}");
    assert!(agent.log().contains("the task's status is refused"), "{}", agent.log_tail());
    node.assert_clean();
}
