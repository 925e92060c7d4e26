//! Erasing what central knows of a tenant beyond what its book needs.

use crate::store::StoreError;
use crate::store::ledger::time;
use belay_protocol::id::TenantId;
use rusqlite::{Connection, OptionalExtension, params};

/// Marks a tenant as erased, revokes its devices and keys, and forgets what they were called, its invites and how it
/// pays. False: there is no such tenant.
pub fn erase(connection: &Connection, tenant: &TenantId, now_ms: u64) -> Result<bool, StoreError> {
    let now = time(now_ms);
    let (id, at) = (tenant.as_str(), params![tenant.as_str(), now]);
    let sql = "UPDATE tenant SET erased_ms = ifnull(erased_ms, ?2), label = '' WHERE id = ?1";
    if connection.execute(sql, at)? == 0 {
        return Ok(false);
    }
    connection.execute(
        "UPDATE device SET label = '', revoked_ms = ifnull(revoked_ms, ?2), revoked_why = ifnull(revoked_why, 'erased')
         WHERE tenant = ?1",
        at,
    )?;
    connection.execute("UPDATE api_key SET label = '', revoked_ms = ifnull(revoked_ms, ?2) WHERE tenant = ?1", at)?;
    connection.execute("DELETE FROM invite WHERE tenant = ?1", [id])?;
    connection.execute("DELETE FROM auto_topup WHERE tenant = ?1", [id])?;
    connection.execute("UPDATE stripe_customer SET payment_method = NULL WHERE tenant = ?1", [id])?;
    Ok(true)
}

/// When a tenant was erased, milliseconds since 1970.
pub fn erased_ms(connection: &Connection, tenant: &TenantId) -> Result<Option<u64>, StoreError> {
    let found: Option<Option<i64>> = connection
        .prepare_cached("SELECT erased_ms FROM tenant WHERE id = ?1")?
        .query_row([tenant.as_str()], |row| row.get(0))
        .optional()?;
    Ok(found.flatten().and_then(|at_ms| u64::try_from(at_ms).ok()))
}
