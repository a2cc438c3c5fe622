//! The definitions as people read them: a table of all fields of a kind. A pure function of the types, like the definitions themselves.

use std::fmt::Write as _;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceColumnDefinition, CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
    JSONSchemaPropsOrBool,
};

/// The reference of one kind, in Markdown: what it is, how it is listed, and each field with its type, its bounds and its meaning.
pub fn crd_reference(crd: &CustomResourceDefinition) -> String {
    let names = &crd.spec.names;
    let called = std::iter::once(&names.plural).chain(names.short_names.iter().flatten());
    let called: Vec<_> = called.map(|name| format!("`{name}`")).collect();
    let mut text = format!("# {}\n\n", names.kind);
    for version in &crd.spec.versions {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "`apiVersion: {}/{}`\n", crd.spec.group, version.name);
        let _ = writeln!(text, "{}, {}\n", crd.spec.scope, called.join(", "));
        let Some(root) = version.schema.as_ref().and_then(|schema| schema.open_api_v3_schema.as_ref()) else {
            continue;
        };
        let _ = writeln!(text, "{}\n", root.description.as_deref().unwrap_or_default());
        columns(version.additional_printer_columns.as_deref().unwrap_or_default(), &mut text);
        for (part, schema) in root.properties.iter().flatten() {
            let _ = writeln!(text, "## {part}\n\n| field | | |\n| --- | --- | --- |");
            row(part, schema, false, &mut text);
            text.push('\n');
        }
    }
    text
}

/// What `kubectl get` shows.
fn columns(all: &[CustomResourceColumnDefinition], text: &mut String) {
    let shown = |wide: bool| {
        let names =
            all.iter().filter(|column| (column.priority.unwrap_or(0) > 0) == wide).map(|column| column.name.as_str());
        names.collect::<Vec<_>>().join(", ")
    };
    let _ = writeln!(text, "`kubectl get` shows: {}; with `--output wide` also: {}\n", shown(false), shown(true));
}

/// The row of a field, and those of the fields in it.
fn row(path: &str, schema: &JSONSchemaProps, required: bool, text: &mut String) {
    let mut said: Vec<String> = bounds(schema);
    said.insert(0, kind(schema));
    if required {
        said.push("required".to_owned());
    }
    let mut meaning = vec![schema.description.clone().unwrap_or_default()];
    let rules = schema.x_kubernetes_validations.iter().flatten();
    meaning
        .extend(rules.filter_map(|rule| rule.message.as_ref()).map(|message| format!("Refused otherwise: {message}.")));
    let _ = writeln!(text, "| `{path}` | {} | {} |", cell(&said.join(", ")), cell(&meaning.join("\n")));
    let (suffix, inner) = match (&schema.items, &schema.additional_properties) {
        (Some(JSONSchemaPropsOrArray::Schema(item)), _) => ("[]", item.as_ref()),
        (_, Some(JSONSchemaPropsOrBool::Schema(value))) => ("{}", value.as_ref()),
        _ => ("", schema),
    };
    for (name, field) in inner.properties.iter().flatten() {
        let required = inner.required.iter().flatten().any(|required| required == name);
        row(&format!("{path}{suffix}.{name}"), field, required, text);
    }
}

/// What kind of value it is.
fn kind(schema: &JSONSchemaProps) -> String {
    let inner = match (&schema.items, &schema.additional_properties) {
        (Some(JSONSchemaPropsOrArray::Schema(item)), _) => Some(("list of", item)),
        (_, Some(JSONSchemaPropsOrBool::Schema(value))) => Some(("map of", value)),
        _ => None,
    };
    if let Some((what, inner)) = inner {
        let each = bounds(inner);
        return if each.is_empty() {
            format!("{what} {}", kind(inner))
        } else {
            format!("{what} ({}, {})", kind(inner), each.join(", "))
        };
    }
    match (&schema.enum_, schema.format.as_deref()) {
        (Some(values), _) => {
            format!("one of {}", values.iter().map(|value| code(&value.0)).collect::<Vec<_>>().join(", "))
        }
        (None, Some("date-time")) => "time (RFC 3339)".to_owned(),
        (None, _) => schema.type_.clone().unwrap_or_default(),
    }
}

