//! Bytes to and from Images by command line: over a line that is slow, breaks, or is left in the middle.

use std::{
    path::Path,
    process::{Child, Stdio},
    time::Duration,
};

use k8s_openapi::api::core::v1::ServiceAccount;
use kube::{Api, api::ListParams};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use vitrine::api::TaskPhase;
use vitrine_harness::qemu;

use super::{
    desk::{Desk, Ran, read},
    kubelet::Kubelet,
    relay::Relay,
};
use crate::{
    node::{
        disks::{raw, sha256, sha256_of},
        lab::{phase, until},
    },
    whole::{
        door::{ADDRESS, Door},
        site::{Site, file, staffed},
    },
};

const SIZE: usize = 9 << 20;
/// Fast enough that nobody waits long, and slow enough that a test is in time.
const SLOW: u64 = 3 << 20;

/// Bytes that no run of zeros is in.
fn disk(seed: u64) -> Vec<u8> {
    (0..SIZE as u64 / 8).flat_map(|number| (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed).to_le_bytes()).collect()
}

/// The service accounts that are lent now.
async fn lent(site: &Site<'_>) -> usize {
    let accounts: Api<ServiceAccount> = Api::namespaced(site.lab.client.clone(), &site.tenant("t"));
    accounts.list(&ListParams::default().labels("vitrine.dev/transfer=true")).await.unwrap().items.len()
}

/// Ctrl-C, and what was said then.
async fn interrupt(child: Child) -> Ran {
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    tokio::task::spawn_blocking(|| child.wait_with_output().unwrap()).await.unwrap().into()
}

/// The command that a message ends with, without the program's name.
fn told(ran: &Ran) -> Vec<String> {
    let line = ran.stderr.lines().find_map(|line| line.strip_prefix("to go on with it: kubectl vitrine "));
    let line = line.unwrap_or_else(|| panic!("{}", ran.stderr));
    line.split(' ').map(str::to_owned).collect()
}

#[tokio::test]
async fn an_administrator_with_a_certificate_sends_and_fetches() {
    let (site, node, _staff) = staffed("desk-admin", &ADDRESS).await;
    let desk = Desk::new(&site).at(&Door::of(&site, &node).await);
    let (store, bytes) = (site.store_name("s"), disk(1));
    desk.file("Disk_1.raw", &bytes);
    let sent = desk.run(&["image", "upload", "Disk_1.raw", "--store", &store, "--property", "a=b"]).await.expect(0);
    let sent = sent.says(&["made Image disk-1 in namespace", "sent 9 MiB in"]);
    assert!(sent.stdout.contains("Active"), "{}", sent.stdout);
    let image = site.active("t", "disk-1").await;
    assert_eq!((sha256_of(&file(&image)), image.spec.properties["a"].as_str()), (sha256(&bytes), "b"));
    assert_eq!(lent(&site).await, 0, "nothing is left of what was lent");
    desk.run(&["image", "upload", "Disk_1.raw"]).await.expect(1).says(&["has its data already"]);

    desk.run(&["image", "download", "disk-1"]).await.expect(0).says(&["disk-1.raw: 9 MiB, raw, in"]);
    assert!(read(&desk.folder.join("disk-1.raw")) == bytes);
    desk.run(&["image", "download", "disk-1"]).await.expect(1).says(&["is there already: --force"]);
    desk.run(&["image", "save", "disk-1", "--file", "copy", "--quiet"]).await.expect(0);
    assert!(read(&desk.folder.join("copy")) == bytes);
    assert_eq!(desk.files(), ["Disk_1.raw", "copy", "disk-1.raw"]);
    let mut pipe = desk.command(["image", "download", "disk-1", "--file", "-", "-n", &site.tenant("t")]);
    let piped = tokio::task::spawn_blocking(move || pipe.output().unwrap()).await.unwrap();
    assert!(piped.status.success() && piped.stdout == bytes);
    assert_eq!(lent(&site).await, 0);

    // What comes through a pipe, and is stored in another form than it came.
    let line = ["image", "upload", "-", "piped", "--store", &store, "--convert-to", "qcow2", "-n", &site.tenant("t")];
    let mut child = tokio::process::Command::from(desk.command(line)).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&bytes).await.unwrap();
    Ran::from(child.wait_with_output().await.unwrap()).expect(0);
    desk.run(&["image", "download", "piped"]).await.expect(0).says(&["piped.qcow2"]);
    let [raw, qcow2] = ["copy", "piped.qcow2"].map(|name| desk.folder.join(name).display().to_string());
    qemu::qemu_img(&["compare", "-f", "raw", "-F", "qcow2", &raw, &qcow2]).unwrap();
    node.assert_clean();
}

