//! Images made, looked at, changed and removed by command line.

use serde_json::{Value, json};
use vitrine_harness::Route;

use super::desk::{Desk, rows};
use crate::{
    node::disks::{raw, sha256, sha256_of},
    whole::site::{Site, file, staffed},
};

const SIZE: usize = 3 << 20;

#[tokio::test]
async fn an_image_is_made_looked_at_changed_and_removed() {
    let (site, node, _staff) = staffed("desk", &[]).await;
    let (desk, disk, store) = (Desk::new(&site), raw(1, SIZE), site.store_name("s"));
    site.lab.server.put("/disk.raw", Route::bytes(disk.clone()));
    let url = site.lab.server.url("/disk.raw");
    let none = desk.run(&["image", "list"]).await.expect(0);
    assert_eq!((none.stdout.as_str(), none.stderr.as_str()), ("", "No images in this namespace.\n"));

    let checksum = sha256(&disk);
    let line = [
        "image",
        "create",
        "disk",
        "--url",
        &url,
        "--checksum",
        &checksum,
        "--store",
        &store,
        "--property",
        "os_distro=debian",
    ];
    let dry = desk.run(&[&line[..], &["--dry-run=client", "-o", "yaml"]].concat()).await.expect(0);
    let manifest: Value = serde_yaml::from_str(&dry.stdout).unwrap();
    assert_eq!(manifest["spec"]["source"]["http"]["url"], url.as_str());
    assert!(manifest["spec"].get("diskFormat").is_none() && manifest.get("status").is_none(), "{}", dry.stdout);
    desk.run(&[&line[..], &["--dry-run=server"]].concat()).await.expect(0);
    desk.run(&["image", "show", "disk"])
        .await
        .expect(1)
        .says(&["kubectl vitrine image show:", "Image \"disk\" not found"]);
    let made = desk.run(&[&line[..], &["--wait", "--timeout", "3m"]].concat()).await.expect(0);
    assert_eq!(made.stdout, "image.vitrine.dev/disk created, and ready\n");
    let image = site.active("t", "disk").await;
    assert_eq!(sha256_of(&file(&image)), checksum);
    desk.run(&line).await.expect(1).says(&["already exists"]);

    let list = desk.run(&["image", "list"]).await.expect(0).stdout;
    assert_eq!(rows(&list)[0], ["NAME", "PHASE", "READY", "FORMAT", "VIRTUAL", "SIZE", "STORES", "AGE"]);
    assert_eq!(rows(&list)[1][..7], ["disk", "Active", "True", "raw", "3 MiB", "3 MiB", &store], "{list}");
    let all = desk
        .run_anywhere(&["image", "list", "-A", "-o", "wide", "--property", "os_distro=debian"])
        .await
        .expect(0)
        .stdout;
    assert!(rows(&all).iter().any(|row| row[..2] == [&*site.tenant("t"), "disk"]), "{all}");
    assert!(desk.run(&["image", "list", "--phase", "failed"]).await.expect(0).stdout.is_empty());
    assert_eq!(desk.run(&["image", "list", "-o", "name"]).await.expect(0).stdout, "image.vitrine.dev/disk\n");
    let listed = desk.run(&["image", "list", "-o", "json"]).await.expect(0).json();
    assert_eq!((&listed["kind"], &listed["items"][0]["metadata"]["name"]), (&json!("List"), &json!("disk")));

    let shown = desk.run(&["image", "show", "disk"]).await.expect(0).stdout;
    let digest = image.status.as_ref().unwrap().content.as_ref().unwrap().content_digest.clone();
    for part in [
        &*checksum,
        &digest,
        "os_distro=debian",
        &format!("{store} on {}", node.name),
        "file://",
        "ImportSucceeded",
        "Ready=True",
    ] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    assert_eq!(
        desk.run(&["image", "show", "disk", "-o", "json"]).await.expect(0).json()["status"]["contentDigest"],
        digest
    );

    is_changed(&desk).await;
    let gone = desk
        .run(&["image", "delete", "disk", "nothing", "--wait", "--timeout", "3m"])
        .await
        .expect(1)
        .says(&["\"nothing\" not found"]);
    assert_eq!(gone.stdout, "image.vitrine.dev/disk deleted\n");
    assert!(site.images("t").get_opt("disk").await.unwrap().is_none());
    desk.run(&["image", "delete", "nothing", "--ignore-not-found"]).await.expect(0);
}

