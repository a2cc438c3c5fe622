//! Installed by helm: the pods run, images from the cluster's network become verified files, and people can read what happened.

use std::process::Command;

use serde_json::{Value, json};
use vitrine_harness::qemu;

use crate::site::{SPACE, Site, TENANT, condition, debian, site};

/// Where the only copy of an image is on this machine.
pub fn file_of(site: &Site, image: &Value) -> std::path::PathBuf {
    let locations = image["status"]["locations"].as_array().unwrap();
    let [location] = locations.as_slice() else { panic!("{image}") };
    let node = site.cluster.node(location["node"].as_str().unwrap()).unwrap();
    node.on_disk(location["url"].as_str().unwrap().strip_prefix("file://").unwrap())
}

/// What the program says of a file without any cluster.
fn content_digest(file: &std::path::Path) -> String {
    let output =
        Command::new(env!("CARGO_BIN_EXE_vitrine")).args(["checksum", "--content"]).arg(file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_from_the_clusters_network_is_a_verified_file_on_a_node() {
    let site = site().await;
    site.all_ready().await;
    site.serve("seen", "zlib.qcow2", &[]);
    site.declare("seen", json!({})).await;
    let image = site.active("seen").await;
    assert_eq!(image["status"]["contentDigest"], content_digest(&debian("zlib.qcow2")), "{image}");
    let file = file_of(&site, &image);
    let (kept, given) = (file.to_str().unwrap(), debian("zlib.qcow2"));
    qemu::qemu_img(&["compare", "-f", "raw", "-F", "qcow2", kept, given.to_str().unwrap()]).unwrap();

    let row = site.kubectl(&["get", "images", "seen", "-n", TENANT, "--no-headers"]).await;
    assert!(row.contains("Active") && row.contains("True") && row.contains("local"), "{row}");
    let about = ["get", "events", "-n", TENANT, "--no-headers", "--field-selector", "involvedObject.name=seen"];
    let events = site.kubectl(&about).await;
    assert!(events.contains("ImportStarted") && events.contains("ImportSucceeded"), "{events}");
    let described = site.kubectl(&["describe", "image", "seen", "-n", TENANT]).await;
    assert!(described.contains("ImportSucceeded"), "{described}");
    let node = site.cluster.node(image["status"]["locations"][0]["node"].as_str().unwrap()).unwrap();
    let pod = site.agent_on(node).await;
    let log = site.kubectl(&["logs", "-n", SPACE, pod["metadata"]["name"].as_str().unwrap()]).await;
    let told = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let told: Vec<_> = told.filter(|line| line["fields"]["message"] == "imported").collect();
    assert!(told.iter().any(|line| line["span"].to_string().contains("tenant/seen")), "{log}");
    site.kubectl(&["delete", "image", "seen", "-n", TENANT]).await;
    assert!(!file.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_of_the_cluster_itself_are_no_sources() {
    let site = site().await;
    // The API server's service: reached from every pod, and none of an image's business.
    site.declare("inward", json!({ "source": { "http": { "url": "https://10.96.0.1/healthz" } } })).await;
    let failed = site
        .until("Image inward is refused", async || {
            let image = site.image("inward").await;
            (condition(&image, "Stalled")["status"] == "True").then_some(image)
        })
        .await;
    let said = condition(&failed, "Ready")["message"].to_string();
    assert!(said.contains("10.96.0.1") && said.contains("allow"), "{said}");
    site.kubectl(&["delete", "image", "inward", "-n", TENANT]).await;
}
