//! Tables of what the policy says.

use super::*;

fn policy(json: &str) -> AddressPolicy {
    serde_json::from_str(json).unwrap()
}

/// What the policy says to a URL whose name, if it is one, gives `address`.
fn ask(policy: &AddressPolicy, url: &str, address: Option<&str>) -> Result<(), Refusal> {
    let target = Target::of(&Url::parse(url).unwrap())?;
    policy.check_target(&target)?;
    match address {
        Some(address) => policy.check_address(&target, address.parse().unwrap()),
        None => Ok(()),
    }
}

#[test]
fn the_default_denies_inside_and_allows_mirrors() {
    let policy = policy(r#"{"clusterNetworks": ["10.96.0.0/12", "fd00:96::/108"]}"#);
    let table = [
        ("https://mirror.example.com/a", Some("93.184.215.14"), true),
        ("http://mirror.lan/a", Some("192.168.1.5"), true),
        ("http://10.0.0.5:8080/a", None, true),
        ("http://[fd00::5]/a", None, true),
        ("http://svc.example.com/a", Some("93.184.215.14"), true),
        ("http://notlocalhost/a", Some("93.184.215.14"), true),
        ("ftp://mirror.example.com/a", None, false),
        ("file:///etc/passwd", None, false),
        ("http://localhost/a", None, false),
        ("http://LOCALHOST./a", None, false),
        ("http://x.localhost/a", None, false),
        ("http://127.0.0.1/a", None, false),
        ("http://127.1/a", None, false),
        ("http://2130706433/a", None, false),
        ("http://0x7f000001/a", None, false),
        ("http://0177.0.0.1/a", None, false),
        ("http://127.0.0.1./a", None, false),
        ("http://０1２7.0.0.1/a", None, true), // fullwidth digits: octal 0127 is 87, an ordinary address
        ("http://１２７.0.0.1/a", None, false),
        ("http://⑯⑨.254.169.254/a", None, false),
        ("http://user:pass@127.0.0.1/a", None, false),
        ("http://example.com@127.0.0.1/a", None, false),
        (r"http://example.com\@127.0.0.1/a", Some("93.184.215.14"), true), // a backslash is a slash: the host is example.com
        ("http://127.0.0.1\t/a", None, false),
        ("http://[::1]/a", None, false),
        ("http://[::ffff:127.0.0.1]/a", None, false),
        ("http://[::ffff:a9fe:a9fe]/a", None, false),
        ("http://[fe80::1]/a", None, false),
        ("http://169.254.169.254/latest/meta-data", None, false),
        ("http://100.100.100.200/a", None, false),
        ("http://[fd00:ec2::254]/a", None, false),
        ("http://0/a", None, false),
        ("http://10.96.0.1/a", None, false),
        ("http://10.111.255.1/a", None, false),
        ("http://[fd00:96::1]/a", None, false),
        ("http://[::ffff:10.96.0.1]/a", None, false),
        ("http://kubernetes.default/a", None, false),
        ("http://kubernetes.default.svc/a", None, false),
        ("http://minio.minio.svc/a", None, false),
        ("http://minio.minio.svc.cluster.local/a", None, false),
        ("http://minio.minio.svc.cluster.local./a", None, false),
        ("http://metadata.google.internal/a", None, false),
        // The name is innocent, what it resolves to is not.
        ("http://rebind.example.com/a", Some("127.0.0.1"), false),
        ("http://rebind.example.com/a", Some("169.254.169.254"), false),
        ("http://rebind.example.com/a", Some("10.96.0.1"), false),
        ("http://rebind.example.com/a", Some("::ffff:10.96.0.1"), false),
        ("http://rebind.example.com/a", Some("64:ff9b::a60:1"), false),
        ("http://rebind.example.com/a", Some("0.0.0.0"), false),
    ];
    for (url, address, allowed) in table {
        assert_eq!(ask(&policy, url, address).is_ok(), allowed, "{url} {address:?}");
    }
}

#[test]
fn allow_lifts_what_is_denied_by_nature() {
    let policy = policy(
        r#"{"clusterNetworks": ["10.96.0.0/12"],
            "allow": [
              {"hosts": ["minio.minio.svc"], "ports": ["9000"]},
              {"hosts": ["*.corp.example"]},
              {"networks": ["127.0.0.0/8"], "ports": ["8000-8099"], "schemes": ["http"]},
              {"hosts": ["169.254.7.7"]}],
            "deny": [{"hosts": ["bad.corp.example"]}, {"networks": ["10.96.0.1/32"]}, {"ports": ["8099"]}]}"#,
    );
    let table = [
        ("http://minio.minio.svc:9000/a", Some("10.96.7.7"), true),
        ("http://minio.minio.svc:9001/a", Some("10.96.7.7"), false),
        ("http://other.minio.svc:9000/a", Some("10.96.7.7"), false),
        ("http://minio.minio.svc:9000/a", Some("10.96.0.1"), false), // denied by a rule
        ("http://img.corp.example/a", Some("10.100.0.9"), true),
        ("http://corp.example/a", Some("10.100.0.9"), false), // `*.` does not mean the name itself
        ("http://evilcorp.example/a", Some("10.100.0.9"), false),
        ("http://bad.corp.example/a", Some("8.8.8.8"), false),
        // A name alone never reaches the node or its metadata service.
        ("http://img.corp.example/a", Some("169.254.169.254"), false),
        ("http://img.corp.example/a", Some("127.0.0.1"), false),
        ("http://127.0.0.1:8000/a", None, true),
        ("http://127.0.0.1:8098/a", None, true),
        ("http://127.0.0.1:8099/a", None, false), // denied by a rule
        ("https://127.0.0.1:8000/a", None, false),
        ("http://127.0.0.1/a", None, false),
        ("http://localhost:8000/a", Some("127.0.0.1"), true),
        ("http://169.254.7.7/a", None, true),
        ("http://169.254.7.8/a", None, false),
        ("http://name.example/a", Some("169.254.7.7"), true),
        // A rule for some network does not open the cluster's names in others.
        ("http://db.prod.svc:8000/a", Some("172.20.0.1"), false),
    ];
    for (url, address, allowed) in table {
        assert_eq!(ask(&policy, url, address).is_ok(), allowed, "{url} {address:?}");
    }
}