#[tokio::test]
async fn a_line_that_breaks_again_and_again_is_gone_on_with() {
    let (site, node, _staff) = staffed("desk-breaks", &ADDRESS).await;
    let mut door = Door::of(&site, &node).await;
    let relay = Relay::to(door.address, 64 << 20, Some(2 << 20)).await;
    door.address = relay.address;
    let desk = Desk::with_token(&site, "editor", &["vitrine-edit", "vitrine-view"]).await.at(&door);
    let bytes = disk(2);
    desk.file("disk", &bytes);
    desk.run(&["image", "upload", "disk", "--store", &site.store_name("s")]).await.expect(0);
    assert_eq!(sha256_of(&file(&site.active("t", "disk").await)), sha256(&bytes));
    desk.run(&["image", "download", "disk"]).await.expect(0);
    assert!(read(&desk.folder.join("disk.raw")) == bytes);
    // What is lost with a connection is what was on its way.
    assert!(relay.up() < 3 * SIZE as u64 && relay.down() < 2 * SIZE as u64, "{} {}", relay.up(), relay.down());
    assert_eq!(lent(&site).await, 0, "who has a token needs no account");
}

#[tokio::test]
async fn ctrl_c_leaves_what_the_command_that_it_prints_goes_on_with() {
    let (site, node, _staff) = staffed("desk-ctrl-c", &ADDRESS).await;
    let mut door = Door::of(&site, &node).await;
    let relay = Relay::to(door.address, SLOW, None).await;
    door.address = relay.address;
    let desk = Desk::new(&site).at(&door);
    let (bytes, space, store) = (disk(3), site.tenant("t"), site.store_name("s"));
    desk.file("disk", &bytes);
    desk.file("other", &disk(4));
    let child = desk.command(["image", "upload", "disk", "--store", &store, "-n", &space]).spawn().unwrap();
    until("a third is sent", async || (relay.up() > SIZE as u64 / 3).then_some(())).await;
    let stopped = interrupt(child).await.expect(130).says(&["interrupted after", "of 9 MiB", "kept for an hour"]);
    assert_eq!(lent(&site).await, 0, "what was lent is given back");
    let again = told(&stopped);
    assert_eq!(again[..6], ["image", "upload", "disk", "disk", "--namespace", &*space], "{again:?}");
    desk.run(&["image", "upload", "other", "disk"]).await.expect(1).says(&["the rest of another file", "--restart"]);
    // What was on its way when it was interrupted still comes, and counts as sent.
    let mut before = relay.up();
    loop {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let now = relay.up();
        if now == before {
            break;
        }
        before = now;
    }
    let again: Vec<_> = again.iter().map(String::as_str).collect();
    desk.run_anywhere(&again).await.expect(0);
    let sent = relay.up() - before;
    assert!(sent < SIZE as u64 * 4 / 5, "{sent} were sent of which some had been before");
    assert_eq!(sha256_of(&file(&site.active("t", "disk").await)), sha256(&bytes));

    let child = desk.command(["image", "download", "disk", "--file", "got", "-n", &space]).spawn().unwrap();
    let came = relay.down();
    until("a third has come", async || (relay.down() - came > SIZE as u64 / 3).then_some(())).await;
    let stopped = interrupt(child).await.expect(130).says(&["interrupted after"]);
    assert!(desk.files().contains(&"got.part".to_owned()) && !desk.files().contains(&"got".to_owned()));
    let (again, before) = (told(&stopped), relay.down());
    let again: Vec<_> = again.iter().map(String::as_str).collect();
    desk.run_anywhere(&again).await.expect(0);
    assert!(relay.down() - before < SIZE as u64 * 4 / 5, "{}", relay.down() - before);
    assert!(read(&desk.folder.join("got")) == bytes);
    assert_eq!(desk.files(), ["disk", "got", "other"]);
}

