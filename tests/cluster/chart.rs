//! The Helm chart on a real API server, by helm and kubectl: nothing runs here, what is made is looked at.

use serde_json::{Value, json};
use vitrine_harness::ControlPlane;

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/vitrine");
const SPACE: &str = "vitrine-system";
const STORE: &str =
    r#"defaultStore={"enabled":true,"name":"local","spec":{"filesystem":{"path":"/var/lib/vitrine/images"}}}"#;

async fn helm(plane: &ControlPlane, args: &[&str]) -> String {
    plane.helm(args).await.unwrap().success().unwrap()
}

async fn get(plane: &ControlPlane, args: &[&str]) -> Value {
    let args: Vec<_> = ["get", "-o", "json", "-n", SPACE].iter().chain(args).copied().collect();
    serde_json::from_str(&plane.kubectl(&args).await.unwrap().success().unwrap()).unwrap()
}

/// Nothing runs, so nothing is waited for.
const ALONE: &str = "agents.awaitRollout.enabled=false";

/// How many there are of `kind` with the chart's label.
async fn made(plane: &ControlPlane, kind: &str) -> usize {
    let found = get(plane, &[kind, "-l", "app.kubernetes.io/part-of=vitrine"]).await;
    found["items"].as_array().map_or(0, Vec::len)
}

/// The DaemonSet that the operator is told to make. No operator runs here.
async fn agents(plane: &ControlPlane) -> Value {
    let told = get(plane, &["configmap", "vitrine-agents"]).await;
    serde_yaml::from_str(told["data"]["agents.yaml"].as_str().unwrap()).unwrap()
}

async fn agent_args(plane: &ControlPlane) -> Vec<String> {
    let agents = agents(plane).await;
    serde_json::from_value(agents["spec"]["template"]["spec"]["containers"][0]["args"].clone()).unwrap()
}

/// An Image that somebody declared; returns what it is known by.
async fn declare(plane: &ControlPlane) -> Value {
    let image = json!({
        "apiVersion": "vitrine.dev/v1alpha1", "kind": "Image", "metadata": { "name": "debian", "namespace": "default" },
        "spec": { "source": { "http": { "url": "https://images.example/debian.qcow2" } } },
    });
    plane.apply(&image.to_string()).await.unwrap();
    uid(plane).await
}

async fn uid(plane: &ControlPlane) -> Value {
    get(plane, &["image", "debian", "-n", "default"]).await["metadata"]["uid"].clone()
}

#[tokio::test]
async fn images_outlive_upgrade_rollback_and_uninstallation() {
    let plane = ControlPlane::start().await.unwrap();
    let install = ["install", "vitrine", CHART, "-n", SPACE, "--create-namespace", "--set", ALONE, "--set-json", STORE];
    let notes = helm(&plane, &install).await;
    assert!(notes.contains("kubectl get imagestores local"), "{notes}");
    let established = ["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"];
    plane.kubectl(&established).await.unwrap().success().unwrap();
    let image = declare(&plane).await;
    // What an operator would make.
    let told = get(&plane, &["configmap", "vitrine-agents"]).await;
    plane.apply(told["data"]["default-store.yaml"].as_str().unwrap()).await.unwrap();
    assert_eq!(get(&plane, &["imagestore", "local"]).await["spec"]["default"], true);
    let operator = format!("--as=system:serviceaccount:{SPACE}:vitrine-operator");
    plane.kubectl(&["auth", "can-i", "create", "imagestores.vitrine.dev", &operator]).await.unwrap().success().unwrap();

    helm(&plane, &["upgrade", "vitrine", CHART, "-n", SPACE, "--reuse-values", "--set", "agents.maxConcurrent=7"])
        .await;
    assert!(agent_args(&plane).await.contains(&"--max-concurrent=7".to_owned()));
    helm(&plane, &["rollback", "vitrine", "1", "-n", SPACE]).await;
    assert!(agent_args(&plane).await.contains(&"--max-concurrent=2".to_owned()));
    assert_eq!(uid(&plane).await, image);

    helm(&plane, &["uninstall", "vitrine", "-n", SPACE]).await;
    for kind in
        ["deployment", "configmap", "clusterrole", "validatingadmissionpolicy", "networkpolicy", "priorityclass"]
    {
        assert_eq!(made(&plane, kind).await, 0, "{kind}");
    }
    assert_eq!((made(&plane, "crd").await, uid(&plane).await), (4, image.clone()));
    get(&plane, &["imagestore", "local"]).await;

    helm(&plane, &install).await;
    assert_eq!((made(&plane, "deployment").await, uid(&plane).await), (1, image));
}

