//! What goes right: bytes come out as they should, and go when they should.

use std::os::unix::fs::MetadataExt as _;

use kube::api::PostParams;
use serde_json::json;
use vitrine::api::{Output, TaskPhase};
use vitrine_engine::model::{Compression, DiskFormat};
use vitrine_harness::{FaultServer, Route, qemu};

use super::{
    disks::{entries, raw, sha256, sha256_of, stored},
    lab::{Lab, phase},
};

#[tokio::test]
async fn a_real_disk_comes_out_as_qemu_img_reads_it() {
    let lab = Lab::shared("real-disk").await;
    let node = lab.node("n").await;
    let _agent = lab.start(&node, &["--stall-timeout", "30"]);
    let folder = qemu::debian_disk().unwrap();
    let mut contents = Vec::new();
    let plain = folder.join("disk.raw");
    for (image, file, format) in
        [("a", "zlib.qcow2", "qcow2"), ("b", "zstd.qcow2", "qcow2"), ("c", "disk.raw.xz", "raw")]
    {
        lab.server.put(&format!("/{file}"), Route::file(&folder.join(file)).unwrap());
        let task = lab.succeeded(&lab.import(&node.order(image, &lab.server.url(&format!("/{file}")))).await).await;
        let result = task.status.clone().unwrap().result.unwrap();
        assert_eq!(result.content.digests, [sha256_of(&folder.join(file))], "{file}");
        let (from, to) = (folder.join(file), stored(&task));
        // qemu-img reads no xz; what is in this one is the plain disk.
        let source = if format == "raw" { &plain } else { &from };
        let paths = [source.to_str().unwrap(), to.to_str().unwrap()];
        qemu::qemu_img(&["compare", "-f", format, "-F", "raw", paths[0], paths[1]]).unwrap();
        assert!(
            result.locations[0].allocated_size < result.content.virtual_size,
            "{file} is stored sparse: {result:?}"
        );
        contents.push(result.content.content_digest);
    }
    assert!(contents.iter().all(|content| *content == contents[0]), "one disk, one content: {contents:?}");
    node.assert_clean();
}

#[tokio::test]
async fn a_disk_is_converted_to_what_the_order_says() {
    let lab = Lab::shared("converted").await;
    let node = lab.node("n").await;
    let _agent = lab.start(&node, &[]);
    let disk = raw(1, 3 << 20);
    lab.server.put("/disk", Route::bytes(disk.clone()));
    let mut order = node.order("a", &lab.server.url("/disk"));
    let output = Output {
        disk_format: DiskFormat::Qcow2,
        subformat: None,
        compression: Compression::Zstd,
        cluster_size: 131_072,
    };
    order.import.stores[0].output = output;
    order.import.checksums = vec![sha256(&disk)];
    let task = lab.succeeded(&lab.import(&order).await).await;
    let result = task.status.clone().unwrap().result.unwrap();
    assert_eq!((result.content.disk_format, result.locations[0].format), (DiskFormat::Raw, output));
    let (stored, original) = (stored(&task), lab.plane.scope().dir().join("converted.raw"));
    std::fs::write(&original, &disk).unwrap();
    let paths = [original.to_str().unwrap(), stored.to_str().unwrap()];
    qemu::qemu_img(&["check", "-f", "qcow2", paths[1]]).unwrap();
    qemu::qemu_img(&["compare", "-f", "raw", "-F", "qcow2", paths[0], paths[1]]).unwrap();
}

#[tokio::test]
async fn what_was_imported_is_deleted_and_deleting_nothing_succeeds() {
    let lab = Lab::shared("deleting").await;
    let node = lab.node("n").await;
    let _agent = lab.start(&node, &[]);
    lab.server.put("/disk", Route::bytes(raw(2, 1 << 20)));
    let mut order = node.order("a", &lab.server.url("/disk"));
    lab.succeeded(&lab.delete(&order).await).await;
    assert!(!node.store().exists(), "a delete makes no store");
    lab.succeeded(&lab.import(&order).await).await;
    assert_eq!(entries(&node.store()), ["a-r1"]);
    order.attempt = 2;
    lab.succeeded(&lab.delete(&order).await).await;
    assert_eq!(entries(&node.store()), [""; 0]);
}

