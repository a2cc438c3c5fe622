//! Stores and tasks by command line.

use serde_json::json;
use vitrine_harness::{Fault, Route};

use super::desk::{Desk, rows};
use crate::{
    node::{disks::raw, lab::until},
    whole::site::staffed,
};

#[tokio::test]
async fn stores_are_listed_shown_and_probed_at_once() {
    // Without being asked, an agent looks once an hour.
    let (site, node, _staff) = staffed("desk-stores", &["--probe-interval", "3600"]).await;
    let (desk, name) = (Desk::new(&site), site.store_name("s"));
    let selector = format!("vitrine.dev/lab={}", site.lab.namespace);
    let ready = async || {
        let list = desk.run_anywhere(&["store", "list", "-l", &selector]).await.expect(0).stdout;
        let rows = rows(&list);
        (rows.get(1)?[..5] == [&*name, "filesystem", "false", "True", "True"]).then_some(())
    };
    until("the store is ready", ready).await;
    let shown = desk.run_anywhere(&["store", "show", &name]).await.expect(0).stdout;
    assert!(shown.contains(&node.store().display().to_string()) && shown.contains(&node.name), "{shown}");
    let probed = desk.run_anywhere(&["store", "probe", &name]).await.expect(0).stdout;
    assert_eq!(rows(&probed)[1][..3], [&*node.name, "true", "true"], "{probed}");
    std::fs::remove_dir_all(node.store()).unwrap();
    std::fs::write(node.store(), "in its place").unwrap();
    let broken = desk.run_anywhere(&["store", "probe", &name, "-o", "json"]).await.expect(1).json();
    assert_eq!((&broken[0]["node"], &broken[0]["report"]["ready"]), (&json!(node.name), &json!(false)), "{broken}");
    desk.run_anywhere(&["store", "probe", "nothing"]).await.expect(1).says(&["\"nothing\" not found"]);
}

#[tokio::test]
async fn tasks_are_listed_while_they_run() {
    let (site, node, _staff) = staffed("desk-tasks", &[]).await;
    let desk = Desk::new(&site);
    site.lab.server.put("/slow", Route::bytes(raw(1, 8 << 20)).always(Fault::Rate(256 << 10)));
    site.image("t", "slow", "/slow", "s").await;
    let running = async || {
        let list = desk.run(&["task", "list", "slow"]).await.expect(0).stdout;
        let rows = rows(&list);
        let row = rows.get(1)?.clone();
        (row.get(5) == Some(&"Running")).then(|| row.join("|"))
    };
    let row = until("its task runs", running).await;
    assert!(row.contains(&format!("Import|{}/slow|{}", site.tenant("t"), node.name)), "{row}");
    assert!(desk.run(&["task", "list", "another"]).await.expect(0).stdout.is_empty());
    let tasks = desk.run_anywhere(&["task", "list", "-A", "-o", "json"]).await.expect(0).json();
    assert!(tasks["items"].as_array().unwrap().iter().any(|task| task["spec"]["image"]["name"] == "slow"));
    let versions = desk.run_anywhere(&["version", "-o", "json"]).await.expect(0).json();
    assert_eq!(versions["client"], env!("CARGO_PKG_VERSION"));
    assert!(versions["agents"][env!("CARGO_PKG_VERSION")].as_u64().is_some_and(|nodes| nodes >= 1), "{versions}");
    site.delete("t", "slow").await;
}
