//! The tables, their numbered migrations, and opening a file with three different answers.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use postern_proto::ids::ClusterId;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _};

use super::StoreError;
use crate::seal::SealKey;

/// "PSTN": what a database of ours says it is.
const APPLICATION_ID: i64 = 0x5053_544e;
/// A database up to this size is checked whole at each start; reading more would be felt.
const CHECK_BYTES: u64 = 32 * 1024 * 1024;

/// Each brings the schema from its index to the next; none is ever changed once released.
const MIGRATIONS: &[&str] = &[
    include_str!("schema_1.sql"),
    include_str!("schema_2.sql"),
    include_str!("schema_3.sql"),
    include_str!("schema_4.sql"),
    include_str!("schema_5.sql"),
    include_str!("schema_6.sql"),
];

pub(super) fn database(state_dir: &Path) -> PathBuf {
    state_dir.join("postern.db")
}

pub(super) struct Opened {
    pub(super) connection: Connection,
    pub(super) cluster: ClusterId,
    pub(super) generation: u64,
}

/// The keys of `meta`.
const CLUSTER: &str = "cluster";
const AUTHORITY: &str = "authority";
const SECRETS_KEY: &str = "secrets_key";
const GENERATION: &str = "generation";

fn known() -> i64 {
    i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)
}

/// Tells a damaged file from a disk that would not.
fn failed(action: &'static str, path: &Path) -> impl Fn(rusqlite::Error) -> StoreError + use<> {
    let path = path.to_owned();
    move |source| match source.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            StoreError::Corrupt { path: path.clone(), why: source.to_string() }
        }
        _ => StoreError::Database { action, path: path.clone(), source },
    }
}

/// Makes the file with all tables; the caller marks the first start as unfinished until this returned.
pub(super) fn create(state_dir: &Path, authority: &str) -> Result<(), StoreError> {
    let path = database(state_dir);
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .map_err(|source| StoreError::Io { action: "creating", path: path.clone(), source })?;
    let db = connect(&path)?;
    let failed = failed("creating the tables of", &path);
    db.pragma_update(None, "application_id", APPLICATION_ID).map_err(&failed)?;
    migrate(&db, &path, 0)?;
    let cluster = ClusterId::generate().to_string();
    for (key, value) in [(CLUSTER, cluster.as_str()), (AUTHORITY, authority)] {
        db.execute("INSERT INTO meta (key, value) VALUES ($1, $2)", [key, value]).map_err(&failed)?;
    }
    db.close().map_err(|(_, error)| failed(error))?;
    fs::File::open(state_dir).and_then(|dir| dir.sync_all()).map_err(|source| StoreError::Io {
        action: "syncing",
        path: state_dir.to_owned(),
        source,
    })
}

/// SQLite keeps the write-ahead log and its index beside the file and gives them its mode.
pub(super) fn discard(state_dir: &Path) -> Result<(), StoreError> {
    for suffix in ["", "-wal", "-shm"] {
        let mut name = database(state_dir).into_os_string();
        name.push(suffix);
        let path = PathBuf::from(name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != ErrorKind::NotFound => {
                return Err(StoreError::Io { action: "removing", path, source });
            }
            _ => {}
        }
    }
    Ok(())
}

fn connect(path: &Path) -> Result<Connection, StoreError> {
    let failed = failed("opening", path);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags).map_err(&failed)?;
    db.set_prepared_statement_cache_capacity(128);
    let mode: String = db.query_row("PRAGMA journal_mode=WAL", [], |row| row.get(0)).map_err(&failed)?;
    if mode != "wal" {
        return Err(StoreError::Corrupt { path: path.to_owned(), why: format!("journal mode {mode}") });
    }
    db.execute_batch("PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON; PRAGMA trusted_schema=OFF;")
        .map_err(&failed)?;
    Ok(db)
}