#[test]
fn only_allowed_denies_the_rest() {
    let policy =
        policy(r#"{"onlyAllowed": true, "allow": [{"hosts": ["*.example.com"]}, {"networks": ["192.0.2.0/24"]}]}"#);
    assert!(ask(&policy, "https://a.example.com/", Some("93.184.215.14")).is_ok());
    assert!(ask(&policy, "https://a.example.org/", Some("93.184.215.14")).is_err());
    assert!(ask(&policy, "https://a.example.org/", Some("192.0.2.7")).is_ok());
    assert!(ask(&policy, "https://192.0.2.7/", None).is_ok());
    assert!(ask(&policy, "https://192.0.3.7/", None).is_err());
}

#[test]
fn internationalised_names_are_compared_in_ascii() {
    let policy = policy(r#"{"deny": [{"hosts": ["bücher.example"]}]}"#);
    assert!(ask(&policy, "http://xn--bcher-kva.example/", None).is_err());
    assert!(ask(&policy, "http://BÜCHER.example./", None).is_err());
    assert!(ask(&policy, "http://bucher.example/", None).is_ok());
}

#[test]
fn configuration_round_trips_and_refuses_nonsense() {
    let text = r#"{"allow":[{"schemes":["https"],"hosts":["*.example.com","::1"],"networks":["10.0.0.0/8"],"ports":["443","8000-8999"]}]}"#;
    let parsed = policy(text);
    assert_eq!(policy(&serde_json::to_string(&parsed).unwrap()), parsed);
    for wrong in [
        r#"{"allow":[{"ports":["9-8"]}]}"#,
        r#"{"allow":[{"hosts":["a*b"]}]}"#,
        r#"{"allow":[{"hosts":[""]}]}"#,
        r#"{"allow":[{"host":["a"]}]}"#,
        r#"{"allow":[{"networks":["10.0.0.0/33"]}]}"#,
    ] {
        assert!(serde_json::from_str::<AddressPolicy>(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_refusal_says_what_and_why() {
    let policy = AddressPolicy::default();
    let refusal = ask(&policy, "http://rebind.example.com/", Some("127.0.0.1")).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "rebind.example.com (127.0.0.1) is denied by the address policy: it is a loopback address"
    );
    assert_eq!(Error::from(refusal).kind(), Kind::Denied);
}
