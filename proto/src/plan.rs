//! A plan: the resource specs for one host, variables filled in. It says what should be.

use std::collections::{BTreeSet, HashSet};

use serde::{Deserialize, Serialize};

use crate::MAX_PLAN_BYTES;
use crate::ids::{Address, PlanHash, RunId, SecretRef};
use crate::spec::{self, SpecError};
use crate::text;

/// The version of the plan's own JSON.
pub const PLAN_SCHEMA: u32 = 1;

/// The specs for one host, in the order they are applied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// [`PLAN_SCHEMA`].
    pub schema: u32,
    /// In order; stops at the first failure.
    pub resources: Vec<PlannedResource>,
}

/// One resource of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedResource {
    /// Unique within the plan.
    pub address: Address,
    /// A row of [`spec::KINDS`].
    pub kind: String,
    /// The schema version of `spec`.
    pub schema: u32,
    /// The spec as JSON; a text in it may have holes (see [`crate::text`]).
    pub spec: serde_json::Value,
    /// It waits for these alone, and is reached also when others before it failed. `None`: it waits for
    /// everything before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needs: Option<Vec<Address>>,
}

/// How a plan is to be executed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Terms {
    /// Observe and plan without acting.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub check: bool,
    /// Take back what this run of the same plan did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo_of: Option<RunId>,
    /// Actions that the run which this one resumes has done: they are not done again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub done: Vec<Address>,
    /// Nothing is done unless every resource is seen as it was when a person approved. Empty: not asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approved: Vec<Approval>,
}

impl Terms {
    /// Observe and plan without acting.
    #[must_use]
    pub fn check() -> Self {
        Self { check: true, ..Self::default() }
    }
}

/// What a person saw of one resource and approved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    /// The resource.
    pub address: Address,
    /// As in [`crate::event::EventKind::ResourceFinished`]; empty for "known after apply".
    pub seen: String,
}

/// Why bytes are not a plan this build can execute. All that is wrong is in it, not only the first.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlanError {
    /// More than [`MAX_PLAN_BYTES`].
    #[error("the plan has {0} bytes, the limit is {MAX_PLAN_BYTES}")]
    TooLarge(usize),
    /// Not the JSON of a plan.
    #[error("the plan is not valid: {0}")]
    Malformed(String),
    /// A plan schema of another build.
    #[error("the plan has schema {0}, this build knows {PLAN_SCHEMA}")]
    Schema(u32),
    /// Kinds that this build lacks.
    #[error("unknown kind of resource: {}", .0.join(", "))]
    UnknownKind(Vec<String>),
    /// Kinds whose schema version this build lacks.
    #[error("unknown schema version: {}", .0.join(", "))]
    UnknownSchema(Vec<String>),
    /// Specs that do not hold together, each with its address.
    #[error("invalid resources: {}", join(.0))]
    Invalid(Vec<(Address, SpecError)>),
    /// A resource needs one that does not stand before it.
    #[error("{address} needs {needs}, which does not stand before it")]
    Needs {
        /// Who needs.
        address: Address,
        /// What.
        needs: Address,
    },
    /// A late value that no resource before yields.
    #[error("{address} uses late.{name}, which no command before it yields with `late: {name}`")]
    Late {
        /// Who uses it.
        address: Address,
        /// Its name.
        name: String,
    },
    /// The same address twice.
    #[error("the plan names {0} twice")]
    DuplicateAddress(Address),
}

fn join(errors: &[(Address, SpecError)]) -> String {
    errors.iter().map(|(address, error)| format!("{address}: {error}")).collect::<Vec<_>>().join("; ")
}

impl Plan {
    /// The exact bytes to send, and their hash.
    pub fn to_bytes(&self) -> Result<(Vec<u8>, PlanHash), PlanError> {
        let bytes = serde_json::to_vec(self).map_err(|error| PlanError::Malformed(error.to_string()))?;
        if bytes.len() > MAX_PLAN_BYTES {
            return Err(PlanError::TooLarge(bytes.len()));
        }
        let hash = PlanHash::of(&bytes);
        Ok((bytes, hash))
    }

