//! JSON Schema of profiles, made from the same tables that they are compiled with.

use postern_proto::spec::{Field, FileSpec, Holds, KINDS, KindInfo, ResourceSpec as _, Takes};
use serde_json::{Map, Value, json};

/// The schema (draft 2020-12) for editors. It knows names, fields and what they hold; what only the compiler
/// can say (variables, addresses, `late` values) is not in it.
#[must_use]
pub fn schema() -> Value {
    let name = json!({"type": "string", "pattern": "^[a-z0-9][a-z0-9_-]{0,63}$"});
    let mut items: Vec<Value> = KINDS.iter().map(resource).collect();
    items.push(include(&name));
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Postern profile",
        "description": "What should be on a host: variables and an ordered list of resources.",
        "type": "object",
        "required": ["name", "resources"],
        "additionalProperties": false,
        "properties": {
            "name": described(&name, "The first part of every address."),
            "description": {"type": "string", "description": "What it is, for people."},
            "vars": {
                "type": ["object", "null"],
                "description": "Variables with their defaults. One without a default must be given.",
                "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]{0,63}$"},
                "additionalProperties": {"type": ["string", "number", "boolean", "null"]},
            },
            "resources": {
                "type": "array",
                "minItems": 1,
                "description": "In this order; the first failure ends the run.",
                "items": {"oneOf": items},
            },
        },
        "$defs": {
            "text": {
                "description": "Taken exactly as it is written; {{ name }} is filled in.",
                "type": ["string", "number", "boolean"],
            },
            "template": {"type": "string", "pattern": "\\{\\{|\\{%"},
            "when": {
                "description": "A condition over variables and facts, without {{ }}.",
                "type": ["string", "boolean"],
            },
        },
    })
}

fn described(schema: &Value, text: &str) -> Value {
    let mut schema = schema.clone();
    if let Some(map) = schema.as_object_mut() {
        map.insert("description".into(), text.into());
    }
    schema
}

fn include(name: &Value) -> Value {
    json!({
        "title": "include",
        "description": "Another profile in this place.",
        "type": "object",
        "required": ["include"],
        "additionalProperties": false,
        "properties": {
            "include": {"type": "string", "description": "A file beside this one, or a shipped profile's name."},
            "id": described(name, "Its part of the addresses; its name when left out."),
            "vars": {
                "type": "object",
                "description": "Values for its variables; this profile's own can be filled in.",
                "additionalProperties": {"$ref": "#/$defs/text"},
            },
            "when": {"$ref": "#/$defs/when"},
            "needs": needs("Ids or addresses: all of it waits for these alone, and is reached when others failed."),
        },
    })
}

fn needs(description: &str) -> Value {
    json!({"type": "array", "items": {"type": "string"}, "description": description})
}

fn resource(kind: &KindInfo) -> Value {
    let name = kind.name;
    json!({
        "title": name,
        "description": kind.doc,
        "type": "object",
        "required": [name],
        "additionalProperties": false,
        "properties": {
            name: fields(kind),
            "id": {"type": ["string", "number"], "description": "The last part of its address."},
            "when": {"$ref": "#/$defs/when"},
            "needs": needs("Ids or addresses: it waits for these alone, and is reached when others failed."),
        },
    })
}

fn fields(kind: &KindInfo) -> Value {
    let mut properties: Map<String, Value> =
        kind.fields.iter().map(|field| (field.name.to_owned(), of(field))).collect();
    if kind.name == FileSpec::KIND {
        let text = |doc: &str| json!({"type": "string", "description": doc});
        properties.insert("source".into(), text("A text file beside this profile: the content as it is."));
        properties.insert("template".into(), text("A file beside this profile: the content once rendered."));
    }
    let required: Vec<_> =
        kind.fields.iter().filter(|field| field.required).map(|field| field.name).collect();
    json!({
        "type": "object",
        "description": kind.doc,
        "required": required,
        "additionalProperties": false,
        "properties": properties,
    })
}

