//! The life of an Image.

use k8s_openapi::{api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use vitrine::api::{Action, ImagePhase, identity};

use super::{
    agent::Script,
    lab::{Lab, condition, kstatus, uid},
};

fn phase(image: &vitrine::api::Image) -> Option<ImagePhase> {
    image.status.as_ref().and_then(|status| status.phase)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_imported_and_says_at_each_moment_how_it_stands() {
    let mut lab = Lab::new("life").await;
    lab.local_store("fast").await;
    let fresh = lab.image("debian", "fast").await;
    assert_eq!(fresh.status.as_ref().unwrap().observed_generation, Some(-1));
    assert_eq!(kstatus(&fresh), "InProgress", "nobody has seen it yet");

    lab.operator().await;
    let waiting =
        lab.until_image("debian", "waits for an agent", |image| phase(image) == Some(ImagePhase::Queued)).await;
    let (status, reason, message) = condition(&waiting.status.as_ref().unwrap().conditions, "Ready");
    assert_eq!((kstatus(&waiting), status.as_str(), reason.as_str()), ("InProgress", "False", "Waiting"), "{message}");

    let agent = lab.agent("n1").await;
    let busy = lab.until_image("debian", "is importing", |image| phase(image) == Some(ImagePhase::Importing)).await;
    assert_eq!((kstatus(&busy), busy.finalizers()), ("InProgress", &[identity::FINALIZER.to_owned()][..]));
    let busy =
        lab.until_image("debian", "shows progress", |image| image.status.as_ref().unwrap().display.is_some()).await;
    assert_eq!(busy.status.unwrap().progress.unwrap().bytes_done, 34);

    agent.script(Script::Succeed("one"));
    let active = lab.until_image("debian", "is active", |image| kstatus(image) == "Current").await;
    let status = active.status.clone().unwrap();
    assert_eq!((status.phase, status.revision), (Some(ImagePhase::Active), Some(1)));
    assert_eq!(status.locations[0].node, Some(lab.node("n1")));
    assert_eq!(status.conditions.len(), 1, "neither Reconciling nor Stalled is there: {:?}", status.conditions);
    lab.until_tasks("none are left", <[_]>::is_empty).await;
    let row = lab.plane.kubectl(&["get", "img", "-n", "life", "-o", "wide"]).await.unwrap().success().unwrap();
    for word in ["PHASE", "VIRTUAL", "Active", "True", "qcow2", "10 GiB", "600 MiB", "life-fast", "Succeeded"] {
        assert!(row.contains(word), "{word} is not in\n{row}");
    }
    let told = lab.events("life", "debian").await;
    assert!(told.contains(&"ImportStarted".to_owned()) && told.contains(&"ImportSucceeded".to_owned()), "{told:?}");
    assert_eq!(agent.refusals(), Vec::<String>::new());
    let ready = ["wait", "--for=condition=Ready", "img/debian", "-n", "life", "--timeout=5s"];
    lab.plane.kubectl(&ready).await.unwrap().success().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edited_source_replaces_the_content_when_it_is_there() {
    let (lab, agent, image) = Lab::active("edit").await;
    agent.script(Script::Hold);
    lab.set_url("debian", "http://127.0.0.1/two").await;
    let between = lab
        .until_image("debian", "imports revision 2", |image| {
            let status = image.status.as_ref().unwrap();
            status.observed_generation == image.metadata.generation
                && status.attempt.as_ref().is_some_and(|a| a.revision == 2)
        })
        .await;
    let status = between.status.clone().unwrap();
    assert_eq!(
        (kstatus(&between), status.revision, status.content.unwrap().content_digest.as_str()),
        ("InProgress", Some(1), "blake3:one")
    );
    assert!(condition(&status.conditions, "Ready").2.contains("revision 1 goes on serving"));

    agent.script(Script::Succeed("two"));
    let after = lab.until_image("debian", "serves revision 2", |image| kstatus(image) == "Current").await;
    assert_eq!(after.status.unwrap().content.unwrap().content_digest, "blake3:two");
    lab.until_image("debian", "has nothing to clean up", |image| image.status.as_ref().unwrap().cleanup.is_empty())
        .await;
    assert_eq!(agent.disk().into_iter().collect::<Vec<_>>(), [(uid(&image), 2, lab.store_name("fast"))]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_not_there_is_named_and_waited_for() {
    let mut lab = Lab::new("unknown").await;
    lab.local_store("other").await;
    lab.operator().await;
    lab.agent("n1").await.script(Script::Succeed("one"));
    lab.image("debian", "fast").await;
    let stalled = lab.until_image("debian", "is stalled", |image| kstatus(image) == "Failed").await;
    let (status, reason, message) = condition(&stalled.status.as_ref().unwrap().conditions, "Stalled");
    assert_eq!((status.as_str(), reason.as_str()), ("True", "InvalidConfiguration"));
    assert!(message.contains("names unknown-fast") && message.contains("there are: unknown-other"), "{message}");
    assert_eq!(phase(&stalled), Some(ImagePhase::Failed));
    assert_eq!(stalled.finalizers().len(), 0, "nothing is stored, so nothing holds it");
    lab.local_store("fast").await;
    lab.until_image("debian", "recovers by itself", |image| kstatus(image) == "Current").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_image_fails_for_good_and_is_tried_again_when_asked() {
    let mut lab = Lab::new("operator-refused").await;
    lab.local_store("fast").await;
    lab.operator().await;
    let agent = lab.agent("n1").await;
    agent.script(Script::Fail("Refused", false));
    lab.image("debian", "fast").await;
    let failed = lab.until_image("debian", "failed", |image| kstatus(image) == "Failed").await;
    assert_eq!(condition(&failed.status.as_ref().unwrap().conditions, "Ready").1, "UnrecoverableError");
    agent.script(Script::Succeed("one"));
    lab.patch_image("debian", json!({ "metadata": { "annotations": { identity::ANNOTATION_RETRY: "now" } } })).await;
    lab.until_image("debian", "is active", |image| kstatus(image) == "Current").await;
    assert_eq!(agent.taken().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_work_of_a_lost_agent_goes_to_another_and_its_disk_is_cleaned() {
    let mut lab = Lab::new("lost").await;
    lab.local_store("fast").await;
    lab.operator().await;
    let first = lab.agent("n1").await;
    let image = lab.image("debian", "fast").await;
    lab.until_image("debian", "is importing", |image| phase(image) == Some(ImagePhase::Importing)).await;
    let second = lab.agent("n2").await;
    second.script(Script::Succeed("one"));
    first.silence(true);
    let active = lab.until_image("debian", "is active", |image| kstatus(image) == "Current").await;
    let status = active.status.unwrap();
    assert_eq!((status.locations[0].node.clone(), status.revisions[0].attempts), (Some(lab.node("n2")), 2));
    assert_eq!(second.taken(), [format!("{}-r1-import-2", uid(&image))]);
    let names = super::lab::task_names(&lab.all_tasks().await);
    assert!(!names.contains(&format!("{}-r1-import-1", uid(&image))), "the first attempt is fenced off: {names:?}");
    assert_eq!(status.cleanup.len(), 1, "what n1 may have left waits for n1");
    assert!(lab.events("lost", "debian").await.contains(&"NodeLost".to_owned()));

    first.script(Script::Succeed("zombie"));
    first.silence(false);
    lab.until_image("debian", "is cleaned up", |image| image.status.as_ref().unwrap().cleanup.is_empty()).await;
    lab.until_tasks("none are left", <[_]>::is_empty).await;
    assert!(first.disk().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn deletion_waits_until_the_data_is_removed() {
    let (lab, agent, _) = Lab::active("delete").await;
    assert_eq!(agent.disk().len(), 1);
    agent.silence(true);
    lab.delete_image("debian").await;
    let waiting = lab
        .until_image("debian", "says what it waits for", |image| {
            condition(&image.status.as_ref().unwrap().conditions, "Ready").2.contains("whose lease has expired")
        })
        .await;
    assert_eq!((kstatus(&waiting), phase(&waiting)), ("Terminating", Some(ImagePhase::Deleting)));
    agent.silence(false);
    lab.until_image_gone("debian").await;
    assert!(agent.disk().is_empty());
    lab.until_tasks("none are left", <[_]>::is_empty).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_gone_for_good_is_forgotten() {
    let (lab, agent, _) = Lab::active("gone").await;
    agent.stop();
    let leases: Api<k8s_openapi::api::coordination::v1::Lease> = Api::namespaced(lab.client.clone(), &lab.system());
    leases.delete(&identity::agent_lease_name(&agent.node), &DeleteParams::default()).await.unwrap();
    lab.delete_image("debian").await;
    lab.until_image_gone("debian").await;
    assert!(lab.events("gone", "debian").await.contains(&"LocationLost".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_api_server_does_not_take_is_said_in_its_words_and_tried_again() {
    let mut lab = Lab::new("untaken").await;
    lab.local_store("fast").await;
    lab.operator().await;
    lab.agent("n1").await.script(Script::Succeed("one"));
    // A key that fits into the tenant's Secret, and not into the task's, where it has a prefix.
    let secrets: Api<Secret> = Api::namespaced(lab.client.clone(), "untaken");
    let secret = |key: &str| {
        serde_json::from_value(json!({ "metadata": { "name": "mirror" }, "stringData": { key: "x" } })).unwrap()
    };
    secrets.create(&PostParams::default(), &secret(&"k".repeat(250))).await.unwrap();
    let source = json!({ "http": { "url": "http://127.0.0.1/one", "headersSecretRef": { "name": "mirror" } } });
    let manifest = json!({
        "apiVersion": "vitrine.dev/v1alpha1", "kind": "Image", "metadata": { "name": "debian", "namespace": "untaken" },
        "spec": { "source": source, "stores": [lab.store_name("fast")] },
    });
    lab.plane.apply(&manifest.to_string()).await.unwrap();
    let hindered = lab
        .until_image("debian", "says what is wrong", |image| {
            condition(&image.status.as_ref().unwrap().conditions, "Ready").1 == "TransientError"
        })
        .await;
    let message = condition(&hindered.status.unwrap().conditions, "Ready").2;
    assert!(message.contains("does not take the order") && message.contains("must be no more than 253"), "{message}");
    secrets.delete("mirror", &DeleteParams::default()).await.unwrap();
    secrets.create(&PostParams::default(), &secret("Authorization")).await.unwrap();
    lab.until_image("debian", "is active", |image| kstatus(image) == "Current").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn data_in_a_store_that_is_no_longer_served_is_removed_and_not_forgotten() {
    let (lab, agent, _) = Lab::active("unserved").await;
    let unserved = Patch::Merge(json!({ "metadata": { "labels": { "vitrine.dev/lab": "other" } } }));
    lab.stores().patch(&lab.store_name("fast"), &PatchParams::default(), &unserved).await.unwrap();
    lab.until_image("debian", "is stalled", |image| kstatus(image) == "Failed").await;
    lab.delete_image("debian").await;
    lab.until_image_gone("debian").await;
    assert!(agent.disk().is_empty());
    assert!(!lab.events("unserved", "debian").await.contains(&"LocationLost".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_one_name_in_two_namespaces_never_meet() {
    let mut lab = Lab::new("twins").await;
    lab.namespace("twins-b").await;
    lab.local_store("fast").await;
    lab.operator().await;
    let agent = lab.agent("n1").await;
    agent.script(Script::Succeed("one"));
    let a = lab.image("debian", "fast").await;
    let b = lab.image_in("twins-b", "debian", "fast").await;
    lab.until_image("debian", "is active", |image| kstatus(image) == "Current").await;
    lab.until_image_in("twins-b", "debian", "is active", |image| kstatus(image) == "Current").await;
    assert_eq!(agent.disk().len(), 2);
    lab.delete_image("debian").await;
    lab.until_image_gone("debian").await;
    assert_eq!(agent.disk().into_iter().map(|(uid, ..)| uid).collect::<Vec<_>>(), [uid(&b)]);
    assert_ne!(uid(&a), uid(&b));
    let other = lab.images_in("twins-b").get("debian").await.unwrap();
    assert_eq!(kstatus(&other), "Current");
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_and_certificates_reach_the_task_and_go_with_it() {
    let mut lab = Lab::new("secret").await;
    lab.local_store("fast").await;
    lab.operator().await;
    let agent = lab.agent("n1").await;
    let manifest = json!({
        "apiVersion": "vitrine.dev/v1alpha1", "kind": "Image", "metadata": { "name": "debian", "namespace": "secret" },
        "spec": {
            "source": { "http": {
                "url": "https://127.0.0.1/one", "headersSecretRef": { "name": "mirror" }, "tls": { "caBundleRef": { "name": "ca" } },
            } },
            "stores": [lab.store_name("fast")],
        },
    });
    lab.plane.apply(&manifest.to_string()).await.unwrap();
    let stalled = lab.until_image("debian", "is stalled", |image| kstatus(image) == "Failed").await;
    let message = condition(&stalled.status.unwrap().conditions, "Ready").2;
    assert!(message.contains("names Secret mirror, and there is none in namespace secret"), "{message}");
    lab.plane.apply("{apiVersion: v1, kind: Secret, metadata: {name: mirror, namespace: secret}, stringData: {Authorization: Bearer x}}").await.unwrap();
    lab.plane
        .apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: ca, namespace: secret}, data: {ca.crt: PEM}}")
        .await
        .unwrap();
    // Secrets are not watched; touching the Image makes the operator look at once.
    lab.patch_image("debian", json!({ "spec": { "tags": ["again"] } })).await;
    let tasks = lab.until_tasks("one import", |tasks| tasks.len() == 1).await;
    let name = tasks[0].spec.import.clone().unwrap().source.http.unwrap().secret_ref.unwrap();
    let secrets: Api<Secret> = Api::namespaced(lab.client.clone(), &lab.system());
    let held = secrets.get(&name).await.unwrap();
    assert_eq!(held.data.clone().unwrap().keys().collect::<Vec<_>>(), ["ca.crt", "header.Authorization"]);
    // As an operator leaves it that is killed before it makes the task.
    let mut forsaken = held;
    forsaken.metadata =
        ObjectMeta { name: Some("forsaken".into()), labels: forsaken.metadata.labels, ..ObjectMeta::default() };
    secrets.create(&PostParams::default(), &forsaken).await.unwrap();
    let gone = async |name: &str| {
        let start = std::time::Instant::now();
        while secrets.get_opt(name).await.unwrap().is_some() {
            assert!(start.elapsed() < super::lab::PATIENCE, "Secret {name} stays");
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    };
    gone("forsaken").await;
    assert!(secrets.get_opt(&name).await.unwrap().is_some(), "that of a task stays as long as the task");
    agent.script(Script::Succeed("one"));
    lab.until_image("debian", "is active", |image| kstatus(image) == "Current").await;
    gone(&name).await;
    assert!(
        lab.tasks()
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
            .iter()
            .all(|task| task.spec.action != Action::Import)
    );
}