#[tokio::test]
async fn pods_are_what_the_strictest_namespaces_take() {
    let plane = ControlPlane::start().await.unwrap();
    helm(&plane, &["install", "vitrine", CHART, "-n", SPACE, "--create-namespace", "--set", ALONE]).await;
    let strict = ["label", "namespace", SPACE, "pod-security.kubernetes.io/enforce=restricted"];
    plane.kubectl(&strict).await.unwrap().success().unwrap();
    let operator = get(&plane, &["deployment/vitrine-operator"]).await;
    for workload in [operator, agents(&plane).await] {
        let mut pod = workload["spec"]["template"].clone();
        let workload = workload["kind"].as_str().unwrap();
        pod["metadata"]["name"] = "trial".into();
        pod["apiVersion"] = "v1".into();
        pod["kind"] = "Pod".into();
        let create = ["create", "--dry-run=server", "-n", SPACE, "-f", "-"];
        let made = plane.kubectl_with_input(&create, &pod.to_string()).await.unwrap();
        assert!(made.status.success() && !made.stderr.contains("would violate"), "{workload}: {}", made.stderr);
        // The judge judges.
        pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = true.into();
        let refused = plane.kubectl_with_input(&create, &pod.to_string()).await.unwrap();
        assert!(refused.stderr.contains("allowPrivilegeEscalation"), "{workload}: {}", refused.stderr);
    }
    for (account, may, what) in [
        ("vitrine-operator", "yes", &["create", "imagetasks.vitrine.dev"][..]),
        ("vitrine-operator", "no", &["create", "images.vitrine.dev"]),
        ("vitrine-operator", "no", &["create", "imagestores.vitrine.dev"]),
        ("vitrine-operator", "yes", &["patch", "daemonsets.apps/vitrine-agent"]),
        ("vitrine-operator", "no", &["patch", "daemonsets.apps/another"]),
        ("vitrine-operator", "no", &["delete", "daemonsets.apps/vitrine-agent"]),
        ("vitrine-operator", "no", &["create", "daemonsets.apps", "--namespace=default"]),
        ("vitrine-agent", "no", &["get", "daemonsets.apps/vitrine-agent"]),
        ("vitrine-agent", "yes", &["patch", "imagetasks.vitrine.dev", "--subresource=status"]),
        ("vitrine-agent", "no", &["list", "secrets"]),
    ] {
        let user = format!("system:serviceaccount:{SPACE}:{account}");
        let ask: Vec<_> = ["auth", "can-i", "-n", SPACE, "--as", &user].iter().chain(what).copied().collect();
        assert_eq!(plane.kubectl(&ask).await.unwrap().stdout.trim(), may, "{account}: {what:?}");
    }
}

#[tokio::test]
async fn only_the_port_of_the_data_api_is_open_and_it_can_be_closed() {
    let plane = ControlPlane::start().await.unwrap();
    helm(&plane, &["install", "vitrine", CHART, "-n", SPACE, "--create-namespace", "--set", ALONE]).await;
    assert!(agent_args(&plane).await.contains(&"--data-address=[::]:8443".to_owned()));
    let ports = get(&plane, &["service", "vitrine-data"]).await["spec"]["ports"].clone();
    assert_eq!((&ports[0]["port"], &ports[0]["targetPort"]), (&json!(443), &json!("data")));
    let open = async |part: &str| get(&plane, &["networkpolicy", part]).await["spec"]["ingress"].clone();
    assert_eq!(open("vitrine-agent").await, json!([{ "ports": [{ "port": "data", "protocol": "TCP" }] }]));
    assert_eq!(open("vitrine-operator").await, Value::Null);
    let upgrade = ["upgrade", "vitrine", CHART, "-n", SPACE, "--set", ALONE, "--set-json"];
    let from = r#"networkPolicies={"dataFrom":[{"namespaceSelector":{"matchLabels":{"team":"vms"}}}]}"#;
    helm(&plane, &[&upgrade[..], &[from]].concat()).await;
    let from = open("vitrine-agent").await[0]["from"].clone();
    assert_eq!(from[0]["podSelector"]["matchLabels"]["app.kubernetes.io/name"], "vitrine-agent");
    assert_eq!(from[1]["namespaceSelector"]["matchLabels"]["team"], "vms");
    helm(&plane, &[&upgrade[..], &["data={\"enabled\":false}"]].concat()).await;
    assert_eq!((made(&plane, "service").await, open("vitrine-agent").await), (0, Value::Null));
    assert!(!agent_args(&plane).await.iter().any(|arg| arg.starts_with("--data-address")));
    let anybody = "system:serviceaccount:default:anybody";
    for (who, may, what) in [
        ("vitrine-agent", "yes", &["create", "tokenreviews.authentication.k8s.io"][..]),
        ("vitrine-agent", "no", &["list", "images.vitrine.dev"]),
        ("vitrine-operator", "no", &["create", "tokenreviews.authentication.k8s.io"]),
    ] {
        let user = format!("system:serviceaccount:{SPACE}:{who}");
        let ask: Vec<_> = ["auth", "can-i", "-n", SPACE, "--as", &user].iter().chain(what).copied().collect();
        assert_eq!(plane.kubectl(&ask).await.unwrap().stdout.trim(), may, "{who}: {what:?}");
    }
    let ask = ["auth", "can-i", "-n", SPACE, "--as", anybody, "--as-group", "system:authenticated", "get"];
    let bundle = plane.kubectl(&[&ask[..], &["configmap/vitrine-ca"]].concat()).await.unwrap();
    assert_eq!(bundle.stdout.trim(), "yes", "{}", bundle.stderr);
}

