//! The kinds of resources that an agent knows, as its hello says, and what of a plan it would have to refuse.

use std::collections::{BTreeMap, BTreeSet};

use postern_proto::convert::WireError;
use postern_proto::plan::Plan;
use postern_proto::v1;

/// An agent names no more kinds than this.
const MAX_KINDS: usize = 256;
/// The longest name of a kind, bytes.
const MAX_NAME: usize = 64;

/// Each kind with the schema versions that the agent takes of it. None at all: it did not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kinds(BTreeMap<String, (u32, u32)>);

impl Kinds {
    /// What the plan has that the agent does not know, for people. Where this is empty, the agent may still refuse.
    pub(crate) fn lacks(&self, plan: &Plan) -> BTreeSet<String> {
        if self.0.is_empty() {
            return BTreeSet::new();
        }
        let lacking = plan.resources.iter().filter_map(|resource| match self.0.get(&resource.kind) {
            None => Some(resource.kind.clone()),
            Some((min, max)) if (*min..=*max).contains(&resource.schema) => None,
            Some(_) => Some(format!("{} in version {}", resource.kind, resource.schema)),
        });
        lacking.collect()
    }
}

impl TryFrom<Vec<v1::KindSupport>> for Kinds {
    type Error = WireError;

    fn try_from(kinds: Vec<v1::KindSupport>) -> Result<Self, WireError> {
        if kinds.len() > MAX_KINDS || kinds.iter().any(|kind| kind.kind.len() > MAX_NAME) {
            let why = format!("more than {MAX_KINDS}, or a name of more than {MAX_NAME} bytes");
            return Err(WireError::Invalid { what: "kinds", why });
        }
        Ok(Self(kinds.into_iter().map(|kind| (kind.kind, (kind.schema_min, kind.schema_max))).collect()))
    }
}

#[cfg(test)]
mod tests {
    use postern_proto::plan::PlannedResource;

    use super::*;

    fn kinds(all: &[(&str, u32, u32)]) -> Kinds {
        let message = |(kind, min, max): &(&str, u32, u32)| v1::KindSupport {
            kind: (*kind).to_owned(),
            schema_min: *min,
            schema_max: *max,
        };
        Kinds::try_from(all.iter().map(message).collect::<Vec<_>>()).unwrap()
    }

    fn plan(resources: &[(&str, u32)]) -> Plan {
        let resource = |(kind, schema): &(&str, u32)| PlannedResource {
            address: format!("a:{kind}:x").parse().unwrap(),
            kind: (*kind).to_owned(),
            schema: *schema,
            spec: serde_json::Value::Null,
            needs: None,
        };
        Plan { schema: 1, resources: resources.iter().map(resource).collect() }
    }

    #[test]
    fn what_an_agent_lacks_is_named_once() {
        let agent = kinds(&[("file", 1, 2), ("package", 1, 1)]);
        let lacks = |resources: &[(&str, u32)]| agent.lacks(&plan(resources)).into_iter().collect::<Vec<_>>();
        assert_eq!(lacks(&[("file", 1), ("file", 2), ("package", 1)]), [""; 0]);
        assert_eq!(
            lacks(&[("file", 3), ("sysctl", 1), ("sysctl", 1), ("package", 1)]),
            ["file in version 3", "sysctl"]
        );
        assert_eq!(kinds(&[]).lacks(&plan(&[("sysctl", 1)])), BTreeSet::new(), "it did not say");
    }

    #[test]
    fn trap_33_a_list_without_end_is_refused() {
        let kind = |kind: String| v1::KindSupport { kind, schema_min: 1, schema_max: 1 };
        assert!(Kinds::try_from((0..300).map(|n| kind(format!("k{n}"))).collect::<Vec<_>>()).is_err());
        assert!(Kinds::try_from(vec![kind("k".repeat(65))]).is_err());
    }
}
