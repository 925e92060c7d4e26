//! What tests of the store write and count.

use super::StoreError;
use rusqlite::Connection;

/// Writes a row of that name; twice is an error.
pub(super) fn put(key: &'static str) -> impl Fn(&Connection) -> Result<(), StoreError> {
    move |connection| {
        connection.execute("INSERT INTO budget (scope, measure, amount) VALUES (?1, '', 0)", [key])?;
        Ok(())
    }
}

/// How many rows were written.
pub(super) fn count(connection: &Connection) -> Result<i64, StoreError> {
    Ok(connection.query_row("SELECT count(*) FROM budget", [], |row| row.get(0))?)
}