#[tokio::test]
async fn bytes_go_by_a_forwarded_port_that_may_break() {
    let (site, node, _staff) = staffed("desk-port", &ADDRESS).await;
    let door = Door::of(&site, &node).await;
    let _kubelet = Kubelet::of(&site, &node.name, &door, Some(4 << 20)).await;
    let (desk, bytes) = (Desk::new(&site), disk(7));
    desk.file("disk", &bytes);
    desk.run(&["image", "upload", "disk", "--store", &site.store_name("s")]).await.expect(0);
    assert_eq!(sha256_of(&file(&site.active("t", "disk").await)), sha256(&bytes));
    desk.run(&["image", "download", "disk"]).await.expect(0);
    assert!(read(&desk.folder.join("disk.raw")) == bytes);
    // Whoever has a token and may forward ports needs nothing else; whoever may not is told of the role.
    let viewer = Desk::with_token(&site, "viewer", &["vitrine-view"]).await;
    viewer.run(&["image", "download", "disk"]).await.expect(1).says(&["vitrine-forward"]);
    let bind = format!(
        "{{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {{name: viewer, namespace: {0}}}, roleRef: {{apiGroup: \
         rbac.authorization.k8s.io, kind: Role, name: vitrine-forward}}, subjects: [{{kind: ServiceAccount, name: viewer, namespace: {1}}}]}}",
        site.lab.namespace,
        site.tenant("t")
    );
    site.lab.plane.apply(&bind).await.unwrap();
    let allowed = async || (viewer.run(&["image", "download", "disk"]).await.code == 0).then_some(());
    until("the right is known", allowed).await;
    assert!(read(&viewer.folder.join("disk.raw")) == bytes);
    assert_eq!(lent(&site).await, 0);
}

#[tokio::test]
async fn a_terminal_sees_a_bar_with_rate_and_time_left() {
    let (site, node, _staff) = staffed("desk-bar", &ADDRESS).await;
    let mut door = Door::of(&site, &node).await;
    let relay = Relay::to(door.address, SLOW, None).await;
    door.address = relay.address;
    let desk = Desk::new(&site).at(&door);
    desk.file("disk", &disk(5));
    let inner = desk.command([""; 0]);
    let line = format!(
        "./kubectl-vitrine image upload disk --store {} --namespace {}",
        site.store_name("s"),
        site.tenant("t")
    );
    let mut terminal = tokio::process::Command::new("script");
    terminal.args(["--quiet", "--return", "--flush", "--command", &line, "/dev/null"]).current_dir(&desk.folder);
    terminal.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?)))).stdin(Stdio::null());
    let seen = Ran::from(terminal.output().await.unwrap()).expect(0).stdout;
    for part in ["transferring", "/9.00 MiB", "MiB/s", "Active"] {
        assert!(seen.contains(part), "{part} in {seen}");
    }
}

#[tokio::test]
async fn what_is_no_image_is_refused_and_something_else_may_be_sent() {
    let (site, node, _staff) = staffed("desk-unfit", &ADDRESS).await;
    let desk = Desk::new(&site).at(&Door::of(&site, &node).await);
    base_and_overlay(&desk);
    let line = ["image", "upload", "overlay", "disk", "--store", &site.store_name("s")];
    desk.run(&line).await.expect(3).says(&["backing-file"]);
    let again = ["image", "upload", "base", "disk", "--property", "a=b"];
    let ready = desk.run(&again).await.expect(0).says(&["trying again", "stays as it was declared"]);
    assert!(ready.stdout.contains("Active"), "{}", ready.stdout);
    let lost = desk.run(&["image", "upload", "base", "lost", "--store", "nowhere"]).await.expect(1);
    assert!(!lost.says(&["does not go on", "nowhere"]).stderr.contains("trying again"), "no try would help");
    desk.file("empty", b"");
    desk.run(&["image", "upload", "empty"]).await.expect(1).says(&["is empty"]);
    desk.run(&["image", "upload", "nowhere"]).await.expect(1).says(&["reading nowhere"]);
    desk.run(&["image", "upload", "-"]).await.expect(1).says(&["say what the Image shall be called"]);
    desk.run(&["image", "download", "nothing"]).await.expect(1).says(&["\"nothing\" not found"]);
}

#[tokio::test]
async fn what_was_refused_a_moment_ago_does_not_count_for_what_is_sent_next() {
    let (site, node, staff) = staffed("desk-sudden", &ADDRESS).await;
    let desk = Desk::new(&site).at(&Door::of(&site, &node).await);
    base_and_overlay(&desk);
    desk.run(&["image", "create", "disk", "--store", &site.store_name("s")]).await.expect(0);
    let taken = async || {
        let tasks = site.lab.tasks().list(&ListParams::default()).await.unwrap();
        tasks.items.iter().any(|task| phase(task) == TaskPhase::Running).then_some(())
    };
    until("an agent waits for the bytes", taken).await;
    // The agent refuses it, and the operator, which says so of the Image, is not in time for the next command.
    let [operator, _agent] = &staff;
    operator.pause().unwrap();
    desk.run(&["image", "upload", "overlay", "disk"]).await.expect(3).says(&["backing-file"]);
    let line = ["image", "upload", "base", "disk"];
    let late = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        operator.resume().unwrap();
    };
    let (sent, ()) = tokio::join!(desk.run(&line), late);
    let ready = sent.expect(0).says(&["did not go on", "backing-file", "trying again", "sent 1 MiB"]);
    assert!(ready.stdout.contains("Active"), "{}", ready.stdout);
}

