//! What a spec's fields are called and what they hold, for whoever reads specs that people wrote.

/// One field of a spec. The struct itself stays the authority: a test compares the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name in a profile.
    pub name: &'static str,
    /// What it holds.
    pub holds: Holds,
    /// A spec without it does not parse.
    pub required: bool,
    /// Which holes a text in it may have.
    pub takes: Takes,
    /// One sentence for people: what it is, and what it is when left out.
    pub doc: &'static str,
}

/// Which holes a text may have (see [`crate::text`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// None: it names the resource, or decides what is done.
    Plain,
    /// Late values.
    Late,
    /// Late values and secrets: it reaches no argument vector, log or message.
    Secret,
}

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// A text.
    Text,
    /// true or false.
    Bool,
    /// A whole number, not negative.
    Count,
    /// A list of texts.
    TextList,
    /// Names and texts.
    TextMap,
    /// One of these words.
    OneOf(&'static [&'static str]),
}

impl Field {
    /// A field that can be left out.
    #[must_use]
    pub const fn optional(name: &'static str, holds: Holds, doc: &'static str) -> Self {
        Self { name, holds, required: false, takes: Takes::Plain, doc }
    }

    /// A field that must be there.
    #[must_use]
    pub const fn required(name: &'static str, holds: Holds, doc: &'static str) -> Self {
        Self { name, holds, required: true, takes: Takes::Plain, doc }
    }

    /// The same with late values allowed in it.
    #[must_use]
    pub const fn late(self) -> Self {
        Self { takes: Takes::Late, ..self }
    }

    /// The same with late values and secrets allowed in it.
    #[must_use]
    pub const fn secret(self) -> Self {
        Self { takes: Takes::Secret, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{
        AptRepositorySpec, AuthorizedKeySpec, CommandSpec, DirectorySpec, DockerDaemonSpec,
        DockerNetworkSpec, Fail2banSpec, FileSpec, FirewallSpec, PackageSpec, PreflightSpec, RebootSpec,
        ResourceSpec, SecurityUpdatesSpec, ServiceSpec, SshdSpec, SudoersSpec, SwapSpec, SwarmServiceSpec,
        SwarmSpec, SysctlSpec, TimeSyncSpec, UserSpec,
    };
    use serde::de::{self, Deserializer, Visitor};
    use std::collections::BTreeSet;

    /// Learns the fields that a struct asks its deserializer for.
    struct Probe<'a>(&'a mut Option<&'static [&'static str]>);

    impl<'de> Deserializer<'de> for Probe<'_> {
        type Error = de::value::Error;

        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
            Err(de::Error::custom("not a struct"))
        }

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            _: V,
        ) -> Result<V::Value, Self::Error> {
            *self.0 = Some(fields);
            Err(de::Error::custom("learned"))
        }

        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit
            unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }

    fn sample(holds: Holds) -> serde_json::Value {
        match holds {
            Holds::Text => "/x".into(),
            Holds::Bool => true.into(),
            Holds::Count => 7.into(),
            Holds::TextList => serde_json::json!(["a", "b"]),
            Holds::TextMap => serde_json::json!({"a": "b"}),
            Holds::OneOf(words) => words[0].into(),
        }
    }

    fn agrees<S: ResourceSpec>() {
        let mut learned = None;
        let _ = S::deserialize(Probe(&mut learned));
        let structs: BTreeSet<_> = learned.unwrap().iter().copied().collect();
        let table: BTreeSet<_> = S::FIELDS.iter().map(|field| field.name).collect();
        assert_eq!(structs, table, "{}", S::KIND);

        let all: serde_json::Map<_, _> =
            S::FIELDS.iter().map(|field| (field.name.to_owned(), sample(field.holds))).collect();
        if let Err(error) = S::deserialize(serde_json::Value::from(all.clone())) {
            panic!("{}: {error}", S::KIND);
        }
        for field in S::FIELDS {
            let mut without = all.clone();
            without.remove(field.name);
            let parses = S::deserialize(serde_json::Value::from(without)).is_ok();
            assert_eq!(parses, !field.required, "{}.{}", S::KIND, field.name);
            if let Holds::OneOf(words) = field.holds {
                for word in words {
                    let mut with = all.clone();
                    with.insert(field.name.to_owned(), (*word).into());
                    assert!(
                        S::deserialize(serde_json::Value::from(with)).is_ok(),
                        "{}.{} {word}",
                        S::KIND,
                        field.name
                    );
                }
            }
        }
    }

    #[test]
    fn tables_agree_with_the_structs() {
        agrees::<AptRepositorySpec>();
        agrees::<AuthorizedKeySpec>();
        agrees::<CommandSpec>();
        agrees::<DirectorySpec>();
        agrees::<DockerDaemonSpec>();
        agrees::<DockerNetworkSpec>();
        agrees::<Fail2banSpec>();
        agrees::<FileSpec>();
        agrees::<FirewallSpec>();
        agrees::<PackageSpec>();
        agrees::<PreflightSpec>();
        agrees::<RebootSpec>();
        agrees::<SecurityUpdatesSpec>();
        agrees::<ServiceSpec>();
        agrees::<SshdSpec>();
        agrees::<SudoersSpec>();
        agrees::<SwapSpec>();
        agrees::<SwarmSpec>();
        agrees::<SwarmServiceSpec>();
        agrees::<SysctlSpec>();
        agrees::<TimeSyncSpec>();
        agrees::<UserSpec>();
    }
}
