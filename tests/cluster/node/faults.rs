//! Sources and stores that fail: what the task says then, and that nothing stays behind.

use std::process::Command;

use vitrine::api::{DeclaredFormat, TaskFailure};
use vitrine_harness::{Content, Fault, Route, qemu};

use super::{
    disks::{entries, raw, sha256, sha256_of, stored},
    lab::{Lab, Node},
};

/// Imports what `route` gives, which must fail; nothing may stay.
async fn failure(lab: &Lab<'_>, node: &Node, image: &str, route: Route) -> TaskFailure {
    let path = format!("/{image}");
    lab.server.put(&path, route);
    let failure = lab.failure(&lab.import(&node.order(image, &lab.server.url(&path))).await).await;
    assert!(!entries(&node.store()).iter().any(|name| name.contains(image)), "{image} left something");
    failure
}

#[tokio::test]
async fn servers_that_fail_are_told_apart() {
    let lab = Lab::shared("servers").await;
    let node = lab.node("n").await;
    let _agent = lab.start(&node, &["--max-concurrent", "8", "--stall-timeout", "1", "--source-attempts", "2"]);
    let (disk, other) = (raw(1, 2 << 20), raw(2, 2 << 20));
    let content = || Route::bytes(disk.clone());
    let half = 1 << 20;
    let routes = [
        ("missing", Route::status(404), "NotFound", false),
        ("forbidden", Route::status(403), "Denied", false),
        ("metadata", Route::redirect("http://169.254.169.254/latest"), "Denied", false),
        ("stalling", content().always(Fault::StallAfter(64 << 10)), "Unavailable", true),
        ("hanging-up", content().always(Fault::HangUp), "Unavailable", true),
        ("busy", content().always(Fault::Status(503)), "Unavailable", true),
        (
            "replaced",
            content().only(1, Fault::CutAfter(half)).from(2, Fault::Replace(Content::bytes(other))),
            "Changed",
            true,
        ),
    ];
    let all = routes.map(async |(image, route, reason, retryable)| {
        let failure = failure(&lab, &node, image, route).await;
        assert_eq!((failure.reason.as_str(), failure.retryable), (reason, retryable), "{image}: {}", failure.message);
    });
    futures::future::join_all(all).await;
    node.assert_clean();
}

#[tokio::test]
async fn a_cut_connection_is_resumed() {
    let lab = Lab::shared("cut").await;
    let node = lab.node("n").await;
    let _agent = lab.start(&node, &[]);
    let disk = raw(1, 4 << 20);
    lab.server.put("/disk", Route::bytes(disk.clone()).first(2, Fault::CutAfter(1 << 20)));
    let task = lab.succeeded(&lab.import(&node.order("a", &lab.server.url("/disk"))).await).await;
    assert_eq!(sha256_of(&stored(&task)), sha256(&disk));
    let (sent, size) = (lab.server.sent("/disk"), disk.len() as u64);
    assert!(sent < size + (1 << 20), "{sent} bytes were sent for {size}");
}

#[tokio::test]
async fn refused_images_name_the_rule() {
    let lab = Lab::shared("refused").await;
    let node = lab.node("n").await;
    let _agent = lab.start(&node, &["--max-virtual-size", "67108864"]);
    let disk = raw(1, 1 << 20);
    let refused = |failure: TaskFailure, rule: &str| {
        assert_eq!(
            (failure.reason.as_str(), failure.rule.as_deref(), failure.retryable),
            ("Refused", Some(rule), false),
            "{}",
            failure.message
        );
    };
    lab.server.put("/disk", Route::bytes(disk.clone()));
    let mut order = node.order("wrong-sum", &lab.server.url("/disk"));
    order.import.checksums = vec![sha256(&disk), sha256(b"something else")];
    refused(lab.failure(&lab.import(&order).await).await, "checksum-mismatch");
    let mut order = node.order("wrong-format", &lab.server.url("/disk"));
    order.import.disk_format = DeclaredFormat::Qcow2;
    refused(lab.failure(&lab.import(&order).await).await, "format-mismatch");

    let dir = lab.plane.scope().dir();
    let (base, overlay, huge) = (dir.join("refused.raw"), dir.join("overlay.qcow2"), dir.join("huge.qcow2"));
    std::fs::write(&base, &disk).unwrap();
    let [base, overlay_, huge_] = [&base, &overlay, &huge].map(|path| path.to_str().unwrap());
    qemu::qemu_img(&["create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", overlay_]).unwrap();
    qemu::qemu_img(&["create", "-q", "-f", "qcow2", huge_, "1G"]).unwrap();
    refused(failure(&lab, &node, "overlay", Route::file(&overlay).unwrap()).await, "backing-file");
    refused(failure(&lab, &node, "huge", Route::file(&huge).unwrap()).await, "virtual-size-limit");
    refused(
        failure(&lab, &node, "page", Route::bytes(b"<html><body>Log in</body></html>".to_vec())).await,
        "not-a-disk",
    );
    assert_eq!(entries(&node.store()), [""; 0]);
    node.assert_clean();
}

#[tokio::test]
async fn a_store_outside_the_roots_is_not_written_to() {
    let lab = Lab::shared("outside").await;
    let node = lab.node("n").await;
    let _agent = lab.start(&node, &[]);
    lab.server.put("/disk", Route::bytes(raw(1, 1 << 20)));
    let folder = lab.plane.scope().dir().join("outside-folder");
    let order = super::lab::Order::new(&node.name, "a", &lab.server.url("/disk"), &folder, false);
    // Another node may have other roots, so it is that node's fault and no reason to give up.
    for name in [lab.import(&order).await, lab.delete(&order).await] {
        let denied = lab.failure(&name).await;
        assert_eq!((denied.reason.as_str(), denied.retryable), ("Unavailable", true), "{}", denied.message);
        assert!(denied.message.contains(&node.name) && denied.message.contains("--store-root"), "{}", denied.message);
    }
    assert!(!folder.exists());
    assert_eq!(lab.server.requests().len(), 0, "it is noticed before anything is fetched");
}

#[tokio::test]
async fn a_full_disk_is_told_and_emptied_again() {
    let lab = Lab::shared("full").await;
    let node = lab.node("n").await;
    // The mount is the agent's alone and goes with it, however it ends.
    let mount = format!("mount -t tmpfs -o size=16m tmpfs {} && exec \"$@\"", node.stores.display());
    let agent =
        lab.start_in(&node, &["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", &mount, "sh"], &[]);
    let inside = std::path::PathBuf::from(format!("/proc/{}/root{}", agent.id(), node.store().display()));
    lab.server.put("/big", Route::bytes(raw(1, 32 << 20)));
    let failure = lab.failure(&lab.import(&node.order("big", &lab.server.url("/big"))).await).await;
    assert_eq!((failure.reason.as_str(), failure.retryable), ("NoSpace", true), "{}", failure.message);
    assert_eq!(entries(&inside), [""; 0]);
    let small = raw(2, 8 << 20);
    lab.server.put("/small", Route::bytes(small));
    lab.succeeded(&lab.import(&node.order("small", &lab.server.url("/small"))).await).await;
    assert_eq!(entries(&inside), ["small-r1"]);
    let mounts = Command::new("findmnt").arg(&node.stores).output().unwrap();
    assert!(!mounts.status.success(), "the mount is seen outside");
}