/// True when a host or a secret was ever written down. What a first start that was cut off leaves is known for
/// that and is not used; whatever cannot be read may be.
pub(super) fn is_used(state_dir: &Path) -> Result<bool, StoreError> {
    let path = database(state_dir);
    if !is_there(state_dir)? {
        return Ok(false);
    }
    let size = |path: &Path| match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(0),
        Err(source) => Err(StoreError::Io { action: "reading", path: path.to_owned(), source }),
        Ok(meta) => Ok(meta.len()),
    };
    let mut log = path.clone().into_os_string();
    log.push("-wal");
    if size(&path)? == 0 && size(Path::new(&log))? == 0 {
        return Ok(false);
    }
    let db = connect(&path)?;
    let failed = failed("reading", &path);
    let version: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(&failed)?;
    if version > known() {
        return Err(StoreError::TooNew { path, found: version, known: known() });
    }
    let exists = |sql: &str| db.query_row(sql, [], |row| row.get::<_, bool>(0)).map_err(&failed);
    for table in ["hosts", "secrets"] {
        let there = format!("SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = '{table}')");
        if exists(&there)? && exists(&format!("SELECT EXISTS (SELECT 1 FROM {table})"))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// True when something lies where the database would.
pub(super) fn is_there(state_dir: &Path) -> Result<bool, StoreError> {
    let path = database(state_dir);
    match fs::symlink_metadata(&path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(source) => Err(StoreError::Io { action: "looking for", path, source }),
    }
}

pub(super) fn open(state_dir: &Path, authority: &str) -> Result<Opened, StoreError> {
    let path = database(state_dir);
    let corrupt = |why: &str| StoreError::Corrupt { path: path.clone(), why: why.to_owned() };
    let size = match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(StoreError::Missing(path)),
        Err(source) => return Err(StoreError::Io { action: "reading", path, source }),
        Ok(meta) if !meta.is_file() => return Err(corrupt("not a file")),
        Ok(meta) => meta.len(),
    };
    // SQLite takes an empty file for a new database; here it is one that lost its content.
    if size == 0 {
        return Err(corrupt("the file is empty"));
    }
    let db = connect(&path)?;
    let failed = failed("opening", &path);
    let pragma = |name: &str| db.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).map_err(&failed);
    if pragma("application_id")? != APPLICATION_ID {
        return Err(corrupt("not a database of postern"));
    }
    let found = pragma("user_version")?;
    if found > known() {
        return Err(StoreError::TooNew { path, found, known: known() });
    }
    if found < 1 {
        return Err(corrupt("it has no schema"));
    }
    if size <= CHECK_BYTES {
        let verdict: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(&failed)?;
        if verdict != "ok" {
            return Err(corrupt(&verdict));
        }
    }
    migrate(&db, &path, found)?;
    let meta = |key: &str| {
        db.query_row("SELECT value FROM meta WHERE key = $1", [key], |row| row.get::<_, String>(0)).map_err(
            |error| match error {
                rusqlite::Error::QueryReturnedNoRows => corrupt("it does not say whose it is"),
                error => failed(error),
            },
        )
    };
    if meta(AUTHORITY)? != authority {
        return Err(StoreError::Mismatch { path });
    }
    let cluster = meta(CLUSTER)?.parse().map_err(|_| corrupt("it does not say whose it is"))?;
    let generation = match optional_meta(&db, &path, GENERATION)? {
        None => 1,
        Some(text) => text.parse().map_err(|_| corrupt("its generation is not a number"))?,
    };
    Ok(Opened { connection: db, cluster, generation })
}

fn optional_meta(db: &Connection, path: &Path, key: &str) -> Result<Option<String>, StoreError> {
    db.query_row("SELECT value FROM meta WHERE key = $1", [key], |row| row.get(0))
        .optional()
        .map_err(failed("reading", path))
}

/// The id of the key that was adopted; `None` when there is no database or it never had one.
pub(super) fn key_id(state_dir: &Path) -> Result<Option<String>, StoreError> {
    let path = database(state_dir);
    match fs::symlink_metadata(&path) {
        Ok(meta) if meta.len() > 0 => optional_meta(&connect(&path)?, &path, SECRETS_KEY),
        Err(source) if source.kind() != ErrorKind::NotFound => {
            Err(StoreError::Io { action: "reading", path, source })
        }
        _ => Ok(None),
    }
}

/// Notes which key is used from now on; another one than before is an error.
pub(super) fn adopt_key(db: &Connection, state_dir: &Path, key: &SealKey) -> Result<(), StoreError> {
    let path = database(state_dir);
    match optional_meta(db, &path, SECRETS_KEY)? {
        Some(known) => Ok(key.check(&known)?),
        None => {
            let sql = "INSERT INTO meta (key, value) VALUES ($1, $2)";
            db.execute(sql, [SECRETS_KEY, &key.id().to_string()]).map(drop).map_err(failed("writing", &path))
        }
    }
}

/// A second connection that can only read, so that a long read does not hold up a commit.
pub(super) fn open_reader(state_dir: &Path) -> Result<Connection, StoreError> {
    let path = database(state_dir);
    let db = connect(&path)?;
    db.execute_batch("PRAGMA query_only=ON").map_err(failed("opening", &path))?;
    Ok(db)
}