    /// Parses and checks every resource against its kind, so that nothing is refused half-way through.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PlanError> {
        if bytes.len() > MAX_PLAN_BYTES {
            return Err(PlanError::TooLarge(bytes.len()));
        }
        let plan: Self =
            serde_json::from_slice(bytes).map_err(|error| PlanError::Malformed(error.to_string()))?;
        plan.validate()?;
        Ok(plan)
    }

    /// Every secret that some spec refers to.
    #[must_use]
    pub fn secrets(&self) -> BTreeSet<SecretRef> {
        self.resources.iter().flat_map(|resource| text::secrets(&resource.spec)).collect()
    }

    /// What [`Plan::from_bytes`] checks beyond the JSON itself.
    pub fn validate(&self) -> Result<(), PlanError> {
        if self.schema != PLAN_SCHEMA {
            return Err(PlanError::Schema(self.schema));
        }
        let (mut kinds, mut schemas, mut invalid) = (Vec::new(), Vec::new(), Vec::new());
        let (mut seen, mut yielded) = (HashSet::new(), HashSet::new());
        for resource in &self.resources {
            if !seen.insert(&resource.address) {
                return Err(PlanError::DuplicateAddress(resource.address.clone()));
            }
            let Some(kind) = spec::kind(&resource.kind) else {
                kinds.push(format!("{} ({})", resource.kind, resource.address));
                continue;
            };
            if resource.schema == 0 || resource.schema > kind.schema {
                schemas.push(format!(
                    "{} {} ({}), this build knows 1 to {}",
                    resource.kind, resource.schema, resource.address, kind.schema
                ));
                continue;
            }
            if let Some(needs) = resource
                .needs
                .iter()
                .flatten()
                .find(|needs| *needs == &resource.address || !seen.contains(needs))
            {
                let (address, needs) = (resource.address.clone(), needs.clone());
                return Err(PlanError::Needs { address, needs });
            }
            let used = text::late(&resource.spec);
            if let Some(name) = used.into_iter().find(|name| !yielded.contains(name)) {
                return Err(PlanError::Late { address: resource.address.clone(), name });
            }
            yielded.extend((kind.yields)(&resource.spec));
            let errors = (kind.check)(&resource.spec);
            invalid.extend(errors.into_iter().map(|error| (resource.address.clone(), error)));
        }
        if !kinds.is_empty() {
            return Err(PlanError::UnknownKind(kinds));
        }
        if !schemas.is_empty() {
            return Err(PlanError::UnknownSchema(schemas));
        }
        if !invalid.is_empty() {
            return Err(PlanError::Invalid(invalid));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn resource(address: &str, kind: &str, spec: serde_json::Value) -> PlannedResource {
        PlannedResource { address: address.parse().unwrap(), kind: kind.into(), schema: 1, spec, needs: None }
    }

    fn plan(resources: Vec<PlannedResource>) -> Plan {
        Plan { schema: PLAN_SCHEMA, resources }
    }

    #[test]
    fn round_trip_keeps_the_hash() {
        let plan = plan(vec![resource("a:package:curl", "package", json!({"name": "curl"}))]);
        let (bytes, hash) = plan.to_bytes().unwrap();
        assert_eq!(Plan::from_bytes(&bytes).unwrap(), plan);
        assert_eq!(PlanHash::of(&bytes), hash);
    }

    #[test]
    fn everything_wrong_is_named_at_once() {
        let bad = plan(vec![
            resource("a:package:x", "package", json!({"name": "no such name!"})),
            resource("a:file:y", "file", json!({"path": "relative", "content": "", "mode": "99"})),
        ]);
        let PlanError::Invalid(errors) = bad.validate().unwrap_err() else { panic!() };
        let named: Vec<_> = errors.iter().map(|(a, e)| format!("{a}:{}", e.field)).collect();
        assert_eq!(named, ["a:package:x:name", "a:file:y:path", "a:file:y:mode"]);
    }

    #[test]
    fn needs_and_late_values_stand_before_those_who_use_them() {
        let command = |address: &str, spec| resource(address, "command", spec);
        let yields = command("a:command:x", json!({"argv": ["hostname"], "late": "name"}));
        let uses = command("a:command:y", json!({"argv": ["echo", {"$text": [{"late": "name"}]}]}));
        assert_eq!(plan(vec![yields.clone(), uses.clone()]).validate(), Ok(()));
        assert!(matches!(plan(vec![uses.clone(), yields.clone()]).validate(), Err(PlanError::Late { .. })));
        let mut needs = command("a:command:z", json!({"argv": ["true"]}));
        needs.needs = Some(vec![yields.address.clone()]);
        assert_eq!(plan(vec![yields.clone(), needs.clone()]).validate(), Ok(()));
        assert!(matches!(plan(vec![needs.clone(), yields]).validate(), Err(PlanError::Needs { .. })));
        needs.needs = Some(vec![needs.address.clone()]);
        assert!(matches!(plan(vec![needs]).validate(), Err(PlanError::Needs { .. })));
    }

    #[test]
    fn refusals() {
        let twice = plan(vec![
            resource("a:package:x", "package", json!({"name": "x"})),
            resource("a:package:x", "package", json!({"name": "x"})),
        ]);
        assert!(matches!(twice.validate(), Err(PlanError::DuplicateAddress(_))));
        let unknown = plan(vec![resource("a:warp:x", "warp", json!({}))]);
        assert!(
            matches!(unknown.validate(), Err(PlanError::UnknownKind(kinds)) if kinds == ["warp (a:warp:x)"])
        );
        let mut newer = plan(vec![resource("a:package:x", "package", json!({"name": "x"}))]);
        newer.resources[0].schema = 99;
        assert!(matches!(newer.validate(), Err(PlanError::UnknownSchema(_))));
        assert!(matches!(Plan::from_bytes(b"{}"), Err(PlanError::Malformed(_))));
        assert!(matches!(Plan::from_bytes(&vec![b' '; MAX_PLAN_BYTES + 1]), Err(PlanError::TooLarge(_))));
        assert!(matches!(Plan::from_bytes(br#"{"schema":2,"resources":[]}"#), Err(PlanError::Schema(2))));
    }
}
