//! Who came over from the deployment before: tenants under the ids of its users, and the keys that they go on using.

use super::erase::erased_ms;
use super::keys::{self, ApiKey};
use super::{create_tenant, tenant_exists};
use crate::store::StoreError;
use crate::store::ledger::standing::Terms;
use crate::store::ledger::time;
use belay_protocol::id::TenantId;
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::{HashMap, HashSet};

/// A user who comes over.
#[derive(Debug, Clone, PartialEq)]
pub struct ImportedUser {
    /// What the deployment before called it.
    pub user: String,
    /// What it is called here.
    pub tenant: TenantId,
    /// What people call it.
    pub label: String,
    /// What it pays with, and whether it may do anything.
    pub terms: Terms,
    /// When it was created there, milliseconds since 1970.
    pub created_ms: u64,
}

/// What became of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// It has a tenant of its own now.
    New,
    /// It had come before; what was changed here since stays.
    Known,
    /// There is a tenant of that name that did not come from there, or came from another user.
    Taken,
}

/// Who came before, and what they are called here.
pub fn arrived(connection: &Connection) -> Result<HashMap<String, TenantId>, StoreError> {
    let mut statement = connection.prepare("SELECT user, tenant FROM imported_user")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, super::parsed(row, 1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Takes a user in. Whoever came before follows what the export says of tier and suspension, unless that was changed
/// here since.
pub fn arrive(connection: &Connection, user: &ImportedUser, now_ms: u64) -> Result<Arrival, StoreError> {
    let known: Option<(String, String, bool)> = connection
        .prepare_cached("SELECT tenant, tier, suspended FROM imported_user WHERE user = ?1")?
        .query_row([&user.user], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    // Whoever was erased does not come back.
    if erased_ms(connection, &user.tenant)?.is_some() {
        return Ok(Arrival::Taken);
    }
    let (tier, suspended) = (user.terms.tier, user.terms.suspended);
    if let Some((known, tier_before, suspended_before)) = known {
        if known != user.tenant.as_str() {
            return Ok(Arrival::Taken);
        }
        if (tier.name(), suspended) != (tier_before.as_str(), suspended_before) {
            super::change_terms(connection, &user.tenant, |terms| {
                if terms.tier.name() == tier_before {
                    terms.tier = tier;
                }
                if terms.suspended == suspended_before {
                    terms.suspended = suspended;
                }
            })?;
            connection
                .prepare_cached("UPDATE imported_user SET tier = ?2, suspended = ?3 WHERE user = ?1")?
                .execute(params![user.user, tier.name(), suspended])?;
        }
        return Ok(Arrival::Known);
    }
    if tenant_exists(connection, &user.tenant)? {
        return Ok(Arrival::Taken);
    }
    create_tenant(connection, &user.tenant, user.created_ms)?;
    super::change_terms(connection, &user.tenant, |terms| *terms = user.terms)?;
    set_label(connection, &user.tenant, &user.label)?;
    connection
        .prepare_cached("INSERT INTO imported_user (user, tenant, tier, suspended, at_ms) VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![user.user, user.tenant.as_str(), tier.name(), suspended, time(now_ms)])?;
    Ok(Arrival::New)
}

/// Changes what people call a tenant.
pub fn set_label(connection: &Connection, tenant: &TenantId, label: &str) -> Result<(), StoreError> {
    connection
        .prepare_cached("UPDATE tenant SET label = ?2 WHERE id = ?1")?
        .execute(params![tenant.as_str(), label])?;
    Ok(())
}

/// What became of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyArrival {
    /// It opens the same door from now on.
    New,
    /// It came before; what it may be used for, and until when, is what the export says now.
    Known,
    /// Somebody else came with the same key, or it was made here.
    Taken,
}

fn scopes_of(key: &ApiKey) -> String {
    key.scopes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// Takes a key in, of which there is only the SHA-256. A key that was revoked, here or there, stays so.
pub fn arrive_key(
    connection: &Connection,
    key: &ApiKey,
    hash: [u8; 32],
    now_ms: u64,
) -> Result<KeyArrival, StoreError> {
    if let Some((known, _)) = keys::find(connection, &hash)? {
        if known.id != key.id {
            return Ok(KeyArrival::Taken);
        }
        connection
            .prepare_cached("UPDATE api_key SET scopes = ?2, expires_ms = ?3 WHERE id = ?1")?
            .execute(params![known.id, scopes_of(key), key.expires_ms.map(time)])?;
        if key.revoked_ms.is_some() && known.revoked_ms.is_none() {
            keys::revoke(connection, &known.id, now_ms)?;
        }
        return Ok(KeyArrival::Known);
    }
    if keys::exists(connection, &key.id)? || !keys::create(connection, key, hash)? {
        return Ok(KeyArrival::Taken);
    }
    connection
        .prepare_cached("UPDATE api_key SET imported = 1, last_used_ms = ?2, revoked_ms = ?3 WHERE id = ?1")?
        .execute(params![key.id, key.last_used_ms.map(time), key.revoked_ms.map(time)])?;
    Ok(KeyArrival::New)
}

/// Revokes the keys of a tenant that came over before and are not there any more. How many those are.
pub fn revoke_others(
    connection: &Connection,
    tenant: &TenantId,
    there: &HashSet<[u8; 32]>,
    now_ms: u64,
) -> Result<u64, StoreError> {
    let sql = "SELECT id, hash FROM api_key WHERE tenant = ?1 AND imported = 1 AND revoked_ms IS NULL";
    let mut statement = connection.prepare_cached(sql)?;
    let known = statement.query_map([tenant.as_str()], |row| Ok((row.get::<_, String>(0)?, row.get(1)?)))?;
    let gone =
        known.filter(|known| known.as_ref().map_or(true, |(_, hash): &(String, [u8; 32])| !there.contains(hash)));
    let gone: Vec<(String, [u8; 32])> = gone.collect::<Result<_, _>>()?;
    for (id, _) in &gone {
        keys::revoke(connection, id, now_ms)?;
    }
    Ok(gone.len() as u64)
}
