//! Upgraded in the middle of work, uninstalled and installed again.

use std::time::Instant;

use serde_json::{Value, json};
use vitrine_harness::Fault;

use crate::{
    install::file_of,
    site::{SPACE, Site, TENANT, site},
};

/// All that people and the chart declared, by kind and name, with its uid.
async fn declared(site: &Site) -> Vec<(String, String)> {
    let found = site.get(&["images,imagestores", "-A"]).await;
    let mut of = |object: &Value| {
        let text = |field: &str| object["metadata"][field].as_str().unwrap().to_owned();
        (format!("{} {}", object["kind"], text("name")), text("uid"))
    };
    found["items"].as_array().unwrap().iter().map(&mut of).collect()
}

/// Prints what operator and agents hold in memory when there is nothing to do.
async fn print_memory(site: &Site) {
    for node in site.cluster.nodes() {
        let list = ["ps", "-C", "vitrine", "-o", "rss=,args="];
        let told = site.cluster.plane();
        print!("KiB of memory on {}:\n{}", node.name(), node.run(told, &list).await.unwrap().success().unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_are_rolled_in_mid_import_and_nothing_is_lost() {
    let site = site().await;
    site.serve("rolled", "zlib.qcow2", &[Fault::Rate(200_000)]);
    site.declare("rolled", json!({})).await;
    let before = declared(&site).await;
    let node = site.importing_on("rolled").await;
    let old = site.agent_on(node).await["metadata"]["uid"].clone();
    site.helm("upgrade", &["--wait", "--set", "agents.maxConcurrent=3"]).await;
    site.all_ready().await;
    let agent = site.agent_on(node).await;
    assert_ne!(agent["metadata"]["uid"], old);
    let args = agent["spec"]["containers"][0]["args"].to_string();
    assert!(args.contains("--max-concurrent=3"), "{args}");
    site.serve("rolled", "zlib.qcow2", &[]);
    let image = site.active("rolled").await;
    assert!(file_of(&site, &image).is_file());
    assert_eq!(declared(&site).await, before);
    site.kubectl(&["delete", "image", "rolled", "-n", TENANT]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn uninstalling_leaves_what_people_declared_and_its_bytes() {
    let site = site().await;
    let image = site.active("first").await;
    let before = declared(&site).await;
    site.cluster.plane().helm(&["uninstall", "vitrine", "-n", SPACE, "--wait"]).await.unwrap().success().unwrap();
    site.until("no pod is left", async || {
        let pods = site.get(&["pods", "-n", SPACE]).await;
        pods["items"].as_array().unwrap().is_empty().then_some(())
    })
    .await;
    assert_eq!(declared(&site).await, before);
    assert!(file_of(&site, &image).is_file());

    let began = Instant::now();
    site.helm("install", &["--wait"]).await;
    let installed = began.elapsed();
    site.all_ready().await;
    site.serve("second", "zlib.qcow2", &[]);
    site.declare("second", json!({})).await;
    site.active("second").await;
    let (installed, imported) = (installed.as_secs_f32(), began.elapsed().as_secs_f32());
    println!("helm install --wait: {installed:.1} s; to the first Active image: {imported:.1} s");
    print_memory(&site).await;
    let again = site.active("first").await;
    assert_eq!(
        (&again["metadata"]["uid"], file_of(&site, &again)),
        (&image["metadata"]["uid"], file_of(&site, &image))
    );
    site.kubectl(&["delete", "image", "second", "-n", TENANT]).await;
}
