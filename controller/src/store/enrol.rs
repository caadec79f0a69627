//! Tokens and keys: how a host becomes one of ours, and which keys are good.

use std::fmt;

use postern_proto::ids::{HostId, RunId};
use rusqlite::{Connection, params};

use super::sql::{execute, malformed, one, optional, parsed};
use super::{HostState, OpError, Store, hosts};
use crate::ca::KeyHash;

/// Certificates of one key that are remembered.
const CERTIFICATES: u32 = 4;

/// SHA-256 of an enrolment token. The token itself is stored nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    /// The hash of this token.
    #[must_use]
    pub fn of(token: &str) -> Self {
        use sha2::Digest as _;
        Self(sha2::Sha256::digest(token.as_bytes()).into())
    }
}

/// An attempt to enrol. The certificate is signed before and handed out only if this succeeds.
#[derive(Clone, Debug)]
pub struct Enrolment {
    /// What the token proves.
    pub token: TokenHash,
    /// Who it says it is.
    pub host: HostId,
    /// The key it has.
    pub key: KeyHash,
    /// The certificate's serial number.
    pub serial: String,
    /// The certificate's end, milliseconds since the Unix epoch.
    pub not_after_ms: i64,
    /// Milliseconds since the Unix epoch.
    pub now_ms: i64,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnrolOutcome {
    /// The key is registered. Older keys of the host are revoked, and what was not over is ended.
    Enrolled {
        /// Keys that were good until now.
        revoked: usize,
        /// Runs that were not over.
        ended: Vec<RunId>,
    },
    /// The same token with the same key again: the first answer got lost.
    Again,
    /// Nothing was written.
    Refused(TokenFault),
}

/// Why a token was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenFault {
    /// Nobody made it, or a newer one replaced it.
    Unknown,
    /// It was used before, with another key.
    Used,
    /// It is too old.
    Expired,
    /// It is for another host.
    OtherHost,
    /// The key was revoked or is another host's.
    KeyNotFree,
    /// The host is quarantined, and a clone has the key too.
    Quarantined,
}

impl fmt::Display for TokenFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "the enrolment token is unknown or was replaced by a newer one",
            Self::Used => "the enrolment token was used already",
            Self::Expired => "the enrolment token has expired",
            Self::OtherHost => "the enrolment token is for another host",
            Self::Quarantined => {
                "the host is quarantined, and whoever shares its identity has this key too: remove the agent \
                 (`postern host forget --ssh`, or uninstall it there) and take the host over anew, so that it makes \
                 a new key"
            }
            Self::KeyNotFree => "the key was revoked or belongs to another host: make a new one",
        })
    }
}

/// What a key is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyStatus {
    /// Nobody registered it.
    Unknown,
    /// It was this host's.
    Revoked(HostId),
    /// It is this host's.
    Good(HostId),
}

/// The state of a key.
pub(super) fn key_status(db: &Connection, key: KeyHash) -> Result<KeyStatus, OpError> {
    let sql = "SELECT host, revoked_ms FROM keys WHERE hash = $1";
    let row = optional(db, sql, params![key.as_bytes()], |row| {
        Ok((parsed::<HostId>(row, "host")?, row.get::<_, Option<i64>>("revoked_ms")?))
    })?;
    Ok(match row {
        None => KeyStatus::Unknown,
        Some((host, Some(_))) => KeyStatus::Revoked(host),
        Some((host, None)) => KeyStatus::Good(host),
    })
}

impl Store {
    /// Makes a token good for a host; an older one of that host that was not used is gone.
    pub async fn add_token(&self, host: HostId, token: TokenHash, expires_ms: i64) -> Result<(), OpError> {
        self.write("writing down an enrolment token", move |db| {
            let id = host.to_string();
            if hosts::by_id(db, host)?.is_none() {
                return Err(OpError::NoSuchHost(id));
            }
            execute(db, "DELETE FROM tokens WHERE host = $1 AND used_ms IS NULL", params![id])?;
            let sql = "INSERT INTO tokens (hash, host, expires_ms) VALUES ($1, $2, $3)";
            execute(db, sql, params![token.0, id, expires_ms]).map(drop)
        })
        .await
    }

    /// Uses a token and registers a key, both or neither.
    pub async fn enrol(&self, enrolment: Enrolment) -> Result<EnrolOutcome, OpError> {
        self.write("enrolling a host", move |db| enrol(db, &enrolment)).await
    }

