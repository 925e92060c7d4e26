//! What nobody needs any more goes: old revisions, tombstones, content that never was pushed, pieces that nothing has.

use super::{COLUMNS, Content, Stored, refer};
use crate::store::StoreError;
use crate::store::sessions::time;
use rusqlite::{Connection, params};

const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// How long a revision that was replaced is kept.
pub const REVISION_MS: u64 = 30 * DAY_MS;
/// How long it is known that an item was deleted.
pub const TOMBSTONE_MS: u64 = 180 * DAY_MS;
/// How long announced content waits for its next part.
pub const UPLOAD_MS: u64 = DAY_MS;
/// How long a piece that nothing has is kept: whoever just read of it may ask for it.
pub const CHUNK_MS: u64 = 60 * 60 * 1000;
/// Changes whose nonces are kept.
const CHANGES: i64 = 1_000_000;
/// The most of each that one call lets go.
const AT_ONCE: u32 = 500;
/// The same of revisions, which may have long lists of parts.
const REVISIONS_AT_ONCE: u32 = 32;

/// What went.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Forgotten {
    /// There may be more.
    pub more: bool,
    /// Files that nothing refers to, once this is committed.
    pub files: Vec<String>,
}

/// Forgets what is over, so much at a time.
pub fn forget(connection: &Connection, now_ms: u64) -> Result<Forgotten, StoreError> {
    let before = |kept| time(now_ms.saturating_sub(kept));
    let uploads = connection
        .prepare_cached(
            "DELETE FROM blob_upload WHERE id IN (SELECT id FROM blob_upload WHERE touched_ms < ?1 LIMIT ?2)",
        )?
        .execute(params![before(UPLOAD_MS), AT_ONCE])?;
    let revisions = old_revisions(connection, before(REVISION_MS), now_ms)?;
    let tombstones = tombstones(connection, before(TOMBSTONE_MS), now_ms)?;
    let mut statement = connection.prepare_cached(
        "DELETE FROM blob_chunk WHERE id IN (SELECT id FROM blob_chunk WHERE idle_ms < ?1
             AND NOT EXISTS (SELECT 1 FROM blob_pin WHERE blob_pin.hash = blob_chunk.hash) LIMIT ?2) RETURNING file",
    )?;
    let files = statement
        .query_map(params![before(CHUNK_MS), AT_ONCE], |row| row.get(0))?
        .collect::<Result<Vec<String>, _>>()?;
    // Whoever stands before that begins anew.
    connection
        .prepare_cached("DELETE FROM sync_change WHERE number < (SELECT number FROM sync_counter) - ?1")?
        .execute([CHANGES])?;
    let most = [uploads, revisions, tombstones, files.len()].into_iter().max().unwrap_or(0);
    Ok(Forgotten { more: most >= AT_ONCE as usize, files })
}

fn remove(connection: &Connection, stored: &Stored, now_ms: u64) -> Result<(), StoreError> {
    if let Content::Parts(parts) = &stored.content {
        refer(connection, parts, -1, now_ms)?;
    }
    connection.prepare_cached("DELETE FROM sync_revision WHERE id = ?1")?.execute([stored.row])?;
    Ok(())
}

fn old_revisions(connection: &Connection, before: i64, now_ms: u64) -> Result<usize, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM sync_revision WHERE replaced_ms < ?1 LIMIT ?2");
    let old = connection
        .prepare_cached(&sql)?
        .query_map(params![before, REVISIONS_AT_ONCE], Stored::read)?
        .collect::<Result<Vec<_>, _>>()?;
    for stored in &old {
        remove(connection, stored, now_ms)?;
    }
    // As many as a call lets go: there may be more.
    Ok(if old.len() == REVISIONS_AT_ONCE as usize { AT_ONCE as usize } else { old.len() })
}

/// Whoever has not read since then begins anew: the feed cannot tell him any more.
fn tombstones(connection: &Connection, before: i64, now_ms: u64) -> Result<usize, StoreError> {
    let over = connection
        .prepare_cached("SELECT id, number FROM sync_item WHERE deleted_ms < ?1 LIMIT ?2")?
        .query_map(params![before, AT_ONCE], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<Vec<(i64, i64)>, _>>()?;
    for (item, number) in &over {
        connection.prepare_cached("UPDATE sync_item SET head = NULL WHERE id = ?1")?.execute([item])?;
        let sql = format!("SELECT {COLUMNS} FROM sync_revision WHERE item = ?1 LIMIT ?2");
        loop {
            let revisions = connection
                .prepare_cached(&sql)?
                .query_map(params![item, REVISIONS_AT_ONCE], Stored::read)?
                .collect::<Result<Vec<_>, _>>()?;
            if revisions.is_empty() {
                break;
            }
            for stored in &revisions {
                remove(connection, stored, now_ms)?;
            }
        }
        connection.prepare_cached("DELETE FROM sync_item WHERE id = ?1")?.execute([item])?;
        connection.prepare_cached("UPDATE sync_counter SET forgotten = max(forgotten, ?1)")?.execute([number])?;
    }
    Ok(over.len())
}

/// Of these files, those that no piece is in.
pub fn orphans(connection: &Connection, files: &[String]) -> Result<Vec<String>, StoreError> {
    let mut known = connection.prepare_cached("SELECT 1 FROM blob_chunk WHERE file = ?1")?;
    let mut orphans = vec![];
    for file in files {
        if !known.exists([file])? {
            orphans.push(file.clone());
        }
    }
    Ok(orphans)
}
