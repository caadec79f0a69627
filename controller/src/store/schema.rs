//! The tables, their numbered migrations, and opening a file with three different answers.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use postern_proto::ids::ClusterId;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::StoreError;

/// "PSTN": what a database of ours says it is.
const APPLICATION_ID: i64 = 0x5053_544e;
/// A database up to this size is checked whole at each start; reading more would be felt.
const CHECK_BYTES: u64 = 32 * 1024 * 1024;

/// Each brings the schema from its index to the next; none is ever changed once released.
const MIGRATIONS: &[&str] = &[include_str!("schema_1.sql")];

pub(super) fn database(state_dir: &Path) -> PathBuf {
    state_dir.join("postern.db")
}

pub(super) struct Opened {
    pub(super) connection: Connection,
    pub(super) cluster: ClusterId,
}

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
    for (key, value) in [("cluster", cluster.as_str()), ("authority", authority)] {
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

pub(super) fn has_hosts(state_dir: &Path, authority: &str) -> Result<bool, StoreError> {
    let opened = open(state_dir, authority)?;
    opened
        .connection
        .query_row("SELECT EXISTS (SELECT 1 FROM hosts)", [], |row| row.get(0))
        .map_err(failed("reading", &database(state_dir)))
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
    if meta("authority")? != authority {
        return Err(StoreError::Mismatch { path });
    }
    let cluster = meta("cluster")?.parse().map_err(|_| corrupt("it does not say whose it is"))?;
    Ok(Opened { connection: db, cluster })
}

/// A second connection that can only read, so that a long read does not hold up a commit.
pub(super) fn open_reader(state_dir: &Path) -> Result<Connection, StoreError> {
    let path = database(state_dir);
    let db = connect(&path)?;
    db.execute_batch("PRAGMA query_only=ON").map_err(failed("opening", &path))?;
    Ok(db)
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
}
