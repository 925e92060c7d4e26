//! Locks for programs that ask each other. They keep nobody from writing: what decides is a push's parent.

use super::Refusal;
use crate::store::StoreError;
use crate::store::sessions::{time, unsigned};
use belay_protocol::id::{DeviceId, LockToken};
use belay_protocol::item::ItemKey;
use rusqlite::{Connection, OptionalExtension, params};

/// How long a lock lasts unless it is renewed, in milliseconds.
pub const LASTS_MS: u64 = 30_000;
/// The most locks of a tenant at once.
const MAX_LOCKS: i64 = 10_000;

/// Takes a lock, or renews it. Its fence.
pub fn lock(
    connection: &Connection,
    key: &ItemKey,
    token: LockToken,
    device: &DeviceId,
    now_ms: u64,
) -> Result<Result<u64, Refusal>, StoreError> {
    let found: Option<([u8; 16], i64, i64)> = connection
        .prepare_cached("SELECT token, fence, expires_ms FROM sync_lock WHERE key = ?1")?
        .query_row([key.as_str()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    let expires_ms = time(now_ms + LASTS_MS);
    if let Some((holder, fence, until)) = found {
        if holder == token.0 {
            connection
                .prepare_cached("UPDATE sync_lock SET expires_ms = ?2 WHERE key = ?1")?
                .execute(params![key.as_str(), expires_ms])?;
            return Ok(Ok(unsigned(fence)));
        }
        if until > time(now_ms) {
            return Ok(Err(Refusal::Locked(unsigned(until).saturating_sub(now_ms))));
        }
    } else {
        // Whatever was forgotten by its holders.
        connection.prepare_cached("DELETE FROM sync_lock WHERE expires_ms <= ?1")?.execute([time(now_ms)])?;
        let count: i64 =
            connection.prepare_cached("SELECT count(*) FROM sync_lock")?.query_row([], |row| row.get(0))?;
        if count >= MAX_LOCKS {
            return Ok(Err(Refusal::TooMany("locks", unsigned(MAX_LOCKS))));
        }
    }
    let fence: i64 = connection
        .prepare_cached("UPDATE sync_counter SET fence = fence + 1 RETURNING fence")?
        .query_row([], |row| row.get(0))?;
    connection
        .prepare_cached(
            "INSERT INTO sync_lock (key, token, fence, device, expires_ms) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (key) DO UPDATE SET token = excluded.token, fence = excluded.fence,
                 device = excluded.device, expires_ms = excluded.expires_ms",
        )?
        .execute(params![key.as_str(), token.0, fence, device.as_str(), expires_ms])?;
    Ok(Ok(unsigned(fence)))
}

/// Gives a lock back. True: it had expired before.
pub fn unlock(
    connection: &Connection,
    key: &ItemKey,
    token: LockToken,
    now_ms: u64,
) -> Result<Result<bool, Refusal>, StoreError> {
    let expires_ms: Option<i64> = connection
        .prepare_cached("DELETE FROM sync_lock WHERE key = ?1 AND token = ?2 RETURNING expires_ms")?
        .query_row(params![key.as_str(), token.0], |row| row.get(0))
        .optional()?;
    Ok(expires_ms.map(|until| until <= time(now_ms)).ok_or(Refusal::NotFound("lock with that token")))
}
