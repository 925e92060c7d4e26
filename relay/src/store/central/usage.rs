//! Usage of all tenants: rows that their files hand over, each counted once, and sums over them.

use crate::store::StoreError;
use crate::store::ledger::outbox::Batch;
use crate::store::ledger::usage::{SUMS, Totals};
use belay_protocol::id::TenantId;
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};

/// Takes rows in. One that is here already, by tenant, epoch and number, is not counted again. Returns the number of the
/// first before which it stopped: another row is here under that number, so that the book is an older one of its epoch.
pub fn take(connection: &Connection, tenant: &TenantId, batch: &Batch) -> Result<Option<i64>, StoreError> {
    let mut known = connection.prepare_cached(
        "SELECT request_id, cost_nano FROM usage_record WHERE tenant = ?1 AND epoch = ?2 AND number = ?3",
    )?;
    let mut differs = None;
    for row in &batch.rows {
        let here: Option<([u8; 16], i64)> = known
            .query_row(params![tenant.as_str(), batch.epoch, row.number], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        if here.is_some_and(|here| here != (row.request_id.0, row.totals.cost_nano)) {
            differs = Some(row.number);
            break;
        }
    }
    let mut insert = connection.prepare_cached(
        "INSERT INTO usage_record (tenant, epoch, number, request_id, at_ms, device, key, class, provider, model,
                                   requests, estimated, input, output, cache_read, cache_write, reasoning, cost_nano,
                                   absorbed_nano)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19)
         ON CONFLICT DO NOTHING",
    )?;
    for row in batch.rows.iter().take_while(|row| differs.is_none_or(|differs| row.number < differs)) {
        let totals = &row.totals;
        insert.execute(params![
            tenant.as_str(),
            batch.epoch,
            row.number,
            row.request_id.0,
            row.at_ms,
            row.device,
            row.key,
            row.class as i64,
            row.provider,
            row.model,
            totals.requests,
            totals.estimated,
            totals.input,
            totals.output,
            totals.cache_read,
            totals.cache_write,
            totals.reasoning,
            totals.cost_nano,
            totals.absorbed_nano,
        ])?;
    }
    Ok(differs)
}

/// Notes how far a tenant's book is sealed.
pub fn set_sealed(connection: &Connection, tenant: &TenantId, entry: i64) -> Result<(), StoreError> {
    connection
        .prepare_cached("UPDATE tenant SET sealed = ?2 WHERE id = ?1 AND sealed < ?2")?
        .execute(params![tenant.as_str(), entry])?;
    Ok(())
}

/// A book came back from a backup that is sealed up to there.
pub fn sealed_again(connection: &Connection, tenant: &TenantId, entry: i64) -> Result<(), StoreError> {
    connection.execute("UPDATE tenant SET sealed = ?2 WHERE id = ?1", params![tenant.as_str(), entry])?;
    Ok(())
}

/// How far it is sealed; 0 if nothing is known.
pub fn sealed(connection: &Connection, tenant: &TenantId) -> Result<i64, StoreError> {
    let found = connection
        .prepare_cached("SELECT sealed FROM tenant WHERE id = ?1")?
        .query_row([tenant.as_str()], |row| row.get(0))
        .optional()?;
    Ok(found.unwrap_or(0))
}

/// By what sums over tenants are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CentralGrouping {
    /// By tenant.
    Tenant,
    /// By day.
    Day,
    /// By provider and model.
    Model,
}

/// A sum over tenants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CentralGroup {
    /// A tenant, a day, or `provider/model`.
    pub name: String,
    /// The sums.
    #[serde(flatten)]
    pub totals: Totals,
}

/// Sums of the days from `from` up to, not including, `until` (days since 1970), of one tenant or of all.
pub fn report(
    connection: &Connection,
    tenant: Option<&TenantId>,
    (from, until): (i64, i64),
    by: CentralGrouping,
) -> Result<Vec<CentralGroup>, StoreError> {
    let name = match by {
        CentralGrouping::Tenant => "tenant",
        CentralGrouping::Day => "date(day * 86400, 'unixepoch')",
        CentralGrouping::Model => "provider || '/' || model",
    };
    let mut statement = connection.prepare_cached(&format!(
        "SELECT {name}, {SUMS} FROM usage_total WHERE day >= ?1 AND day < ?2 AND (?3 IS NULL OR tenant = ?3)
         GROUP BY {name} ORDER BY {name}"
    ))?;
    let rows = statement.query_map(params![from, until, tenant.map(TenantId::as_str)], |row| {
        Ok(CentralGroup { name: row.get(0)?, totals: Totals::read(row, 1)? })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// True if what a tenant has handed over sums up to the totals that are kept of it.
pub fn adds_up(connection: &Connection, tenant: &TenantId) -> Result<bool, StoreError> {
    let by = "class, provider, model";
    let own = format!("SELECT at_ms / 86400000, {by}, {SUMS} FROM usage_record WHERE tenant = ?1 GROUP BY 1, {by}");
    let kept = format!("SELECT day, {by}, {SUMS} FROM usage_total WHERE tenant = ?1 GROUP BY 1, {by}");
    let sql = format!(
        "SELECT EXISTS (SELECT * FROM ({own}) EXCEPT SELECT * FROM ({kept}))
             OR EXISTS (SELECT * FROM ({kept}) EXCEPT SELECT * FROM ({own}))"
    );
    let differ: bool = connection.prepare_cached(&sql)?.query_row([tenant.as_str()], |row| row.get(0))?;
    Ok(!differ)
}

/// The last number of an epoch that a tenant has handed over; 0: none.
pub fn newest(connection: &Connection, tenant: &TenantId, epoch: i64) -> Result<i64, StoreError> {
    let sql = "SELECT coalesce(max(number), 0) FROM usage_record WHERE tenant = ?1 AND epoch = ?2";
    Ok(connection.prepare_cached(sql)?.query_row(params![tenant.as_str(), epoch], |row| row.get(0))?)
}

/// What a tenant has handed over: all of it.
pub fn total(connection: &Connection, tenant: &TenantId) -> Result<Totals, StoreError> {
    let sql = format!("SELECT {SUMS} FROM usage_record WHERE tenant = ?1");
    Ok(connection.prepare_cached(&sql)?.query_row([tenant.as_str()], |row| Totals::read(row, 0))?)
}