    /// Writes down a renewed certificate, if the key is good and the host's.
    pub async fn renew(
        &self,
        host: HostId,
        key: KeyHash,
        serial: String,
        not_after_ms: i64,
        now_ms: i64,
    ) -> Result<KeyStatus, OpError> {
        self.write("renewing a certificate", move |db| {
            let status = key_status(db, key)?;
            if status == KeyStatus::Good(host) {
                certificate(db, key, &serial, now_ms, not_after_ms)?;
            }
            Ok(status)
        })
        .await
    }

    /// What a key is good for.
    pub async fn key_status(&self, key: KeyHash) -> Result<KeyStatus, OpError> {
        self.read("looking up a key", move |db| key_status(db, key)).await
    }
}

fn enrol(db: &Connection, it: &Enrolment) -> Result<EnrolOutcome, OpError> {
    let refuse = |fault| Ok(EnrolOutcome::Refused(fault));
    let sql = "SELECT host, expires_ms, used_key FROM tokens WHERE hash = $1";
    let token = optional(db, sql, params![it.token.0], |row| {
        let used: Option<Vec<u8>> = row.get("used_key")?;
        let used =
            used.map(|key| <[u8; 32]>::try_from(key).map_err(|_| malformed("a key hash of odd length")));
        Ok((parsed::<HostId>(row, "host")?, row.get::<_, i64>("expires_ms")?, used.transpose()?))
    })?;
    let Some((host, expires_ms, used_key)) = token else { return refuse(TokenFault::Unknown) };
    if host != it.host {
        return refuse(TokenFault::OtherHost);
    }
    let again = used_key == Some(*it.key.as_bytes());
    if used_key.is_some() && !again {
        return refuse(TokenFault::Used);
    }
    if it.now_ms >= expires_ms {
        return refuse(if again { TokenFault::Used } else { TokenFault::Expired });
    }
    let status = key_status(db, it.key)?;
    if !matches!(status, KeyStatus::Unknown) && status != KeyStatus::Good(host) {
        return refuse(TokenFault::KeyNotFree);
    }
    if status == KeyStatus::Good(host)
        && hosts::by_id(db, host)?.is_some_and(|host| host.state == HostState::Quarantined)
    {
        return refuse(TokenFault::Quarantined);
    }
    if again {
        certificate(db, it.key, &it.serial, it.now_ms, it.not_after_ms)?;
        return Ok(EnrolOutcome::Again);
    }
    let sql = "UPDATE tokens SET used_ms = $1, used_key = $2 WHERE hash = $3 AND used_ms IS NULL";
    if execute(db, sql, params![it.now_ms, it.key.as_bytes(), it.token.0])? != 1 {
        return refuse(TokenFault::Used);
    }
    let (mut revoked, mut ended) = (0, Vec::new());
    if status == KeyStatus::Unknown {
        revoked = hosts::revoke_keys(db, host, it.now_ms, "the host was enrolled anew")?;
        // What was queued was meant for what the host was before (T44).
        ended = super::runs::end_all(
            db,
            host,
            it.now_ms,
            "dropped: the host was enrolled anew before it started",
            "the host was enrolled anew; how far it got is not known",
        )?;
        let sql = "INSERT INTO keys (hash, host, created_ms, revoked_why) VALUES ($1, $2, $3, '')";
        execute(db, sql, params![it.key.as_bytes(), host.to_string(), it.now_ms])?;
    }
    certificate(db, it.key, &it.serial, it.now_ms, it.not_after_ms)?;
    // Fences off a session that goes on with the key that was good until now.
    let sql = "UPDATE hosts SET state = 'enrolled', detail = '', epoch = epoch + $1 WHERE id = $2";
    execute(db, sql, params![i64::from(revoked > 0), host.to_string()])?;
    Ok(EnrolOutcome::Enrolled { revoked, ended })
}

fn certificate(
    db: &Connection,
    key: KeyHash,
    serial: &str,
    issued_ms: i64,
    not_after_ms: i64,
) -> Result<(), OpError> {
    // The last ones are enough to answer which certificates a key has. Its owner can ask for as many as it likes.
    let sql = "DELETE FROM certificates WHERE key = $1 AND (not_after_ms < $2 OR serial NOT IN \
               (SELECT serial FROM certificates WHERE key = $1 ORDER BY issued_ms DESC, serial LIMIT $3))";
    execute(db, sql, params![key.as_bytes(), issued_ms, CERTIFICATES - 1])?;
    let sql = "INSERT INTO certificates (serial, key, issued_ms, not_after_ms) VALUES ($1, $2, $3, $4) \
               RETURNING serial";
    one(db, sql, params![serial, key.as_bytes(), issued_ms, not_after_ms], |row| row.get::<_, String>(0))
        .map(drop)
}
