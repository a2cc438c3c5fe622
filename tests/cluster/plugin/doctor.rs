//! An installation that is well, and what is said when it is not.

use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use vitrine_harness::ControlPlane;

use super::desk::{Desk, Ran};
use crate::{
    node::lab::until,
    whole::{
        door::{ADDRESS, Door},
        site::Site,
    },
};

/// What was found of one thing.
fn finding<'f>(found: &'f Value, subject: &str) -> Option<&'f Value> {
    found["findings"].as_array().unwrap().iter().find(|finding| finding["subject"] == subject)
}

/// Waits until a problem is found of `subject` that says `part`, and gives all of what was found.
async fn problem(desk: &Desk<'_, '_>, subject: &str, part: &str) -> Value {
    let seen = async || {
        let ran = desk.run(&["doctor", "-o", "json"]).await;
        let (found, code) = (ran.json(), ran.code);
        let one = finding(&found, subject)?.clone();
        let said = one["level"] == "problem" && one["message"].as_str().unwrap().contains(part);
        said.then(|| {
            assert_eq!(code, 1);
            assert!(one["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty()), "{one}");
            found
        })
    };
    until(&format!("a problem with {subject}: {part}"), seen).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_site_is_told_from_broken_ones() {
    let plane = ControlPlane::start().await.unwrap();
    let site = Site::open(&plane, "ward").await;
    let node = site.lab.node("n").await;
    let desk = Desk::new(&site);
    let found = problem(&desk, "leader", "no operator has ever led").await;
    assert!(finding(&found, "kind Image").is_some_and(|kind| kind["level"] == "ok"), "{found}");
    assert!(finding(&found, "stores").is_some_and(|stores| stores["level"] == "problem"), "{found}");
    let operator = site.operator(&[]);
    let agent = site.lab.start(&node, &[&ADDRESS[..], &["--lease-duration", "2", "--lease-renew", "1"]].concat());
    site.store("s", &node.store(), false, None).await;
    let name = site.store_name("s");
    let default = Patch::Merge(json!({ "spec": { "default": true } }));
    site.stores().patch(&name, &PatchParams::default(), &default).await.unwrap();
    let desk = desk.at(&Door::of(&site, &node).await);
    let well = async || {
        let ran: Ran = desk.run(&["doctor"]).await;
        (ran.code == 0).then_some(ran.stdout)
    };
    let report = until("nothing is wrong", well).await;
    for part in [
        "kind ImageStore",
        "policy vitrine-protected-images",
        "leads",
        "default store",
        "data API",
        "proves who it is",
        "0 problems",
    ] {
        assert!(report.contains(part), "{part} in {report}");
    }

    std::fs::rename(node.store(), node.stores.join("away")).unwrap();
    std::fs::write(node.store(), "in its place").unwrap();
    let found = problem(&desk, &format!("store {name}"), &node.name).await;
    assert!(
        finding(&found, &format!("store {name}")).unwrap()["remedy"].as_str().unwrap().contains("store probe"),
        "{found}"
    );

    drop(agent);
    problem(&desk, "agents", "none is alive").await;
    problem(&desk, "data API", "cannot be reached").await;
    drop(operator);
    problem(&desk, "leader", "has not been heard of").await;
    let policies: kube::Api<k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicyBinding> =
        kube::Api::all(site.lab.client.clone());
    policies.delete("vitrine-protected-images", &DeleteParams::default()).await.unwrap();
    let found = desk.run(&["doctor", "-o", "json"]).await.expect(1).json();
    let policy = finding(&found, "policy vitrine-protected-images").unwrap();
    assert!(policy["level"] == "warning" && policy["message"].as_str().unwrap().contains("is not bound"), "{policy}");

    // Who may see little is told so, and not that all is well.
    let stranger = Desk::with_token(&site, "stranger", &[]).await;
    let report = stranger.run(&["doctor"]).await.stdout;
    assert!(report.contains("you may not look at Images") && report.contains("you may not see it"), "{report}");
    plane.kill_apiserver();
    let report = desk.run(&["doctor"]).await.expect(1).stdout;
    assert!(report.contains("PROBLEM") && report.contains("API server"), "{report}");
}
