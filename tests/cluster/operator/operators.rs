//! Operators that compete, die and are cut off. These run as processes of their own, for only those can be killed.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use vitrine::{api::ImagePhase, controller::LEADER_LEASE_NAME};
use vitrine_harness::Process;

use super::{
    agent::{LEASE_SECONDS, Script},
    lab::{Lab, PATIENCE, kstatus, uid},
};

async fn operator(lab: &Lab, name: &str) -> Process {
    let kubeconfig = lab.plane.kubeconfig_for(&lab.system(), "vitrine-operator", None).await.unwrap();
    spawn(lab, name, &kubeconfig)
}

fn spawn(lab: &Lab, name: &str, kubeconfig: &Path) -> Process {
    let mut command = lab.plane.scope().command(env!("CARGO_BIN_EXE_vitrine"));
    command
        .env("KUBECONFIG", kubeconfig)
        .args(["operator", "--name", name, "--namespace", &lab.system(), "--watch-namespace", &lab.name])
        .args(["--store-selector", &format!("vitrine.dev/lab={}", lab.name)])
        .args(["--leader-lease", "3", "--agent-grace", "3", "--retry-base", "1"]);
    lab.plane.scope().spawn(&format!("{}-{name}", lab.name), command).unwrap()
}

async fn leader(lab: &Lab) -> String {
    let leases: Api<Lease> = Api::namespaced(lab.client.clone(), &lab.system());
    let lease = leases.get_opt(LEADER_LEASE_NAME).await.unwrap();
    lease.and_then(|lease| lease.spec?.holder_identity).unwrap_or_default()
}

async fn until_leader(lab: &Lab, name: &str) {
    let start = Instant::now();
    while !leader(lab).await.starts_with(&format!("{name}_")) {
        assert!(start.elapsed() < PATIENCE, "{name} does not lead, but {}", leader(lab).await);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_operator_leads_and_another_goes_on_where_it_was_killed() {
    let mut lab = Lab::new("leader").await;
    lab.local_store("fast").await;
    let agent = lab.agent("n1").await;
    let first = operator(&lab, "first").await;
    until_leader(&lab, "first").await;
    let second = operator(&lab, "second").await;
    let image = lab.image("debian", "fast").await;
    lab.until_image("debian", "is importing", |image| {
        image.status.as_ref().and_then(|status| status.phase) == Some(ImagePhase::Importing)
    })
    .await;
    assert!(!second.log().contains("leading"), "one leads: {}", second.log());
    first.kill();
    agent.script(Script::Succeed("one"));
    lab.until_image("debian", "is active", |image| kstatus(image) == "Current").await;
    until_leader(&lab, "second").await;
    assert_eq!(agent.taken(), [format!("{}-r1-import-1", uid(&image))], "nothing was done twice");
    assert_eq!(agent.disk().len(), 1);
    lab.until_tasks("none are left", <[_]>::is_empty).await;

    // Told to stop, it gives the lease up, so that a successor need not wait.
    let third = operator(&lab, "third").await;
    let status = second.terminate(Duration::from_secs(15)).await.unwrap();
    assert!(status.success(), "{}", second.log());
    until_leader(&lab, "third").await;
    drop(third);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_that_was_asleep_too_long_does_not_act() {
    let mut lab = Lab::new("asleep").await;
    lab.local_store("fast").await;
    lab.agent("n1").await.script(Script::Succeed("one"));
    let first = operator(&lab, "first").await;
    until_leader(&lab, "first").await;
    let second = operator(&lab, "second").await;
    first.pause().unwrap();
    until_leader(&lab, "second").await;
    first.resume().unwrap();
    first.wait_for_log("leadership lost", PATIENCE).await.unwrap();
    lab.image("debian", "fast").await;
    lab.until_image("debian", "is active", |image| kstatus(image) == "Current").await;
    // It stands by, in the same process, and leads once the other is gone.
    assert!(first.ended().is_none() && leader(&lab).await.starts_with("second_"), "{}", first.log());
    second.kill();
    until_leader(&lab, "first").await;
    lab.image("suse", "fast").await;
    lab.until_image("suse", "is active", |image| kstatus(image) == "Current").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_killed_again_and_again_import_once() {
    let mut lab = Lab::new("operator-kills").await;
    lab.local_store("fast").await;
    let agent = lab.agent("n1").await;
    agent.script(Script::Succeed("one"));
    let kubeconfig = lab.plane.kubeconfig_for(&lab.system(), "vitrine-operator", None).await.unwrap();
    let leases: Api<Lease> = Api::namespaced(lab.client.clone(), &lab.system());
    for round in 0..10_u64 {
        let operator = spawn(&lab, &format!("o{round}"), &kubeconfig);
        let name = format!("image-{round}");
        until_leader(&lab, &format!("o{round}")).await;
        lab.image(&name, "fast").await;
        // Between its first look and its last write.
        tokio::time::sleep(Duration::from_millis(20 + round * 60)).await;
        operator.kill();
        // Waiting for the lease to expire is another test's business.
        leases.delete(LEADER_LEASE_NAME, &kube::api::DeleteParams::default()).await.unwrap();
    }
    let last = spawn(&lab, "last", &kubeconfig);
    for round in 0..10 {
        let image = lab.until_image(&format!("image-{round}"), "is active", |image| kstatus(image) == "Current").await;
        assert_eq!(image.status.unwrap().revisions[0].attempts, 1);
    }
    lab.until_tasks("none are left", <[_]>::is_empty).await;
    assert_eq!((agent.taken().len(), agent.disk().len()), (10, 10), "each once");
    drop(last);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_restarts_costs_no_attempt() {
    let mut lab = Lab::apart("restart").await;
    // The same operator shall see the outage through: one that was begun anew would blame nobody anyhow.
    lab.leader_lease = PATIENCE;
    lab.local_store("fast").await;
    lab.operator().await;
    let agent = lab.agent("n1").await;
    let image = lab.image("debian", "fast").await;
    lab.until_image("debian", "is importing", |image| {
        image.status.as_ref().and_then(|status| status.phase) == Some(ImagePhase::Importing)
    })
    .await;
    lab.plane.kill_apiserver();
    // Longer than an agent's lease: nobody could renew, and nobody is to be blamed.
    tokio::time::sleep(Duration::from_secs(LEASE_SECONDS.unsigned_abs().into())).await;
    lab.plane.start_apiserver().await.unwrap();
    agent.script(Script::Succeed("one"));
    let active = lab.until_image("debian", "is active", |image| kstatus(image) == "Current").await;
    assert_eq!(agent.taken(), [format!("{}-r1-import-1", uid(&image))]);
    assert_eq!(active.status.unwrap().revisions[0].attempts, 1);
}
