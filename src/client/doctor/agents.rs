//! The agents: one on each node where there ought to be, each heard of, each with a certificate.

use jiff::Timestamp;
use k8s_openapi::api::{apps::v1::DaemonSet, coordination::v1::Lease};
use kube::{Api, ResourceExt as _, api::ListParams};

use super::{Case, Finding, listed, one};
use crate::{
    api::{
        NodeCache,
        identity::{AGENTS_DAEMON_SET, ANNOTATION_NODE, LABEL_AGENT},
    },
    client::{text::age, version::CLIENT},
};

/// Looks at them.
pub async fn examine(case: &Case<'_>) -> Vec<Finding> {
    let (client, site) = (&case.cluster.client, case.site);
    let mut findings = Vec::new();
    match one(Api::<DaemonSet>::namespaced(client.clone(), site), AGENTS_DAEMON_SET, "agents").await {
        Ok(Some(set)) => findings.push(judge_set(&set, site)),
        // Agents may be run by other means; then their Leases are all that is known.
        Ok(None) => {}
        Err(unseen) => findings.push(unseen),
    }
    let of_agents = ListParams::default().labels(&format!("{LABEL_AGENT}=true"));
    let leases = listed(Api::<Lease>::namespaced(client.clone(), site), &of_agents, "agents").await;
    let caches = listed(Api::<NodeCache>::all(client.clone()), &ListParams::default(), "agents").await;
    match (leases, caches) {
        (Ok(leases), Ok(caches)) => findings.extend(judge_nodes(&leases, &caches, site, Timestamp::now())),
        (Err(unseen), _) | (_, Err(unseen)) => findings.push(unseen),
    }
    findings
}

fn judge_set(set: &DaemonSet, site: &str) -> Finding {
    let subject = "agents";
    let status = set.status.clone().unwrap_or_default();
    let (wanted, ready) = (status.desired_number_scheduled, status.number_ready);
    let updated = status.updated_number_scheduled.unwrap_or(0);
    let look = format!(
        "kubectl describe daemonset {AGENTS_DAEMON_SET} --namespace {site}; kubectl get pods --namespace {site} --output wide"
    );
    if wanted == 0 {
        let remedy = "look at agents.nodeSelector and agents.tolerations of the chart";
        return Finding::problem(subject, "there is no node for an agent: nothing can be imported", remedy);
    }
    if ready == 0 {
        return Finding::problem(subject, format!("on none of {wanted} nodes is an agent ready"), look);
    }
    if ready < wanted {
        return Finding::warning(subject, format!("on {ready} of {wanted} nodes an agent is ready"), look);
    }
    if updated < wanted || status.observed_generation != set.metadata.generation {
        return Finding::warning(
            subject,
            format!("a new version is being rolled out: {updated} of {wanted} nodes have it"),
            look,
        );
    }
    Finding::ok(subject, format!("one is ready on each of {wanted} nodes"))
}

/// What the agents themselves say.
fn judge_nodes(leases: &[Lease], caches: &[NodeCache], site: &str, now: Timestamp) -> Vec<Finding> {
    if leases.is_empty() {
        let look = format!("kubectl logs daemonset/{AGENTS_DAEMON_SET} --namespace {site}");
        return vec![Finding::problem("agents", "none has ever been heard of: nothing can be imported", look)];
    }
    let (mut findings, mut live) = (Vec::new(), 0_usize);
    for lease in leases {
        let node = lease.annotations().get(ANNOTATION_NODE).cloned().unwrap_or_else(|| lease.name_any());
        let subject = format!("agent on {node}");
        let look = format!(
            "kubectl get pods --namespace {site} --field-selector spec.nodeName={node}; kubectl get node {node}"
        );
        if let Some(silence) = silence(lease, now) {
            findings.push(Finding::warning(
                subject,
                format!("has not been heard of for {silence}; its work goes to others"),
                look,
            ));
            continue;
        }
        live += 1;
        findings.extend(judge_cache(caches.iter().find(|cache| cache.name_any() == node), subject, site, &look));
    }
    if live == 0 {
        let look = format!("kubectl get pods --namespace {site} --output wide");
        findings.push(Finding::problem("agents", "none is alive: nothing can be imported or downloaded", look));
    } else {
        findings.push(Finding::ok("agents alive", format!("{live} of {}", leases.len())));
    }
    findings
}

