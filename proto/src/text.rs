//! Texts with holes: what a spec's text says where a part of it is a secret or is known only on the host.
//!
//! In a spec's JSON such a text is `{"$text": ["a", {"secret": {"id": "db", "version": 2}}, {"late": "ip"}]}`
//! instead of a string. The plan's hash is over that; values never are in a plan.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ids::SecretRef;
use crate::spec::{Field, Holds, SpecError, Takes};

/// The one key of a text with holes.
const MARK: &str = "$text";
/// What stands in a hole while a spec is only checked.
pub(crate) const STAND_IN: &str = "x";

/// A piece of a text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", untagged)]
pub enum Part {
    /// As it is.
    Text(String),
    /// A hole.
    Hole(Hole),
}

/// What is filled in on the host.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hole {
    /// The value of a secret.
    Secret(SecretRef),
    /// What a command before it said.
    Late(String),
}

/// The largest value of a secret, bytes. Agents take no larger one, so controllers keep none.
pub const MAX_SECRET_BYTES: usize = 64 * 1024;

/// Why something cannot be the value of a secret. It says nothing of the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSecret {
    /// Nothing at all.
    #[error("is empty")]
    Empty,
    /// No agent would take it.
    #[error("has more than {MAX_SECRET_BYTES} bytes")]
    TooLarge,
    /// It is filled into texts, which it cannot be a part of.
    #[error("is not text: it is not UTF-8 from byte {0} on")]
    NotText(usize),
}

/// What a value must be for a host to be able to use it.
pub fn check_secret(value: &[u8]) -> Result<(), BadSecret> {
    if value.is_empty() {
        return Err(BadSecret::Empty);
    }
    if value.len() > MAX_SECRET_BYTES {
        return Err(BadSecret::TooLarge);
    }
    std::str::from_utf8(value).map(drop).map_err(|error| BadSecret::NotText(error.valid_up_to()))
}

/// True for what can be the name of a secret: a letter or digit, then letters, digits, `-`, `_`, `.` and `/`, at most 128.
#[must_use]
pub fn is_secret_name(name: &str) -> bool {
    name.len() <= 128
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/'))
}

/// A text of these parts as a spec's JSON has it: a plain string where there is no hole.
#[must_use]
pub fn to_json(parts: Vec<Part>) -> Value {
    let mut joined: Vec<Part> = Vec::new();
    for part in parts {
        match (joined.last_mut(), part) {
            (_, Part::Text(text)) if text.is_empty() => {}
            (Some(Part::Text(before)), Part::Text(text)) => before.push_str(&text),
            (_, part) => joined.push(part),
        }
    }
    match joined.as_slice() {
        [] => Value::String(String::new()),
        [Part::Text(text)] => Value::String(text.clone()),
        _ => serde_json::json!({ MARK: joined }),
    }
}

/// The parts of a text with holes; `None` for any other value.
fn parts(value: &Value) -> Option<Vec<Part>> {
    let map = value.as_object().filter(|map| map.len() == 1)?;
    serde_json::from_value(map.get(MARK)?.clone()).ok()
}

fn walk(value: &Value, each: &mut impl FnMut(&Hole)) {
    if let Some(parts) = parts(value) {
        for part in &parts {
            if let Part::Hole(hole) = part {
                each(hole);
            }
        }
        return;
    }
    match value {
        Value::Array(items) => items.iter().for_each(|item| walk(item, each)),
        Value::Object(map) => map.values().for_each(|item| walk(item, each)),
        _ => {}
    }
}

/// Every hole of a spec.
#[must_use]
pub fn holes(spec: &Value) -> BTreeSet<Hole> {
    let mut found = BTreeSet::new();
    walk(spec, &mut |hole| {
        found.insert(hole.clone());
    });
    found
}

/// Every secret a spec refers to.
#[must_use]
pub fn secrets(spec: &Value) -> BTreeSet<SecretRef> {
    let secret = |hole| match hole {
        Hole::Secret(secret) => Some(secret),
        Hole::Late(_) => None,
    };
    holes(spec).into_iter().filter_map(secret).collect()
}

/// Every late value a spec uses.
#[must_use]
pub fn late(spec: &Value) -> BTreeSet<String> {
    let late = |hole| match hole {
        Hole::Late(name) => Some(name),
        Hole::Secret(_) => None,
    };
    holes(spec).into_iter().filter_map(late).collect()
}

