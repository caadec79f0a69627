//! Secrets: set, listed, removed, and handed to the one run that refers to them. Values are encrypted with a
//! key that lies apart; they are in clear only in memory that is wiped afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use postern_proto::ids::{HostId, RunId, SecretRef};
use postern_proto::plan::Plan;
use rusqlite::{Connection, Row, params};
use zeroize::Zeroizing;

use super::record::fence;
use super::runs::OPEN;
use super::sql::{all, execute, optional, parsed};
use super::{OpError, Store};
use crate::seal::{Broken, SealKey, Sealed};

/// The value of a secret, wiped from memory when it is dropped, and never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretBytes(Zeroizing<Vec<u8>>);

impl SecretBytes {
    /// Takes a value over.
    #[must_use]
    pub fn new(value: Zeroizing<Vec<u8>>) -> Self {
        Self(value)
    }

    /// The value.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The value in the memory it lies in.
    #[must_use]
    pub fn into_inner(self) -> Zeroizing<Vec<u8>> {
        self.0
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretBytes({} bytes)", self.0.len())
    }
}

/// What came of setting a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecretSet {
    /// The version that has the value.
    pub version: u32,
    /// It had another value before, or none.
    pub changed: bool,
}

/// What is known of a secret without its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretRecord {
    /// Given by the operator.
    pub name: String,
    /// The newest.
    pub version: u32,
    /// When that was set, milliseconds since the Unix epoch.
    pub set_ms: i64,
    /// Names of hosts whose assigned profiles or unfinished runs refer to it.
    pub used_by: BTreeSet<String>,
}

/// A secret that was asked for, and its value or why there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revealed {
    /// Which.
    pub secret: SecretRef,
    /// The value, or the reason for people.
    pub value: Result<SecretBytes, String>,
}

/// Where the value of a version lies; it opens nowhere else.
fn place(name: &str, version: u32) -> Vec<u8> {
    format!("secrets\0{name}\0{version}").into_bytes()
}

fn text(secret: &SecretRef) -> String {
    format!("{} version {}", secret.id, secret.version)
}

struct Stored {
    version: u32,
    /// `None` when it was removed.
    sealed: Option<Sealed>,
}

fn stored(row: &Row<'_>) -> rusqlite::Result<Stored> {
    let (nonce, ciphertext): (Option<_>, Option<_>) = (row.get("nonce")?, row.get("ciphertext")?);
    let sealed = nonce.zip(ciphertext).map(|(nonce, ciphertext)| Sealed { nonce, ciphertext });
    Ok(Stored { version: row.get("version")?, sealed })
}

fn newest(db: &Connection, name: &str) -> Result<Option<Stored>, OpError> {
    let sql = "SELECT version, nonce, ciphertext FROM secrets WHERE name = $1 ORDER BY version DESC LIMIT 1";
    optional(db, sql, params![name], stored)
}

fn exact(db: &Connection, secret: &SecretRef) -> Result<Option<Sealed>, OpError> {
    let sql = "SELECT version, nonce, ciphertext FROM secrets WHERE name = $1 AND version = $2";
    Ok(optional(db, sql, params![secret.id, secret.version], stored)?.and_then(|stored| stored.sealed))
}

fn unseal(key: &SealKey, secret: &SecretRef, sealed: &Sealed) -> Result<SecretBytes, Broken> {
    key.open(&place(&secret.id, secret.version), &sealed.nonce, &sealed.ciphertext).map(SecretBytes)
}

/// Refuses a plan that refers to what is not there; all of that at once.
pub(super) fn require(db: &Connection, secrets: &BTreeSet<SecretRef>) -> Result<(), OpError> {
    let mut missing = Vec::new();
    for secret in secrets {
        if exact(db, secret)?.is_some() {
            continue;
        }
        // Of a plan that was made before: one that is made anew has the newest.
        missing.push(match newest(db, &secret.id)? {
            Some(Stored { version, sealed: Some(_) }) if version > secret.version => {
                format!("{} (replaced by version {version}: apply the profiles anew)", text(secret))
            }
            _ => text(secret),
        });
    }
    if missing.is_empty() { Ok(()) } else { Err(OpError::NoSuchSecrets(missing)) }
}

