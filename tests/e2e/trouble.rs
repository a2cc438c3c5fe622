//! Agents and nodes that die in the middle of an import, and what the runbook of dead agents shows.

use serde_json::json;
use vitrine_harness::Fault;

use crate::{
    data::desk,
    install::file_of,
    runbooks::OnCall,
    site::{SPACE, TENANT, site},
};

const AGENT_DOWN: &str = include_str!("../../docs/runbooks/VitrineAgentDown.md");
/// Slow enough that nothing is done before the test has done its part, for each connection.
const TRICKLE: Fault = Fault::Rate(200_000);

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_agent_was_importing_is_imported_all_the_same() {
    let site = site().await;
    site.serve("killed", "zlib.qcow2", &[TRICKLE]);
    site.declare("killed", json!({})).await;
    let node = site.importing_on("killed").await;
    let before = site.agent_on(node).await["status"]["containerStatuses"][0]["restartCount"].as_i64();
    // The node has process numbers of its own.
    let kill = ["sh", "-c", "kill -KILL $(pgrep --full '^/usr/bin/vitrine agent')"];
    node.run(site.cluster.plane(), &kill).await.unwrap().success().unwrap();
    site.serve("killed", "zlib.qcow2", &[]);
    let image = site.active("killed").await;
    assert!(file_of(&site, &image).is_file());
    site.until("the kubelet has started the agent again", async || {
        let agent = site.agent_on(node).await;
        let status = &agent["status"]["containerStatuses"][0];
        let ended = &status["lastState"]["terminated"]["exitCode"];
        (status["restartCount"].as_i64() > before && *ended == 137 && status["ready"] == true).then_some(())
    })
    .await;
    let (agent, desk) = (site.agent_on(node).await, desk(&site, "down").await);
    let on_call = OnCall { desk: &desk, name: "", pod: agent["metadata"]["name"].as_str().unwrap() };
    let told = on_call.run(AGENT_DOWN, "kubectl get pods").await;
    assert!(told.contains(on_call.pod) && told.contains(node.name()) && told.contains("137"), "{told}");
    let last = on_call.run(AGENT_DOWN, "kubectl logs POD").await;
    assert!(last.contains("tenant/killed"), "{last}");
    site.kubectl(&["delete", "image", "killed", "-n", TENANT]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_node_imports_what_a_node_without_power_was_importing() {
    let site = site().await;
    // Else nobody is left who could decide anything, for as long as Kubernetes waits for a node to return.
    let label = "app.kubernetes.io/name=vitrine-operator";
    let operators = site.get(&["pods", "-n", SPACE, "-l", label]).await;
    let nodes: Vec<_> = operators["items"].as_array().unwrap().iter().map(|pod| &pod["spec"]["nodeName"]).collect();
    assert!(nodes.len() == 2 && nodes[0] != nodes[1], "one operator is on each node: {nodes:?}");
    site.serve("dark", "zlib.qcow2", &[TRICKLE]);
    site.declare("dark", json!({})).await;
    let dark = site.importing_on("dark").await;
    dark.power_off().await.unwrap();
    site.serve("dark", "zlib.qcow2", &[]);
    let image = site.active("dark").await;
    assert_ne!(image["status"]["locations"][0]["node"], dark.name());
    assert!(file_of(&site, &image).is_file());
    let about = ["get", "events", "-n", TENANT, "--no-headers", "--field-selector", "involvedObject.name=dark"];
    let events = site.kubectl(&about).await;
    assert!(events.contains("NodeLost") && events.contains(dark.name()), "{events}");

    site.cluster.power_on(dark).await.unwrap();
    site.until("the agent is back", async || {
        let agents = site.get(&["daemonset", "vitrine-agent", "-n", SPACE]).await;
        (agents["status"]["numberReady"] == 2).then_some(())
    })
    .await;
    site.kubectl(&["delete", "image", "dark", "-n", TENANT]).await;
}
