//! The definitions of the kinds, as objects and as files. A pure function of the types.

use std::fmt::Write as _;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSON, JSONSchemaProps,
};
use kube::CustomResourceExt as _;

use super::{Image, ImageStore, ImageTask, NodeCache};

/// Field managers of server-side apply begin with this.
pub const FIELD_OWNER_PREFIX: &str = "vitrine-";

/// The definitions of all kinds, in the order of their names.
pub fn crds() -> Vec<CustomResourceDefinition> {
    let mut all = vec![Image::crd(), ImageStore::crd(), ImageTask::crd(), NodeCache::crd()];
    for crd in &mut all {
        finish(crd);
    }
    all
}

/// The file that holds `crd`, below `crds/`.
pub fn crd_file_name(crd: &CustomResourceDefinition) -> String {
    format!("{}_{}.yaml", crd.spec.group, crd.spec.names.plural)
}

/// The text of one definition.
///
/// # Errors
/// If it cannot be written as YAML, which no definition of ours can cause.
pub fn crd_yaml(crd: &CustomResourceDefinition) -> Result<String, serde_yaml::Error> {
    let mut text = String::from("# Generated from the Rust types by `vitrine crds`. Do not edit.\n");
    let body = serde_yaml::to_string(crd)?;
    // Writing to a String cannot fail.
    let _ = write!(text, "---\n{body}");
    Ok(text)
}

/// Adds what the derives cannot say.
fn finish(crd: &mut CustomResourceDefinition) {
    for version in &mut crd.spec.versions {
        let Some(root) = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut()) else {
            continue;
        };
        if let Some(status) = root.properties.as_mut().and_then(|properties| properties.get_mut("status")) {
            // Tools that compare generations see at once that nobody has looked at a new object yet, as in Flux.
            status.default = Some(JSON(serde_json::json!({ "observedGeneration": -1 })));
        }
        tidy(root);
    }
}

/// OpenAPI knows `int32` and `int64` only; the API server warns of others. And no field may be null: a null member of a union would
/// count as set in CEL (`has`), and be absent in what we read.
fn tidy(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    match schema.format.as_deref() {
        Some("uint64" | "uint") => schema.format = Some("int64".to_owned()),
        Some("uint32" | "uint16" | "uint8") => schema.format = Some("int32".to_owned()),
        _ => {}
    }
    for (_, child) in children(schema) {
        tidy(child);
    }
}

/// The schemas right below `schema`, each with what it is called in paths.
fn children(schema: &mut JSONSchemaProps) -> Vec<(String, &mut JSONSchemaProps)> {
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
        JSONSchemaPropsOrArray as Items, JSONSchemaPropsOrBool as Additional,
    };
    let properties = schema.properties.iter_mut().flatten();
    let mut all: Vec<_> = properties.map(|(name, child)| (format!(".{name}"), child)).collect();
    match &mut schema.items {
        Some(Items::Schema(item)) => all.push(("[]".to_owned(), item)),
        Some(Items::Schemas(items)) => all.extend(items.iter_mut().map(|item| ("[]".to_owned(), item))),
        None => {}
    }
    if let Some(Additional::Schema(additional)) = &mut schema.additional_properties {
        all.push(("{}".to_owned(), additional));
    }
    all
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::ValidationRule;

    use super::*;

    /// A rule's cost is estimated from these bounds, and an unbounded field is a way to fill etcd.
    fn assert_bounded(path: &str, schema: &mut JSONSchemaProps) {
        match schema.type_.as_deref() {
            Some("string") => assert!(
                schema.max_length.is_some() || schema.enum_.is_some() || schema.format.is_some(),
                "{path}: a string needs maxLength, enum or format"
            ),
            Some("array") => assert!(schema.max_items.is_some(), "{path}: a list needs maxItems"),
            Some("object") if schema.additional_properties.is_some() => {
                assert!(schema.max_properties.is_some(), "{path}: a map needs maxProperties");
                let rules = schema.x_kubernetes_validations.iter().flatten();
                let bound = |rule: &ValidationRule| rule.rule.contains("self.all(k, size(k) > 0 && size(k) <= ");
                assert!(rules.into_iter().any(bound), "{path}: a map needs a rule that bounds its keys");
            }
            Some("object" | "integer" | "boolean") => {}
            other => panic!("{path}: unexpected type {other:?}"),
        }
        for (name, child) in children(schema) {
            assert_bounded(&format!("{path}{name}"), child);
        }
    }

    #[test]
    fn every_string_list_and_map_is_bounded() {
        for crd in &mut crds() {
            let kind = crd.spec.names.kind.clone();
            let root = crd.spec.versions[0].schema.as_mut().unwrap().open_api_v3_schema.as_mut().unwrap();
            for part in ["spec", "status"] {
                let schema = root.properties.as_mut().unwrap().get_mut(part).unwrap();
                assert_bounded(&format!("{kind}.{part}"), schema);
            }
        }
    }

    #[test]
    fn kinds_have_what_people_and_tools_expect() {
        for crd in crds() {
            let (kind, version) = (&crd.spec.names.kind, &crd.spec.versions[0]);
            let root = version.schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap();
            let status = &root.properties.as_ref().unwrap()["status"];
            assert_eq!(status.default, Some(JSON(serde_json::json!({ "observedGeneration": -1 }))), "{kind}");
            assert!(version.subresources.as_ref().unwrap().status.is_some(), "{kind}");
            let public = matches!(kind.as_str(), "Image" | "ImageStore");
            assert_eq!(
                crd.spec.names.categories.as_ref().is_some_and(|c| c.contains(&"vitrine".to_owned())),
                public,
                "{kind}"
            );
        }
    }
}