/// `base`, a raw disk of 1 MiB, and `overlay`, which is no image without it.
fn base_and_overlay(desk: &Desk<'_, '_>) {
    let (base, overlay) = (desk.file("base", &raw(1, 1 << 20)), desk.folder.join("overlay"));
    let [base, overlay] = [&base, &overlay].map(|path| path.to_str().unwrap());
    qemu::qemu_img(&["create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", overlay]).unwrap();
}

#[tokio::test]
async fn who_has_no_way_is_told_of_one() {
    let (site, node, _staff) = staffed("desk-ways", &ADDRESS).await;
    let door = Door::of(&site, &node).await;
    let editor = Desk::with_token(&site, "ways", &["vitrine-edit"]).await;
    editor.file("disk", &disk(6));
    let line = ["image", "upload", "disk", "--store", &site.store_name("s")];
    editor.run(&line).await.expect(1).says(&["get services", "vitrine-forward", "--data-url"]);
    // Somebody with the role edit and no token cannot lend an account, and names one.
    site.token("t", "builder", &["vitrine-edit"]).await;
    let bind = format!(
        "{{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {{name: ed, namespace: {}}}, roleRef: {{apiGroup: \
         rbac.authorization.k8s.io, kind: ClusterRole, name: edit}}, subjects: [{{kind: User, name: ed}}]}}",
        site.tenant("t")
    );
    site.lab.plane.apply(&bind).await.unwrap();
    let admin = Desk::new(&site).at(&door);
    admin.file("disk", &disk(6));
    let as_ed = [&line[..], &["--as", "ed"]].concat();
    admin.run(&as_ed).await.expect(1).says(&["--service-account NAME", "kubectl create serviceaccount"]);
    assert_eq!(lent(&site).await, 0);
    admin.run(&[&as_ed[..], &["--service-account", "builder"]].concat()).await.expect(0);
    // And whoever may upload need not be able to download.
    let wrong = admin.run(&["image", "download", "disk", "--service-account", "builder"]).await.expect(1);
    wrong.says(&["may not get images/data"]);
    let elsewhere = ["image", "download", "disk", "--vitrine-namespace", "default"];
    admin.run(&elsewhere).await.expect(1).says(&["no ConfigMap vitrine-ca", "--vitrine-namespace"]);
    let mut other = site.lab.plane.kubeconfig();
    other.pop();
    let stranger = other.join("ca.crt").display().to_string();
    let distrusted = ["image", "download", "disk", "--certificate-authority", &stranger];
    admin.run(&distrusted).await.expect(1).says(&["does not prove to be an agent"]);
}

#[tokio::test]
async fn a_token_is_had_as_the_kubeconfig_says() {
    let (site, node, _staff) = staffed("desk-tokens", &ADDRESS).await;
    let desk =
        Desk::with_token(&site, "tokens", &["vitrine-edit", "vitrine-view"]).await.at(&Door::of(&site, &node).await);
    let given: Value = serde_json::from_slice(&read(&desk.kubeconfig)).unwrap();
    let token = given["users"][0]["user"]["token"].as_str().unwrap();
    let file = desk.file("token", token.as_bytes());
    let said = json!({
        "apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": { "token": token },
    });
    let said = desk.file("said.json", said.to_string().as_bytes());
    let program = |path: &Path| {
        let args = [path.to_str().unwrap()];
        let api = "client.authentication.k8s.io/v1";
        json!({ "exec": { "apiVersion": api, "command": "cat", "args": args, "interactiveMode": "Never" } })
    };
    desk.file("disk", &disk(7));
    let ways =
        [("file", json!({ "tokenFile": file })), ("program", program(&said)), ("none", program(Path::new("/nowhere")))];
    for (name, way) in ways {
        let mut config = given.clone();
        config["users"][0]["user"] = way;
        let config = desk.file(&format!("{name}.config"), config.to_string().as_bytes());
        let config = ["--kubeconfig", config.to_str().unwrap()];
        let send = ["image", "upload", "disk", name, "--store", &site.store_name("s")];
        if name == "none" {
            desk.run(&[&send[..], &config].concat()).await.expect(1).says(&["/nowhere"]);
            continue;
        }
        desk.run(&[&send[..], &config].concat()).await.expect(0);
        let back = ["image", "download", name, "--file", name];
        desk.run(&[&back[..], &config].concat()).await.expect(0);
        assert_eq!(read(&desk.folder.join(name)), disk(7));
    }
    assert_eq!(lent(&site).await, 0, "nobody had to lend one");
}
