//! Images' bytes, fetched and sent by the very commands that `docs/data-api.md` tells people to use.

use std::{fs, path::Path};

use serde_json::json;
pub use vitrine_harness::document::{Desk, commands};
use vitrine_harness::qemu;

use crate::site::{Site, debian, site};

const DOCUMENT: &str = include_str!("../../docs/data-api.md");
/// The namespace that the document speaks of.
pub const TEAM: &str = "team";

/// That of the person `who`, with the plugin in the path.
pub async fn desk<'s>(site: &'s Site, who: &str) -> Desk<'s> {
    let desk = Desk::new(site.cluster.plane(), who).await;
    desk.give("kubectl-vitrine", Path::new(env!("CARGO_BIN_EXE_vitrine")));
    desk
}

/// The namespace with somebody in it who may do what its people may. Whichever test is first makes it.
pub async fn make_team(desk: &Desk<'_>) {
    desk.run(&format!(
        "kubectl get namespace {TEAM} && exit
         kubectl create namespace {TEAM}
         kubectl --namespace {TEAM} create serviceaccount builder
         kubectl --namespace {TEAM} create rolebinding builder --clusterrole edit --serviceaccount {TEAM}:builder"
    ))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_document_says_fetches_an_image_and_sends_another() {
    let site = site().await;
    let desk = desk(&site, "curl").await;
    make_team(&desk).await;
    site.serve("debian", "zlib.qcow2", &[]);
    let image = json!({
        "apiVersion": "vitrine.dev/v1alpha1", "kind": "Image", "metadata": { "name": "debian", "namespace": TEAM },
        "spec": { "source": { "http": { "url": site.server.url("/debian") } } },
    });
    site.cluster.plane().apply(&image.to_string()).await.unwrap();
    let active = ["wait", "image/debian", "-n", TEAM, "--for=condition=Ready", "--timeout=240s"];
    site.kubectl(&active).await;

    let given = debian("zlib.qcow2");
    fs::copy(&given, desk.folder().join("appliance.qcow2")).unwrap();
    let sum = sha256(&given);
    let fetch = commands(DOCUMENT, "kubectl --namespace vitrine-system port-forward");
    let send = commands(DOCUMENT, "kubectl --namespace team apply").replace("sha256:…", &format!("sha256:{sum}"));
    assert!(send.contains(&sum), "{send}");
    desk.run(&format!("{fetch}\n{send}")).await;

    let fetched = desk.folder().join("debian.raw");
    qemu::qemu_img(&["compare", "-f", "raw", "-F", "qcow2", fetched.to_str().unwrap(), given.to_str().unwrap()])
        .unwrap();
    let sent = site.get(&["image", "appliance", "-n", TEAM]).await;
    let kept = site.get(&["image", "debian", "-n", TEAM]).await;
    assert_eq!(sent["status"]["phase"], "Active", "{sent}");
    assert_eq!(sent["status"]["contentDigest"], kept["status"]["contentDigest"]);
    site.kubectl(&["delete", "images", "--all", "-n", TEAM]).await;
}

/// The SHA-256 of a file, as the tool that everybody has computes it.
pub fn sha256(file: &std::path::Path) -> String {
    let output = std::process::Command::new("sha256sum").arg(file).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
}
