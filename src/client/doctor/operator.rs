//! The operator: somebody leads, and its Deployment is as it should be.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::{apps::v1::Deployment, coordination::v1::Lease};
use kube::{Api, ResourceExt as _};

use super::{Case, Finding, one};
use crate::{
    api::identity::{LEADER_LEASE, OPERATOR_DEPLOYMENT},
    client::{
        text::age,
        version::{CLIENT, LABEL},
    },
};

/// How long a Lease is watched that looks expired: clocks differ, and whoever renews it shows that it lives.
const WATCH: Duration = Duration::from_secs(6);

/// Looks at it.
pub async fn examine(case: &Case<'_>) -> Vec<Finding> {
    let client = &case.cluster.client;
    let leases: Api<Lease> = Api::namespaced(client.clone(), case.site);
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), case.site);
    let deployment = one(deployments, OPERATOR_DEPLOYMENT, "operator").await;
    let mut findings = Vec::new();
    let lease = match one(leases.clone(), LEADER_LEASE, "leader").await {
        Ok(Some(lease)) if !is_held(&lease, Timestamp::now()) => {
            tokio::time::sleep(WATCH).await;
            let later = one(leases, LEADER_LEASE, "leader").await.ok().flatten();
            let moved = later.as_ref().is_some_and(|later| renewed(later) != renewed(&lease));
            Ok(Some((later.unwrap_or(lease), moved)))
        }
        Ok(lease) => Ok(lease.map(|lease| (lease, true))),
        Err(unseen) => Err(unseen),
    };
    findings.push(match lease {
        Ok(lease) => judge_lease(lease.as_ref(), case.site),
        Err(unseen) => unseen,
    });
    findings.push(match deployment {
        Ok(deployment) => judge_deployment(deployment.as_ref(), case.site),
        Err(unseen) => unseen,
    });
    findings
}

fn renewed(lease: &Lease) -> Option<Timestamp> {
    lease.spec.as_ref()?.renew_time.as_ref().map(|time| time.0)
}

fn is_held(lease: &Lease, now: Timestamp) -> bool {
    let spec = lease.spec.clone().unwrap_or_default();
    let held = spec.holder_identity.is_some_and(|holder| !holder.is_empty());
    let seconds = i64::from(spec.lease_duration_seconds.unwrap_or(0));
    let fresh = spec.renew_time.is_some_and(|at| now.as_second().saturating_sub(at.0.as_second()) <= seconds);
    held && fresh
}

fn judge_lease(lease: Option<&(Lease, bool)>, site: &str) -> Finding {
    let subject = "leader";
    let look = format!(
        "kubectl get pods --namespace {site}; kubectl logs deployment/{OPERATOR_DEPLOYMENT} --namespace {site}"
    );
    let Some((lease, lives)) = lease else {
        let message = format!("no operator has ever led in namespace {site}: nothing is decided");
        return Finding::problem(subject, message, look);
    };
    let holder =
        lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).filter(|holder| !holder.is_empty());
    let since = renewed(lease).map_or_else(|| "ever".to_owned(), |at| age(at, Timestamp::now()));
    match holder {
        Some(holder) if *lives => Finding::ok(subject, format!("{holder} leads")),
        Some(holder) => Finding::problem(
            subject,
            format!("{holder} led, and has not been heard of for {since}: nothing is decided"),
            look,
        ),
        None => Finding::problem(subject, format!("nobody leads for {since}: nothing is decided"), look),
    }
}

fn judge_deployment(deployment: Option<&Deployment>, site: &str) -> Finding {
    let subject = "operator";
    let Some(deployment) = deployment else {
        let message = format!("there is no Deployment {OPERATOR_DEPLOYMENT} in namespace {site}");
        let remedy = "if Vitrine was installed by its chart, say with --vitrine-namespace where; an operator that runs elsewhere is none of its business";
        return Finding::warning(subject, message, remedy);
    };
    let status = deployment.status.clone().unwrap_or_default();
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let ready = status.ready_replicas.unwrap_or(0);
    let version = deployment.labels().get(LABEL).map_or("unknown", String::as_str);
    let look = format!(
        "kubectl describe deployment {OPERATOR_DEPLOYMENT} --namespace {site}; kubectl get pods --namespace {site}"
    );
    if ready == 0 {
        return Finding::problem(subject, format!("none of its {wanted} pods is ready"), look);
    }
    if ready < wanted || status.updated_replicas.unwrap_or(0) < wanted {
        return Finding::warning(
            subject,
            format!("{ready} of its {wanted} pods are ready, or not all are of the newest version"),
            look,
        );
    }
    if version != CLIENT {
        let remedy = "use the program of the operator's version: `kubectl exec`, or the release it was installed from";
        return Finding::warning(subject, format!("is of version {version}, and this program of {CLIENT}"), remedy);
    }
    Finding::ok(subject, format!("{ready} pods are ready, of version {version}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Level;
    use super::*;

    fn lease(holder: &str, renewed: &str) -> Lease {
        serde_json::from_value(json!({
            "metadata": { "name": "l" },
            "spec": { "holderIdentity": holder, "leaseDurationSeconds": 15, "renewTime": renewed },
        }))
        .unwrap()
    }

    #[test]
    fn a_lease_is_held_while_it_is_renewed() {
        let now: Timestamp = "2026-01-01T00:00:10Z".parse().unwrap();
        assert!(is_held(&lease("a", "2026-01-01T00:00:00.000000Z"), now));
        assert!(!is_held(&lease("", "2026-01-01T00:00:00.000000Z"), now));
        assert!(!is_held(&lease("a", "2025-12-31T23:59:00.000000Z"), now));
        let old = lease("a", "2025-12-31T23:59:00.000000Z");
        assert_eq!(judge_lease(Some(&(old.clone(), true)), "s").level, Level::Ok, "it moves: clocks differ");
        assert_eq!(judge_lease(Some(&(old, false)), "s").level, Level::Problem);
        assert_eq!(judge_lease(None, "s").level, Level::Problem);
    }

    #[test]
    fn a_deployment_without_a_ready_pod_is_a_problem() {
        let deployment = |ready: i32, version: &str| -> Deployment {
            serde_json::from_value(json!({
                "metadata": { "name": "d", "labels": { LABEL: version } },
                "spec": { "replicas": 2, "selector": {}, "template": {} },
                "status": { "readyReplicas": ready, "updatedReplicas": 2 },
            }))
            .unwrap()
        };
        let level = |ready, version| judge_deployment(Some(&deployment(ready, version)), "s").level;
        assert_eq!([level(0, CLIENT), level(1, CLIENT), level(2, CLIENT)], [Level::Problem, Level::Warning, Level::Ok]);
        assert_eq!(level(2, "0.0.0"), Level::Warning);
        assert_eq!(judge_deployment(None, "s").level, Level::Warning);
    }
}
