//! `docs/control-api.md`, written from the table of methods and the types: a test writes it, and keeps it equal to what the
//! daemon does.

use std::fmt::Write;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde_json::Value;

use super::events::{EventKind, KEPT};
use super::methods::{METHODS, Method};
use super::peer::Role;
use crate::error::ErrorKind;

const HEAD: &str = r#"# The control API

ringspan's daemon answers JSON-RPC 2.0 on a unix stream socket (`control.socket`, `/run/ringspan/control.sock` by default): one
object a line in each direction. `ringspan call METHOD [JSON]` sends one request; the other commands of the command line use the same methods.

```
$ echo '{"jsonrpc":"2.0","id":1,"method":"port.get","params":{"name":"vm1"}}' | socat - UNIX:/run/ringspan/control.sock
```

Requests describe what is wanted and can be repeated: `may_exist` and `if_exists` make a success of what is done already. Requests of one
connection are answered in order; use several connections where one waits. Parameters are named; unknown ones are refused. A request without
`id` is done and not answered. Batches are refused.

This page is generated from the daemon's types, as is the result of `schema.get`, which is JSON Schema for programs.

## Who may do what

The kernel tells the daemon who is at the other end (SO_PEERCRED, SO_PEERGROUPS). Root, the daemon's own user and members of `control.group` may change
things. Others may read, if they can open the socket, or only members of `control.readers` where that is set. What is beyond somebody's role is refused
with the kind `permission`.

## Bounds

A request has at most 1 MiB with its newline, and 10 seconds from its first byte to its newline; else it is refused with `too-long` and the connection is closed. A user has at most
256 connections at once; all users but root and the daemon's own together 1,024. A peer that does not read what it is sent for 10 seconds is disconnected.
Idle connections are kept.

## Compatibility

The number `api` of `version.get` is 1. As long as it is 1: methods, parameters, fields of results, events, their words and the kinds of error keep their
meaning and are not taken away. New ones may be added, so a reader ignores fields and events that it does not know. New parameters are optional. The sentences in
`message` are for people and may change.

"#;

/// The page.
fn page() -> String {
    let mut page = HEAD.to_owned();
    page += "## Errors\n\nAn error has JSON-RPC's `code` and `message`, and `data` with the stable word `kind`, the operating system's `errno` where there is one, and the ";
    page += "`item` (port, lane or job) it is about.\n\n```json\n";
    page += r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32000,"message":"there is no port vm9: see ringspan port list","data":{"kind":"not-found","item":"vm9"}}}"#;
    page += "\n```\n\n| kind | meaning |\n|---|---|\n";
    for (word, about) in words::<ErrorKind>(None) {
        let _ = writeln!(page, "| `{word}` | {about} |");
    }
    page += "\nCodes: -32700 for `malformed`, -32600 for `invalid-request` and `too-long`, -32601 for `unknown-method`, -32602 for `usage`, -32000 for all others.\n";
    page += "\n## Events\n\nNotifications with the method `event`, on connections that asked for them with `events.subscribe`. ";
    let _ = writeln!(
        page,
        "Each has `sequence`, `time_ms`, `event`, the `lane` and `port` it is about where there is one, and what the table lists. Numbers grow and are never used twice, also over restarts. The last {KEPT} events are kept in memory; a reader that names an older number is sent a notification `missed` with `from` and `to` first. After a crash of the daemon, a lane's last events may be told again under new numbers.\n"
    );
    page += "```json\n";
    page += r#"{"jsonrpc":"2.0","method":"event","params":{"sequence":18,"time_ms":1790000000000,"lane":"main","port":"vm1","event":"driver-ready","features":5301634368,"pairs":1}}"#;
    page += "\n";
    page += r#"{"jsonrpc":"2.0","method":"missed","params":{"from":5,"to":17}}"#;
    page += "\n```\n\n| event | meaning | fields |\n|---|---|---|\n";
    events::<EventKind>(&mut page);
    events::<ringspan_protocol::LaneEventKind>(&mut page);
    page += "\n## Why a flow is not offloaded\n\nThe codes in `reason` of `flow.list`, and in `by_reason` of `flow.stats`.\n\n| code | meaning |\n|---|---|\n";
    for (code, sentence) in crate::ovs::compile::codes() {
        let _ = writeln!(page, "| `{code}` | {sentence} |");
    }
    page += "\n## Methods\n\n| method | role | |\n|---|---|---|\n";
    for method in METHODS {
        let first = method.doc.split_inclusive(". ").next().unwrap_or_default().trim_end();
        let anchor = method.name.replace('.', "");
        let _ = writeln!(page, "| [`{}`](#{anchor}) | {} | {first} |", method.name, role(method.role));
    }
    for method in METHODS {
        section(&mut page, method);
    }
    page
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Change => "change",
        _ => "read",
    }
}

