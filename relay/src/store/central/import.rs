//! Who came over from the deployment before: tenants under the ids of its users, and the keys that they go on using.

use super::keys::{self, ApiKey};
use super::{create_tenant, tenant_exists};
use crate::store::StoreError;
use crate::store::ledger::standing::Terms;
use crate::store::ledger::time;
use belay_protocol::id::TenantId;
use rusqlite::{Connection, OptionalExtension, params};

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

/// Takes a user in.
pub fn arrive(connection: &Connection, user: &ImportedUser, now_ms: u64) -> Result<Arrival, StoreError> {
    let known: Option<String> = connection
        .prepare_cached("SELECT tenant FROM imported_user WHERE user = ?1")?
        .query_row([&user.user], |row| row.get(0))
        .optional()?;
    if let Some(known) = known {
        return Ok(if known == user.tenant.as_str() { Arrival::Known } else { Arrival::Taken });
    }
    if tenant_exists(connection, &user.tenant)? {
        return Ok(Arrival::Taken);
    }
    create_tenant(connection, &user.tenant, user.created_ms)?;
    super::change_terms(connection, &user.tenant, |terms| *terms = user.terms)?;
    set_label(connection, &user.tenant, &user.label)?;
    connection
        .prepare_cached("INSERT INTO imported_user (user, tenant, at_ms) VALUES (?1, ?2, ?3)")?
        .execute(params![user.user, user.tenant.as_str(), time(now_ms)])?;
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
    /// It came before.
    Known,
    /// It was revoked there since, and is revoked now.
    Revoked,
    /// Somebody else came with the same key.
    Taken,
}

/// Takes a key in, of which there is only the SHA-256.
pub fn arrive_key(
    connection: &Connection,
    key: &ApiKey,
    hash: [u8; 32],
    now_ms: u64,
) -> Result<KeyArrival, StoreError> {
    let found = keys::find_imported(connection, &hash)?;
    if let Some((known, _)) = found {
        if known.tenant != key.tenant {
            return Ok(KeyArrival::Taken);
        }
        if key.revoked_ms.is_some() && known.revoked_ms.is_none() {
            keys::revoke(connection, &known.id, now_ms)?;
            return Ok(KeyArrival::Revoked);
        }
        return Ok(KeyArrival::Known);
    }
    if keys::find(connection, &key.id)?.is_some() || !keys::create(connection, key, hash)? {
        return Ok(KeyArrival::Taken);
    }
    connection
        .prepare_cached("UPDATE api_key SET imported = 1, last_used_ms = ?2, revoked_ms = ?3 WHERE id = ?1")?
        .execute(params![key.id, key.last_used_ms.map(time), key.revoked_ms.map(time)])?;
    Ok(KeyArrival::New)
}
