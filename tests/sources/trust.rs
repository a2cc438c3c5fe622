//! TLS and proxies.

use vitrine_engine::{
    error::Kind,
    source::{HttpSource, ProxySettings},
};
use vitrine_harness::{
    http::{FaultServer, ForwardProxy, Route},
    pki::Authority,
};

use crate::support::{config, content, fail, read, source};

#[tokio::test]
async fn only_trusted_certificates_are_taken() {
    let (authority, other) = (Authority::new("one").unwrap(), Authority::new("two").unwrap());
    let server = FaultServer::start_tls(&authority).unwrap();
    server.put("/a", Route::bytes(content()));
    let with_bundle = |pem: Option<String>| {
        let mut config = config(&server.url("/a"));
        config.ca_bundle = pem.map(String::into_bytes);
        HttpSource::new(config).unwrap()
    };
    for pem in [None, Some(other.pem())] {
        let error = fail(&with_bundle(pem), &[]).await;
        assert!(error.kind() == Kind::InvalidInput && error.to_string().contains("caBundle"), "{error}");
    }
    assert!(server.requests().is_empty());
    assert!(read(&with_bundle(Some(authority.pem()))).await.unwrap() == content());
    assert!(read(&with_bundle(Some(other.pem() + &authority.pem()))).await.unwrap() == content());
}

#[tokio::test]
async fn verification_can_be_switched_off() {
    let server = FaultServer::start_tls(&Authority::new("one").unwrap()).unwrap();
    server.put("/a", Route::bytes(content()));
    let mut config = config(&server.url("/a"));
    config.insecure_skip_verify = true;
    assert!(read(&HttpSource::new(config).unwrap()).await.unwrap() == content());
}

#[tokio::test]
async fn tls_is_not_given_up_by_a_redirect() {
    let authority = Authority::new("one").unwrap();
    let (tls, plain) = (FaultServer::start_tls(&authority).unwrap(), FaultServer::start().unwrap());
    plain.put("/a", Route::bytes(content()));
    tls.put("/a", Route::redirect(plain.url("/a")));
    let mut config = config(&tls.url("/a"));
    config.ca_bundle = Some(authority.pem().into_bytes());
    let error = fail(&HttpSource::new(config.clone()).unwrap(), &[]).await;
    assert!(error.kind() == Kind::Denied && error.to_string().contains("https to http://"), "{error}");
    assert!(plain.requests().is_empty());
    std::sync::Arc::make_mut(&mut config.policy).allow_downgrade = true;
    assert!(read(&HttpSource::new(config).unwrap()).await.unwrap() == content());
}

#[tokio::test]
async fn proxies_are_used_for_both_schemes_and_not_where_excepted() {
    let authority = Authority::new("one").unwrap();
    let (plain, tls) = (FaultServer::start().unwrap(), FaultServer::start_tls(&authority).unwrap());
    for server in [&plain, &tls] {
        server.put("/a", Route::bytes(content()));
        let proxy = ForwardProxy::start().unwrap();
        let mut config = config(&server.url("/a"));
        config.ca_bundle = Some(authority.pem().into_bytes());
        config.proxy = ProxySettings::all(proxy.url().parse().unwrap());
        assert!(read(&HttpSource::new(config.clone()).unwrap()).await.unwrap() == content());
        assert_eq!(proxy.requests().len(), 1);
        config.proxy.no_proxy = "127.0.0.0/8".to_owned();
        assert!(read(&HttpSource::new(config).unwrap()).await.unwrap() == content());
        assert_eq!(proxy.requests().len(), 1, "the second went directly");
    }
}

#[tokio::test]
async fn a_proxy_does_not_lift_the_policy() {
    let (server, proxy) = (FaultServer::start().unwrap(), ForwardProxy::start().unwrap());
    server.put("/a", Route::bytes(content()));
    let port = server.address().port();
    // The policy allows the first server only; the proxy would reach the others.
    let policy = format!(r#"{{"allow": [{{"networks": ["127.0.0.1/32"], "ports": ["{port}"]}}]}}"#);
    let through = |url: &str| {
        let mut config = config(url);
        config.policy = std::sync::Arc::new(serde_json::from_str(&policy).unwrap());
        config.proxy = ProxySettings::all(proxy.url().parse().unwrap());
        HttpSource::new(config)
    };
    let literal = through("http://127.0.0.1:1/a").err().unwrap();
    assert_eq!(literal.kind(), Kind::Denied);
    server.put("/redirect", Route::redirect("http://169.254.169.254/"));
    assert_eq!(fail(&through(&server.url("/redirect")).unwrap(), &[]).await.kind(), Kind::Denied);
    // A name that can be looked up here is looked up here.
    let named = r#"{"allow": [{"hosts": ["localhost"]}]}"#;
    let mut config = config(&format!("http://localhost:{port}/a"));
    config.policy = std::sync::Arc::new(serde_json::from_str(named).unwrap());
    config.proxy = ProxySettings::all(proxy.url().parse().unwrap());
    assert_eq!(fail(&HttpSource::new(config).unwrap(), &[]).await.kind(), Kind::Denied);
    assert_eq!(proxy.requests().len(), 1, "only the redirect was asked for");
    assert!(read(&source(&server, "/a")).await.unwrap() == content());
}
