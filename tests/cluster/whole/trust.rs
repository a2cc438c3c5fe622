//! Who signs what agents prove themselves with: how they take over from each other, and who can read what.

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, api::ListParams};
use reqwest::Version;
use vitrine_harness::Route;

use super::{
    door::{ADDRESS, Door},
    site::Site,
};
use crate::node::{disks::raw, lab::until};

#[tokio::test]
async fn signers_take_over_from_each_other_and_nobody_notices() {
    let site = Site::shared("signers").await;
    let node = site.lab.node("n").await;
    let operator = site.operator(&["--authority-validity", "40"]);
    let _agent = site.lab.start(&node, &ADDRESS);
    site.store("s", &node.store(), false, None).await;
    site.lab.server.put("/disk", Route::bytes(raw(1, 1 << 20)));
    site.image("t", "disk", "/disk", "s").await;
    site.active("t", "disk").await;
    let (door, token) = (Door::of(&site, &node).await, site.token("t", "viewer", &["vitrine-view"]).await);
    let first = door.bundle().await;
    let (mut bundles, mut served) = (BTreeSet::from([first.clone()]), 0);
    // Until nothing of the first bundle is in the published one: one signer has wholly taken over from another.
    while first
        .split_inclusive("-----END CERTIFICATE-----\n")
        .any(|one| bundles.iter().all(|bundle| bundle.contains(one)))
    {
        let bundle = door.bundle().await;
        // A new connection each time.
        let answer =
            Door::trusting(&bundle, Version::HTTP_11).get(door.url("t", "disk")).bearer_auth(&token).send().await;
        assert_eq!(answer.unwrap().bytes().await.unwrap().len(), 1 << 20);
        served += 1;
        bundles.insert(bundle);
        assert!(served < 5000, "the signer stays the same");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(bundles.len() >= 3, "both are published for a while");
    assert!(served > 20);
    // Another operator goes on with the same keys.
    drop(operator);
    let before = door.bundle().await;
    let _operator = site.operator(&[]);
    let answers = Door::trusting(&before, Version::HTTP_2).get(door.url("t", "disk")).bearer_auth(&token).send().await;
    assert_eq!(answers.unwrap().status(), 200);
}

#[tokio::test]
async fn agents_that_begin_anew_are_given_a_new_certificate_by_whoever_signs() {
    let site = Site::shared("anew").await;
    let node = site.lab.node("n").await;
    let operator = site.operator(&[]);
    let agent = site.lab.start(&node, &ADDRESS);
    let bundle = Door::of(&site, &node).await.bundle().await;
    drop(agent);
    drop(operator);
    let _agent = site.lab.start(&node, &ADDRESS);
    let _operator = site.operator(&["--name", "another"]);
    let caches: Api<vitrine::api::NodeCache> = Api::all(site.lab.client.clone());
    let serves = async || {
        let address: std::net::SocketAddr = caches.get(&node.name).await.ok()?.status?.data?.address.parse().ok()?;
        let url = format!("https://localhost:{}/", address.port());
        let answer = Door::trusting(&bundle, Version::HTTP_11).get(url).send().await.ok()?;
        (answer.status() == 404).then_some(())
    };
    until("the new agent proves itself to who trusts the old bundle", serves).await;
}

#[tokio::test]
async fn keys_that_sign_are_nobodys_but_the_operators() {
    let site = Site::shared("signing-keys").await;
    let node = site.lab.node("n").await;
    let (_operator, _agent) = (site.operator(&[]), site.lab.start(&node, &ADDRESS));
    let door = Door::of(&site, &node).await;
    let secrets: Api<Secret> = Api::namespaced(site.lab.client.clone(), &site.lab.namespace);
    let found = secrets.list(&ListParams::default().labels("vitrine.dev/authority=true")).await.unwrap().items;
    let [secret] = found.as_slice() else { panic!("one Secret: {found:?}") };
    let name = secret.metadata.name.as_deref().unwrap();
    assert!(name.strip_prefix("vitrine-ca-").is_some_and(|digits| digits.len() == 32), "{name}");
    assert!(!door.bundle().await.contains("PRIVATE"));
    let namespace = &site.lab.namespace;
    let viewer = format!("system:serviceaccount:{}:viewer", site.tenant("t"));
    let agent = format!("system:serviceaccount:{namespace}:vitrine-agent");
    for (who, may, what) in [
        (&agent, "no", &["list", "secrets"][..]),
        (&agent, "no", &["watch", "secrets"]),
        (&agent, "no", &["list", "images.vitrine.dev", "--all-namespaces"]),
        (&agent, "no", &["get", "images.vitrine.dev", "--subresource=data"]),
        (&agent, "no", &["update", "images.vitrine.dev"]),
        (&agent, "yes", &["get", "configmap/vitrine-ca"]),
        (&agent, "no", &["get", "configmaps"]),
        (&viewer, "yes", &["get", "configmap/vitrine-ca"]),
        (&viewer, "no", &["list", "configmaps"]),
        (&viewer, "no", &["get", "secrets"]),
    ] {
        let groups = ["--as-group", "system:authenticated", "--as-group", "system:serviceaccounts"];
        let ask: Vec<_> =
            ["auth", "can-i", "-n", namespace, "--as", who].iter().chain(&groups).chain(what).copied().collect();
        assert_eq!(site.lab.plane.kubectl(&ask).await.unwrap().stdout.trim(), may, "{who}: {what:?}");
    }
}
