//! Who may do what, and what a store says that is not set up right.

use std::time::{Duration, Instant};

use vitrine_engine::{
    error::{Error, Kind},
    model::OutputFormat,
    store::{
        Store,
        s3::{S3Options, S3Store},
    },
};
use vitrine_harness::{pki::Authority, port::PortLease};

use super::{BUCKET, gateway, open, options, stub::Stub};
use crate::conformance::{key, noise, publish, read_all};

/// What a store says to a probe, and to who wants to write, read, delete and list.
async fn complaints(options: &S3Options) -> Vec<Error> {
    let store = open(options);
    let mut complaints = vec![
        store.probe().await.unwrap_err(),
        store.create(&key(1), 1, OutputFormat::RAW).await.map(|_| ()).unwrap_err(),
        store.open(&key(1)).await.map(|_| ()).unwrap_err(),
        store.delete(&key(1), 1).await.unwrap_err(),
    ];
    complaints.push(store.list().await.unwrap_err());
    complaints.push(store.sweep(Duration::ZERO).await.unwrap_err());
    for error in &complaints {
        let said = error.to_string();
        assert!(said.contains("store bucket") && said.contains(&format!("bucket {}", options.bucket)), "{said}");
        assert!(!said.contains(&options.secret_access_key), "{said}");
    }
    complaints
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_keys_are_told_everywhere() {
    let good = options().await;
    for (wrong, code) in [
        (S3Options { access_key_id: "NOBODY".to_owned(), ..good.clone() }, "InvalidAccessKeyId"),
        (S3Options { secret_access_key: "not the secret".to_owned(), ..good.clone() }, "SignatureDoesNotMatch"),
    ] {
        for error in complaints(&wrong).await {
            let said = error.to_string();
            assert_eq!(error.kind(), Kind::Denied, "{said}");
            assert!(
                said.contains(code) && said.contains("secretAccessKey") && said.contains(&wrong.access_key_id),
                "{said}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_use_the_bucket_is_told_what_is_needed() {
    gateway().await.make_user("stranger", "STRANGER", "stranger-secret").unwrap();
    let stranger = S3Options {
        access_key_id: "STRANGER".to_owned(),
        secret_access_key: "stranger-secret".to_owned(),
        ..options().await
    };
    let error = open(&stranger).probe().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Denied, "{error}");
    assert!(error.to_string().contains("ListBucketMultipartUploads"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_buckets_are_named() {
    let missing = S3Options { bucket: "attic".to_owned(), ..options().await };
    for error in complaints(&missing).await {
        assert_eq!(error.kind(), Kind::NotFound, "{error}");
        assert!(error.to_string().contains("has no bucket attic"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absent_server_is_told_in_time() {
    let nobody = PortLease::reserve().unwrap();
    let endpoint = format!("http://127.0.0.1:{}", nobody.port());
    let absent =
        S3Options { endpoint: endpoint.parse().unwrap(), retry_timeout: Duration::from_secs(1), ..options().await };
    let start = Instant::now();
    for error in complaints(&absent).await {
        assert_eq!(error.kind(), Kind::Unavailable, "{error}");
        assert!(error.to_string().contains(&endpoint), "{error}");
    }
    assert!(start.elapsed() < Duration::from_secs(60), "it took {} s", start.elapsed().as_secs());
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_takes_the_authority_that_is_given_and_no_other() {
    let gateway = gateway().await;
    let with = async |pem: Option<String>| S3Options {
        endpoint: gateway.tls_endpoint().parse().unwrap(),
        ca_bundle: pem.map(String::into_bytes),
        retry_timeout: Duration::from_secs(1),
        ..options().await
    };
    let store = open(&with(Some(gateway.authority())).await);
    store.probe().await.unwrap();
    publish(&*store, &key(1), 10 << 20, &[(0, noise(1, 10 << 20))]).await;
    assert!(read_all(&*store.open(&key(1)).await.unwrap()).await == noise(1, 10 << 20));
    store.sweep(Duration::ZERO).await.unwrap();
    let other = Authority::new("another").unwrap().pem();
    for wrong in [None, Some(other)] {
        for error in complaints(&with(wrong).await).await {
            assert_eq!(error.kind(), Kind::InvalidInput, "{error}");
            assert!(error.to_string().contains("caBundle"), "{error}");
        }
    }
    let none = S3Store::open("bucket", &with(Some("nothing".to_owned())).await).unwrap_err();
    assert!(none.kind() == Kind::InvalidInput && none.to_string().contains("BEGIN CERTIFICATE"), "{none}");
}

fn at(stub: &Stub) -> S3Options {
    let options = S3Options::new(stub.endpoint().parse().unwrap(), BUCKET, "id", "secret-of-the-key");
    S3Options { retry_timeout: Duration::from_secs(1), ..options }
}

/// Servers that do not know the conditions ignore them.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_conditional_writes_is_not_written_to() {
    let stub = Stub::start("200 OK", "ETag: \"0123\"\r\n", "");
    let store = open(&at(&stub));
    for error in
        [store.probe().await.unwrap_err(), store.create(&key(1), 1, OutputFormat::RAW).await.map(|_| ()).unwrap_err()]
    {
        assert_eq!(error.kind(), Kind::InvalidInput, "{error}");
        assert!(error.to_string().contains("does not honour conditional writes"), "{error}");
    }
}

fn error_body(code: &str) -> String {
    format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>what it says</Message></Error>")
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_that_differ_are_told() {
    let stub = Stub::start("403 Forbidden", "", &error_body("RequestTimeTooSkewed"));
    for error in complaints(&at(&stub)).await {
        assert_eq!(error.kind(), Kind::Unavailable, "{error}");
        assert!(error.to_string().contains("NTP"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_too_busy_is_asked_again_and_not_for_ever() {
    let stub = Stub::start("503 Slow Down", "", &error_body("SlowDown"));
    let start = Instant::now();
    let store = open(&at(&stub));
    let error = store.open(&key(1)).await.map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    assert!(error.to_string().contains("SlowDown: what it says"), "{error}");
    assert!((2..=40).contains(&stub.asked()), "{}", stub.asked());
    assert!(start.elapsed() < Duration::from_secs(60), "it took {} s", start.elapsed().as_secs());
}
