//! A book that comes back from a backup. What it had handed to central since is known there, and is taken off its balance
//! in one sum: nothing that was charged is given away. Its requests have no entries of their own any more. Money that came
//! in since is known nowhere else and must be given again.

use super::money::{Operation, operate};
use super::outbox::{begin_epoch_after, confirm, epoch};
use super::settle::void;
use super::standing::{Tier, summary};
use super::usage::{SUMS, Totals};
use crate::store::StoreError;
use crate::store::central::usage::newest;
use belay_protocol::id::{RequestId, TenantId};
use belay_protocol::money::NanoUsd;
use rusqlite::{Connection, params};

/// Brings a copied book up to what central knows of it, and begins a new epoch in it. Returns what the book has lost.
pub fn catch_up(book: &Connection, central: &Connection, tenant: &TenantId, now_ms: u64) -> Result<Totals, StoreError> {
    let epoch = epoch(book)?;
    let last: i64 =
        book.query_row("SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'outbox'), 0)", [], |row| {
            row.get(0)
        })?;
    // What central has beyond its last row is no row of this book's.
    confirm(book, epoch, newest(central, tenant, epoch)?.min(last))?;
    let lost = unknown(book, central, tenant, (epoch, last))?;
    void_settled(book, central, tenant, now_ms)?;
    if lost != Totals::default() {
        book.execute(
            "INSERT INTO restored_usage VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            params![
                epoch,
                lost.requests,
                lost.estimated,
                lost.input,
                lost.output,
                lost.cache_read,
                lost.cache_write,
                lost.reasoning,
                lost.cost_nano,
                lost.absorbed_nano
            ],
        )?;
        // An allowance is no money that could be owed.
        if lost.cost_nano > 0 && summary(book)?.terms.tier != Tier::Free {
            let name = format!("restored:usage:{epoch}");
            let note = format!("usage of {} requests since the backup, as central has it", lost.requests);
            operate(book, Operation::Refund, NanoUsd(lost.cost_nano), &name, Some(&note), now_ms)?;
        }
    }
    // After every life that central has seen, of which there may have been several since.
    let newest: i64 = central.query_row(
        "SELECT coalesce(max(epoch), 0) FROM usage_record WHERE tenant = ?1",
        [tenant.as_str()],
        |row| row.get(0),
    )?;
    begin_epoch_after(book, newest)?;
    Ok(lost)
}

/// Gives back what is held for requests that were settled since: their cost is in what was lost.
fn void_settled(book: &Connection, central: &Connection, tenant: &TenantId, now_ms: u64) -> Result<(), StoreError> {
    let mut statement = book.prepare("SELECT request_id FROM request WHERE state = 0")?;
    let open: Vec<[u8; 16]> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let mut known = central.prepare("SELECT 1 FROM usage_record WHERE tenant = ?1 AND request_id = ?2")?;
    for id in open {
        if known.exists(params![tenant.as_str(), id])? {
            void(book, RequestId(id), now_ms)?;
        }
    }
    Ok(())
}

/// Sums of what central has beyond the book. What waits in the book and was handed over in a later life waits no more.
fn unknown(
    book: &Connection,
    central: &Connection,
    tenant: &TenantId,
    (epoch, last): (i64, i64),
) -> Result<Totals, StoreError> {
    let mut statement = central.prepare(
        "SELECT number, request_id, requests, estimated, input, output, cache_read, cache_write, reasoning, cost_nano,
                absorbed_nano
         FROM usage_record WHERE tenant = ?1 AND (epoch > ?2 OR epoch = ?2 AND number > ?3)",
    )?;
    // A row has its number for ever, and they go in that order.
    let mut waits = book.prepare("SELECT 1 FROM outbox WHERE number = ?1 AND request_id = ?2")?;
    let mut rows = statement.query(params![tenant.as_str(), epoch, last])?;
    let (mut lost, mut handed) = (Totals::default(), 0);
    while let Some(row) = rows.next()? {
        let (number, id): (i64, [u8; 16]) = (row.get(0)?, row.get(1)?);
        if waits.exists(params![number, id])? {
            handed = handed.max(number);
        } else {
            lost.add(&Totals::read(row, 2)?);
        }
    }
    confirm(book, epoch, handed)?;
    Ok(lost)
}

/// All that central knows and the book does not.
pub fn total(book: &Connection) -> Result<Totals, StoreError> {
    let sql = format!("SELECT {SUMS} FROM restored_usage");
    Ok(book.prepare_cached(&sql)?.query_row([], |row| Totals::read(row, 0))?)
}

/// The last entry of the book that is sealed.
pub fn sealed(book: &Connection) -> Result<i64, StoreError> {
    Ok(book.query_row("SELECT coalesce(max(transfer_id), 0) FROM checkpoint", [], |row| row.get(0))?)
}
