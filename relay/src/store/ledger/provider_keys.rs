//! A tenant's own keys for providers. They are kept sealed; only a call to the provider opens one.

use super::time;
use crate::store::StoreError;
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};

/// A key as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedKey {
    /// Made anew for every key.
    pub nonce: [u8; 12],
    /// The key, unreadable without the relay's master key.
    pub sealed: Vec<u8>,
}

/// What may be known of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyInfo {
    /// The provider's name in the configuration.
    pub provider: String,
    /// When it was set, milliseconds since 1970.
    pub set_ms: u64,
}

/// Sets a provider's key, in place of the one before.
pub fn set(connection: &Connection, provider: &str, key: &SealedKey, now_ms: u64) -> Result<(), StoreError> {
    connection.execute(
        "INSERT INTO provider_key (provider, nonce, sealed, set_ms) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (provider) DO UPDATE SET nonce = excluded.nonce, sealed = excluded.sealed,
             set_ms = excluded.set_ms",
        params![provider, key.nonce, key.sealed, time(now_ms)],
    )?;
    Ok(())
}

/// Removes one. False if there is none.
pub fn remove(connection: &Connection, provider: &str) -> Result<bool, StoreError> {
    Ok(connection.execute("DELETE FROM provider_key WHERE provider = ?1", [provider])? == 1)
}

/// Those that there are.
pub fn list(connection: &Connection) -> Result<Vec<KeyInfo>, StoreError> {
    let mut statement = connection.prepare("SELECT provider, set_ms FROM provider_key ORDER BY provider")?;
    let rows = statement.query_map([], |row| {
        let set_ms: i64 = row.get(1)?;
        Ok(KeyInfo { provider: row.get(0)?, set_ms: u64::try_from(set_ms).unwrap_or(0) })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The key for a provider, if there is one.
pub(crate) fn get(connection: &Connection, provider: &str) -> Result<Option<SealedKey>, StoreError> {
    Ok(connection
        .prepare_cached("SELECT nonce, sealed FROM provider_key WHERE provider = ?1")?
        .query_row([provider], |row| Ok(SealedKey { nonce: row.get(0)?, sealed: row.get(1)? }))
        .optional()?)
}