pub(super) fn snapshot(state_dir: &Path, to: &Path) -> Result<(), StoreError> {
    let path = database(state_dir);
    // SQLite fills an empty file and leaves its mode.
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)
        .map_err(|source| StoreError::Io { action: "creating", path: to.to_owned(), source })?;
    let db = connect(&path)?;
    let target = to.to_string_lossy();
    db.execute("VACUUM INTO $1", [&*target]).map(drop).map_err(failed("copying", &path))
}

pub(super) fn mark_restored(
    state_dir: &Path,
    authority: &str,
    key: &SealKey,
    now_ms: i64,
) -> Result<u64, StoreError> {
    let Opened { connection: mut db, generation, .. } = open(state_dir, authority)?;
    adopt_key(&db, state_dir, key)?;
    let path = database(state_dir);
    let failed = failed("marking as restored", &path);
    let generation = generation.saturating_add(1);
    let mark = |db: &mut Connection| {
        let change = db.transaction()?;
        change.execute(
            "INSERT INTO meta (key, value) VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            [GENERATION, &generation.to_string()],
        )?;
        change.execute("UPDATE hosts SET behind = 1 WHERE state <> 'forgotten'", [])?;
        // Whether it was sent and done since the backup cannot be known: it is never sent again.
        change.execute(
            "UPDATE runs SET state = 'interrupted', finished_ms = $1, message = 'it waited when the backup was \
             made that this controller was restored from; whether it was done since then is not known' \
             WHERE state = 'queued'",
            [now_ms],
        )?;
        // One that was used since then must not be good again.
        change.execute("DELETE FROM tokens WHERE used_ms IS NULL", [])?;
        change.commit()?;
        db.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")
    };
    mark(&mut db).map_err(&failed)?;
    db.close().map_err(|(_, error)| failed(error))?;
    Ok(generation)
}

