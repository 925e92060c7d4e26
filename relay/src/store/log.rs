//! Write-ahead logs: when they are moved into their databases.
//!
//! A log that was moved is written over from its beginning, in place, and keeps its length: where a commit takes no new
//! blocks of the file system, its sync has less else to write down, and takes up to a third less. So logs are moved
//! early, while nobody waits, and cut off only where a crowd has made them long.

use super::schema;
use rusqlite::Connection;
use std::cell::Cell;
use std::time::Duration;
use tracing::warn;

/// A log of more pages than this is moved as soon as its worker has had nothing to do for [`QUIET`]. A page has 4 KiB.
pub(super) const WHILE_QUIET: u32 = 64;
/// How long that is: who asks again and again is not to meet it.
pub(super) const QUIET: Duration = Duration::from_millis(20);
/// As soon as no command waits.
pub(super) const WHILE_FREE: u32 = 1024;
/// At once.
pub(super) const AT_ONCE: u32 = 16 * 1024;
/// Such a log is cut off, too.
const LONG: u32 = 4096;

thread_local! {
    static PAGES: Cell<Option<u32>> = const { Cell::new(None) };
}

/// Has commits of a connection tell how long its log is.
pub(super) fn listen(connection: &Connection) {
    connection.wal_hook(Some(|_, pages| {
        PAGES.set(u32::try_from(pages).ok());
        Ok(())
    }));
}

/// How many pages of a log are in use since the last commit that was made on this thread. `None`: it has written nothing.
pub(super) fn told() -> Option<u32> {
    PAGES.take()
}

/// Moves a log of so many pages. False: a reader stands in it still, or it cannot be.
pub(super) fn was_moved(connection: &Connection, pages: u32) -> bool {
    checkpoint(connection, if pages > LONG { "TRUNCATE" } else { "PASSIVE" })
}

/// Moves a log and cuts it off: its database is closed.
pub(super) fn end(connection: &Connection) {
    checkpoint(connection, "TRUNCATE");
}

fn checkpoint(connection: &Connection, mode: &str) -> bool {
    // A reader that stands in the log must not hold up everybody's commands: then it is moved the next time.
    let result = connection.busy_timeout(Duration::ZERO).and_then(|()| {
        let moved = connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| {
            let (is_busy, pages, moved): (bool, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
            Ok(!is_busy && pages == moved)
        });
        connection.busy_timeout(schema::BUSY).and(moved)
    });
    result.unwrap_or_else(|error| {
        // Nothing is lost: the log is replayed at the next open.
        warn!(%error, "a checkpoint failed");
        false
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::schema::{Durability, Kind};
    use crate::store::testing::count;

    #[test]
    fn a_log_that_was_moved_is_written_over_in_place() {
        let dir = tempfile::tempdir().expect("made");
        let path = dir.path().join("t.db");
        let connection = schema::open(&path, Kind::Tenant, Durability::Full).expect("opened");
        let len = || std::fs::metadata(path.with_extension("db-wal")).expect("there").len();
        let mut written = 0;
        let mut write = |times: usize| {
            for _ in 0..times {
                written += 1;
                connection
                    .execute("INSERT INTO budget (scope, measure, amount) VALUES (?1, '', 0)", [written.to_string()])
                    .expect("written");
            }
            told().expect("it has written")
        };
        let long = write(100);
        let full = len();
        assert!(u64::from(long) * 4096 < full && told().is_none(), "{long} pages, {full} bytes");
        // Somebody still reads what was before.
        let reader = Connection::open(&path).expect("opened");
        reader.execute_batch("BEGIN").expect("begun");
        let seen = count(&reader).expect("read");
        assert!(write(1) > long && !was_moved(&connection, long));
        reader.execute_batch("COMMIT").expect("over");
        assert!(was_moved(&connection, long));
        let again = write(50);
        assert!(again < long, "{again} pages beside {long}");
        assert_eq!(seen, count(&connection).expect("read") - 51);
        let grown = len();
        assert!(grown >= full && grown < full + 16 * 4120, "{grown} bytes beside {full}");
        assert!(was_moved(&connection, LONG + 1));
        assert_eq!(len(), 0);
    }
}
