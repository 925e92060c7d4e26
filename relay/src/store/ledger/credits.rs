//! Credits that expire: knowledge credits, and the monthly allowance of the free tier. They are used
//! before the balance, those first that expire first.
//!
//! A grant's `left_nano` is what no request has taken; what a running request has taken of it stands
//! in `draw` until it is settled. What is left of a grant at its end goes back to `relay:funding`,
//! and so does what comes back to it later.

use super::chain::{Chain, Evidence, Hash, Transfer};
use super::{Account, TransferKind, time};
use crate::store::StoreError;
use belay_protocol::id::RequestId;
use belay_protocol::money::NanoUsd;
use rusqlite::{Connection, OptionalExtension, params};

/// Grants credits that end at `expires_ms`. `operation_id` makes a retry harmless. Errors: `Failed` if
/// the same name has granted another amount.
pub fn grant(
    connection: &Connection,
    amount: NanoUsd,
    operation_id: &str,
    note: Option<&str>,
    expires_ms: u64,
    now_ms: u64,
) -> Result<(), StoreError> {
    if super::money::done_before(connection, TransferKind::Grant, operation_id, amount)? {
        return Ok(());
    }
    let id: i64 = connection
        .prepare_cached(
            "INSERT INTO credit_grant (granted_nano, left_nano, expires_ms) VALUES (?1, ?1, ?2) RETURNING id",
        )?
        .query_row(params![amount.0, time(expires_ms)], |row| row.get(0))?;
    let transfer = Transfer::new(TransferKind::Grant, Account::Funding, Account::Credits, amount);
    let evidence = evidence(id, amount.0, time(expires_ms));
    let mut chain = Chain::at(connection, now_ms)?;
    chain.post(&transfer.named(operation_id, note).proving(evidence))?;
    chain.finish()
}

/// What the entry of a grant proves of it.
pub(super) fn evidence(id: i64, granted: i64, expires_ms: i64) -> Hash {
    Evidence::new("grant").number(id).number(granted).number(expires_ms).finish()
}

/// True if that grant was made.
pub(crate) fn is_granted(connection: &Connection, operation_id: &str) -> Result<bool, StoreError> {
    let found = connection
        .prepare_cached("SELECT 1 FROM transfer WHERE operation_id = ?1")?
        .query_row([operation_id], |_| Ok(()))
        .optional()?;
    Ok(found.is_some())
}

/// Takes back what has expired. True if that was anything.
pub fn expire(connection: &Connection, now_ms: u64) -> Result<bool, StoreError> {
    let expired: Option<i64> = connection
        .prepare_cached("SELECT sum(left_nano) FROM credit_grant WHERE left_nano > 0 AND expires_ms <= ?1")?
        .query_row([time(now_ms)], |row| row.get(0))?;
    let Some(expired) = expired else { return Ok(false) };
    let transfer = Transfer::new(TransferKind::Expire, Account::Credits, Account::Funding, NanoUsd(expired));
    let mut chain = Chain::at(connection, now_ms)?;
    chain.post(&transfer)?;
    chain.finish()?;
    connection
        .prepare_cached("UPDATE credit_grant SET left_nano = 0 WHERE left_nano > 0 AND expires_ms <= ?1")?
        .execute([time(now_ms)])?;
    Ok(true)
}

/// Takes `amount` from the grants for a request. The caller has seen that there is so much.
pub(crate) fn draw(connection: &Connection, request_id: RequestId, amount: NanoUsd) -> Result<(), StoreError> {
    let request: i64 = connection
        .prepare_cached("SELECT id FROM request WHERE request_id = ?1")?
        .query_row([request_id.0], |row| row.get(0))?;
    let mut wanted = amount.0;
    let grants: Vec<(i64, i64)> = connection
        .prepare_cached("SELECT id, left_nano FROM credit_grant WHERE left_nano > 0 ORDER BY expires_ms, id")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    for (id, left) in grants {
        let taken = left.min(wanted);
        if taken == 0 {
            break;
        }
        wanted -= taken;
        connection
            .prepare_cached("UPDATE credit_grant SET left_nano = left_nano - ?2 WHERE id = ?1")?
            .execute([id, taken])?;
        connection
            .prepare_cached(
                "INSERT INTO draw (request, credit_grant, nano) VALUES (?1, ?2, ?3)
                 ON CONFLICT (request, credit_grant) DO UPDATE SET nano = nano + excluded.nano",
            )?
            .execute([request, id, taken])?;
    }
    if wanted == 0 {
        return Ok(());
    }
    Err(StoreError::Corrupt {
        what: "credits",
        why: format!("the grants have {wanted} nano-USD less than the account"),
    })
}

/// Ends a request's draws: `used` of them is gone, the rest goes back to its grants, those last that
/// expire first. Of a charge by estimate, what is gone is kept in mind: a correction may give it back.
pub(crate) fn release(connection: &Connection, request: i64, used: NanoUsd, estimated: bool) -> Result<(), StoreError> {
    let draws: Vec<(i64, i64)> = connection
        .prepare_cached(
            "SELECT credit_grant, nano FROM draw JOIN credit_grant ON credit_grant.id = draw.credit_grant
             WHERE request = ?1 ORDER BY expires_ms, credit_grant",
        )?
        .query_map([request], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    let mut used = used.0;
    for (id, nano) in draws {
        let gone = nano.min(used);
        used -= gone;
        connection
            .prepare_cached("UPDATE credit_grant SET left_nano = left_nano + ?2 WHERE id = ?1")?
            .execute([id, nano - gone])?;
        if estimated && gone > 0 {
            connection
                .prepare_cached("UPDATE draw SET nano = ?3 WHERE request = ?1 AND credit_grant = ?2")?
                .execute([request, id, gone])?;
        } else {
            connection
                .prepare_cached("DELETE FROM draw WHERE request = ?1 AND credit_grant = ?2")?
                .execute([request, id])?;
        }
    }
    Ok(())
}
