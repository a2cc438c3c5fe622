//! Images that cannot be had: what a tenant reads then, and that mending the cause mends the Image.

use serde_json::json;
use vitrine::api::{Image, ImagePhase};
use vitrine_harness::{Content, Fault, Route, qemu};

use super::site::{Site, condition, file, is, phase, staffed};
use crate::node::{
    disks::{entries, raw, sha256, sha256_of},
    lab::{Node, until},
};

/// The last failure, by reason, rule and message.
fn failure(image: &Image) -> Option<(String, Option<String>, String)> {
    let failure = image.status.as_ref()?.attempt.as_ref()?.last_failure.clone()?;
    Some((failure.reason, failure.rule, failure.message))
}

#[tokio::test]
async fn a_wrong_checksum_stalls_the_image_until_it_is_corrected() {
    let (site, node, _staff) = staffed("checksum", &[]).await;
    let disk = raw(1, 1 << 20);
    site.lab.server.put("/disk", Route::bytes(disk.clone()));
    site.image("t", "disk", "/disk", "s").await;
    site.active("t", "disk").await;
    let checksum = |sum: &str| json!({ "spec": { "source": { "http": { "checksum": sum } } } });
    site.patch("disk", checksum(&sha256(b"something else"))).await;
    let image = site.stalled("t", "disk").await;
    let (reason, rule, message) = failure(&image).unwrap();
    assert_eq!((reason.as_str(), rule.as_deref()), ("Refused", Some("checksum-mismatch")), "{message}");
    let stalled = condition(&image, "Stalled").unwrap();
    assert!(stalled.message.contains(&sha256(&disk)) && is(&image, "Ready", "False"), "{stalled:?}");
    // What was good goes on serving.
    assert_eq!(image.status.as_ref().unwrap().revision, Some(1));
    assert_eq!(sha256_of(&file(&image)), sha256(&disk));
    site.patch("disk", checksum(&sha256(&disk))).await;
    let image = site.active("t", "disk").await;
    assert!(!is(&image, "Stalled", "True"));
    // The first revision is removed when the one that takes its place serves already.
    let only = format!("{}-r3", image.metadata.uid.as_deref().unwrap());
    until("the old revision is removed", async || (entries(&node.store()) == [only.clone()]).then_some(())).await;
    node.assert_clean();
}

#[tokio::test]
async fn an_image_that_is_refused_says_by_which_rule() {
    let (site, node, _staff) = staffed("rules", &[]).await;
    let dir = site.lab.plane.scope().dir();
    let (base, overlay) = (dir.join("rules.raw"), dir.join("rules.qcow2"));
    std::fs::write(&base, raw(1, 1 << 20)).unwrap();
    let [base_, overlay_] = [&base, &overlay].map(|path| path.to_str().unwrap());
    qemu::qemu_img(&["create", "-q", "-f", "qcow2", "-b", base_, "-F", "raw", overlay_]).unwrap();
    site.lab.server.put("/overlay", Route::file(&overlay).unwrap());
    site.lab.server.put("/elsewhere", Route::redirect("http://169.254.169.254/latest/meta-data"));
    site.image("t", "overlay", "/overlay", "s").await;
    site.image("t", "elsewhere", "/elsewhere", "s").await;
    let image = site.stalled("t", "overlay").await;
    let (reason, rule, message) = failure(&image).unwrap();
    assert_eq!((reason.as_str(), rule.as_deref()), ("Refused", Some("backing-file")), "{message}");
    assert_eq!(phase(&image), Some(ImagePhase::Failed));
    let image = site.stalled("t", "elsewhere").await;
    let (reason, _, message) = failure(&image).unwrap();
    assert_eq!(reason, "Denied", "{message}");
    assert!(message.contains("169.254.169.254"), "{message}");
    assert_eq!(entries(&node.store()), [""; 0]);
    for name in ["overlay", "elsewhere"] {
        site.delete("t", name).await;
    }
}

#[tokio::test]
async fn a_server_that_recovers_is_tried_again() {
    let site = Site::shared("recovers").await;
    let node = site.lab.node("n").await;
    let (_operator, _agent) =
        (site.operator(&[]), site.lab.start(&node, &["--source-attempts", "1", "--stall-timeout", "1"]));
    site.store("s", &node.store(), false, None).await;
    let (old, new, half) = (raw(1, 2 << 20), raw(2, 2 << 20), 1 << 20);
    let route = Route::bytes(old.clone())
        .only(1, Fault::Status(503))
        .only(2, Fault::CutAfter(half))
        .only(3, Fault::StallAfter(half))
        .from(4, Fault::Replace(Content::bytes(new.clone())));
    site.lab.server.put("/disk", route);
    site.image("t", "disk", "/disk", "s").await;
    let image = site.active("t", "disk").await;
    assert_eq!(sha256_of(&file(&image)), sha256(&new));
    assert!(image.status.as_ref().unwrap().revisions[0].attempts > 1, "{:?}", image.status);
    assert_eq!(entries(&node.store()).len(), 1);
    node.assert_clean();
}

/// The store's folder as the agent `id` sees it.
fn inside(id: u32, node: &Node) -> std::path::PathBuf {
    format!("/proc/{id}/root{}", node.store().display()).into()
}

#[tokio::test]
async fn a_full_store_is_told_and_an_image_that_fits_still_goes_in() {
    let site = Site::shared("full-store").await;
    let node = site.lab.node("n").await;
    let _operator = site.operator(&[]);
    let mount = format!("mount -t tmpfs -o size=16m tmpfs {} && exec \"$@\"", node.stores.display());
    let agent = site.lab.start_in(
        &node,
        &["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", &mount, "sh"],
        &[],
    );
    site.store("s", &node.store(), false, None).await;
    site.lab.server.put("/big", Route::bytes(raw(1, 32 << 20)));
    site.lab.server.put("/small", Route::bytes(raw(2, 4 << 20)));
    site.image("t", "big", "/big", "s").await;
    let full = |image: &Image| failure(image).is_some_and(|(reason, ..)| reason == "NoSpace");
    let image = site.wait_for("t", "big", "met a full disk", full).await;
    assert!(!is(&image, "Stalled", "True"), "room may come: {:?}", image.status);
    site.delete("t", "big").await;
    assert_eq!(entries(&inside(agent.id(), &node)), [""; 0]);
    site.image("t", "small", "/small", "s").await;
    site.active("t", "small").await;
}
