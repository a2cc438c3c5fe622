//! Names and labels that operator and agents find each other by.

use super::{Action, data};

/// Label on everything made for an Image in the operator's namespace: the Image's uid.
pub const LABEL_IMAGE_UID: &str = "vitrine.dev/image-uid";
/// Label with value `true` on orders to remove data that no Image knows.
pub const LABEL_ORPHAN: &str = "vitrine.dev/orphan";
/// Label with value `true` on the Lease of every agent.
pub const LABEL_AGENT: &str = "vitrine.dev/agent";
/// Annotation on an agent's Lease: its node's name (a label's value could not hold 253 characters).
pub const ANNOTATION_NODE: &str = "vitrine.dev/node-name";
/// Annotation by which a person asks for a failed import to be tried afresh; any value that differs from the last one counts.
pub const ANNOTATION_RETRY: &str = "vitrine.dev/retry";
/// Annotation by which a person asks for every copy of an Image to be verified; any value that differs from the last one counts.
pub const ANNOTATION_VERIFY: &str = "vitrine.dev/verify";
/// Annotation on an ImageStore by which a person asks every node that reaches it to look at it now; any value that differs from the last
/// one counts, and comes back in the nodes' reports.
pub const ANNOTATION_PROBE: &str = "vitrine.dev/probe";
/// Finalizer on Images that have, or may have, data outside the cluster, and on every ImageStore, for it may come to hold some.
pub const FINALIZER: &str = "vitrine.dev/data";
/// The ConfigMap beside the operator with the certificates of those who sign agents' certificates, under [`SECRET_CA_KEY`].
pub const CA_BUNDLE: &str = "vitrine-ca";
/// Label with value `true` on the Secret that holds the operator's keys for signing.
pub const LABEL_AUTHORITY: &str = "vitrine.dev/authority";
/// The Service in front of all agents' data API.
pub const DATA_SERVICE: &str = "vitrine-data";

/// The Lease by which operators agree on who acts.
pub const LEADER_LEASE: &str = "vitrine-operator";
/// The operator's Deployment, as the chart calls it.
pub const OPERATOR_DEPLOYMENT: &str = "vitrine-operator";
/// The agents' DaemonSet; the operator has no rights to any other.
pub const AGENTS_DAEMON_SET: &str = "vitrine-agent";

/// Key in a task's Secret under which the PEM bundle of extra certificate authorities lies.
pub const SECRET_CA_KEY: &str = "ca.crt";
/// Keys in a task's Secret that begin with this hold the value of the HTTP request header named by the rest.
pub const SECRET_HEADER_PREFIX: &str = "header.";

/// How often an agent renews its Lease, in seconds.
pub const LEASE_RENEW_SECONDS: u64 = 10;
/// How long a Lease holds without renewal, in seconds: three lost renewals and a slow one, as kubelets' 40 s are.
pub const LEASE_DURATION_SECONDS: u64 = 40;

/// The name of the Lease of the agent on `node`.
pub fn agent_lease_name(node: &str) -> String {
    format!("vitrine-agent-{node}")
}

/// Where the data of an Image is, within the cluster, if the operator is in namespace `operator`.
pub fn data_url(operator: &str, namespace: &str, name: &str) -> String {
    format!("https://{DATA_SERVICE}.{operator}.svc{}", data::path(namespace, name))
}

/// The name by which the agent on `node` proves itself to others. A node's name may be an address, or too long to be one of a server.
pub fn agent_server_name(node: &str) -> String {
    let digits: String = blake3::hash(node.as_bytes()).to_hex().chars().take(32).collect();
    format!("agent-{digits}.vitrine.internal")
}

/// The name of a task. It is derived from what the task is for, so two operators that decide the same make one task.
/// `place` tells apart tasks of one attempt that go to several nodes; imports have none.
pub fn task_name(image_uid: &str, revision: i64, action: Action, place: Option<&str>, attempt: i64) -> String {
    let action = match action {
        Action::Import => "import",
        Action::Copy => "copy",
        Action::Delete => "delete",
        Action::Verify => "verify",
    };
    match place {
        None => format!("{image_uid}-r{revision}-{action}-{attempt}"),
        Some(place) => format!("{image_uid}-r{revision}-{action}-{}-{attempt}", short_hash(place)),
    }
}

/// Ten hex digits that stand for `text` in a name.
pub fn short_hash(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex().chars().take(10).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn task_names_are_names_and_differ() {
        let uid = "0b5f5f8e-8f5c-4a57-9c3f-1d2d3c4b5a69";
        let import = task_name(uid, 2, Action::Import, None, 3);
        assert_eq!(import, format!("{uid}-r2-import-3"));
        let (one, two) = (
            task_name(uid, 2, Action::Delete, Some("node-1"), 1),
            task_name(uid, 2, Action::Delete, Some("node-2"), 1),
        );
        assert_ne!(one, two);
        assert!(one.len() <= 63, "{one} fits a label's value");
    }
}
