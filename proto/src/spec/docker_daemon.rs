//! `docker_daemon`: settings of Docker's engine, merged into the file that others may have written.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Field, Holds, ResourceSpec, SpecError};

/// Some keys of `/etc/docker/daemon.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DockerDaemonSpec {
    /// Where containers' output goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_driver: Option<String>,
    /// The driver's options.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub log_opts: BTreeMap<String, String>,
    /// Other keys; each value is JSON.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, String>,
}

/// The keys that have fields of their own.
const OWN: [&str; 2] = ["log-driver", "log-opts"];

impl DockerDaemonSpec {
    /// The keys as the file has them. What [`ResourceSpec::validate`] refuses is left out.
    #[must_use]
    pub fn declared(&self) -> Map<String, Value> {
        let mut all = Map::new();
        for (name, text) in &self.settings {
            if let Ok(value) = serde_json::from_str(text) {
                all.insert(name.clone(), value);
            }
        }
        if let Some(driver) = &self.log_driver {
            all.insert(OWN[0].to_owned(), driver.clone().into());
        }
        if !self.log_opts.is_empty() {
            let opts = self.log_opts.iter().map(|(name, value)| (name.clone(), value.clone().into()));
            all.insert(OWN[1].to_owned(), Value::Object(opts.collect()));
        }
        all
    }
}

impl ResourceSpec for DockerDaemonSpec {
    const KIND: &'static str = "docker_daemon";
    const SCHEMA: u32 = 1;
    const FIELDS: &'static [Field] = &[
        Field::optional(
            "log_driver",
            Holds::Text,
            "Where containers' output goes, such as json-file or local.",
        ),
        Field::optional("log_opts", Holds::TextMap, "Options of the driver, such as max-size and max-file."),
        Field::optional(
            "settings",
            Holds::TextMap,
            "Other keys of daemon.json; each value is JSON: \"true\", \"[\\\"192.0.2.1\\\"]\".",
        ),
    ];
    const DOC: &'static str = "Settings of Docker's engine, merged into /etc/docker/daemon.json; other keys stay. Before Docker's packages \
         it is there for the engine's first start.";
    const CANNOT_UNDO: &'static str = "the directory /etc/docker, where there was none and others have files in it by now; containers that were \
         restarted with the engine";

    fn natural_name(&self) -> String {
        "daemon.json".to_owned()
    }

    fn validate(&self) -> Vec<SpecError> {
        let mut errors = Vec::new();
        if self.log_driver.is_none() && self.log_opts.is_empty() && self.settings.is_empty() {
            errors.push(SpecError::new("", "want one of log_driver, log_opts and settings"));
        }
        if self.log_driver.as_ref().is_some_and(String::is_empty) {
            errors.push(SpecError::new("log_driver", "is empty"));
        }
        for (name, text) in &self.settings {
            let field = format!("settings.{name}");
            if OWN.contains(&name.as_str()) {
                errors.push(SpecError::new(
                    field,
                    format!("has a field of its own: {}", name.replace('-', "_")),
                ));
            } else if name == "hosts" {
                // Debian's and Docker's units give `-H` themselves, and the engine does not start with both.
                errors.push(SpecError::new(
                    field,
                    "cannot be set here: the unit docker.service has it already",
                ));
            } else if serde_json::from_str::<Value>(text).is_err() {
                errors.push(SpecError::new(
                    field,
                    format!("{text:?} is not JSON; a text wants quotes: '\"{text}\"'"),
                ));
            }
        }
        errors
    }
}
