//! What an installation begins with: an API server that is new enough, the kinds, the policies.

use k8s_openapi::{
    api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{Api, ResourceExt as _};

use super::{Finding, one};
use crate::{
    api::{VERSION, crds},
    client::{connect::Cluster, explain::explain, version::CLIENT},
};

/// The oldest API server that knows everything that is asked of it.
const OLDEST: (u32, u32) = (1, 31);
/// The policies of the chart.
const POLICIES: [(&str, &str); 2] = [
    ("vitrine-agent-own-node", "an agent that was broken into could write other nodes' tasks and reports"),
    ("vitrine-protected-images", "protected Images are deleted like all others"),
];
/// How they are put right.
const AGAIN: &str = "helm upgrade vitrine charts/vitrine --namespace NAMESPACE --reuse-values";

/// Whether the API server answers, and is new enough.
pub async fn api_server(cluster: &Cluster) -> Finding {
    let subject = "API server";
    match cluster.client.apiserver_version().await {
        Ok(version) => {
            let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok();
            let found = digits(&version.major).zip(digits(&version.minor));
            age(subject, &version.git_version, found)
        }
        Err(error) => {
            let url = &cluster.config.cluster_url;
            let remedy = "kubectl cluster-info; kubectl config current-context";
            Finding::problem(subject, format!("{url}: {}", explain(&error)), remedy)
        }
    }
}

fn age(subject: &str, version: &str, found: Option<(u32, u32)>) -> Finding {
    if found.is_some_and(|found| found < OLDEST) {
        let (major, minor) = OLDEST;
        let message = format!("Kubernetes {version} is older than {major}.{minor}");
        return Finding::problem(
            subject,
            message,
            "upgrade the cluster: ValidatingAdmissionPolicies and selectable fields are needed",
        );
    }
    Finding::ok(subject, format!("Kubernetes {version} answers"))
}

/// Whether the kinds are there, and as this program knows them.
pub async fn kinds(cluster: &Cluster) -> Vec<Finding> {
    let api: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    let mut findings = Vec::new();
    for wanted in crds() {
        let kind = wanted.spec.names.kind.clone();
        let subject = format!("kind {kind}");
        findings.push(match one(api.clone(), &wanted.name_any(), &subject).await {
            Ok(found) => judge_kind(subject, &kind, &wanted, found.as_ref()),
            Err(unseen) => unseen,
        });
    }
    findings
}

fn judge_kind(
    subject: String,
    kind: &str,
    wanted: &CustomResourceDefinition,
    found: Option<&CustomResourceDefinition>,
) -> Finding {
    let install =
        "helm install vitrine charts/vitrine --namespace vitrine-system --create-namespace, see docs/install.md";
    let Some(found) = found else {
        return Finding::problem(
            subject,
            format!("the cluster does not know the kind {kind}: Vitrine is not installed"),
            install,
        );
    };
    let conditions = found.status.iter().flat_map(|status| status.conditions.iter().flatten());
    if !conditions.into_iter().any(|condition| condition.type_ == "Established" && condition.status == "True") {
        let remedy = format!("kubectl describe crd {}", found.name_any());
        return Finding::problem(subject, "its definition is not established", remedy);
    }
    let schema = |crd: &CustomResourceDefinition| {
        let served = crd.spec.versions.iter().find(|version| version.name == VERSION && version.served)?;
        serde_json::to_value(&served.schema).ok()
    };
    match (schema(wanted), schema(found)) {
        (_, None) => Finding::problem(subject, format!("version {VERSION} is not served"), AGAIN),
        (wanted, found) if wanted == found => Finding::ok(subject, format!("is that of version {CLIENT}")),
        _ => Finding::warning(
            subject,
            format!("is of another version than this program, which is {CLIENT}: fields may be missing"),
            "use the program of the same version as the operator, or upgrade the chart; `kubectl vitrine version` has both",
        ),
    }
}

/// Whether the policies are there that RBAC cannot say.
pub async fn policies(cluster: &Cluster) -> Vec<Finding> {
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(cluster.client.clone());
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(cluster.client.clone());
    let mut findings = Vec::new();
    for (name, without) in POLICIES {
        let subject = format!("policy {name}");
        let policy = one(policies.clone(), name, &subject).await;
        let binding = one(bindings.clone(), name, &subject).await;
        findings.push(match (policy, binding) {
            (Err(unseen), _) | (_, Err(unseen)) => unseen,
            (Ok(Some(_)), Ok(Some(_))) => Finding::ok(subject, "is there and bound"),
            (Ok(None), _) => Finding::warning(subject, format!("is not there: {without}"), AGAIN),
            (_, Ok(None)) => Finding::warning(subject, format!("is not bound: {without}"), AGAIN),
        });
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    fn judge(found: Option<&CustomResourceDefinition>, wanted: &CustomResourceDefinition) -> Finding {
        judge_kind("k".to_owned(), "Image", wanted, found)
    }

    #[test]
    fn old_servers_and_missing_kinds_are_problems() {
        assert_eq!(age("s", "v1.30.1", Some((1, 30))).level, Level::Problem);
        assert_eq!(age("s", "v1.33.1", Some((1, 33))).level, Level::Ok);
        let mut wanted = crds().remove(0);
        assert_eq!(judge(None, &wanted).level, Level::Problem);
        assert_eq!(judge(Some(&wanted.clone()), &wanted).level, Level::Problem, "not established");
        wanted.status = serde_json::from_value(serde_json::json!({
            "conditions": [{ "type": "Established", "status": "True" }],
        }))
        .unwrap();
        assert_eq!(judge(Some(&wanted.clone()), &wanted).level, Level::Ok);
        let mut other = wanted.clone();
        other.spec.versions[0].schema = None;
        assert_eq!(judge(Some(&other), &wanted).level, Level::Warning);
        other.spec.versions[0].served = false;
        assert_eq!(judge(Some(&other), &wanted).level, Level::Problem);
    }
}
