//! Every document of `--output json` is in `docs/output.md`, with every field.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use super::scenarios::scenarios;

/// Those that no scenario emits, and why.
const NOT_PLAYED: [(&str, &str); 6] = [
    ("postern/restored/v1", "needs a real backup: the test of a restore looks at it"),
    ("postern/reviewed-plan/v1", "is a file"),
    ("postern/recovery-kit/v1", "is a file"),
    ("postern/bootstrap-step/v1", "needs an SSH server: the lab's tests look at it"),
    ("postern/bootstrap-result/v1", "needs an SSH server: the lab's tests look at it"),
    ("postern/serve/v1", "serves until it is ended: the daemon's tests look at it"),
];

/// The sections of the document by the schema that their heading names.
fn sections() -> BTreeMap<String, String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/output.md");
    let text = std::fs::read_to_string(path).unwrap();
    let mut sections = BTreeMap::new();
    for section in text.split("\n## ").skip(1) {
        let (heading, rest) = section.split_once('\n').unwrap();
        if let Some(schema) = heading.strip_prefix('`').and_then(|rest| rest.strip_suffix('`')) {
            assert!(sections.insert(schema.to_owned(), rest.to_owned()).is_none(), "{schema} twice");
        }
    }
    sections
}

/// Every schema that the program's source names.
fn named() -> BTreeSet<String> {
    fn walk(dir: &Path, names: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, names);
                continue;
            }
            let text = std::fs::read_to_string(path).unwrap();
            for quoted in text.split('"').filter(|text| text.starts_with("postern/") && text.contains("/v")) {
                let is_name =
                    quoted.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/-".contains(&byte));
                // Those that only a test names are none of the program's.
                if is_name && !quoted.ends_with("/v99") {
                    names.insert(quoted.to_owned());
                }
            }
        }
    }
    let mut names = BTreeSet::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli"), &mut names);
    names
}

/// Fields of a document, and of what is in it; documents within have a section of their own.
fn fields(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                found.insert(key.clone());
                // What they hold is named by users, or documented elsewhere.
                if !matches!(key.as_str(), "labels" | "vars" | "plan") {
                    fields(value, found);
                }
            }
        }
        Value::Array(items) => {
            items.iter().filter(|item| item.get("schema").is_none()).for_each(|item| fields(item, found))
        }
        _ => {}
    }
}

fn all(value: &Value, documents: &mut Vec<Value>) {
    match value {
        Value::Object(map) => {
            if map.contains_key("schema") && map["schema"].is_string() {
                documents.push(value.clone());
            }
            map.values().for_each(|value| all(value, documents));
        }
        Value::Array(items) => items.iter().for_each(|item| all(item, documents)),
        _ => {}
    }
}

#[tokio::test]
async fn every_document_is_documented_with_every_field() {
    let sections = sections();
    let named = named();
    assert!(named.len() > 15, "{named:?}");
    let documented: BTreeSet<_> = sections.keys().cloned().collect();
    assert_eq!(named, documented, "what the program names, and what docs/output.md has");

    let mut played = BTreeSet::new();
    for scenario in scenarios() {
        let shell = scenario.shell();
        for args in scenario.commands {
            let is_plain = matches!(args.first(), Some(&"completions"))
                || args.contains(&"schema")
                || args.contains(&"--help");
            let ended = shell.run(&[&["--output", "json"], *args].concat()).await;
            for line in ended.stdout.lines().filter(|_| !is_plain).chain(ended.stderr.lines()) {
                let Ok(document) = serde_json::from_str::<Value>(line) else {
                    // Words for people go to stderr, whatever the output is.
                    assert!(ended.stderr.contains(line), "{args:?} says on stdout: {line}");
                    continue;
                };
                let mut documents = Vec::new();
                all(&document, &mut documents);
                assert!(!documents.is_empty(), "{args:?}: no schema in {line}");
                for document in documents {
                    let schema = document["schema"].as_str().unwrap().to_owned();
                    let section =
                        sections.get(&schema).unwrap_or_else(|| panic!("{schema} is not documented"));
                    let mut found = BTreeSet::new();
                    fields(&document, &mut found);
                    found.remove("schema");
                    for field in found {
                        assert!(
                            section.contains(&format!("`{field}`")),
                            "{schema}: {field} is not documented"
                        );
                    }
                    played.insert(schema);
                }
            }
        }
    }
    let not_played: BTreeSet<_> = named.difference(&played).map(String::as_str).collect();
    assert_eq!(not_played, NOT_PLAYED.map(|(schema, _)| schema).into_iter().collect());
}