fn of(field: &Field) -> Value {
    let template = json!({"$ref": "#/$defs/template"});
    let text = json!({"$ref": "#/$defs/text"});
    let mut schema = match field.holds {
        Holds::Text => text,
        Holds::Bool => json!({"anyOf": [{"type": "boolean"}, template]}),
        Holds::Count => json!({"anyOf": [{"type": "integer", "minimum": 0}, template]}),
        Holds::TextList => json!({"type": "array", "items": text}),
        Holds::TextMap => json!({"type": "object", "additionalProperties": text}),
        Holds::OneOf(words) => json!({"anyOf": [{"enum": words}, template]}),
    };
    let takes = match field.takes {
        Takes::Plain => "",
        Takes::Late => " Takes late values.",
        Takes::Secret => " Takes late values and secrets.",
    };
    if let Some(map) = schema.as_object_mut() {
        map.insert("description".into(), format!("{}{takes}", field.doc).into());
    }
    schema
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
mod tests {
    use super::super::diag::Sink;
    use super::super::shipped::SHIPPED;
    use super::super::yaml::{self, Node, Scalar};
    use super::*;

    /// As YAML's core schema reads it, which is what an editor does.
    fn json_of(node: &Node) -> Value {
        let scalar = |scalar: &Scalar| match scalar.text.as_str() {
            _ if scalar.is_null() => Value::Null,
            "true" | "false" if scalar.is_plain() => (scalar.text == "true").into(),
            text if scalar.is_plain() => text.parse::<i64>().map_or_else(|_| text.into(), Value::from),
            text => text.into(),
        };
        match &node.value {
            yaml::Value::Scalar(it) => scalar(it),
            yaml::Value::List(items) => items.iter().map(json_of).collect(),
            yaml::Value::Map(entries) => entries
                .iter()
                .map(|entry| (entry.key.clone(), json_of(&entry.value)))
                .collect::<Map<_, _>>()
                .into(),
        }
    }

    type Is = fn(char) -> bool;

    /// The keywords of JSON Schema that are used here; another one is a failure of the test.
    fn meets(schema: &Value, value: &Value, root: &Value) -> bool {
        let one = |name: &str| match (name, value) {
            ("object", Value::Object(_)) | ("array", Value::Array(_)) | ("string", Value::String(_)) => true,
            ("boolean", Value::Bool(_)) | ("number", Value::Number(_)) | ("null", Value::Null) => true,
            ("integer", Value::Number(number)) => number.is_i64() || number.is_u64(),
            _ => false,
        };
        let keys = value.as_object();
        schema.as_object().unwrap().iter().all(|(keyword, want)| match keyword.as_str() {
            "$schema" | "$defs" | "title" | "description" => true,
            "$ref" => meets(root.pointer(&want.as_str().unwrap()[1..]).unwrap(), value, root),
            "type" if want.is_string() => one(want.as_str().unwrap()),
            "type" => want.as_array().unwrap().iter().any(|name| one(name.as_str().unwrap())),
            "enum" => want.as_array().unwrap().contains(value),
            "minimum" => value.as_i64().is_none_or(|number| number >= want.as_i64().unwrap()),
            "minItems" => value.as_array().is_none_or(|items| items.len() as u64 >= want.as_u64().unwrap()),
            "items" => value.as_array().is_none_or(|items| items.iter().all(|item| meets(want, item, root))),
            "anyOf" => want.as_array().unwrap().iter().any(|schema| meets(schema, value, root)),
            "oneOf" => {
                want.as_array().unwrap().iter().filter(|schema| meets(schema, value, root)).count() == 1
            }
            "required" => keys.is_none_or(|map| {
                want.as_array().unwrap().iter().all(|key| map.contains_key(key.as_str().unwrap()))
            }),
            "properties" => keys.is_none_or(|map| {
                map.iter().all(|(key, value)| want.get(key).is_none_or(|schema| meets(schema, value, root)))
            }),
            "additionalProperties" => keys.is_none_or(|map| {
                let named = schema.get("properties").and_then(Value::as_object);
                let others =
                    map.iter().filter(|(key, _)| !named.is_some_and(|named| named.contains_key(*key)));
                others.into_iter().all(|(_, value)| *want != false && meets(want, value, root))
            }),
            "propertyNames" => keys.is_none_or(|map| map.keys().all(|key| meets(want, &json!(key), root))),
            "pattern" => value.as_str().is_none_or(|text| {
                let (first, rest): (Is, Is) = match want.as_str().unwrap() {
                    "^[a-z0-9][a-z0-9_-]{0,63}$" => (
                        |c| c.is_ascii_lowercase() || c.is_ascii_digit(),
                        |c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c),
                    ),
                    "^[A-Za-z_][A-Za-z0-9_]{0,63}$" => {
                        (|c| c.is_ascii_alphabetic() || c == '_', |c| c.is_ascii_alphanumeric() || c == '_')
                    }
                    "\\{\\{|\\{%" => return text.contains("{{") || text.contains("{%"),
                    other => panic!("{other}"),
                };
                text.starts_with(first) && text.chars().all(rest) && text.len() <= 64
            }),
            other => panic!("{other} is not known to this test"),
        })
    }

    fn valid(text: &str) -> bool {
        let schema = schema();
        let mut sink = Sink::new("p");
        let node = yaml::parse(text, &mut sink).unwrap_or_else(|| panic!("{:?}", sink.into_found()));
        meets(&schema, &json_of(&node), &schema)
    }

    #[test]
    fn shipped_profiles_are_valid() {
        for shipped in SHIPPED {
            assert!(valid(shipped.text), "{}", shipped.name);
        }
    }

    #[test]
    fn what_is_written_by_people() {
        let good = [
            "package: {name: curl}\n    needs: []",
            "file: {path: /a, source: a.txt, mode: 0644}\n    id: a\n    when: arch == 'x86_64'",
            "service: {name: ssh, enabled: \"{{ on }}\"}\n    when: true",
            "command: {argv: [a, 7], timeout_s: 9, env: {A: 1}}\n    needs: [a]",
            "include: other.yaml\n    vars: {a: \"{{ b }}\"}\n    id: x",
            "include: other.yaml\n    needs: [a]",
        ];
        let bad = [
            "package: {nmae: curl}",
            "package: {name: [curl]}",
            "pakage: {name: curl}",
            "package: {name: curl}\n    file: {path: /a, content: x}",
            "package: {name: curl, state: gone}",
            "service: {name: ssh, enabled: maybe}",
            "command: {argv: a}",
            "command: {argv: [a], timeout_s: -1}",
            "package: {name: curl, source: a.txt}",
            "package: {name: curl}\n    needs: a",
            "include: other.yaml\n    needs: a",
            "include: other.yaml\n    id: A B",
        ];
        for (texts, want) in [(good.as_slice(), true), (bad.as_slice(), false)] {
            for text in texts {
                assert_eq!(valid(&format!("name: p\nresources:\n  - {text}\n")), want, "{text}");
            }
        }
        for bad in ["name: p\n", "name: P\nresources: [{include: x}]\n", "name: p\nresources: []\n"] {
            assert!(!valid(bad), "{bad}");
        }
    }
}
