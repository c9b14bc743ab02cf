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