fn events<T: JsonSchema>(page: &mut String) {
    for (word, about) in words::<T>(Some("event")) {
        let fields: Vec<_> = fields_of::<T>(&word).iter().map(|(name, about)| format!("`{name}`: {about}")).collect();
        let _ = writeln!(page, "| `{word}` | {about} | {} |", fields.join(" "));
    }
}

fn section(page: &mut String, method: &Method) {
    let _ = writeln!(page, "\n### {}\n\nRole: {}. {}\n", method.name, role(method.role), method.doc);
    let mut generator =
        SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true).into_generator();
    let schema = (method.params)(&mut generator);
    parameters(page, &schema);
    let (params, result) = method.example;
    let params = if params == "{}" { String::new() } else { format!(",\"params\":{params}") };
    let _ = writeln!(page, "```json");
    let _ = writeln!(page, "{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"{}\"{params}}}", method.name);
    let _ = writeln!(page, "{{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{result}}}\n```");
}

fn parameters(page: &mut String, schema: &Schema) {
    let Some(properties) = schema.get("properties").and_then(Value::as_object).filter(|some| !some.is_empty()) else {
        return;
    };
    let required: Vec<&str> =
        schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    page.push_str("| parameter | type | default | |\n|---|---|---|---|\n");
    // What must be given comes first; else in the order of the alphabet.
    let mut names: Vec<_> = properties.keys().map(String::as_str).collect();
    names.sort_by_key(|name| (!required.contains(name), *name));
    for name in names {
        let property = &properties[name];
        let default = match (required.contains(&name), property.get("default")) {
            (true, _) => "required".to_owned(),
            (false, Some(Value::Null) | None) => "absent".to_owned(),
            (false, Some(value)) => format!("`{value}`"),
        };
        let about = property["description"].as_str().unwrap_or_default().replace('\n', " ");
        let _ = writeln!(page, "| `{name}` | {} | {default} | {about} |", type_of(property));
    }
    page.push('\n');
}

/// What may stand there, in a few words.
fn type_of(schema: &Value) -> String {
    let choices = schema.get("oneOf").or(schema.get("anyOf")).and_then(Value::as_array);
    if let Some(choices) = choices {
        let kinds = choices.iter().filter(|choice| choice["type"] != "null").map(type_of);
        return kinds.collect::<Vec<_>>().join(", ");
    }
    if let Some(word) = schema.get("const").and_then(Value::as_str) {
        return format!("`\"{word}\"`");
    }
    if let Some(words) = schema.get("enum").and_then(Value::as_array) {
        let words = words.iter().filter_map(Value::as_str).map(|word| format!("`\"{word}\"`"));
        return words.collect::<Vec<_>>().join(", ");
    }
    match &schema["type"] {
        Value::String(kind) => kind.clone(),
        Value::Array(kinds) => {
            kinds.iter().filter_map(Value::as_str).filter(|kind| *kind != "null").collect::<Vec<_>>().join(" or ")
        }
        _ => "any".into(),
    }
}

/// A word of an enum in the schema, and its description.
fn words<T: JsonSchema>(tag: Option<&str>) -> Vec<(String, String)> {
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
fn fields_of<T: JsonSchema>(word: &str) -> Vec<(String, String)> {
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

mod tests {
    use super::*;

    #[test]
    fn the_reference_is_what_the_daemon_does() {
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/control-api.md");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(&file, page()).unwrap();
        }
        let written = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(
            written == page(),
            "docs/control-api.md is old: run UPDATE_DOCS=1 cargo test -p ringspan --lib reference"
        );
    }

    #[test]
    fn every_method_has_a_section_and_an_example_that_fits_its_types() {
        let page = page();
        for method in METHODS {
            assert!(page.contains(&format!("\n### {}\n", method.name)), "{}", method.name);
            (method.check_example)(method).unwrap();
        }
    }

    #[test]
    fn every_event_and_every_kind_of_error_is_in_the_catalogue() {
        let events = [words::<EventKind>(Some("event")), words::<ringspan_protocol::LaneEventKind>(Some("event"))];
        // A word that the schema puts elsewhere would be missing in the reference without anybody noticing.
        assert!(events[0].len() >= 18 && events[1].len() >= 9, "{events:?}");
        assert!(words::<ErrorKind>(None).len() >= 18);
        assert!(events.iter().flatten().all(|(_, about)| !about.is_empty()));
    }
}
