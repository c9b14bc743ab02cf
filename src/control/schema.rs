//! `schema.get`: JSON Schema of every method, event and error kind, generated from the types.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::events::{Event, Missed};
use super::methods::METHODS;
use crate::error::ErrorKind;

/// The whole document. Definitions are shared under `$defs`.
pub(super) fn document() -> Value {
    let mut generator = SchemaSettings::draft2020_12().into_generator();
    let mut methods = Map::new();
    for method in METHODS {
        let entry = json!({
            "description": method.doc,
            "role": method.role,
            "params": (method.params)(&mut generator),
            "result": (method.result)(&mut generator),
            "example": {
                "params": serde_json::from_str::<Value>(method.example.0).unwrap_or_default(),
                "result": serde_json::from_str::<Value>(method.example.1).unwrap_or_default(),
            },
        });
        methods.insert(method.name.into(), entry);
    }
    let event = generator.subschema_for::<Event>();
    let missed = generator.subschema_for::<Missed>();
    let kinds = generator.subschema_for::<ErrorKind>();
    let error = json!({
        "type": "object",
        "required": ["code", "message", "data"],
        "properties": {
            "code": { "type": "integer" },
            "message": { "type": "string" },
            "data": {
                "type": "object",
                "required": ["kind"],
                "properties": { "kind": kinds, "errno": { "type": "integer" }, "item": { "type": "string" } },
            },
        },
    });
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "ringspan control API",
        "methods": methods,
        "notifications": { "event": event, "missed": missed },
        "error": error,
        "$defs": generator.take_definitions(true),
    })
}

/// A word of an enum in the schema, and its description.
pub(super) fn words<T: schemars::JsonSchema>(tag: Option<&str>) -> Vec<(String, String)> {
    let schema = schemars::schema_for!(T);
    let Some(variants) = schema.get("oneOf").and_then(Value::as_array) else { return Vec::new() };
    let mut list = Vec::new();
    for variant in variants {
        let about = variant["description"].as_str().unwrap_or_default().replace('\n', " ");
        let word = match tag {
            Some(tag) => &variant["properties"][tag]["const"],
            None => &variant["const"],
        };
        if let Some(word) = word.as_str() {
            list.push((word.to_owned(), about.clone()));
        }
        for word in variant["enum"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            list.push((word.to_owned(), about.clone()));
        }
    }
    list
}

/// The fields that come with a word of a tagged enum, and their descriptions.
pub(super) fn fields_of<T: schemars::JsonSchema>(word: &str) -> Vec<(String, String)> {
    let schema = schemars::schema_for!(T);
    let variants = schema.get("oneOf").and_then(Value::as_array).into_iter().flatten();
    let properties = variants.filter_map(|variant| variant["properties"].as_object());
    let Some(fields) = properties.into_iter().find(|fields| fields["event"]["const"] == word) else {
        return Vec::new();
    };
    let described = fields.iter().filter(|(name, _)| *name != "event");
    let about = |field: &Value| field["description"].as_str().unwrap_or_default().replace('\n', " ");
    described.map(|(name, field)| (name.clone(), about(field))).collect()
}
