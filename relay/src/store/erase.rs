//! Erasing what a tenant has said and kept. Its book stays, as the law wants: what was charged and paid, when, for which
//! device, key and model, with the operator's notes of payments.

use super::StoreError;
use rusqlite::{Connection, OpenFlags};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long others are waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// What was erased.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Erased {
    /// Sessions.
    pub sessions: u64,
    /// Their messages.
    pub messages: u64,
    /// Synced items, with all that they were.
    pub items: u64,
    /// Keys for providers.
    pub provider_keys: u64,
}

/// In this order nothing names what is gone already. The indexes of the search follow their tables, and are emptied at
/// the end, since they keep words of what was said by themselves.
const ERASE: &str = "
    DELETE FROM turn;
    DELETE FROM cleared;
    UPDATE request SET session = NULL WHERE session IS NOT NULL;
    DELETE FROM message;
    DELETE FROM session;
    INSERT INTO message_fts (message_fts) VALUES ('delete-all');
    INSERT INTO session_fts (session_fts) VALUES ('delete-all');
    UPDATE session_size SET bytes = 0;
    DELETE FROM sync_lock;
    DELETE FROM blob_upload;
    UPDATE sync_item SET head = NULL;
    DELETE FROM sync_revision;
    DELETE FROM sync_item;
    DELETE FROM blob_chunk;
    UPDATE sync_size SET bytes = 0;
    DELETE FROM imported_item;
    DELETE FROM provider_key;
";

/// Erases a tenant's words from its file. Of what is deleted, and of what was long ago, something stays between the rows
/// until the file is written anew (`compact`). The files of its content are the caller's to remove, once this is
/// durable.
pub fn erase(connection: &Connection) -> Result<Erased, StoreError> {
    let count = |table: &str| -> Result<u64, StoreError> {
        let count: i64 = connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0))?;
        Ok(u64::try_from(count).unwrap_or(0))
    };
    let erased = Erased {
        sessions: count("session")?,
        messages: count("message")?,
        items: count("sync_item")?,
        provider_keys: count("provider_key")?,
    };
    connection.execute_batch(ERASE)?;
    Ok(erased)
}

/// Moves what a database's log holds into it, so that nothing of before is left there. Errors: somebody reads it for too
/// long.
pub(super) fn empty_log(path: &Path) -> Result<(), StoreError> {
    empty(&open(path)?)
}

fn open(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(PATIENCE)?;
    Ok(connection)
}

fn empty(connection: &Connection) -> Result<(), StoreError> {
    let until = Instant::now() + PATIENCE;
    // Its worker may move the log just now, which SQLite does not wait for by itself.
    while connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))? {
        if Instant::now() > until {
            let why = "somebody reads it still, so what was erased is in its log; do it again".into();
            return Err(StoreError::Failed { operation: "write a database anew", why });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Writes a database anew, without what lies between its rows. Errors: somebody uses it for too long; there is no room.
pub(super) fn compact(path: &Path) -> Result<(), StoreError> {
    let connection = open(path)?;
    // What is moved out of the log is overwritten there.
    connection.execute_batch("PRAGMA secure_delete = ON; VACUUM;")?;
    empty(&connection)?;
    // What a restore has moved aside is as much the tenant's.
    for entry in path.parent().and_then(|dir| std::fs::read_dir(dir).ok()).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().contains(".damaged-") {
            std::fs::remove_file(entry.path())
                .map_err(|error| StoreError::Failed { operation: "remove a damaged book", why: error.to_string() })?;
        }
    }
    Ok(())
}
