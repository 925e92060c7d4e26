//! Copies of databases as they stand, while their owner goes on writing; and looks at copies, which change nothing.

use super::StoreError;
use super::central;
use super::ledger::restored::{catch_up, sealed};
use super::ledger::seal::SealKey;
use super::ledger::usage::Totals;
use super::ledger::verify::{Report, verify};
use super::schema::{self, Durability, Kind};
use super::sync::Chunk;
use belay_protocol::id::TenantId;
use belay_protocol::item::{Digest, Part};
use belay_protocol::message::Encoding;
use rusqlite::backup::Backup;
use rusqlite::{Connection, OpenFlags};
use std::path::Path;

/// Copies a database into a new file, as it is at one moment. Errors: `Failed`.
pub fn copy(from: &Path, to: &Path) -> Result<(), StoreError> {
    let failed = |error: rusqlite::Error| StoreError::Failed { operation: "copy a database", why: error.to_string() };
    // Not read-only: a reader of a write-ahead log takes its part in keeping the log's index.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let source = Connection::open_with_flags(from, flags).map_err(failed)?;
    source.pragma_update(None, "query_only", true).map_err(failed)?;
    source.busy_timeout(std::time::Duration::from_secs(5)).map_err(failed)?;
    let failed_file =
        |error: std::io::Error| StoreError::Failed { operation: "copy a database", why: error.to_string() };
    let mut private = std::fs::OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::mode(private.create_new(true).write(true), 0o600);
    private.open(to).map_err(failed_file)?;
    let mut target = Connection::open(to).map_err(failed)?;
    // All pages in one step, so of one moment.
    Backup::new(&source, &mut target).and_then(|backup| backup.step(-1)).map_err(failed)?;
    // One file, that needs no log beside it.
    target.pragma_update(None, "journal_mode", "delete").map_err(failed)?;
    target.close().map_err(|(_, error)| failed(error))?;
    std::fs::File::open(to).and_then(|file| file.sync_all()).map_err(failed_file)
}

/// A copy, to be read and nothing else.
pub fn open(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Ok(Connection::open_with_flags(path, flags)?)
}

/// What SQLite finds wrong with a database; empty: nothing.
pub fn damage(connection: &Connection) -> Result<Vec<String>, StoreError> {
    let mut statement = connection.prepare("PRAGMA integrity_check")?;
    let mut found: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    found.retain(|line| line != "ok");
    Ok(found)
}

/// The check of a copied book, beside a copy of central that is as old or younger; without the key, its seals are not
/// looked at. `sealed`: how far the book was known to be sealed when it was copied.
pub fn verify_book(
    book: &Connection,
    of_all: &Connection,
    tenant: &TenantId,
    (seal, sealed): (Option<&SealKey>, Option<i64>),
) -> Result<Report, StoreError> {
    let sealed = match (seal, sealed) {
        (None, _) => 0,
        (Some(_), Some(sealed)) => sealed,
        (Some(_), None) => central::usage::sealed(of_all, tenant)?,
    };
    verify(book, seal.map(|key| (tenant, key)), sealed)
}

/// How far a book has come: its epoch and its last entry. A later copy of the same book has come no less far.
pub fn extent(connection: &Connection) -> Result<(i64, i64), StoreError> {
    let sql = "SELECT epoch, (SELECT coalesce(max(id), 0) FROM transfer) FROM tenant";
    Ok(connection.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?)))?)
}

/// The tenants that a copy of central knows.
pub fn tenants(of_all: &Connection) -> Result<Vec<TenantId>, StoreError> {
    Ok(central::tenants(of_all)?.into_iter().map(|tenant| tenant.id).collect())
}

/// Makes a copied book one that is to be used: it catches up with what central knows of it, and begins a new epoch.
/// Returns what it has lost, and up to which entry it is sealed.
pub fn begin_anew(path: &Path, central: &Path, tenant: &TenantId, now_ms: u64) -> Result<(Totals, i64), StoreError> {
    let mut book = schema::open(path, Kind::Tenant, Durability::Full)?;
    let transaction = book.transaction()?;
    let begun = (catch_up(&transaction, &open(central)?, tenant, now_ms)?, sealed(&transaction)?);
    transaction.commit()?;
    book.pragma_update(None, "journal_mode", "delete")?;
    book.close().map_err(|(_, error)| StoreError::from(error))?;
    Ok(begun)
}

/// Has a copy of central know of books that have come back only what they say themselves of their seals: it is younger.
pub fn sealed_again<'a>(path: &Path, books: impl Iterator<Item = (&'a TenantId, i64)>) -> Result<(), StoreError> {
    let mut of_all = schema::open(path, Kind::Central, Durability::Full)?;
    let transaction = of_all.transaction()?;
    for (tenant, sealed) in books {
        central::usage::sealed_again(&transaction, tenant, sealed)?;
    }
    transaction.commit()?;
    of_all.pragma_update(None, "journal_mode", "delete")?;
    of_all.close().map_err(|(_, error)| StoreError::from(error))
}

/// The pieces of content that a book names, and whether something needs them.
pub fn chunks(connection: &Connection) -> Result<Vec<(Chunk, bool)>, StoreError> {
    let mut statement =
        connection.prepare("SELECT hash, size, encoding, file, refs > 0 FROM blob_chunk ORDER BY id")?;
    let rows = statement.query_map([], |row| {
        let part = Part { digest: Digest(row.get(0)?), size: row.get(1)? };
        Ok((Chunk { part, encoding: Encoding(row.get(2)?), file: row.get(3)? }, row.get(4)?))
    })?;
    let rows: Vec<(Chunk, bool)> = rows.collect::<Result<_, _>>()?;
    match rows.iter().find(|(chunk, _)| chunk.file.contains(['/', '\\']) || chunk.file.starts_with('.')) {
        Some((chunk, _)) => {
            Err(StoreError::Corrupt { what: "a piece's name", why: format!("{:?} is no name of a piece", chunk.file) })
        }
        None => Ok(rows),
    }
}

/// How far the book in a file has come, if it can be read to its end.
#[must_use]
pub fn sound_extent(path: &Path) -> Option<(i64, i64)> {
    let connection = open(path).ok()?;
    let is_sound = damage(&connection).is_ok_and(|found| found.is_empty());
    extent(&connection).ok().filter(|_| is_sound)
}