/// Every run that is not over with what its plan refers to: run, name of its host.
fn open_runs(db: &Connection) -> Result<Vec<(RunId, String, BTreeSet<SecretRef>)>, OpError> {
    let sql = format!(
        "SELECT runs.id, hosts.name, runs.plan FROM runs JOIN hosts ON hosts.id = runs.host \
         WHERE runs.state IN {OPEN} ORDER BY runs.no"
    );
    let rows = all(db, &sql, [], |row| {
        Ok((parsed::<RunId>(row, "id")?, row.get::<_, String>("name")?, row.get::<_, Vec<u8>>("plan")?))
    })?;
    rows.into_iter().map(|(run, host, plan)| Ok((run, host, references(run, &plan)?))).collect()
}

fn references(run: RunId, plan: &[u8]) -> Result<BTreeSet<SecretRef>, OpError> {
    // Not `from_bytes`: an older plan need not pass the checks of today to say what it refers to.
    let plan: Plan = serde_json::from_slice(plan)
        .map_err(|error| OpError::Corrupt(format!("the plan of run {run}: {error}")))?;
    Ok(plan.secrets())
}

/// Removes the versions before this one that no run needs any more.
fn drop_old(db: &Connection, name: &str, newest: u32) -> Result<(), OpError> {
    let runs = match open_runs(db) {
        Ok(runs) => runs,
        // What a run needs is not known, so all of it is kept; the new value is none the worse for it.
        Err(OpError::Corrupt(why)) => {
            tracing::error!(%name, %why, "old versions of a secret are kept: a run's plan cannot be read");
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let needed: BTreeSet<u32> = runs
        .iter()
        .flat_map(|(_, _, secrets)| secrets)
        .filter(|secret| secret.id == name)
        .map(|secret| secret.version)
        .collect();
    let sql = "SELECT version FROM secrets WHERE name = $1 AND version < $2";
    let old: Vec<u32> = all(db, sql, params![name, newest], |row| row.get(0))?;
    for version in old.into_iter().filter(|version| !needed.contains(version)) {
        execute(db, "DELETE FROM secrets WHERE name = $1 AND version = $2", params![name, version])?;
    }
    Ok(())
}

/// True when a profile's text says `secret('name')`, in either quotes, also as JSON has them. A name that is
/// put together from variables is not found.
fn mentions(bundle: &[u8], name: &str) -> bool {
    let text = String::from_utf8_lossy(bundle);
    text.split("secret(").skip(1).any(|after| {
        let after = after.trim_start().trim_start_matches('\\');
        let Some(quote) = after.chars().next().filter(|quote| matches!(quote, '\'' | '"')) else {
            return false;
        };
        after[1..].split([quote, '\\']).next() == Some(name)
    })
}

impl Store {
    /// Gives a secret a value. The value that it has already makes no new version; those before a new one go,
    /// but for what runs that are not over refer to.
    pub async fn set_secret(
        &self,
        name: String,
        value: SecretBytes,
        now_ms: i64,
    ) -> Result<SecretSet, OpError> {
        let key = Arc::clone(&self.key);
        self.write("setting a secret", move |db| {
            let newest = newest(db, &name)?;
            let version = newest.as_ref().map_or(0, |stored| stored.version);
            if let Some(sealed) = newest.and_then(|stored| stored.sealed) {
                let secret = SecretRef { id: name.clone(), version };
                match unseal(&key, &secret, &sealed) {
                    Ok(known) if known == value => return Ok(SecretSet { version, changed: false }),
                    Ok(_) => {}
                    // To set it anew is the way out of this.
                    Err(error) => tracing::error!(secret = %text(&secret), %error, "a secret is damaged"),
                }
            }
            let version = version
                .checked_add(1)
                .ok_or_else(|| OpError::Corrupt(format!("secret {name} has too many versions")))?;
            let sealed = key.seal(&place(&name, version), value.expose());
            let sql = "INSERT INTO secrets (name, version, set_ms, nonce, ciphertext) \
                       VALUES ($1, $2, $3, $4, $5)";
            execute(db, sql, params![name, version, now_ms, sealed.nonce, sealed.ciphertext])?;
            execute(db, "DELETE FROM secrets WHERE name = $1 AND ciphertext IS NULL", params![name])?;
            drop_old(db, &name, version)?;
            Ok(SecretSet { version, changed: true })
        })
        .await
    }

    /// All secrets by name, without their values.
    pub async fn secrets(&self) -> Result<Vec<SecretRecord>, OpError> {
        self.read("listing the secrets", |db| {
            let sql = "SELECT name, version, set_ms FROM secrets WHERE ciphertext IS NOT NULL ORDER BY name, version";
            let rows = all(db, sql, [], |row| {
                Ok(SecretRecord {
                    name: row.get("name")?,
                    version: row.get("version")?,
                    set_ms: row.get("set_ms")?,
                    used_by: BTreeSet::new(),
                })
            })?;
            // By name and version, so that the newest is what stays.
            let mut found: BTreeMap<String, SecretRecord> =
                rows.into_iter().map(|record| (record.name.clone(), record)).collect();
            for (_, host, secrets) in open_runs(db)? {
                for secret in secrets {
                    if let Some(record) = found.get_mut(&secret.id) {
                        record.used_by.insert(host.clone());
                    }
                }
            }
            let sql = "SELECT hosts.name, assigned.bundle FROM assigned JOIN hosts ON hosts.id = assigned.host \
                       WHERE hosts.state <> 'forgotten'";
            let assigned =
                all(db, sql, [], |row| Ok((row.get::<_, String>(0)?, row.get::<_, Vec<u8>>(1)?)))?;
            for (host, bundle) in assigned {
                for record in found.values_mut().filter(|record| mentions(&bundle, &record.name)) {
                    record.used_by.insert(host.clone());
                }
            }
            Ok(found.into_values().collect())
        })
        .await
    }

    /// Removes a secret with all its values, unless a run that is not over needs one of them.
    pub async fn remove_secret(&self, name: String) -> Result<(), OpError> {
        self.write("removing a secret", move |db| {
            let Some(Stored { version, sealed: Some(_) }) = newest(db, &name)? else {
                return Err(OpError::NoSuchSecret(name));
            };
            let runs = open_runs(db)?.into_iter();
            let runs: Vec<_> = runs
                .filter(|(_, _, secrets)| secrets.iter().any(|secret| secret.id == name))
                .map(|(run, host, _)| format!("{run} on {host}"))
                .collect();
            if !runs.is_empty() {
                return Err(OpError::SecretInUse { name, runs });
            }
            let sql = "DELETE FROM secrets WHERE name = $1 AND version < $2";
            execute(db, sql, params![name, version])?;
            let sql = "UPDATE secrets SET nonce = NULL, ciphertext = NULL WHERE name = $1";
            execute(db, sql, params![name]).map(drop)
        })
        .await
    }

    /// The values that a run of this host may have of those that it asks for: the run is this host's, is not
    /// over, and its own plan refers to them.
    pub async fn reveal(
        &self,
        host: HostId,
        epoch: u64,
        run: RunId,
        wanted: Vec<SecretRef>,
    ) -> Result<Vec<Revealed>, OpError> {
        let key = Arc::clone(&self.key);
        self.read("looking up the secrets of a run", move |db| {
            fence(db, host, epoch)?;
            // One answer for a run that is not there and one of another host: nothing is learnt from it.
            let sql = format!("SELECT plan FROM runs WHERE id = $1 AND host = $2 AND state IN {OPEN}");
            let plan: Option<Vec<u8>> =
                optional(db, &sql, params![run.to_string(), host.to_string()], |row| row.get(0))?;
            let allowed = match plan {
                None => Err("this host has no unfinished run of that id".to_owned()),
                Some(plan) => references(run, &plan).map_err(|error| {
                    tracing::error!(%run, %error, "the plan of a run is damaged: its secrets are withheld");
                    "the plan of the run is damaged in the controller's database".to_owned()
                }),
            };
            let each = wanted.into_iter().map(|secret| {
                let value = match &allowed {
                    Err(why) => Err(why.clone()),
                    Ok(allowed) if !allowed.contains(&secret) => {
                        Err("the plan of the run does not refer to it".to_owned())
                    }
                    Ok(_) => match exact(db, &secret)? {
                        None => Err("it was removed; set it again and apply the profile anew".to_owned()),
                        // That one alone: what is wrong with it is nothing that another session would mend.
                        Some(sealed) => unseal(&key, &secret, &sealed).map_err(|error| {
                            tracing::error!(secret = %text(&secret), %run, %error, "a secret is damaged: it is withheld");
                            "its value in the controller's database is damaged; set it again and apply the \
                             profile anew"
                                .to_owned()
                        }),
                    },
                };
                Ok(Revealed { secret, value })
            });
            each.collect()
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_that_mention_a_secret() {
        for (text, found) in [
            ("content: \"{{ secret('db') }}\"", true),
            (r#"{"a.yaml":"content: {{ secret( \"db\" ) }}"}"#, true),
            ("{{ secret('db2') }} {{ secret('db') }}", true),
            ("{{ secret('db2') }}", false),
            ("the secret of db", false),
            ("secret(db)", false),
            ("secret(", false),
            ("secret(é", false),
        ] {
            assert_eq!(mentions(text.as_bytes(), "db"), found, "{text}");
        }
    }
}
