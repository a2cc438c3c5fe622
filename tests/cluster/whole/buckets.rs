//! Stores in buckets of a real S3 server, Ceph's RADOS gateway: declared, imported into, emptied, and reached with a key that is mended.

use std::time::Duration;

use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use vitrine_engine::{
    error::Kind,
    model::ObjectKey,
    store::{
        Store as _,
        s3::{S3Options, S3Store},
    },
};
use vitrine_harness::{Gateway, Route};

use super::{ceph::ready, several::make, site::Site};
use crate::node::{
    disks::{raw, sha256, sha256_of},
    lab::until,
};

const SIZE: usize = 48 << 20;
const BUCKET: &str = "images";

/// The gateway that all tests share, with its bucket.
async fn gateway() -> &'static Gateway<'static> {
    static READY: OnceCell<&'static Gateway<'static>> = OnceCell::const_new();
    let ready = async || {
        let gateway = Gateway::shared().await.unwrap();
        gateway.make_bucket(BUCKET).unwrap();
        gateway
    };
    *READY.get_or_init(ready).await
}

/// Makes the Secret `name` beside the agents.
async fn secret(site: &Site<'_>, name: &str, secret: &str) {
    let (id, _) = gateway().await.access_key();
    let manifest = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name, "namespace": site.lab.namespace },
        "stringData": { "accessKeyID": id, "secretAccessKey": secret },
    });
    site.lab.plane.apply(&manifest.to_string()).await.unwrap();
}

/// Makes the ImageStore `short` below a prefix of its own, over TLS.
async fn bucket(site: &Site<'_>, short: &str, secret: &str) {
    let (gateway, name) = (gateway().await, site.store_name(short));
    let manifest = json!({
        "apiVersion": "vitrine.dev/v1alpha1", "kind": "ImageStore",
        "metadata": { "name": name, "labels": { "vitrine.dev/lab": site.lab.namespace } },
        "spec": { "s3": {
            "endpoint": gateway.tls_endpoint(), "caBundle": gateway.authority(), "bucket": BUCKET, "prefix": name,
            "objectSize": 4 << 20, "secretRef": { "name": secret },
        } },
    });
    site.lab.plane.apply(&manifest.to_string()).await.unwrap();
}

/// The names of all objects below the prefix of the ImageStore `short`, without those with which agents probe it again and again, and
/// without the mark that says whose it is.
async fn names(site: &Site<'_>, short: &str) -> Vec<String> {
    let listed = gateway().await.admin(&["bucket", "list", "--bucket", BUCKET, "--max-entries", "100000"]).unwrap();
    let listed: Vec<Value> = serde_json::from_str(&listed).unwrap();
    let names = listed.iter().map(|entry| entry["name"].as_str().unwrap().to_owned());
    let of_store = names.filter(|name| name.contains(&format!("{}/", site.store_name(short))));
    of_store.filter(|name| !name.contains("/.trial-") && !name.ends_with("/.owner")).collect()
}

#[tokio::test]
async fn an_image_goes_into_a_bucket_and_a_folder_at_once_and_leaves_nothing() {
    let (site, gateway) = (Site::shared("buckets").await, gateway().await);
    let node = site.lab.node("n").await;
    let (_operator, _agent) = (site.operator(&[]), site.lab.start(&node, &[]));
    let (id, secret_key) = gateway.access_key();
    secret(&site, "s3", secret_key).await;
    bucket(&site, "bucket", "s3").await;
    site.store("folder", &node.store(), false, None).await;
    ready(&site, "bucket", "True").await;
    let mut disk = vec![0; SIZE];
    disk[..9 << 20].copy_from_slice(&raw(7, 9 << 20));
    disk[40 << 20..41 << 20].copy_from_slice(&raw(8, 1 << 20));
    site.lab.server.put("/disk", Route::bytes(disk.clone()));
    make(&site, "disk", &["bucket", "folder"], json!({})).await;
    let image = site.active("t", "disk").await;
    let store = site.store_name("bucket");
    let location = image.status.as_ref().unwrap().locations.iter().find(|location| location.store == store).unwrap();
    let url = location.url.clone().unwrap();
    let name = url.strip_prefix(&format!("s3://{BUCKET}/{store}/")).unwrap_or_else(|| panic!("{url}"));
    let allocated = location.allocated_size.unwrap();
    // The disks that `raw` makes have holes of their own.
    assert!((5 << 20..=10 << 20).contains(&allocated), "{allocated} bytes of 10 MiB of data at most");
    let mut options = S3Options::new(gateway.endpoint().parse().unwrap(), BUCKET, id, secret_key);
    options.prefix = store;
    // What was stored by way of TLS is read without: it is the same place.
    let own = S3Store::open("own", &options).unwrap();
    let reader = own.open(&ObjectKey::parse(name).unwrap()).await.unwrap();
    assert_eq!(sha256(&reader.read_at(0, SIZE).await.unwrap()), sha256(&disk));
    drop(reader);
    let folder =
        image.status.as_ref().unwrap().locations.iter().find(|location| location.store == site.store_name("folder"));
    let file = folder.and_then(|folder| folder.url.as_deref()?.strip_prefix("file://")).unwrap();
    assert_eq!(sha256_of(file.as_ref()), sha256(&disk));

    site.delete("t", "disk").await;
    assert_eq!(own.list().await.unwrap(), vec![]);
    let left = names(&site, "bucket").await;
    assert!(left.iter().all(|left| left.ends_with(name)), "only the entry that says so is left: {left:?}");
    own.sweep(Duration::ZERO).await.unwrap();
    // The bucket bears the cluster's mark.
    let stranger = S3Store::open("stranger", &S3Options { owner: Some("stranger".to_owned()), ..options }).unwrap();
    assert_eq!(stranger.claim().await.unwrap_err().kind(), Kind::Denied);
    assert_eq!(names(&site, "bucket").await, Vec::<String>::new());
}

#[tokio::test]
async fn a_wrong_key_is_told_and_a_mended_secret_found_by_itself() {
    let site = Site::shared("s3keys").await;
    let node = site.lab.node("n").await;
    let (_operator, _agent) = (site.operator(&[]), site.lab.start(&node, &["--probe-interval", "1"]));
    bucket(&site, "bucket", "s3").await;
    let message = ready(&site, "bucket", "False").await;
    assert!(message.contains("Secret s3 is not there") && message.contains("secretAccessKey"), "{message}");
    secret(&site, "s3", "not-the-secret").await;
    let told = async || {
        Some(ready(&site, "bucket", "False").await).filter(|message| message.contains("SignatureDoesNotMatch"))
    };
    let told = until("the wrong key is told", told).await;
    assert!(told.contains("secretAccessKey") && !told.contains("not-the-secret"), "{told}");
    secret(&site, "s3", gateway().await.access_key().1).await;
    ready(&site, "bucket", "True").await;
    // Another place is refused, and so is a bundle that is none.
    let change = async |spec: Value| {
        let (name, patch) = (site.store_name("bucket"), json!({ "spec": { "s3": spec } }));
        site.stores().patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap_err().to_string()
    };
    for spec in [
        json!({ "bucket": "other" }),
        json!({ "prefix": "other" }),
        json!({ "prefix": null }),
        json!({ "endpoint": "https://x" }),
    ] {
        assert!(change(spec.clone()).await.contains("cannot be changed"), "{spec}");
    }
    assert!(change(json!({ "caBundle": "nothing" })).await.contains("PEM"));
}
