//! Small helpers over SQLite: cached statements, and columns that are typed ids.

use std::str::FromStr;
use std::sync::Arc;

use rusqlite::{CachedStatement, Connection, OptionalExtension as _, Params, Row};

use super::OpError;

/// A statement, prepared once.
pub(super) fn prepare<'db>(db: &'db Connection, sql: &str) -> rusqlite::Result<CachedStatement<'db>> {
    let statement = db.prepare_cached(sql)?;
    // `$1` is a name to SQLite and counts by first use; it must agree with PostgreSQL's number.
    #[cfg(debug_assertions)]
    for index in 1..=statement.parameter_count() {
        debug_assert_eq!(statement.parameter_name(index), Some(format!("${index}").as_str()), "{sql}");
    }
    Ok(statement)
}

/// Rows changed.
pub(super) fn execute(db: &Connection, sql: &str, params: impl Params) -> Result<usize, OpError> {
    Ok(prepare(db, sql)?.execute(params)?)
}

/// The one row there may be.
pub(super) fn optional<T>(
    db: &Connection,
    sql: &str,
    params: impl Params,
    read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Option<T>, OpError> {
    Ok(prepare(db, sql)?.query_row(params, read).optional()?)
}

/// The one row there must be.
pub(super) fn one<T>(
    db: &Connection,
    sql: &str,
    params: impl Params,
    read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<T, OpError> {
    Ok(prepare(db, sql)?.query_row(params, read)?)
}

/// All rows.
pub(super) fn all<T>(
    db: &Connection,
    sql: &str,
    params: impl Params,
    read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>, OpError> {
    let mut statement = prepare(db, sql)?;
    let rows = statement.query_map(params, read)?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// A column that is text of a typed id or word; anything else in it is corruption.
pub(super) fn parsed<T>(row: &Row<'_>, column: &str) -> rusqlite::Result<T>
where
    T: FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let text: String = row.get(column)?;
    text.parse().map_err(malformed)
}

/// The error of a column that does not hold what was written.
pub(super) fn malformed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, error.into())
}

impl From<rusqlite::Error> for OpError {
    fn from(error: rusqlite::Error) -> Self {
        match error {
            rusqlite::Error::FromSqlConversionFailure(_, _, cause) => Self::Corrupt(cause.to_string()),
            error => Self::Database { action: "reading or writing", source: Arc::new(error) },
        }
    }
}
