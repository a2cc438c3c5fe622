//! How the tools that people deploy from git with see Images and ImageStores: Flux' own reading (kstatus) and Argo CD's, by the script
//! that `config/argocd` has for it. And that nobody fights over a field.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use kube::Api;
use serde_json::{Value, json};
use vitrine::api::ImagePhase;
use vitrine_harness::{Tool, tools};

use super::{
    agent::Script,
    lab::{Lab, kstatus, until},
};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config/argocd/health.lua");
/// Who applies, in Flux and in Argo CD.
const MANAGERS: [&str; 2] = ["kustomize-controller", "argocd-controller"];

/// What kstatus says of an object, and what Argo CD says, with its message.
fn read(object: &Value) -> (String, String, String) {
    let paths = tools::ensure(&[Tool::Gitops]).unwrap();
    let mut command = Command::new(paths.path(Tool::Gitops).unwrap());
    let mut child = command.arg(SCRIPT).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(object.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{object}");
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (text(&said["kstatus"]), text(&said["argo"]["status"]), text(&said["argo"]["message"]))
}

/// Waits until the object is read as `(kstatus, Argo's status)`, with a word in the message.
async fn until_read(lab: &Lab, what: &[&str], wanted: (&str, &str), word: &str) {
    let look = || async {
        let args = [&["get", "-n", &lab.name, "-o", "json"], what].concat();
        let found = lab.plane.kubectl(&args).await.ok()?.success().ok()?;
        let object: Value = serde_json::from_str(&found).unwrap();
        let (kstatus, argo, message) = read(&object);
        let same = (kstatus.as_str(), argo.as_str()) == wanted && message.contains(word);
        if same { Some(Ok(())) } else { Some(Err((kstatus, argo, message))) }
    };
    until(&format!("{} is {wanted:?} with {word}", what.join(" ")), look).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flux_and_argo_cd_see_how_things_stand() {
    let mut lab = Lab::new("gitops").await;
    lab.local_store("fast").await;
    let store = lab.store_name("fast");
    lab.image("debian", "fast").await;
    until_read(&lab, &["image", "debian"], ("InProgress", "Progressing"), "not looked at").await;
    lab.operator().await;
    until_read(&lab, &["imagestore", &store], ("InProgress", "Degraded"), "no agent").await;
    let agent = lab.agent("n1").await;
    until_read(&lab, &["imagestore", &store], ("Current", "Healthy"), "reach").await;
    until_read(&lab, &["image", "debian"], ("InProgress", "Progressing"), "imported by node").await;
    agent.script(Script::Succeed("one"));
    until_read(&lab, &["image", "debian"], ("Current", "Healthy"), "kept in").await;
    lab.patch_image("debian", json!({ "spec": { "deactivated": true } })).await;
    until_read(&lab, &["image", "debian"], ("Current", "Suspended"), "nobody gets").await;

    agent.script(Script::Fail("ChecksumMismatch", false));
    lab.image("wrong", "fast").await;
    until_read(&lab, &["image", "wrong"], ("Failed", "Degraded"), "it broke").await;
    agent.script(Script::Hold);
    let upload = json!({
        "apiVersion": "vitrine.dev/v1alpha1", "kind": "Image", "metadata": { "name": "sent", "namespace": lab.name },
        "spec": { "source": { "upload": {} }, "stores": [store] },
    });
    lab.plane.apply(&upload.to_string()).await.unwrap();
    until_read(&lab, &["image", "sent"], ("InProgress", "Suspended"), "waits for its bytes").await;
    agent.silence(true);
    until_read(&lab, &["imagestore", &store], ("InProgress", "Degraded"), "no agent").await;
}

/// Whoever deploys from git applies the same manifest every few minutes: that changes nothing, conflicts with nothing, and what is
/// there does not differ from what is in git.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_applied_from_git_again_and_again_is_fought_over_by_nobody() {
    let mut lab = Lab::new("fights").await;
    lab.operator().await;
    lab.agent("n1").await.script(Script::Succeed("one"));
    let store = lab.store_name("fast");
    let manifests = json!({ "apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "vitrine.dev/v1alpha1", "kind": "ImageStore",
            "metadata": { "name": store, "labels": { "vitrine.dev/lab": lab.name } },
            "spec": { "filesystem": { "path": "/srv/fights" } },
        },
        {
            "apiVersion": "vitrine.dev/v1alpha1", "kind": "Image",
            "metadata": { "name": "debian", "namespace": lab.name, "annotations": { "team": "vms" } },
            "spec": { "source": { "http": { "url": "http://127.0.0.1/one" } }, "stores": [store] },
        },
    ]})
    .to_string();
    let images: Api<vitrine::api::Image> = lab.images();
    let mut seen = None;
    for round in 0..3 {
        for manager in MANAGERS {
            let manager = format!("--field-manager={manager}");
            let apply = ["apply", "--server-side", &manager, "-f", "-"];
            lab.plane.kubectl_with_input(&apply, &manifests).await.unwrap().success().unwrap();
        }
        let is_active = |image: &vitrine::api::Image| {
            kstatus(image) == "Current"
                && image.status.as_ref().and_then(|status| status.phase) == Some(ImagePhase::Active)
        };
        lab.until_image("debian", "is active", is_active).await;
        // Spec and what is written beside it stay as they were, and the data is fetched once.
        let image = images.get("debian").await.unwrap();
        let now = (image.metadata.generation, image.status.unwrap().revision);
        assert_eq!(*seen.get_or_insert(now), now, "round {round}");
        let differs = ["diff", "--server-side", "--field-manager=argocd-controller", "-f", "-"];
        let difference = lab.plane.kubectl_with_input(&differs, &manifests).await.unwrap();
        assert!(difference.status.success(), "round {round}: {}{}", difference.stdout, difference.stderr);
    }
    // Argo CD without server-side apply, and whoever has only kubectl.
    lab.plane.kubectl_with_input(&["apply", "-f", "-"], &manifests).await.unwrap().success().unwrap();
    let difference = lab.plane.kubectl_with_input(&["diff", "-f", "-"], &manifests).await.unwrap();
    assert!(difference.status.success(), "{}{}", difference.stdout, difference.stderr);
    assert_eq!(seen, Some((images.get("debian").await.unwrap().metadata.generation, Some(1))));
}
