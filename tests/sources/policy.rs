//! Where requests go: the address policy, redirects, credentials.

use std::sync::Arc;

use vitrine_engine::{
    error::Kind,
    source::{AddressPolicy, HttpConfig, HttpSource, Source},
};
use vitrine_harness::http::{Fault, FaultServer, Route};

use crate::support::{config, content, fail, read, source};

fn with_policy(url: &str, policy: &str) -> HttpSource {
    let mut config = config(url);
    config.policy = Arc::new(serde_json::from_str::<AddressPolicy>(policy).unwrap());
    HttpSource::new(config).unwrap()
}

#[tokio::test]
async fn loopback_is_denied_unless_allowed() {
    let server = FaultServer::start().unwrap();
    server.put("/a", Route::bytes(content()));
    let denied = HttpSource::new(HttpConfig::new(server.url("/a").parse().unwrap())).err().unwrap();
    assert!(denied.kind() == Kind::Denied && denied.to_string().contains("127.0.0.1"), "{denied}");
    assert!(read(&source(&server, "/a")).await.unwrap() == content());
    assert_eq!(server.requests().len(), 1, "the denied one was never sent");
}

#[tokio::test]
async fn the_resolved_address_is_what_is_checked() {
    let server = FaultServer::start().unwrap();
    server.put("/a", Route::bytes(content()));
    // The name is allowed, the address that it resolves to is not.
    let url = format!("http://localhost:{}/a", server.address().port());
    let error = fail(&with_policy(&url, r#"{"allow": [{"hosts": ["localhost"]}]}"#), &[]).await;
    assert!(error.kind() == Kind::Denied && error.to_string().contains("localhost ("), "{error}");
    assert!(server.requests().is_empty(), "no connection was made");
    let both = r#"{"allow": [{"hosts": ["localhost"], "networks": ["127.0.0.0/8"]}]}"#;
    assert!(read(&with_policy(&url, both)).await.unwrap() == content());
}

#[tokio::test]
async fn a_redirect_to_a_denied_address_is_not_followed() {
    let server = FaultServer::start().unwrap();
    server.put("/secret", Route::bytes(b"root:x:0:0".to_vec()));
    for target in [
        format!("http://localhost:{}/secret", server.address().port()),
        format!("http://0.0.0.0:{}/secret", server.address().port()),
        format!("http://[::ffff:127.0.0.1]:{}/secret", server.address().port()),
        "http://169.254.169.254/latest/meta-data/".to_owned(),
        "http://kubernetes.default.svc/api".to_owned(),
        "file:///etc/passwd".to_owned(),
        "gopher://127.0.0.1/".to_owned(),
    ] {
        server.put("/a", Route::redirect(target.clone()));
        let policy = format!(
            r#"{{"allow": [{{"networks": ["127.0.0.0/8"], "ports": ["{}"]}}], "deny": [{{"hosts": ["localhost"]}}, {{"networks": ["::ffff:127.0.0.1/128"]}}]}}"#,
            server.address().port()
        );
        let error = fail(&with_policy(&server.url("/a"), &policy), &[]).await;
        assert_eq!(error.kind(), Kind::Denied, "{target}: {error}");
    }
    assert!(server.requests_for("/secret").is_empty());
}

#[tokio::test]
async fn redirects_are_followed_and_then_remembered() {
    let (front, back, content) = (FaultServer::start().unwrap(), FaultServer::start().unwrap(), content());
    back.put("/real", Route::bytes(content.clone()).first(1, Fault::CutAfter(1_000_000)));
    front.put("/b", Route::redirect(back.url("/real")));
    front.put("/a", Route::redirect("/b"));
    assert!(read(&source(&front, "/a")).await.unwrap() == content);
    assert_eq!(front.requests().len(), 2, "the continuation goes straight to where the redirects led");
    assert_eq!(back.requests().len(), 2);
}

#[tokio::test]
async fn a_place_that_expired_is_asked_for_again() {
    let (front, back, content) = (FaultServer::start().unwrap(), FaultServer::start().unwrap(), content());
    let route = || Route::bytes(content.clone());
    back.put("/old", route().first(1, Fault::CutAfter(1_000_000)).from(2, Fault::Status(403)));
    back.put("/new", route());
    front.put("/a", Route::redirect(back.url("/new")).first(1, Fault::Redirect(back.url("/old"))));
    assert!(read(&source(&front, "/a")).await.unwrap() == content);
}

#[tokio::test]
async fn redirects_without_end_are_given_up() {
    let server = FaultServer::start().unwrap();
    server.put("/a", Route::redirect_loop());
    let error = fail(&source(&server, "/a"), &[]).await;
    assert!(error.kind() == Kind::InvalidInput && error.to_string().contains("more than 10 redirects"), "{error}");
    assert_eq!(server.requests().len(), 11);
}

#[tokio::test]
async fn credentials_stay_with_their_server() {
    let (front, back, content) = (FaultServer::start().unwrap(), FaultServer::start().unwrap(), content());
    back.put("/a", Route::bytes(content.clone()));
    front.put("/a", Route::redirect("/b").require_header("Authorization", "Bearer secret"));
    front.put("/b", Route::redirect(back.url("/a")).require_header("Authorization", "Bearer secret"));
    let mut config = config(&front.url("/a"));
    config.headers.insert("authorization", "Bearer secret".parse().unwrap());
    config.headers.insert("x-token", "secret".parse().unwrap());
    assert!(read(&HttpSource::new(config).unwrap()).await.unwrap() == content);
    assert!(front.requests().iter().all(|r| r.header("x-token").is_some()), "the own server gets them on every hop");
    assert!(back.requests().iter().all(|r| r.header("authorization").is_none() && r.header("x-token").is_none()));
}

#[tokio::test]
async fn user_info_is_sent_and_never_shown() {
    let server = FaultServer::start().unwrap();
    server.put("/a", Route::bytes(b"ok".to_vec()).require_header("Authorization", "Basic dXNlcjpzM2NyZXQ="));
    let url = server.url("/a?signature=s3cret").replace("//", "//user:s3cret@");
    let good = HttpSource::new(config(&url)).unwrap();
    assert_eq!(read(&good).await.unwrap(), b"ok");
    server.set_down(true);
    let down = good.open().await.err().unwrap();
    server.set_down(false);
    server.put("/a", Route::redirect("http://127.0.0.1:1/?signature=s3cret"));
    let refused = good.open().await.err().unwrap();
    server.put("/a", Route::redirect("http://user:s3cret@[::2]:1/?signature=s3cret").first(1, Fault::Status(404)));
    let missing = good.open().await.err().unwrap();
    let redirected = good.open().await.err().unwrap();
    for text in [
        good.describe(),
        format!("{down} {down:?}"),
        format!("{refused} {refused:?}"),
        missing.to_string(),
        redirected.to_string(),
    ] {
        assert!(!text.contains("s3cret"), "{text}");
    }
    assert!(down.to_string().contains("/a"), "{down}");
}
