//! Where Vitrine itself runs.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, ResourceExt, api::ListParams};
use vitrine_engine::error::{Error, Kind, Result};

use super::{connect::Cluster, explain::explain};
use crate::api::identity::CA_BUNDLE;

/// Where it is installed as the documentation has it, and looked for by who may not look everywhere.
pub const USUAL_NAMESPACE: &str = "vitrine-system";

/// The namespace of Vitrine's own pods: the one that is `given`; else the one that holds who signs the agents' certificates, as far as
/// the person may see that.
///
/// # Errors
/// If several could be meant, or the API server does not answer.
pub async fn namespace(cluster: &Cluster, given: Option<&str>) -> Result<String> {
    if let Some(given) = given {
        return Ok(given.to_owned());
    }
    let bundles: Api<ConfigMap> = Api::all(cluster.client.clone());
    let of_that_name = ListParams::default().fields(&format!("metadata.name={CA_BUNDLE}"));
    match bundles.list_metadata(&of_that_name).await {
        Ok(found) => choose(found.items.iter().filter_map(ResourceExt::namespace).collect()),
        // Who may read it by name need not be allowed to look for it.
        Err(kube::Error::Api(status)) if status.is_forbidden() => Ok(USUAL_NAMESPACE.to_owned()),
        Err(error) => Err(explain(&error).context("looking for Vitrine's namespace")),
    }
}

fn choose(mut found: Vec<String>) -> Result<String> {
    found.sort_unstable();
    match found.as_slice() {
        [] => Ok(USUAL_NAMESPACE.to_owned()),
        [only] => Ok(only.clone()),
        several if several.iter().any(|namespace| namespace == USUAL_NAMESPACE) => Ok(USUAL_NAMESPACE.to_owned()),
        several => Err(Error::new(
            Kind::InvalidInput,
            format!(
                "Vitrine's ConfigMap {CA_BUNDLE} is in the namespaces {}: say with --vitrine-namespace which is meant",
                several.join(", ")
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_namespace_is_found_and_several_are_asked_about() {
        let of = |names: &[&str]| choose(names.iter().map(|name| (*name).to_owned()).collect());
        assert_eq!(of(&[]).unwrap(), USUAL_NAMESPACE);
        assert_eq!(of(&["images"]).unwrap(), "images");
        assert_eq!(of(&["old", USUAL_NAMESPACE]).unwrap(), USUAL_NAMESPACE);
        let error = of(&["b", "a"]).unwrap_err();
        assert!(error.to_string().contains("a, b") && error.to_string().contains("--vitrine-namespace"), "{error}");
    }
}
