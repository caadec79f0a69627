//! `apt_repository`: a repository of packages, trusted by the fingerprint of its key.

use serde::{Deserialize, Serialize};

use super::{Field, Holds, PRESENCE, Presence, ResourceSpec, SpecError};
use crate::openpgp::{self, Fingerprint};

/// One source of apt's and the key it is signed with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AptRepositorySpec {
    /// What its files are named after.
    pub name: String,
    /// Where it is, one or more mirrors.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uris: Vec<String>,
    /// Its releases.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub suites: Vec<String>,
    /// Its parts; none where a suite is an exact path.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub components: Vec<String>,
    /// Only these; those of the host when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub architectures: Vec<String>,
    /// `deb`, `deb-src` or both.
    #[serde(default = "deb", skip_serializing_if = "is_deb")]
    pub types: Vec<String>,
    /// Its key as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Where its key is fetched from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_url: Option<String>,
    /// The full fingerprints of the only primary keys that are trusted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fingerprints: Vec<String>,
    /// There or not.
    #[serde(default)]
    pub state: Presence,
}

fn deb() -> Vec<String> {
    vec!["deb".to_owned()]
}

fn is_deb(types: &[String]) -> bool {
    types == ["deb"]
}

impl AptRepositorySpec {
    /// The fingerprints that are trusted; those that are none are left out.
    #[must_use]
    pub fn pinned(&self) -> Vec<Fingerprint> {
        self.fingerprints.iter().filter_map(|text| text.parse().ok()).collect()
    }
}

impl ResourceSpec for AptRepositorySpec {
    const KIND: &'static str = "apt_repository";
    const SCHEMA: u32 = 1;
    const FIELDS: &'static [Field] = &[
        Field::required("name", Holds::Text, "What its files below /etc/apt are named after."),
        Field::optional("uris", Holds::TextList, "Where it is: http or https."),
        Field::optional("suites", Holds::TextList, "Its releases, or an exact path that ends in a slash."),
        Field::optional("components", Holds::TextList, "Its parts, such as main."),
        Field::optional("architectures", Holds::TextList, "Only these; those of the host when left out."),
        Field::optional("types", Holds::TextList, "deb, deb-src or both; deb when left out."),
        Field::optional("key", Holds::Text, "Its public key as ASCII text."),
        Field::optional("key_url", Holds::Text, "Where its public key is fetched from, in place of key."),
        Field::optional(
            "fingerprints",
            Holds::TextList,
            "The full fingerprints, 40 hexadecimal digits each, of the only keys that are trusted.",
        ),
        Field::optional("state", PRESENCE, "present or absent; present when left out."),
    ];
    const DOC: &'static str = "A repository of apt's, trusted by the fingerprint of its key alone.";
    const CANNOT_UNDO: &'static str =
        "the lists that apt had fetched of an earlier definition; the next update fetches them";

    fn natural_name(&self) -> String {
        self.name.clone()
    }

    fn validate(&self) -> Vec<SpecError> {
        let mut errors = Vec::new();
        // apt.conf(5) and sources.list(5): other characters make apt pass a file over.
        let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.');
        if self.name.is_empty() || self.name.len() > 64 || !self.name.chars().all(word) {
            let name = &self.name;
            errors.push(SpecError::new(
                "name",
                format!("{name:?}: want lower case letters, digits, -, _ and ."),
            ));
        }
        if self.state == Presence::Absent {
            return errors;
        }
        self.validate_source(&mut errors);
        self.validate_key(&mut errors);
        errors
    }
}

impl AptRepositorySpec {
    fn validate_source(&self, errors: &mut Vec<SpecError>) {
        for (field, list) in [("uris", &self.uris), ("suites", &self.suites), ("types", &self.types)] {
            if list.is_empty() {
                errors.push(SpecError::new(field, "missing"));
            }
        }
        let exact = self.suites.iter().filter(|suite| suite.ends_with('/')).count();
        if exact > 0 && (exact < self.suites.len() || !self.components.is_empty()) {
            errors.push(SpecError::new("components", "a suite that is an exact path (…/) has none"));
        } else if exact == 0 && self.components.is_empty() && !self.suites.is_empty() {
            errors.push(SpecError::new("components", "missing"));
        }
        for uri in &self.uris {
            check_url("uris", uri, errors);
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.+~/".contains(c);
        for (field, list) in [
            ("suites", &self.suites),
            ("components", &self.components),
            ("architectures", &self.architectures),
        ] {
            for one in list {
                let climbs = one.split('/').any(|part| part == "..");
                if one.is_empty() || one.starts_with('-') || climbs || !one.chars().all(plain) {
                    errors.push(SpecError::new(
                        field,
                        format!("{one:?}: want letters, digits, - _ . + ~ and /"),
                    ));
                }
            }
        }
        for one in &self.types {
            if !matches!(one.as_str(), "deb" | "deb-src") {
                errors.push(SpecError::new("types", format!("{one:?}: want deb or deb-src")));
            }
        }
    }

    fn validate_key(&self, errors: &mut Vec<SpecError>) {
        if self.fingerprints.is_empty() {
            errors.push(SpecError::new("fingerprints", "missing: the key is trusted by nothing else"));
        }
        let mut whole = true;
        for text in &self.fingerprints {
            if let Err(error) = text.parse::<Fingerprint>() {
                whole = false;
                errors.push(SpecError::new("fingerprints", format!("{text:?}: {error}")));
            }
        }
        match (&self.key, &self.key_url) {
            (None, None) => errors.push(SpecError::new("key", "missing: want key or key_url")),
            (Some(_), Some(_)) => errors.push(SpecError::new("key", "want key or key_url, not both")),
            // Plain http will do: who can change the answer on its way cannot make another key of the
            // fingerprint.
            (None, Some(url)) => check_url("key_url", url, errors),
            (Some(key), None) if whole && !self.fingerprints.is_empty() => {
                if let Err(error) = openpgp::read_pinned(key.as_bytes(), &self.pinned()) {
                    errors.push(SpecError::new("key", error.to_string()));
                }
            }
            (Some(_), None) => {}
        }
    }
}

/// http or https, without blanks, quotes or a password.
fn check_url(field: &str, url: &str, errors: &mut Vec<SpecError>) {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let host = rest.map(|rest| rest.split('/').next().unwrap_or_default());
    let why = match host {
        None => "want http:// or https://",
        Some(host) if host.contains('@') => "a password here would be read by all: use apt's auth.conf.d",
        Some("") => "has no host",
        _ if url.len() > 2000 => "longer than 2000 bytes",
        _ if url.chars().any(|c| !c.is_ascii_graphic() || "\"'\\`[]{}<>#".contains(c)) => {
            "has a character that is none of a URL's"
        }
        _ => return,
    };
    errors.push(SpecError::new(field, format!("{url:?}: {why}")));
}
