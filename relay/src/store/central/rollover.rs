//! Which devices a change of the relay's authority waits for.

use crate::store::StoreError;
use crate::store::ledger::time;
use rusqlite::{Connection, params};

/// Devices that may come back (not revoked, and their certificate ends after `alive_ms`) and have neither renewed their
/// certificate since `since_ms` nor, where `joining_counts`, joined since then. Milliseconds since 1970.
pub fn waiting(connection: &Connection, alive_ms: u64, since_ms: u64, joining_counts: bool) -> Result<u64, StoreError> {
    let count: i64 = connection.query_row(
        "SELECT count(*) FROM device
         WHERE revoked_ms IS NULL AND expires_ms > ?1 AND NOT (?3 AND created_ms >= ?2)
           AND id NOT IN (SELECT subject FROM audit WHERE action = 'device.renew' AND at_ms >= ?2)",
        params![time(alive_ms), time(since_ms), joining_counts],
        |row| row.get(0),
    )?;
    Ok(u64::try_from(count).unwrap_or(0))
}