/// `user_version` is the schema's number and changes in the same transaction as the tables.
fn migrate(db: &Connection, path: &Path, from: i64) -> Result<(), StoreError> {
    let failed = failed("migrating", path);
    for (number, sql) in (1i64..).zip(MIGRATIONS) {
        if number <= from {
            continue;
        }
        if from > 0 {
            tracing::info!(schema = number, "migrating the database");
        }
        let result =
            db.execute_batch(&format!("BEGIN IMMEDIATE;\n{sql}\nPRAGMA user_version={number};\nCOMMIT;"));
        if let Err(error) = result {
            let _ = db.execute_batch("ROLLBACK");
            return Err(failed(error));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        create(dir.path(), "aa").unwrap();
        dir
    }

    #[test]
    fn opens_what_it_made() {
        let dir = fresh();
        let first = open(dir.path(), "aa").unwrap().cluster;
        assert_eq!(open(dir.path(), "aa").unwrap().cluster, first);
        assert!(matches!(open(dir.path(), "bb"), Err(StoreError::Mismatch { .. })));
    }

    #[test]
    fn missing_corrupt_and_too_new_differ() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(open(dir.path(), "aa"), Err(StoreError::Missing(_))));
        let path = database(dir.path());
        for rubbish in [&b""[..], b"not a database at all, but long enough to be looked at"] {
            fs::write(&path, rubbish).unwrap();
            assert!(matches!(open(dir.path(), "aa"), Err(StoreError::Corrupt { .. })), "{rubbish:?}");
        }
        fs::remove_file(&path).unwrap();
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE other(a)").unwrap();
        assert!(matches!(open(dir.path(), "aa"), Err(StoreError::Corrupt { .. })));

        let dir = fresh();
        Connection::open(database(dir.path())).unwrap().pragma_update(None, "user_version", 999).unwrap();
        assert!(matches!(open(dir.path(), "aa"), Err(StoreError::TooNew { found: 999, .. })));
    }

    #[test]
    fn a_flipped_page_is_corrupt() {
        let dir = fresh();
        let path = database(dir.path());
        let mut bytes = fs::read(&path).unwrap();
        bytes[4096..].iter_mut().for_each(|byte| *byte ^= 0x5a);
        fs::write(&path, bytes).unwrap();
        assert!(matches!(open(dir.path(), "aa"), Err(StoreError::Corrupt { .. })));
    }

    #[test]
    fn for_the_owner_only() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = fresh();
        let _open = open(dir.path(), "aa").unwrap();
        for entry in fs::read_dir(dir.path()).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o077, 0, "{:?}", entry.path());
        }
    }

    /// A database as version 0.1.0 made it, with a host and two runs.
    fn version_1() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let path = database(dir.path());
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).unwrap();
        let db = connect(&path).unwrap();
        db.pragma_update(None, "application_id", APPLICATION_ID).unwrap();
        db.execute_batch(include_str!("schema_1.sql")).unwrap();
        db.execute_batch(
            "PRAGMA user_version=1;
             INSERT INTO meta VALUES ('cluster', '0192f0c1-2a3b-7c4d-8e5f-0123456789ab'), ('authority', 'aa');
             INSERT INTO hosts VALUES ('0192f0c1-2a3b-7c4d-8e5f-0123456789ac', 'web', 'root@web',
               '{\"role\":\"web\"}', 'enrolled', '', 5, 3, 9, '0.1.0', 'debian', '12', 'x86_64', 'web', NULL, 7);
             INSERT INTO runs (id, host, state, origin, check_only, created_ms, finished_ms, not_after_ms,
               plan_sha256, plan, message, cancel, seq, last_event, last_cursor)
             VALUES ('0192f0c1-2a3b-7c4d-8e5f-0123456789ad', '0192f0c1-2a3b-7c4d-8e5f-0123456789ac', 'ok',
               'base', 1, 5, 6, 0, zeroblob(32), x'7b7d', '', 0, 7, 1, 1),
             ('0192f0c1-2a3b-7c4d-8e5f-0123456789ae', '0192f0c1-2a3b-7c4d-8e5f-0123456789ac', 'running',
               'base', 0, 5, 0, 0, zeroblob(32), x'7b7d', '', 0, 8, 1, 1);
             INSERT INTO updates SELECT no, 1, 1, 'event', x'00' FROM runs;",
        )
        .unwrap();
        dir
    }

    fn rows(db: &Connection, sql: &str) -> Vec<String> {
        let mut statement = db.prepare(sql).unwrap();
        let rows = statement.query_map([], |row| row.get(0)).unwrap();
        rows.map(Result::unwrap).collect()
    }

    #[test]
    fn a_database_of_version_1_keeps_what_is_in_it() {
        let dir = version_1();
        let kept = "SELECT id || name || labels || epoch || next_seq || last_seen_ms FROM hosts UNION ALL \
                    SELECT id || host || state || origin || seq || last_event || hex(plan) FROM runs UNION ALL \
                    SELECT run || last_cursor || kind || hex(body) FROM updates";
        let before = rows(&connect(&database(dir.path())).unwrap(), kept);
        let opened = open(dir.path(), "aa").unwrap();
        assert_eq!(rows(&opened.connection, kept), before);
        assert_eq!(before.len(), 5);
        assert_eq!(
            rows(&opened.connection, "SELECT terms FROM runs ORDER BY no"),
            ["{\"check\":true}", "{}"]
        );
        assert_eq!(rows(&opened.connection, "SELECT vars || behind FROM hosts"), ["{}0"]);
        let room = "SELECT quote(memory_mb) || quote(swap_mb) || quote(disk_free_mb) || quote(var_free_mb) FROM hosts";
        assert_eq!(rows(&opened.connection, room), ["NULLNULLNULLNULL"]);
        assert_eq!(rows(&opened.connection, "SELECT ssh_ports FROM hosts"), ["[]"]);
        assert_eq!(rows(&opened.connection, "SELECT quote(ssh_port) FROM runs"), ["NULL", "NULL"]);
        assert_eq!(opened.generation, 1);
        let version = |db: &Connection| {
            db.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0)).unwrap()
        };
        assert_eq!(version(&opened.connection), known());
        // The same tables as a new one has, however it came to them.
        let fresh = fresh();
        let shape = |db: &Connection| {
            let sql = "SELECT m.name || ' ' || i.name || ' ' || i.type FROM sqlite_master m \
                       JOIN pragma_table_info(m.name) i WHERE m.type = 'table' ORDER BY 1";
            rows(db, sql)
        };
        assert_eq!(shape(&opened.connection), shape(&connect(&database(fresh.path())).unwrap()));
        drop(opened);
        open(dir.path(), "aa").unwrap();
    }

    /// Forward only, and whole or not at all.
    #[test]
    fn a_migration_that_fails_changes_nothing() {
        let dir = version_1();
        let path = database(dir.path());
        connect(&path).unwrap().execute_batch("CREATE TABLE secrets (other)").unwrap();
        assert!(matches!(open(dir.path(), "aa"), Err(StoreError::Database { .. })));
        let db = connect(&path).unwrap();
        assert_eq!(db.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0)).unwrap(), 1);
        assert_eq!(rows(&db, "SELECT name FROM pragma_table_info('runs') WHERE name = 'terms'"), [""; 0]);
    }
}
