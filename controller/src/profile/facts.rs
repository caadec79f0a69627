//! What is known of a host while its plan is made, and what stands for it while no host is known.

use std::collections::BTreeMap;
use std::sync::Arc;

use minijinja::value::{Object, Value};

use crate::room::Room;

/// What a host's agent and its operator said of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The name in Postern: `{{ host.name }}`.
    pub name: String,
    /// Set by the operator: `{{ labels.role }}`.
    pub labels: BTreeMap<String, String>,
    /// `ID` of os-release: `{{ os.id }}`.
    pub os_id: String,
    /// `VERSION_ID` of os-release: `{{ os.version }}`.
    pub os_version: String,
    /// As the kernel names it, `x86_64`: `{{ arch }}`.
    pub arch: String,
    /// The host's own name: `{{ hostname }}`.
    pub hostname: String,
    /// Memory, swap and disk, where they are known: `{{ memory_mb }}`, `{{ host.swap_mb }}`. Below `host`, as
    /// no variable can have the name of a fact.
    pub room: Room,
}

/// Names that a profile's own variables cannot have.
pub(crate) const RESERVED: [&str; 8] =
    ["arch", "host", "hostname", "labels", "late", "memory_mb", "os", "secret"];

/// What Postern is made for: id and version of the distribution, architecture. A profile that is compiled
/// while no host is known is compiled for each.
const SUPPORTED: [(&str, &str, &str); 2] = [("debian", "12", "x86_64"), ("debian", "13", "x86_64")];

/// Where a profile is compiled for.
#[derive(Clone, Debug)]
pub(crate) struct Platform {
    /// For people, when it is one of several.
    pub(crate) name: String,
    facts: Facts,
    /// It is a stand-in: any label is there.
    open: bool,
}

impl Platform {
    /// The host that is known, or each supported platform.
    pub(crate) fn all(facts: Option<&Facts>) -> Vec<Self> {
        if let Some(facts) = facts {
            let name = format!("{} {}", facts.os_id, facts.os_version);
            return vec![Self { name, facts: facts.clone(), open: false }];
        }
        let stand_in = |(id, version, arch): &(&str, &str, &str)| Self {
            name: format!("{id} {version}"),
            facts: Facts {
                name: "host".into(),
                labels: BTreeMap::new(),
                os_id: (*id).into(),
                os_version: (*version).into(),
                arch: (*arch).into(),
                hostname: "host".into(),
                room: Room {
                    memory_mb: Some(1024),
                    swap_mb: Some(0),
                    disk_free_mb: Some(10_000),
                    var_free_mb: Some(10_000),
                },
            },
            open: true,
        };
        SUPPORTED.iter().map(stand_in).collect()
    }

    /// The facts as templates see them.
    pub(crate) fn values(&self) -> BTreeMap<String, Value> {
        let facts = &self.facts;
        let map = |entries: &[(&str, &str)]| -> Value {
            let entries = entries.iter().map(|(key, value)| ((*key).to_owned(), Value::from(*value)));
            entries.collect::<BTreeMap<_, _>>().into()
        };
        let of_host = [
            ("name", Some(Value::from(facts.name.as_str()))),
            ("swap_mb", facts.room.swap_mb.map(Value::from)),
            ("disk_free_mb", facts.room.disk_free_mb.map(Value::from)),
            ("var_free_mb", facts.room.var_free_mb.map(Value::from)),
        ];
        let host = of_host.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        let host: BTreeMap<String, Value> = host.collect();
        let labels = match self.open {
            true => Value::from_object(AnyLabel),
            false => {
                let labels = facts.labels.iter();
                let labels = labels.map(|(key, value)| (key.clone(), Value::from(value.as_str())));
                labels.collect::<BTreeMap<_, _>>().into()
            }
        };
        let mut values = BTreeMap::from([
            ("host".to_owned(), host.into()),
            ("os".to_owned(), map(&[("id", &facts.os_id), ("version", &facts.os_version)])),
            ("arch".to_owned(), Value::from(facts.arch.as_str())),
            ("hostname".to_owned(), Value::from(facts.hostname.as_str())),
            ("labels".to_owned(), labels),
        ]);
        values.extend(facts.room.memory_mb.map(|memory| ("memory_mb".to_owned(), Value::from(memory))));
        values
    }
}

/// The labels of a host that is not known: each may be there, so each has a text.
#[derive(Debug)]
struct AnyLabel;

impl Object for AnyLabel {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        key.as_str().map(|_| Value::from("1"))
    }
}

/// Known names below a fact, for messages; `None` where any name may be.
pub(crate) fn below(fact: &str) -> Option<&'static [&'static str]> {
    match fact {
        "host" => Some(&["name", "swap_mb", "disk_free_mb", "var_free_mb"]),
        "os" => Some(&["id", "version"]),
        _ => None,
    }
}