/// Sets and removes what can be changed of the Image `disk`.
async fn is_changed(desk: &Desk<'_, '_>) {
    let site = desk.site;
    let set =
        ["image", "set", "disk", "--property", "os_version=12", "--tag", "golden", "--label", "team=a", "--protected"];
    desk.run(&set).await.expect(0);
    desk.run(&["image", "delete", "disk"]).await.expect(1).says(&["is protected", "spec.protected"]);
    let spec = site.images("t").get("disk").await.unwrap().spec;
    assert_eq!(
        (spec.properties["os_version"].as_str(), spec.tags, spec.protected),
        ("12", vec!["golden".to_owned()], true)
    );
    let unset =
        ["image", "unset", "disk", "--property", "os_version", "--tag", "golden", "--label", "team", "--protected"];
    desk.run(&unset).await.expect(0);
    let image = site.images("t").get("disk").await.unwrap();
    assert!(!image.spec.properties.contains_key("os_version") && image.spec.tags.is_empty() && !image.spec.protected);
    assert!(image.metadata.labels.unwrap_or_default().is_empty());
    desk.run(&["image", "set", "disk"]).await.expect(1).says(&["nothing is to be changed"]);

    desk.run(&["image", "deactivate", "disk"]).await.expect(0);
    site.wait_for("t", "disk", "is Deactivated", |image| image.spec.deactivated).await;
    desk.run(&["image", "reactivate", "disk"]).await.expect(0);
    site.active("t", "disk").await;
}

#[tokio::test]
async fn an_import_is_begun_again_and_from_another_url_and_copied() {
    let site = Site::shared("desk-again").await;
    let node = site.lab.node("n").await;
    let (_operator, _agent) = (site.operator(&[]), site.lab.start(&node, &[]));
    site.three_folders(&node).await;
    let desk = Desk::new(&site);
    let (url, wrong) = (site.lab.server.url("/disk"), sha256(b"another"));
    site.lab.server.put("/disk", Route::bytes(raw(1, SIZE)));
    let line =
        ["image", "create", "disk", "--url", &url, "--checksum", &wrong, "--store", &site.store_name("a"), "--wait"];
    desk.run(&line).await.expect(3).says(&["is refused", "checksum-mismatch"]);
    site.stalled("t", "disk").await;
    // The same again comes to the same; another URL with what it holds does not.
    desk.run(&["image", "import", "disk", "--wait"]).await.expect(3).says(&["checksum-mismatch"]);
    let imported = desk.run(&["image", "import", "disk", "--url", &url, "--wait"]).await.expect(0);
    assert_eq!(imported.stdout, "image.vitrine.dev/disk imported\n");
    let (b, c) = (site.store_name("b"), site.store_name("c"));
    desk.run(&["image", "copy", "disk", "--store", &b, "--store", &c, "--wait"]).await.expect(0);
    let stores: Vec<_> =
        site.active("t", "disk").await.status.unwrap().locations.into_iter().map(|l| l.store).collect();
    assert_eq!(stores.len(), 3, "{stores:?}");
    desk.run(&["image", "copy", "disk"]).await.expect(2);
}

#[tokio::test]
async fn who_may_not_is_told_whom_to_ask() {
    let site = Site::shared("desk-rights").await;
    let desk = Desk::with_token(&site, "nobody", &[]).await;
    desk.run(&["image", "list"]).await.expect(1).says(&["cannot list", "role view of the namespace"]);
    desk.run(&["store", "list"]).await.expect(1).says(&["administrators of the cluster"]);
    desk.run(&["task", "list"]).await.expect(1).says(&["who administers Vitrine", "image show"]);
    let viewer = Desk::with_token(&site, "viewer", &["vitrine-view"]).await;
    viewer.run(&["image", "list"]).await.expect(0);
    viewer.run(&["image", "create", "x", "--url", "https://a/b"]).await.expect(1).says(&["cannot create", "edit"]);
    let admin = Desk::new(&site);
    admin.run(&["image", "list", "--as", "somebody"]).await.expect(1).says(&["\"somebody\" cannot list"]);
    admin.run(&["image", "list", "--context", "none"]).await.expect(1).says(&["kubeconfig"]);
    admin.run(&["image", "list", "--token", "nonsense"]).await.expect(1).says(&["does not accept your credentials"]);
    admin.run(&["image", "frobnicate"]).await.expect(2).says(&["Usage: kubectl vitrine image"]);
}
