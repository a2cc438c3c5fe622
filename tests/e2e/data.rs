//! Images' bytes, fetched and sent by the very commands that `docs/data-api.md` tells people to use.

use std::{fs, os::unix::fs::symlink, path::PathBuf};

use serde_json::json;
pub use vitrine_harness::document::commands;
use vitrine_harness::{Tool, qemu, tools};

use crate::site::{Site, debian, site};

const DOCUMENT: &str = include_str!("../../docs/data-api.md");
/// The namespace that the document speaks of.
pub const TEAM: &str = "team";

/// A person's folder, with kubectl in its path.
pub struct Desk<'s> {
    site: &'s Site,
    pub folder: PathBuf,
}

impl<'s> Desk<'s> {
    /// That of the person `who`.
    pub fn new(site: &'s Site, who: &str) -> Self {
        let folder = site.cluster.plane().scope().dir().join(format!("desk-{who}"));
        fs::create_dir_all(folder.join("bin")).unwrap();
        let kubectl = tools::ensure(&[Tool::Kubectl]).unwrap().path(Tool::Kubectl).unwrap().to_owned();
        symlink(kubectl, folder.join("bin/kubectl")).unwrap();
        Self { site, folder }
    }

    /// Runs the script as a person would, who stops what is left in the background afterwards; gives what it printed.
    pub fn run(&self, script: &str) -> String {
        let path = format!("{}:{}", self.folder.join("bin").display(), std::env::var("PATH").unwrap());
        let plane = self.site.cluster.plane();
        let mut command = plane.scope().command("bash");
        command.current_dir(&self.folder).env("PATH", path).env("KUBECONFIG", plane.kubeconfig());
        let script = format!("set -eu\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{script}\n");
        let done = command.args(["-c", &script]).output().unwrap();
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(done.status.success(), "{script}\n{}{}", said(&done.stdout), said(&done.stderr));
        said(&done.stdout)
    }
}

/// The namespace with somebody in it who may do what its people may. Whichever test is first makes it.
pub fn make_team(desk: &Desk<'_>) {
    desk.run(&format!(
        "kubectl get namespace {TEAM} && exit
         kubectl create namespace {TEAM}
         kubectl --namespace {TEAM} create serviceaccount builder
         kubectl --namespace {TEAM} create rolebinding builder --clusterrole edit --serviceaccount {TEAM}:builder"
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_document_says_fetches_an_image_and_sends_another() {
    let site = site().await;
    let desk = Desk::new(&site, "curl");
    make_team(&desk);
    site.serve("debian", "zlib.qcow2", &[]);
    let image = json!({
        "apiVersion": "vitrine.dev/v1alpha1", "kind": "Image", "metadata": { "name": "debian", "namespace": TEAM },
        "spec": { "source": { "http": { "url": site.server.url("/debian") } } },
    });
    site.cluster.plane().apply(&image.to_string()).await.unwrap();
    let active = ["wait", "image/debian", "-n", TEAM, "--for=condition=Ready", "--timeout=240s"];
    site.kubectl(&active).await;

    let given = debian("zlib.qcow2");
    fs::copy(&given, desk.folder.join("appliance.qcow2")).unwrap();
    let sum = sha256(&given);
    let fetch = commands(DOCUMENT, "kubectl --namespace vitrine-system port-forward");
    let send = commands(DOCUMENT, "kubectl --namespace team apply").replace("sha256:…", &format!("sha256:{sum}"));
    assert!(send.contains(&sum), "{send}");
    desk.run(&format!("{fetch}\n{send}"));

    let fetched = desk.folder.join("debian.raw");
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