#[tokio::test]
async fn wrong_values_are_refused_and_named() {
    let plane = ControlPlane::start().await.unwrap();
    let linted = helm(&plane, &["lint", "--strict", CHART]).await;
    assert!(linted.contains("0 chart(s) failed"), "{linted}");
    for (value, said) in [
        ("agents.maxConcurent=3", "maxConcurent"),
        ("agents.maxConcurrent=0", "maxConcurrent"),
        ("agents.storePath=images", "storePath"),
        ("image.digest=sha256:abc", "digest"),
        ("data.port=443", "port"),
        ("data.service.type=ExternalName", "type"),
        ("operator.replicas=none", "replicas"),
        ("defaultStore.enabled=true", "defaultStore.spec is empty"),
    ] {
        let done = plane.helm(&["template", "vitrine", CHART, "--set", value]).await.unwrap();
        assert!(!done.status.success() && done.stderr.contains(said), "{value}: {}{}", done.stderr, done.stdout);
    }
}

/// What the chart makes, as it was last read by somebody: every change of a template or a default shows as a change of these files.
/// `VITRINE_WRITE_GOLDEN=1` writes them anew.
#[tokio::test]
async fn what_is_rendered_is_what_was_reviewed() {
    let plane = ControlPlane::shared().await.unwrap();
    // The definitions, rights and policies have files of their own in this tree.
    let leave_out = ["crds.enabled=false"];
    let everything = [
        "agents.storePath=/var/lib/vitrine",
        "agents.allowSources={10.0.0.5,images.example}",
        "agents.clusterCIDRs={10.96.0.0/16}",
        "agents.env[0].name=HTTPS_PROXY",
        "agents.env[0].value=http://proxy.example:3128",
        "operator.watchNamespaces={team}",
        "operator.storeSelector=tier=gold",
        "image.digest=sha256:0000000000000000000000000000000000000000000000000000000000000000",
        "image.pullSecrets[0].name=registry",
        "data.names={images.example}",
        "data.service.type=LoadBalancer",
        "networkPolicies.dataFrom[0].namespaceSelector.matchLabels.team=vms",
        "networkPolicies.monitoringFrom[0].namespaceSelector.matchLabels.team=ops",
        "monitoring.podMonitors.enabled=true",
        "defaultStore.enabled=true",
        "defaultStore.spec.filesystem.path=/var/lib/vitrine/images",
    ];
    for (name, values) in [("default", &[][..]), ("everything", &everything[..])] {
        let sets = leave_out.iter().chain(values).flat_map(|value| ["--set", value]);
        let args: Vec<_> = ["template", "vitrine", CHART, "-n", SPACE].into_iter().chain(sets).collect();
        let rendered = helm(plane, &args).await;
        let own = |part: &&str| {
            !["rbac.yaml", "policies.yaml"].iter().any(|file| part.contains(&format!("templates/{file}\n")))
        };
        let rendered: String = rendered.split_inclusive("\n---\n").filter(own).collect();
        // Stricter readers than helm's take no key twice.
        for part in rendered.split("\n---\n") {
            let manifest = serde_yaml::from_str::<serde_yaml::Value>(part);
            assert!(manifest.is_ok(), "{manifest:?}: {part}");
        }
        let golden = format!("{}/tests/cluster/golden/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("VITRINE_WRITE_GOLDEN").is_some() {
            std::fs::write(&golden, &rendered).unwrap();
        }
        let reviewed = std::fs::read_to_string(&golden).unwrap();
        let first = rendered.lines().zip(reviewed.lines()).position(|(now, then)| now != then);
        assert!(
            rendered == reviewed,
            "{golden} differs from line {}: if that is meant, run this test with VITRINE_WRITE_GOLDEN=1 and read the difference",
            first.unwrap_or_else(|| rendered.lines().count().min(reviewed.lines().count())) + 1
        );
    }
}
