//! API keys, by the hash of the whole of them, which is all that is kept of a key, or by the id that they carry.

use super::{ms, parsed};
use crate::store::StoreError;
use crate::store::ledger::time;
use belay_protocol::id::TenantId;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What a key may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyScope {
    /// Read balance, usage and sessions.
    Read,
    /// Write sessions, items and records.
    Write,
    /// Ask providers, for money.
    Escalate,
    /// What an operator does for the tenant.
    Admin,
}

impl KeyScope {
    const ALL: [(Self, &'static str); 4] =
        [(Self::Read, "read"), (Self::Write, "write"), (Self::Escalate, "escalate"), (Self::Admin, "admin")];
}

impl fmt::Display for KeyScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::ALL.into_iter().find(|(scope, _)| scope == self).map_or("", |(_, name)| name))
    }
}

impl std::str::FromStr for KeyScope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|(_, name)| *name == text);
        found
            .map(|(scope, _)| scope)
            .ok_or_else(|| format!("{text:?} is no scope; there are read, write, escalate and admin"))
    }
}

/// A key as central knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiKey {
    /// The part of the key that names it.
    pub id: String,
    /// Who pays for what is done with it.
    pub tenant: TenantId,
    /// What it is for, for people.
    pub label: String,
    /// What it may be used for.
    pub scopes: Vec<KeyScope>,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    /// When it ends, milliseconds since 1970.
    pub expires_ms: Option<u64>,
    /// When it was last used, milliseconds since 1970; to the minute.
    pub last_used_ms: Option<u64>,
    /// When it was revoked, milliseconds since 1970.
    pub revoked_ms: Option<u64>,
}

/// Last use is noted at most so often.
const NOTE_USE_EVERY_MS: u64 = 60_000;

/// Records a key. `hash` is the SHA-256 of the whole key. False if there is no such tenant.
pub fn create(connection: &Connection, key: &ApiKey, hash: [u8; 32]) -> Result<bool, StoreError> {
    if !super::tenant_exists(connection, &key.tenant)? {
        return Ok(false);
    }
    let scopes: Vec<String> = key.scopes.iter().map(KeyScope::to_string).collect();
    connection.execute(
        "INSERT INTO api_key (id, tenant, label, hash, scopes, created_ms, expires_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![
            key.id,
            key.tenant.as_str(),
            key.label,
            hash,
            scopes.join(" "),
            time(key.created_ms),
            key.expires_ms.map(time)
        ],
    )?;
    Ok(true)
}

const COLUMNS: &str = "id, tenant, label, scopes, created_ms, expires_ms, last_used_ms, revoked_ms";

fn key_of(row: &Row<'_>) -> rusqlite::Result<ApiKey> {
    let scopes: String = row.get(3)?;
    let scopes = scopes
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, String>>()
        .map_err(|why| rusqlite::Error::FromSqlConversionFailure(3, rusqlite::types::Type::Text, why.into()))?;
    let optional = |index| -> rusqlite::Result<Option<u64>> {
        Ok(row.get::<_, Option<i64>>(index)?.and_then(|value| u64::try_from(value).ok()))
    };
    Ok(ApiKey {
        id: row.get(0)?,
        tenant: parsed(row, 1)?,
        label: row.get(2)?,
        scopes,
        created_ms: ms(row, 4)?,
        expires_ms: optional(5)?,
        last_used_ms: optional(6)?,
        revoked_ms: optional(7)?,
    })
}

/// All keys, or those of one tenant, by tenant and age.
pub fn list(connection: &Connection, tenant: Option<&TenantId>) -> Result<Vec<ApiKey>, StoreError> {
    let mut statement = connection.prepare(&format!(
        "SELECT {COLUMNS} FROM api_key WHERE ?1 IS NULL OR tenant = ?1 ORDER BY tenant, created_ms, id"
    ))?;
    let rows = statement.query_map([tenant.map(TenantId::as_str)], key_of)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Whether there is a key of this id.
pub fn exists(connection: &Connection, id: &str) -> Result<bool, StoreError> {
    Ok(connection.prepare_cached("SELECT 1 FROM api_key WHERE id = ?1")?.exists([id])?)
}

/// A key by the SHA-256 of the whole of it, and whether its tenant is suspended. Every key that is not there is missed
/// in the same way, whatever id it names.
pub fn find(connection: &Connection, hash: &[u8; 32]) -> Result<Option<(ApiKey, bool)>, StoreError> {
    let sql = format!(
        "SELECT {COLUMNS}, (SELECT suspended FROM tenant WHERE tenant.id = api_key.tenant)
         FROM api_key WHERE hash = ?1"
    );
    Ok(connection.prepare_cached(&sql)?.query_row([hash], |row| Ok((key_of(row)?, row.get(8)?))).optional()?)
}

/// Notes that a key was used.
pub fn used(connection: &Connection, id: &str, now_ms: u64) -> Result<(), StoreError> {
    connection
        .prepare_cached("UPDATE api_key SET last_used_ms = ?2 WHERE id = ?1 AND coalesce(last_used_ms, 0) <= ?2 - ?3")?
        .execute(params![id, time(now_ms), time(NOTE_USE_EVERY_MS)])?;
    Ok(())
}

/// Revokes a key. False if there is none; revoking twice changes nothing.
pub fn revoke(connection: &Connection, id: &str, now_ms: u64) -> Result<bool, StoreError> {
    connection.execute(
        "UPDATE api_key SET revoked_ms = ?2 WHERE id = ?1 AND revoked_ms IS NULL",
        params![id, time(now_ms)],
    )?;
    exists(connection, id)
}
