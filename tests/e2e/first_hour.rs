//! The first hour, by the very commands of `docs/first-hour.md`. The site is installed already, so installing is only rendered.

use std::fs;

use vitrine_harness::qemu;

use crate::{
    data::{commands, desk},
    site::{STORES, debian, site},
};

const DOCUMENT: &str = include_str!("../../docs/first-hour.md");
const TREE: &str = env!("CARGO_MANIFEST_DIR");

#[tokio::test(flavor = "multi_thread")]
async fn the_first_hour_goes_as_it_is_written() {
    let site = site().await;
    let desk = desk(&site, "hour").await;
    site.serve("hour", "zlib.qcow2", &[]);
    let given = debian("zlib.qcow2");
    fs::copy(&given, desk.folder().join("appliance.qcow2")).unwrap();
    // Other tests have a team, too.
    let run = async |first: &str| {
        let block = commands(DOCUMENT, first).replace("namespace team", "namespace hour");
        desk.run(&block.replace("https://images.example/debian.qcow2", &site.server.url("/hour"))).await
    };

    // What `Site::prepare` does on every node, and what the chart makes of these values.
    assert_eq!(commands(DOCUMENT, "install -d"), format!("install -d -m 2770 -g 65532 {STORES}"));
    let install = commands(DOCUMENT, "helm install").replace("helm install", "helm template");
    let rendered = desk.run(&format!("cd {TREE}\n{install}")).await;
    assert!(rendered.contains("registry.example/vitrine") && rendered.contains(&format!("--store-root={STORES}")));

    run("kubectl apply --filename - <<STORE").await;
    let list = run("kubectl create namespace team").await;
    assert!(list.contains("debian") && list.contains("Active") && list.contains("local"), "{list}");
    let list = run("kubectl vitrine image upload").await;
    assert!(list.contains("debian") && list.contains("appliance"), "{list}");
    let (copy, given) = (desk.folder().join("copy.raw"), given.display().to_string());
    qemu::qemu_img(&["compare", "-f", "raw", "-F", "qcow2", copy.to_str().unwrap(), &given]).unwrap();
    let said = run("kubectl vitrine doctor").await;
    assert!(said.contains("0 problems") && said.contains("ImportSucceeded"), "{said}");
    run("kubectl vitrine image import").await;
    run("kubectl vitrine image delete").await;
}