/// How long an agent has been silent, if that is too long.
fn silence(lease: &Lease, now: Timestamp) -> Option<String> {
    let spec = lease.spec.clone().unwrap_or_default();
    let Some(renewed) = spec.renew_time else { return Some("ever".to_owned()) };
    let seconds = i64::from(spec.lease_duration_seconds.unwrap_or(0));
    // Twice as long as it holds: clocks differ.
    let late = now.as_second().saturating_sub(renewed.0.as_second()) > seconds.saturating_mul(2);
    late.then(|| age(renewed.0, now))
}

fn judge_cache(cache: Option<&NodeCache>, subject: String, site: &str, look: &str) -> Option<Finding> {
    let status = cache.and_then(|cache| cache.status.as_ref());
    let Some(agent) = status.and_then(|status| status.agent.as_ref()) else {
        return Some(Finding::warning(subject, "lives, and has reported nothing of its node", look));
    };
    if agent.version != CLIENT {
        let message = format!("is of version {}, and this program of {CLIENT}", agent.version);
        return Some(Finding::warning(
            subject,
            message,
            "upgrade the chart, or use the program of the cluster's version",
        ));
    }
    let ours = status.and_then(|status| status.data.as_ref()).filter(|data| data.namespace == site);
    if ours.is_some() && cache.is_some_and(|cache| cache.spec.certificate.is_none()) {
        let remedy = "the operator signs its key: see what is said of the leader";
        return Some(Finding::problem(subject, "has no certificate: it serves no data", remedy));
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{Level, worst};
    use super::*;

    fn lease(node: &str, renewed: &str) -> Lease {
        serde_json::from_value(json!({
            "metadata": { "name": format!("vitrine-agent-{node}"), "annotations": { ANNOTATION_NODE: node } },
            "spec": { "leaseDurationSeconds": 40, "renewTime": renewed },
        }))
        .unwrap()
    }

    fn cache(node: &str, version: &str) -> NodeCache {
        serde_json::from_value(json!({
            "apiVersion": "vitrine.dev/v1alpha1", "kind": "NodeCache", "metadata": { "name": node }, "spec": {},
            "status": {
                "agent": { "id": "x", "version": version, "startedAt": "2026-01-01T00:00:00Z" },
                "data": { "address": "10.0.0.1:8443", "namespace": "s", "publicKey": "k" },
            },
        }))
        .unwrap()
    }

    #[test]
    fn agents_are_told_alive_from_silent() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let (fresh, old) = (lease("a", "2026-01-01T00:00:30.000000Z"), lease("b", "2025-12-31T23:00:00.000000Z"));
        let mut good = cache("a", CLIENT);
        good.spec.certificate = Some("c".to_owned());
        let judge = |leases: &[Lease], caches: &[NodeCache]| worst(&judge_nodes(leases, caches, "s", now));
        assert_eq!(judge(&[], &[]), Level::Problem);
        assert_eq!(judge(std::slice::from_ref(&fresh), std::slice::from_ref(&good)), Level::Ok);
        assert_eq!(judge(&[fresh.clone(), old.clone()], std::slice::from_ref(&good)), Level::Warning);
        assert_eq!(judge(&[old], &[]), Level::Problem);
        assert_eq!(judge(std::slice::from_ref(&fresh), &[cache("a", CLIENT)]), Level::Problem, "no certificate");
        assert_eq!(judge(&[fresh], &[cache("a", "0.0.0")]), Level::Warning);
    }

    #[test]
    fn a_daemon_set_is_judged_by_its_nodes() {
        let set = |ready: i32, wanted: i32| -> DaemonSet {
            serde_json::from_value(json!({
                "metadata": { "name": "d", "generation": 1 }, "spec": { "selector": {}, "template": {} },
                "status": {
                    "currentNumberScheduled": wanted, "numberMisscheduled": 0, "observedGeneration": 1,
                    "desiredNumberScheduled": wanted, "numberReady": ready, "updatedNumberScheduled": wanted,
                },
            }))
            .unwrap()
        };
        let levels = [(0, 0), (0, 2), (1, 2), (2, 2)].map(|(ready, wanted)| judge_set(&set(ready, wanted), "s").level);
        assert_eq!(levels, [Level::Problem, Level::Problem, Level::Warning, Level::Ok]);
    }
}
