//! The definitions: what the API server makes of them, and what it says to manifests that break their rules.

use serde_json::{Value, json};

use super::lab::Lab;

#[tokio::test(flavor = "multi_thread")]
async fn definitions_are_structural_and_found_by_their_names() {
    let lab = Lab::new("names").await;
    let path =
        "jsonpath={range .items[*]}{.metadata.name}{range .status.conditions[*]} {.type}={.status}{end}{\"\\n\"}{end}";
    let text = lab.plane.kubectl(&["get", "crd", "-o", path]).await.unwrap().success().unwrap();
    for line in text.lines() {
        assert!(line.contains("Established=True") && line.contains("NamesAccepted=True"), "{line}");
        assert!(!line.contains("NonStructuralSchema=True"), "{line}");
    }
    assert_eq!(text.lines().count(), 4, "{text}");
    for name in ["img", "imgstore", "imgstores", "vitrine", "imagetasks", "nodecaches"] {
        lab.plane.kubectl(&["get", name, "-n", &lab.name]).await.unwrap().success().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn samples_are_accepted() {
    let lab = Lab::new("samples").await;
    lab.plane.apply(include_str!("../../../config/namespace.yaml")).await.unwrap();
    let samples = [
        include_str!("../../../config/samples/image.yaml"),
        include_str!("../../../config/samples/imagestore.yaml"),
        include_str!("../../../config/samples/imagetask.yaml"),
        include_str!("../../../config/samples/imagetask-copy.yaml"),
        include_str!("../../../config/samples/nodecache.yaml"),
    ];
    for sample in samples {
        let args = ["apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-"];
        lab.plane.kubectl_with_input(&args, sample).await.unwrap().success().unwrap();
    }
}

fn image(spec: &Value) -> Value {
    json!({ "apiVersion": "vitrine.dev/v1alpha1", "kind": "Image", "metadata": { "name": "x" }, "spec": spec })
}

fn store(spec: &Value) -> Value {
    json!({ "apiVersion": "vitrine.dev/v1alpha1", "kind": "ImageStore", "metadata": { "name": "rules-x" }, "spec": spec })
}

fn http(more: Value) -> Value {
    let mut http = json!({ "url": "https://h/x" });
    if let (Some(http), Value::Object(more)) = (http.as_object_mut(), more) {
        http.extend(more);
    }
    json!({ "source": { "http": http } })
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_say_what_is_wrong_and_what_to_do() {
    let lab = Lab::new("rules").await;
    let with = |mut spec: Value, more: Value| {
        if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
            spec.extend(more);
        }
        spec
    };
    let cases = [
        (image(&json!({ "source": {} })), "name exactly one source"),
        (image(&json!({})), "spec.source: Required value"),
        (
            image(&json!({ "source": { "http": { "url": "https://h/x" }, "upload": {} } })),
            "name exactly one source: http or upload",
        ),
        (image(&json!({ "source": { "upload": { "checksum": "sha256:1" } } })), "spec.source.upload.checksum"),
        (
            image(&json!({ "source": { "http": { "url": "https://h/x" }, "glance": {} } })),
            ".spec.source.glance: field not declared in schema",
        ),
        (image(&http(json!({ "url": "ftp://h/x" }))), "must begin with http:// or https://"),
        (image(&http(json!({ "url": "https://me:secret@h/x" }))), "must not hold a user name or password"),
        (image(&http(json!({ "url": "http://h/x", "tls": { "insecureSkipVerify": true } }))), "tls is for https URLs"),
        (
            image(&http(json!({ "tls": { "insecureSkipVerify": true, "caBundleRef": { "name": "a" } } }))),
            "exclude each other",
        ),
        (image(&http(json!({ "checksum": "sha256:00" }))), "spec.source.http.checksum"),
        (
            image(&with(http(json!({})), json!({ "stores": ["a"], "allStores": true }))),
            "stores and allStores exclude each other",
        ),
        (image(&with(http(json!({})), json!({ "stores": ["a", "a"] }))), "duplicate entries for key"),
        (
            image(&with(http(json!({})), json!({ "convertTo": { "diskFormat": "qcow2", "clusterSize": 3000 } }))),
            "power of two",
        ),
        (
            image(&with(http(json!({})), json!({ "convertTo": { "diskFormat": "raw", "compression": "zstd" } }))),
            "only qcow2 has compressed",
        ),
        (image(&with(http(json!({})), json!({ "convertTo": { "diskFormat": "iso" } }))), "Unsupported value: \"iso\""),
        (
            image(&with(
                http(json!({})),
                json!({ "convertTo": { "diskFormat": "vdi", "subformat": "streamOptimized" } }),
            )),
            "has no such subformat",
        ),
        (image(&with(http(json!({})), json!({ "containerDisk": "" }))), "at least 1 chars long"),
        (image(&with(http(json!({})), json!({ "revisionHistoryLimit": 0 }))), "greater than or equal to 1"),
        (image(&with(http(json!({})), json!({ "properties": { "k".repeat(256): "v" } }))), "1 to 255 characters"),
        (image(&with(http(json!({})), json!({ "properties": { "": "v" } }))), "1 to 255 characters"),
        (
            store(&json!({ "filesystem": { "path": "/srv/x" }, "nodeSelector": { "k".repeat(318): "v" } })),
            "1 to 317 characters",
        ),
        (store(&json!({})), "name exactly one back end"),
        (store(&json!({ "filesystem": { "path": "srv" } })), "spec.filesystem.path"),
        (store(&json!({ "filesystem": { "path": "/srv/../etc" } })), "must not have . or .."),
    ];
    let longest = image(&with(http(json!({})), json!({ "properties": { "k".repeat(255): "v" } })));
    let dry = ["apply", "--server-side", "--dry-run=server", "--validate=strict", "-n", &lab.name, "-f", "-"];
    lab.plane.kubectl_with_input(&dry, &longest.to_string()).await.unwrap().success().unwrap();
    for (manifest, expected) in cases {
        let args = ["apply", "--server-side", "--validate=strict", "-n", &lab.name, "-f", "-"];
        let output = lab.plane.kubectl_with_input(&args, &manifest.to_string()).await.unwrap();
        assert!(!output.status.success(), "accepted: {manifest}");
        assert!(output.stderr.contains(expected), "{manifest}\nexpected: {expected}\nsaid: {}", output.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_must_not_change_cannot_be_changed() {
    let lab = Lab::new("fixed").await;
    lab.store("fast", json!({ "filesystem": { "path": "/srv/one" } })).await;
    let patch = |kind: &'static str, name: String, patch: Value| {
        let plane = lab.plane;
        let namespace = lab.system();
        async move {
            let args = ["patch", kind, &name, "-n", &namespace, "--type=merge", "-p", &patch.to_string()];
            plane.kubectl(&args).await.unwrap().success().map_err(|error| error.to_string())
        }
    };
    let moved =
        patch("imagestore", lab.store_name("fast"), json!({ "spec": { "filesystem": { "path": "/srv/two" } } })).await;
    assert!(moved.unwrap_err().contains("the path of a store cannot be changed"));
    let shared =
        patch("imagestore", lab.store_name("fast"), json!({ "spec": { "filesystem": { "shared": true } } })).await;
    assert!(shared.unwrap_err().contains("shared cannot be changed"));
    let sample = include_str!("../../../config/samples/imagetask.yaml").replace("vitrine-system", &lab.system());
    lab.plane.apply(&sample).await.unwrap();
    let name = "0b5f5f8e-8f5c-4a57-9c3f-1d2d3c4b5a69-r1-import-1";
    let node = patch("imagetask", name.into(), json!({ "spec": { "nodeName": "other" } })).await;
    assert!(node.unwrap_err().contains("only cancelled"));
    patch("imagetask", name.into(), json!({ "spec": { "cancelled": true } })).await.unwrap();
    let revived = patch("imagetask", name.into(), json!({ "spec": { "cancelled": false } })).await;
    assert!(revived.unwrap_err().contains("stays cancelled"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_leaves_zeros_out_unless_it_says_otherwise() {
    let lab = Lab::new("thin").await;
    lab.store("thin", json!({ "filesystem": { "path": "/srv/thin" } })).await;
    lab.store("thick", json!({ "filesystem": { "path": "/srv/thick" }, "thinProvisioning": false })).await;
    for (name, expected) in [("thin", "true"), ("thick", "false")] {
        let args = ["get", "imagestore", &lab.store_name(name), "-o", "jsonpath={.spec.thinProvisioning}"];
        assert_eq!(lab.plane.kubectl(&args).await.unwrap().success().unwrap(), expected, "{name}");
    }
    let bucket = json!({
        "apiVersion": "vitrine.dev/v1alpha1", "kind": "ImageStore", "metadata": { "name": lab.store_name("bucket") },
        "spec": {
            "s3": { "endpoint": "https://s3.example", "bucket": "images", "secretRef": { "name": "s3" } },
            "thinProvisioning": false,
        },
    });
    let refused = lab.plane.apply(&bucket.to_string()).await.unwrap_err().to_string();
    assert!(refused.contains("thinProvisioning can be false for filesystem and rbd only"), "{refused}");
}
