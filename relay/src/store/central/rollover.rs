//! Which devices a change of the relay's authority waits for.

use crate::store::StoreError;
use crate::store::ledger::time;
use rusqlite::{Connection, params};

/// Devices that may come back (not revoked, and their certificate ends after `alive_ms`) and have neither renewed their
/// certificate after `since_ms` nor, where `joining_counts`, joined after it. Milliseconds since 1970: of what was done in
/// that very one nobody knows which authority it was done by, and a device that is waited for in vain is not left behind.
pub fn waiting(connection: &Connection, alive_ms: u64, since_ms: u64, joining_counts: bool) -> Result<u64, StoreError> {
    let count: i64 = connection.query_row(
        "SELECT count(*) FROM device
         WHERE revoked_ms IS NULL AND expires_ms > ?1 AND NOT (?3 AND created_ms > ?2)
           AND id NOT IN (SELECT subject FROM audit WHERE action = 'device.renew' AND at_ms > ?2)",
        params![time(alive_ms), time(since_ms), joining_counts],
        |row| row.get(0),
    )?;
    Ok(u64::try_from(count).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::schema::{Kind, scratch};

    #[test]
    fn what_was_done_in_the_very_moment_is_waited_for() {
        let central = scratch(Kind::Central).expect("made");
        central
            .execute_batch(
                "INSERT INTO tenant (id, created_ms) VALUES ('acme', 1);
                 INSERT INTO device (id, tenant, label, key_fingerprint, created_ms, expires_ms) VALUES
                     ('before', 'acme', '', x'01', 10, 1000), ('joined', 'acme', '', x'02', 100, 1000),
                     ('late', 'acme', '', x'03', 101, 1000), ('gone', 'acme', '', x'04', 10, 50);
                 INSERT INTO audit (at_ms, actor, action, tenant, subject, detail) VALUES
                     (100, 'device:before', 'device.renew', 'acme', 'before', '');",
            )
            .expect("written");
        let count = |since_ms, joining_counts| waiting(&central, 60, since_ms, joining_counts).expect("counted");
        assert_eq!((count(99, true), count(100, true), count(100, false)), (0, 2, 3));
    }
}
