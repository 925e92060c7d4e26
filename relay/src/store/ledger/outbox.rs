//! Usage on its way to central. Every settled request, record and correction puts a row here, in the
//! transaction that settles it; the rows leave once central has committed them. Central knows a row by
//! tenant, epoch and number, so that one that is sent twice counts once.

use super::usage::{Class, SUMS, Subject, Totals};
use crate::store::StoreError;
use belay_protocol::id::RequestId;
use belay_protocol::money::NanoUsd;
use rusqlite::{Connection, params};

/// A row on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageRow {
    /// Counts from 1 within the tenant's epoch.
    pub number: i64,
    /// What it is about.
    pub request_id: RequestId,
    /// When it was settled, milliseconds since 1970.
    pub at_ms: i64,
    /// Which device.
    pub device: String,
    /// Which API key; empty: none.
    pub key: String,
    /// What kind of usage.
    pub class: Class,
    /// Which provider.
    pub provider: String,
    /// Which model.
    pub model: String,
    /// The figures; of a correction, what it adds.
    pub totals: Totals,
}

/// Rows to send, and the epoch that their numbers belong to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Rises when a book is restored from a backup.
    pub epoch: i64,
    /// In the order of their numbers.
    pub rows: Vec<UsageRow>,
}

pub(crate) fn put(
    connection: &Connection,
    request_id: RequestId,
    at_ms: i64,
    subject: &Subject,
    totals: &Totals,
) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "INSERT INTO outbox (request_id, at_ms, device, key, class, provider, model, requests, estimated, input,
                                 output, cache_read, cache_write, reasoning, cost_nano, absorbed_nano)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)",
        )?
        .execute(params![
            request_id.0,
            at_ms,
            subject.device,
            subject.key,
            subject.class as i64,
            subject.provider,
            subject.model,
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
    Ok(())
}

/// The first `most` rows that central has not confirmed.
pub fn batch(connection: &Connection, most: u32) -> Result<Batch, StoreError> {
    let epoch = epoch(connection)?;
    let mut statement = connection.prepare_cached(
        "SELECT number, request_id, at_ms, device, key, class, provider, model, requests, estimated, input, output,
                cache_read, cache_write, reasoning, cost_nano, absorbed_nano FROM outbox ORDER BY number LIMIT ?1",
    )?;
    let mut found = statement.query([most])?;
    let mut rows = vec![];
    while let Some(row) = found.next()? {
        rows.push(UsageRow {
            number: row.get(0)?,
            request_id: RequestId(row.get(1)?),
            at_ms: row.get(2)?,
            device: row.get(3)?,
            key: row.get(4)?,
            class: Class::read(row.get(5)?)?,
            provider: row.get(6)?,
            model: row.get(7)?,
            totals: Totals::read(row, 8)?,
        });
    }
    Ok(Batch { epoch, rows })
}

/// Central has committed everything up to `number`.
pub fn confirm(connection: &Connection, epoch: i64, number: i64) -> Result<(), StoreError> {
    let is_that_life = connection
        .prepare_cached("UPDATE tenant SET flushed = max(flushed, ?2) WHERE epoch = ?1")?
        .execute([epoch, number])?;
    if is_that_life == 1 {
        connection.prepare_cached("DELETE FROM outbox WHERE number <= ?1")?.execute([number])?;
    }
    Ok(())
}

/// Another life of the book begins: its rows are new ones to central, whatever their numbers.
pub fn begin_epoch(connection: &Connection) -> Result<(), StoreError> {
    connection.execute("UPDATE tenant SET epoch = epoch + 1", [])?;
    Ok(())
}

/// The same, after a life that central has seen.
pub(super) fn begin_epoch_after(connection: &Connection, seen: i64) -> Result<(), StoreError> {
    connection.execute("UPDATE tenant SET epoch = max(epoch, ?1) + 1", [seen])?;
    Ok(())
}

/// What waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pending {
    /// Rows.
    pub rows: i64,
    /// Charged in them, in nano-USD.
    pub cost: NanoUsd,
    /// When the oldest was settled, milliseconds since 1970.
    pub oldest_ms: Option<i64>,
}

/// What waits.
pub fn pending(connection: &Connection) -> Result<Pending, StoreError> {
    Ok(connection
        .prepare_cached("SELECT count(*), coalesce(sum(cost_nano), 0), min(at_ms) FROM outbox")?
        .query_row([], |row| Ok(Pending { rows: row.get(0)?, cost: NanoUsd(row.get(1)?), oldest_ms: row.get(2)? }))?)
}

/// Sums of what waits beyond a number.
pub fn totals(connection: &Connection, beyond: i64) -> Result<Totals, StoreError> {
    let sql = format!("SELECT {SUMS} FROM outbox WHERE number > ?1");
    Ok(connection.prepare_cached(&sql)?.query_row([beyond], |row| Totals::read(row, 0))?)
}

/// The book's epoch.
pub fn epoch(connection: &Connection) -> Result<i64, StoreError> {
    Ok(connection.prepare_cached("SELECT epoch FROM tenant")?.query_row([], |row| row.get(0))?)
}
