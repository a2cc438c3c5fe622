//! Pieces of OpenAPI schema that no derive can say: model types by their names, bounded maps, conditions.

use schemars::{Schema, SchemaGenerator, json_schema};
use vitrine_engine::model::{Compression, ContainerFormat, DiskFormat, Subformat};

/// What the engine writes (see `model::OutputFormat`).
pub fn output_disk_format(_: &mut SchemaGenerator) -> Schema {
    use DiskFormat::{Ploop, Qcow2, Raw, Vdi, Vhd, Vhdx, Vmdk};
    let names = [Raw, Qcow2, Vmdk, Vhd, Vhdx, Vdi, Ploop].map(DiskFormat::name);
    json_schema!({ "type": "string", "enum": names })
}

/// A variant of a disk format.
pub fn subformat(_: &mut SchemaGenerator) -> Schema {
    let names: Vec<_> = Subformat::ALL.iter().map(|subformat| subformat.name()).collect();
    json_schema!({ "type": "string", "enum": names })
}

/// Any disk format, as found.
pub fn disk_format(_: &mut SchemaGenerator) -> Schema {
    let names: Vec<_> = DiskFormat::ALL.iter().map(|format| format.name()).collect();
    json_schema!({ "type": "string", "enum": names })
}

/// Any container format.
pub fn container_format(_: &mut SchemaGenerator) -> Schema {
    let names: Vec<_> = ContainerFormat::ALL.iter().map(|format| format.name()).collect();
    json_schema!({ "type": "string", "enum": names })
}

/// Compression of clusters.
pub fn compression(_: &mut SchemaGenerator) -> Schema {
    let names: Vec<_> = Compression::ALL.iter().map(|compression| compression.name()).collect();
    json_schema!({ "type": "string", "enum": names })
}

/// Image properties: glance allows 255 characters in a name, and its quota is 128 properties.
pub fn properties(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 128,
        "additionalProperties": { "type": "string", "maxLength": 1024 },
        // A map's schema has no word for the length of its keys.
        "x-kubernetes-validations": [{
            "rule": "self.all(k, size(k) > 0 && size(k) <= 255)",
            "message": "the name of a property has 1 to 255 characters",
        }],
    })
}

/// A node selector: labels and their values.
pub fn node_selector(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": { "type": "string", "maxLength": 63 },
        "x-kubernetes-validations": [{
            "rule": "self.all(k, size(k) > 0 && size(k) <= 317)",
            "message": "the name of a label has 1 to 317 characters: a domain of 253, a slash, and 63",
        }],
    })
}

/// Tags: a set, as large as glance's quota.
pub fn tags(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 128,
        "x-kubernetes-list-type": "set",
        "items": { "type": "string", "minLength": 1, "maxLength": 255 },
    })
}

/// Conditions as `meta/v1` has them, with the bounds that its Go markers give and its OpenAPI leaves out.
pub fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status", "lastTransitionTime", "reason", "message"],
            "properties": {
                "type": { "type": "string", "maxLength": 316 },
                "status": { "type": "string", "enum": ["True", "False", "Unknown"] },
                "observedGeneration": { "type": "integer", "format": "int64", "minimum": 0 },
                "lastTransitionTime": { "type": "string", "format": "date-time" },
                "reason": { "type": "string", "minLength": 1, "maxLength": 1024 },
                "message": { "type": "string", "maxLength": 32768 },
            },
        },
    })
}