/// What a value must keep to.
fn bounds(schema: &JSONSchemaProps) -> Vec<String> {
    let lengths = [
        (schema.min_length, schema.max_length, "characters"),
        (schema.min_items, schema.max_items, "entries"),
        (schema.min_properties, schema.max_properties, "entries"),
    ];
    let mut all: Vec<String> = lengths.into_iter().filter_map(|(least, most, of)| range(least, most, of)).collect();
    // The bounds of an int64 are whole, whatever the schema's numbers are made of.
    all.extend(range(schema.minimum, schema.maximum, "").map(|range| range.trim_end().to_owned()));
    all.extend(schema.pattern.iter().map(|pattern| format!("matches `{pattern}`")));
    all.extend(schema.default.iter().map(|default| format!("default {}", code(&default.0))));
    all
}

fn range<N: std::fmt::Display>(least: Option<N>, most: Option<N>, of: &str) -> Option<String> {
    match (least, most) {
        (Some(least), Some(most)) => Some(format!("{least} to {most} {of}")),
        (Some(least), None) => Some(format!("at least {least} {of}")),
        (None, Some(most)) => Some(format!("at most {most} {of}")),
        (None, None) => None,
    }
}

fn code(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => format!("`{text}`"),
        other => format!("`{other}`"),
    }
}

/// One line, in which nothing ends the cell.
fn cell(text: &str) -> String {
    text.trim().replace('\n', " ").replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::crds;

    fn of(kind: &str) -> String {
        crd_reference(crds().iter().find(|crd| crd.spec.names.kind == kind).unwrap())
    }

    fn line<'t>(text: &'t str, field: &str) -> &'t str {
        text.lines()
            .find(|line| line.starts_with(&format!("| `{field}` |")))
            .unwrap_or_else(|| panic!("{field}: {text}"))
    }

    #[test]
    fn a_field_is_told_with_its_type_its_bounds_and_its_rules() {
        let text = of("ImageStore");
        assert!(
            text.starts_with("# ImageStore\n\n`apiVersion: vitrine.dev/v1alpha1`\n\nCluster, `imagestores`"),
            "{text}"
        );
        assert!(text.contains("`kubectl get` shows: Type, Default, Ready, Writable"), "{text}");
        let path = line(&text, "spec.filesystem.path");
        assert!(path.contains("string, 2 to 512 characters, matches `^(/[A-Za-z0-9._-]+)+$`, required"), "{path}");
        assert!(path.contains("Refused otherwise: the path must not have . or .. in it"), "{path}");
        let format = line(&text, "spec.preferredFormat.diskFormat");
        assert!(format.contains("one of `raw`, `qcow2`, `vmdk`"), "{format}");
        let selector = line(&text, "spec.nodeSelector");
        assert!(selector.contains("map of (string, at most 63 characters), at most 16 entries"), "{selector}");
    }

    /// What is in the definition is in the reference.
    #[test]
    fn no_field_of_any_kind_is_left_out() {
        for crd in crds() {
            let text = crd_reference(&crd);
            let yaml = crate::api::crd_yaml(&crd).unwrap();
            let lines: Vec<_> = yaml.lines().map(str::trim).collect();
            // A list's entries have a description of their own, and no row.
            let of_field = |pair: &&[&str]| pair[1].starts_with("description:") && pair[0] != "items:";
            let described = lines.windows(2).filter(of_field).count();
            let rows = text.lines().filter(|line| line.starts_with("| `")).count();
            assert!(
                rows + 1 >= described && rows > 5,
                "{}: {rows} rows, {described} descriptions",
                crd.spec.names.kind
            );
            assert!(text.lines().filter(|line| line.starts_with('|')).all(|line| line.ends_with('|')), "{text}");
        }
    }
}
