//! A tenant's entries, page by page.

use super::{Account, TransferKind};
use crate::store::StoreError;
use belay_protocol::id::RequestId;
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};

/// Entries of one page at the most.
pub const PAGE: u32 = 500;

/// A transfer as it is exported: two entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Its number in the book.
    pub entry: i64,
    /// When, milliseconds since 1970.
    pub at_ms: i64,
    /// Why: `hold`, `settle`, `credit` …
    pub kind: String,
    /// From which account.
    pub from: String,
    /// To which account.
    pub to: String,
    /// How much, in nano-USD.
    pub amount_nano_usd: i64,
    /// What `from` had right after, in nano-USD.
    pub from_after_nano_usd: i64,
    /// What `to` had right after, in nano-USD.
    pub to_after_nano_usd: i64,
    /// The tenant's own money (`tenant:prepaid`) right after, in nano-USD.
    pub balance_nano_usd: i64,
    /// Which request, in hex.
    pub request_id: Option<String>,
    /// Which provider and model, of a settled request.
    pub model: Option<String>,
    /// Which operation from outside.
    pub operation: Option<String>,
    /// What was noted with it.
    pub note: Option<String>,
}

/// The number of the last entry before `at_ms`; 0 if there is none. The times of entries never go
/// back, so that they can be searched by their numbers.
pub fn last_before(connection: &Connection, at_ms: i64) -> Result<i64, StoreError> {
    let time_of = |id: i64| -> Result<Option<i64>, StoreError> {
        Ok(connection
            .prepare_cached("SELECT at_ms FROM transfer WHERE id = ?1")?
            .query_row([id], |row| row.get(0))
            .optional()?)
    };
    let last: i64 =
        connection.prepare_cached("SELECT coalesce(max(id), 0) FROM transfer")?.query_row([], |row| row.get(0))?;
    let (mut before, mut after) = (0, last + 1);
    while after - before > 1 {
        let middle = before + (after - before) / 2;
        match time_of(middle)? {
            Some(time) if time < at_ms => before = middle,
            _ => after = middle,
        }
    }
    Ok(before)
}

/// The tenant's own money right after an entry. Nearly every entry moves it: few are looked at.
fn balance_at(connection: &Connection, entry: i64) -> Result<i64, StoreError> {
    let found = connection
        .prepare_cached(
            "SELECT CASE WHEN from_account = ?2 THEN from_after_nano ELSE to_after_nano END FROM transfer
             WHERE id <= ?1 AND (from_account = ?2 OR to_account = ?2) ORDER BY id DESC LIMIT 1",
        )?
        .query_row([entry, Account::Prepaid as i64], |row| row.get(0))
        .optional()?;
    Ok(found.unwrap_or(0))
}

/// The entries above `after` up to `until`, at most a page.
pub fn page(connection: &Connection, after: i64, until: i64) -> Result<Vec<Line>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT transfer.id, at_ms, kind, from_account, to_account, amount_nano, from_after_nano, to_after_nano,
                transfer.request_id, request.provider || '/' || request.model, operation_id, note
         FROM transfer LEFT JOIN request ON request.request_id = transfer.request_id
         WHERE transfer.id > ?1 AND transfer.id <= ?2 ORDER BY transfer.id LIMIT ?3",
    )?;
    let mut rows = statement.query(params![after, until, PAGE])?;
    let mut lines = vec![];
    let mut balance = balance_at(connection, after)?;
    while let Some(row) = rows.next()? {
        let id = row.get(0)?;
        let corrupt = |what: &str, number: i64| StoreError::Corrupt {
            what: "an entry",
            why: format!("entry {id} names {what} {number}, which there is not"),
        };
        let account = |number: i64| Account::numbered(number).ok_or_else(|| corrupt("account", number));
        let kind = row.get(2)?;
        let kind = TransferKind::numbered(kind).ok_or_else(|| corrupt("kind", kind))?;
        let (from_account, to_account) = (account(row.get(3)?)?, account(row.get(4)?)?);
        let (from_after, to_after) = (row.get(6)?, row.get(7)?);
        if from_account == Account::Prepaid {
            balance = from_after;
        } else if to_account == Account::Prepaid {
            balance = to_after;
        }
        lines.push(Line {
            entry: id,
            at_ms: row.get(1)?,
            kind: kind.name().into(),
            from: from_account.name().into(),
            to: to_account.name().into(),
            amount_nano_usd: row.get(5)?,
            from_after_nano_usd: from_after,
            to_after_nano_usd: to_after,
            balance_nano_usd: balance,
            request_id: row.get::<_, Option<[u8; 16]>>(8)?.map(|id| RequestId(id).to_string()),
            model: row.get(9)?,
            operation: row.get(10)?,
            note: row.get(11)?,
        });
    }
    Ok(lines)
}
