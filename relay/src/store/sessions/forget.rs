//! What was deleted or cleared long ago goes.

use super::time;
use crate::store::StoreError;
use rusqlite::{Connection, params};

/// How long a deleted session can be restored, and a cleared message is known, in milliseconds.
pub const KEPT_MS: u64 = 30 * 24 * 60 * 60 * 1000;
/// The most messages that one call forgets of those whose time is over.
const FORGOTTEN_AT_ONCE: u32 = 500;

/// A session that was deleted then is on its way out.
pub(super) fn is_over(deleted_ms: u64, now_ms: u64) -> bool {
    deleted_ms < now_ms.saturating_sub(KEPT_MS)
}

/// Forgets sessions that were deleted, and messages that were cleared, more than [`KEPT_MS`] ago; so many at
/// a time. True if there may be more.
pub fn forget(connection: &Connection, now_ms: u64) -> Result<bool, StoreError> {
    let before = time(now_ms.saturating_sub(KEPT_MS));
    let mut left = FORGOTTEN_AT_ONCE;
    let mut forgotten = |sql: &str| -> Result<(), StoreError> {
        let count = connection.prepare_cached(sql)?.execute(params![before, left])?;
        left = left.saturating_sub(u32::try_from(count).unwrap_or(u32::MAX));
        Ok(())
    };
    forgotten("DELETE FROM cleared WHERE message_id IN (SELECT message_id FROM cleared WHERE at_ms < ?1 LIMIT ?2)")?;
    forgotten(
        "DELETE FROM message WHERE id IN (SELECT message.id FROM message JOIN session ON session.id = message.session
             WHERE session.deleted_ms < ?1 LIMIT ?2)",
    )?;
    // A request that runs still belongs to one, and so do cleared messages until their time is over.
    forgotten(
        "UPDATE request SET session = NULL WHERE id IN (SELECT request.id FROM request JOIN session
                   ON session.id = request.session WHERE session.deleted_ms < ?1 AND request.state <> 0 LIMIT ?2)",
    )?;
    forgotten(
        "DELETE FROM session WHERE id IN (SELECT id FROM session WHERE deleted_ms < ?1
             AND NOT EXISTS (SELECT 1 FROM message WHERE session = session.id)
             AND NOT EXISTS (SELECT 1 FROM cleared WHERE session = session.id)
             AND NOT EXISTS (SELECT 1 FROM turn WHERE session = session.id)
             AND NOT EXISTS (SELECT 1 FROM request WHERE session = session.id) LIMIT ?2)",
    )?;
    Ok(left == 0)
}