/// The spec with every hole filled in; the first hole without a value is the error.
pub fn fill(spec: &Value, value_of: &dyn Fn(&Hole) -> Option<String>) -> Result<Value, Hole> {
    if let Some(parts) = parts(spec) {
        let mut text = String::new();
        for part in parts {
            match part {
                Part::Text(part) => text.push_str(&part),
                Part::Hole(hole) => match value_of(&hole) {
                    Some(value) => text.push_str(&value),
                    None => return Err(hole),
                },
            }
        }
        return Ok(Value::String(text));
    }
    Ok(match spec {
        Value::Array(items) => {
            Value::Array(items.iter().map(|item| fill(item, value_of)).collect::<Result<_, _>>()?)
        }
        Value::Object(map) => {
            let each = map.iter().map(|(key, item)| Ok((key.clone(), fill(item, value_of)?)));
            Value::Object(each.collect::<Result<_, Hole>>()?)
        }
        other => other.clone(),
    })
}

/// The spec with something harmless in every hole, for checks of its form.
#[must_use]
pub fn stand_in(spec: &Value) -> Value {
    fill(spec, &|_| Some(STAND_IN.to_owned())).unwrap_or(Value::Null)
}

/// Holes that stand where the field does not take them.
pub(crate) fn misplaced(fields: &[Field], spec: &Value) -> Vec<SpecError> {
    let mut errors = Vec::new();
    for (name, value) in spec.as_object().into_iter().flatten() {
        let field = fields.iter().find(|field| field.name == name);
        let takes =
            field.filter(|field| matches!(field.holds, Holds::Text | Holds::TextList | Holds::TextMap));
        let takes = takes.map_or(Takes::Plain, |field| field.takes);
        for hole in holes(value) {
            let message = match (hole, takes) {
                (Hole::Late(_), Takes::Plain) => "cannot have a late value in it",
                (Hole::Secret(_), Takes::Plain | Takes::Late) => {
                    "cannot have a secret in it: it would be seen by others on the host, or in logs"
                }
                (Hole::Secret(secret), Takes::Secret)
                    if !is_secret_name(&secret.id) || secret.version == 0 =>
                {
                    "names a secret that cannot be one"
                }
                _ => continue,
            };
            let error = SpecError::new(name.clone(), message);
            if !errors.contains(&error) {
                errors.push(error);
            }
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn secret(id: &str) -> Hole {
        Hole::Secret(SecretRef { id: id.into(), version: 2 })
    }

    #[test]
    fn texts_become_json_and_are_filled_in() {
        let parts = vec![
            Part::Text("a".into()),
            Part::Text("b".into()),
            Part::Hole(secret("db")),
            Part::Text(String::new()),
            Part::Hole(Hole::Late("ip".into())),
        ];
        let json = to_json(parts);
        assert_eq!(json, json!({"$text": ["ab", {"secret": {"id": "db", "version": 2}}, {"late": "ip"}]}));
        assert_eq!(to_json(vec![Part::Text("a".into()), Part::Text("b".into())]), json!("ab"));
        assert_eq!(to_json(vec![]), json!(""));
        let spec = json!({"env": {"X": json}, "argv": ["true"], "n": 7});
        assert_eq!(holes(&spec), [secret("db"), Hole::Late("ip".into())].into());
        let filled = fill(&spec, &|hole| match hole {
            Hole::Secret(_) => Some("$(reboot)\"".into()),
            Hole::Late(_) => Some("::1".into()),
        });
        assert_eq!(filled.unwrap(), json!({"env": {"X": "ab$(reboot)\"::1"}, "argv": ["true"], "n": 7}));
        assert_eq!(fill(&spec, &|_| None), Err(secret("db")));
        assert_eq!(stand_in(&spec)["env"]["X"], json!("abxx"));
    }

    #[test]
    fn what_looks_like_a_text_with_holes_and_is_none_stays() {
        for odd in [json!({"$text": 7}), json!({"$text": [], "other": 1}), json!({"$text": [{"warp": 1}]})] {
            assert_eq!(holes(&odd), [].into());
            assert_eq!(fill(&odd, &|_| None).unwrap(), odd);
        }
    }

    #[test]
    fn values_of_secrets() {
        let largest = "x".repeat(MAX_SECRET_BYTES);
        for good in ["x", "\u{e9}\n", "\0", &largest] {
            assert_eq!(check_secret(good.as_bytes()), Ok(()));
        }
        assert_eq!(check_secret(b""), Err(BadSecret::Empty));
        assert_eq!(check_secret(format!("{largest}x").as_bytes()), Err(BadSecret::TooLarge));
        assert_eq!(check_secret(b"abc\xffd"), Err(BadSecret::NotText(3)));
        assert_eq!(check_secret(b"\xc3"), Err(BadSecret::NotText(0)));
    }

    #[test]
    fn names_of_secrets() {
        for good in ["a", "db/password", "x-1_y.z"] {
            assert!(is_secret_name(good), "{good}");
        }
        for bad in ["", "/a", "a b", "a\n", "..", &"x".repeat(129)] {
            assert!(!is_secret_name(bad), "{bad}");
        }
    }
}