#[tokio::test]
async fn imports_wait_for_their_turn_and_each_is_done_once() {
    let lab = Lab::shared("turns").await;
    let node = lab.node("n").await;
    let _agent = lab.start(&node, &["--max-concurrent", "2"]);
    let images = ["a", "b", "c", "d", "e"];
    let mut names = Vec::new();
    for (seed, image) in images.iter().enumerate() {
        let route = Route::bytes(raw(seed as u64, 2 << 20)).always(vitrine_harness::Fault::Rate(2 << 20));
        lab.server.put(&format!("/{image}"), route);
        names.push(lab.import(&node.order(image, &lab.server.url(&format!("/{image}")))).await);
    }
    for name in &names {
        lab.succeeded(name).await;
    }
    assert_eq!(lab.server.peak_concurrency(), 2);
    for image in images {
        assert_eq!(lab.server.sent(&format!("/{image}")), 2 << 20, "{image} is fetched once");
    }
    assert_eq!(entries(&node.store()), ["a-r1", "b-r1", "c-r1", "d-r1", "e-r1"]);
}

#[tokio::test]
async fn headers_and_authorities_come_from_the_tasks_secret_and_stay_out_of_the_log() {
    let lab = Lab::shared("secrets").await;
    let node = lab.node("n").await;
    let agent = lab.start(&node, &[]);
    let authority = vitrine_harness::pki::Authority::new("publisher").unwrap();
    let server = FaultServer::start_tls(&authority).unwrap();
    let disk = raw(3, 1 << 20);
    server.put("/disk", Route::bytes(disk.clone()).require_header("Authorization", "Bearer open-sesame"));
    server.put("/SUMS", Route::bytes(format!("{}  disk\n", &sha256(&disk)[7..]).into_bytes()));
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "task" },
        "stringData": { "ca.crt": authority.pem(), "header.Authorization": "Bearer open-sesame" },
    });
    let secrets = kube::Api::<k8s_openapi::api::core::v1::Secret>::namespaced(lab.client.clone(), &lab.namespace);
    secrets.create(&PostParams::default(), &serde_json::from_value(secret).unwrap()).await.unwrap();
    let mut order = node.order("a", &server.url("/disk"));
    let http = order.import.source.http.as_mut().unwrap();
    http.secret_ref = Some("task".to_owned());
    order.import.checksum_url = Some(server.url("/SUMS"));
    assert_eq!(phase(&lab.ended(&lab.import(&order).await).await), TaskPhase::Succeeded);

    // Without the Secret, the server's certificate is nobody's.
    let mut order = node.order("b", &server.url("/disk"));
    order.import.checksums = vec![sha256(&disk)];
    lab.failure(&lab.import(&order).await).await;
    // With one that lacks the header, the server does not want us.
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "half" }, "stringData": { "ca.crt": authority.pem() },
    });
    secrets.create(&PostParams::default(), &serde_json::from_value(secret).unwrap()).await.unwrap();
    let mut order = node.order("c", &server.url("/disk"));
    order.import.source.http.as_mut().unwrap().secret_ref = Some("half".to_owned());
    let failure = lab.failure(&lab.import(&order).await).await;
    assert_eq!((failure.reason.as_str(), failure.retryable), ("Denied", false), "{}", failure.message);
    assert!(agent.log().contains("imported") && !agent.log().contains("sesame"));
}

#[tokio::test]
async fn a_store_without_thin_provisioning_holds_every_byte() {
    let lab = Lab::shared("thick").await;
    let node = lab.node("n").await;
    let _agent = lab.start(&node, &[]);
    let disk = [raw(1, 1 << 20), vec![0; 7 << 20]].concat();
    lab.server.put("/disk", Route::bytes(disk.clone()));
    for (image, thin) in [("a", true), ("b", false)] {
        let mut order = node.order(image, &lab.server.url("/disk"));
        order.import.stores[0].thin_provisioning = thin;
        let task = lab.succeeded(&lab.import(&order).await).await;
        let location = task.status.clone().unwrap().result.unwrap().locations.remove(0);
        let held = stored(&task).metadata().unwrap().blocks() * 512;
        assert_eq!(location.allocated_size.unsigned_abs() >= disk.len() as u64, !thin, "{location:?}");
        assert_eq!(held >= disk.len() as u64, !thin, "{held}");
        assert_eq!(sha256_of(&stored(&task)), sha256(&disk));
    }
}
