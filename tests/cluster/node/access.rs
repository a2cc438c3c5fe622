//! The rights that `config/` gives to operator and agents, for one lab.

const RIGHTS: &str = include_str!("../../../config/rbac.yaml");
const POLICIES: &str = include_str!("../../../config/policies.yaml");

/// The manifest for the service accounts and the rights of a lab in `namespace`.
pub fn manifest(namespace: &str) -> String {
    let mut rights = RIGHTS.replace("namespace: vitrine-system", &format!("namespace: {namespace}"));
    for account in ["vitrine-operator", "vitrine-agent"] {
        // A binding for the whole cluster is one lab's, else each lab would take it from the one before.
        let binding = |name: &str| format!("kind: ClusterRoleBinding\nmetadata: {{name: {name}}}");
        let shared = binding(account);
        assert!(rights.contains(&shared), "config/rbac.yaml binds {account}");
        rights = rights.replace(&shared, &binding(&format!("{namespace}-{account}")));
    }
    let space = format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}}}}}");
    format!("{space}\n---\n{rights}\n---\n{POLICIES}")
}
