//! What a person approved against what is there now: looked at before anything is done.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use postern_proto::ids::{Address, PlanHash};
use postern_proto::plan::Approval;
use serde_json::json;

use super::run::{RunTask, Stop};
use crate::resources::{Step, View};

/// What makes the digests of this host its own. A new one only makes what was approved before differ.
pub(super) struct Key([u8; 32]);

impl Key {
    /// What other hashes of this host are made with. Not the key itself: neither must tell of the other.
    pub(super) fn for_names(&self) -> [u8; 32] {
        *PlanHash::of(&[&self.0[..], b"names"].concat()).as_bytes()
    }

    /// The key of this state directory, made where there is none or where it is not whole.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        match std::fs::read(path) {
            Ok(bytes) => {
                if let Ok(key) = bytes.try_into() {
                    return Ok(Self(key));
                }
                tracing::warn!(path = %path.display(), "the key of previews was damaged and is made anew");
                std::fs::remove_file(path)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let key: [u8; 32] = rand::random();
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(&key)?;
        file.sync_all()?;
        Ok(Self(key))
    }
}

/// How many of what differs is named.
const NAMED: usize = 3;

/// Stands for what was observed of a resource and what would be done: SHA-256 of both as JSON, hex, with a key
/// that stays on this host. Without it, who reads the controller's database could try out what is in a private
/// file (I7).
pub(super) fn digest(key: &Key, view: &View) -> String {
    let steps: Vec<String> = view.steps.iter().map(Step::summary).collect();
    // Objects of this JSON library have their keys in order.
    let text = json!({"essence": view.essence, "steps": steps}).to_string();
    PlanHash::of(&[&key.0[..], text.as_bytes()].concat()).to_string()
}

/// Each resource that is not as it was approved, with why. Pure.
fn differences(approved: &[Approval], now: &[(Address, Result<String, String>)]) -> Vec<String> {
    let was: BTreeMap<&Address, &str> = approved.iter().map(|it| (&it.address, it.seen.as_str())).collect();
    let mut different = Vec::new();
    for (address, now) in now {
        match (was.get(address), now) {
            (None, _) => different.push(format!("{address} was not approved")),
            (Some(_), Err(why)) => different.push(format!("{address} cannot be looked at: {why}")),
            (Some(was), Ok(now)) if was != now => {
                different.push(format!("{address} is not as it was when it was approved"));
            }
            (Some(_), Ok(_)) => {}
        }
    }
    for Approval { address, .. } in approved {
        if !now.iter().any(|(known, _)| known == address) {
            different.push(format!("{address} was approved and is not in the plan"));
        }
    }
    different
}

impl RunTask {
    /// Looks at everything and acts on nothing. Where something differs, the run ends.
    pub(super) async fn approved(&mut self) -> Result<(), Stop> {
        let mut now = Vec::new();
        let mut would_change = false;
        for index in 0..self.past.len() {
            if self.is_cancelled() {
                return Ok(());
            }
            self.wait_for(&[index]).await?;
            let planned = &self.plan.resources[index];
            let address = planned.address.clone();
            let seen = if self.terms.done.contains(&address) {
                // It is not looked at in the run either.
                self.terms
                    .approved
                    .iter()
                    .find(|it| it.address == address)
                    .map_or(Ok(String::new()), |it| Ok(it.seen.clone()))
            } else {
                match self.look(index).await? {
                    Ok(view) => {
                        would_change |= !view.steps.is_empty();
                        Ok(digest(&self.ctx.seen_key, &view))
                    }
                    Err(unseen) if unseen.after_apply || would_change => {
                        would_change = true;
                        Ok(String::new())
                    }
                    Err(unseen) => Err(unseen.why),
                }
            };
            now.push((address, seen));
        }
        // What was seen here is not what the run goes by: each is looked at again in its turn.
        self.ahead.clear();
        let different = differences(&self.terms.approved, &now);
        if different.is_empty() || self.is_cancelled() {
            return Ok(());
        }
        let named: Vec<&str> = different.iter().take(NAMED).map(String::as_str).collect();
        let more = different.len().saturating_sub(NAMED);
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        self.bar(format!(
            "nothing was done, since the host is not as it was approved: {}{more}",
            named.join("; ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_by_table() {
        let address = |name: &str| -> Address { format!("t:file:{name}").parse().unwrap() };
        let approved = |list: &[(&str, &str)]| -> Vec<Approval> {
            list.iter()
                .map(|(name, seen)| Approval { address: address(name), seen: (*seen).to_owned() })
                .collect()
        };
        let now = |list: &[(&str, Result<&str, &str>)]| -> Vec<_> {
            let own = |seen: &Result<&str, &str>| seen.map(str::to_owned).map_err(str::to_owned);
            list.iter().map(|(name, seen)| (address(name), own(seen))).collect()
        };
        let both = now(&[("a", Ok("1")), ("b", Ok(""))]);
        type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str]);
        let cases: [Case<'_>; 5] = [
            (&[("b", ""), ("a", "1")], &[]),
            (&[("a", "2"), ("b", "")], &["t:file:a is not as"]),
            // Known after apply then, known now: what is known was not approved.
            (&[("a", "1"), ("b", "3")], &["t:file:b is not as"]),
            (&[("a", "1")], &["t:file:b was not approved"]),
            (&[("a", "1"), ("b", ""), ("c", "")], &["t:file:c was approved and is not"]),
        ];
        for (was, want) in cases {
            let got = differences(&approved(was), &both);
            assert_eq!(got.len(), want.len(), "{got:?}");
            assert!(got.iter().zip(want).all(|(got, want)| got.starts_with(want)), "{got:?}");
        }
        let failed = now(&[("a", Err("it is a directory"))]);
        assert_eq!(
            differences(&approved(&[("a", "1")]), &failed),
            ["t:file:a cannot be looked at: it is a directory"]
        );
    }

    #[test]
    fn a_digest_is_of_the_state_and_of_what_would_be_done() {
        let view = |essence: serde_json::Value, path: &str| View {
            steps: vec![Step::Remove { path: path.to_owned() }],
            essence,
            ..View::default()
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let key = Key::open(&path).unwrap();
        let one = digest(&key, &view(json!({"a": 1, "b": 2}), "/x"));
        assert_eq!(one, digest(&key, &view(serde_json::from_str("{\"b\":2,\"a\":1}").unwrap(), "/x")));
        assert_ne!(one, digest(&key, &view(json!({"a": 1, "b": 3}), "/x")));
        assert_ne!(one, digest(&key, &view(json!({"a": 1, "b": 2}), "/y")));
        assert_eq!(one.len(), 64);
        let seen = view(json!({"a": 1, "b": 2}), "/x");
        assert_eq!(one, digest(&Key::open(&path).unwrap(), &seen), "the same after a restart");
        std::fs::write(&path, "torn").unwrap();
        assert_ne!(one, digest(&Key::open(&path).unwrap(), &seen), "of no use without the key");
    }
}
