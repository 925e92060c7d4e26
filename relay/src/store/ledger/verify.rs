//! Checking a book against itself.

use super::{Account, state};
use crate::store::StoreError;
use belay_protocol::codec::Message;
use belay_protocol::id::RequestId;
use belay_protocol::message::End;
use rusqlite::Connection;
use serde::{Deserialize, Serialize};

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Report {
    /// Transfers in the book.
    pub transfers: u64,
    /// Requests settled.
    pub settled: u64,
    /// Requests voided.
    pub voided: u64,
    /// Requests with an open hold.
    pub open: u64,
    /// What is wrong, first things first; empty if the book is clean.
    pub problems: Vec<String>,
}

/// Recomputes everything that the book says twice: account balances, the sum of all entries, the
/// holds, each request's charge and its `End`.
pub fn verify(connection: &Connection) -> Result<Report, StoreError> {
    let count = |sql: &str| -> Result<u64, StoreError> {
        let count: i64 = connection.query_row(sql, [], |row| row.get(0))?;
        Ok(u64::try_from(count).unwrap_or(0))
    };
    let mut report = Report {
        transfers: count("SELECT count(*) FROM transfer")?,
        settled: count("SELECT count(*) FROM request WHERE state = 1")?,
        voided: count("SELECT count(*) FROM request WHERE state = 2")?,
        open: count("SELECT count(*) FROM request WHERE state = 0")?,
        problems: Vec::new(),
    };
    integrity(connection, &mut report)?;
    accounts(connection, &mut report)?;
    requests(connection, &mut report)?;
    Ok(report)
}

fn integrity(connection: &Connection, report: &mut Report) -> Result<(), StoreError> {
    let answer: String = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    if answer != "ok" {
        report.problems.push(format!("the file is damaged: {answer}"));
    }
    let orphan: Option<String> = connection
        .query_row("SELECT \"table\" FROM pragma_foreign_key_check LIMIT 1", [], |row| row.get(0))
        .map(Some)
        .or_else(none_if_no_row)?;
    if let Some(table) = orphan {
        report.problems.push(format!("a row of table {table} refers to one that is not there"));
    }
    Ok(())
}

fn none_if_no_row<T>(error: rusqlite::Error) -> Result<Option<T>, StoreError> {
    match error {
        rusqlite::Error::QueryReturnedNoRows => Ok(None),
        other => Err(other.into()),
    }
}

fn accounts(connection: &Connection, report: &mut Report) -> Result<(), StoreError> {
    let mut statement = connection.prepare(
        "SELECT account.name, account.id, account.balance_nano,
                coalesce((SELECT sum(amount_nano) FROM entry WHERE entry.account = account.id), 0)
         FROM account ORDER BY account.id",
    )?;
    let rows: Vec<(String, i64, i64, i64)> = statement
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?
        .collect::<Result<_, _>>()?;
    for (name, id, kept, summed) in &rows {
        if kept != summed {
            report.problems.push(format!("account {name} shows {kept} nano-USD, its entries sum to {summed}"));
        }
        if *id == Account::Prepaid as i64 && *kept < 0 {
            report.problems.push(format!("account {name} is below zero: {kept} nano-USD"));
        }
    }
    let total: i64 = rows.iter().map(|(_, _, kept, _)| *kept).sum();
    if total != 0 {
        report.problems.push(format!("the accounts sum to {total} nano-USD instead of 0"));
    }
    let sum: i64 = connection.query_row("SELECT coalesce(sum(amount_nano), 0) FROM entry", [], |row| row.get(0))?;
    if sum != 0 {
        report.problems.push(format!("the entries sum to {sum} nano-USD instead of 0"));
    }
    let open: i64 =
        connection
            .query_row("SELECT coalesce(sum(held_nano), 0) FROM request WHERE state = 0", [], |row| row.get(0))?;
    let held = rows.iter().find(|row| row.1 == Account::Held as i64).map_or(0, |row| row.2);
    if held != open {
        report.problems.push(format!("account tenant:held shows {held} nano-USD, open requests hold {open}"));
    }
    Ok(())
}

fn requests(connection: &Connection, report: &mut Report) -> Result<(), StoreError> {
    // What each request's transfers brought to revenue, less what was absorbed, is its cost; what
    // they left in `held` is its open hold.
    let mut statement = connection.prepare(
        "WITH moved AS (
            SELECT request_id,
                sum(CASE WHEN to_account = 4 THEN amount_nano ELSE 0 END) AS revenue,
                sum(CASE WHEN from_account = 5 THEN amount_nano ELSE 0 END) AS absorbed,
                sum((to_account = 3) * amount_nano - (from_account = 3) * amount_nano) AS held
            FROM transfer WHERE request_id IS NOT NULL GROUP BY request_id
        )
        SELECT request.request_id, request.state, request.cost_nano, request.absorbed_nano, request.held_nano,
               request.end, moved.revenue, moved.absorbed, moved.held
        FROM request LEFT JOIN moved ON moved.request_id = request.request_id
        UNION ALL
        SELECT moved.request_id, -1, 0, 0, 0, NULL, moved.revenue, moved.absorbed, moved.held
        FROM moved WHERE NOT EXISTS (SELECT 1 FROM request WHERE request.request_id = moved.request_id)",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let id = RequestId(row.get(0)?);
        let amounts: [Option<i64>; 6] = [row.get(2)?, row.get(3)?, row.get(4)?, row.get(6)?, row.get(7)?, row.get(8)?];
        let [cost, absorbed, hold, revenue, moved_absorbed, left] = amounts.map(|amount| amount.unwrap_or(0));
        let end: Option<Vec<u8>> = row.get(5)?;
        let mut problem = |what: String| report.problems.push(format!("request {id}: {what}"));
        match row.get::<_, i64>(1)? {
            state::OPEN if left != hold => problem(format!("holds {hold} nano-USD, its transfers leave {left}")),
            state::OPEN => {}
            state::SETTLED => {
                if (revenue - moved_absorbed, moved_absorbed, left) != (cost, absorbed, 0) {
                    problem(format!(
                        "settled at {cost} nano-USD with {absorbed} absorbed, its transfers say {} and {moved_absorbed}, {left} still held",
                        revenue - moved_absorbed
                    ));
                }
                check_end(id, cost, end.as_deref(), &mut problem);
            }
            state::VOIDED if (revenue, left) != (0, 0) => {
                problem(format!("voided, but {revenue} nano-USD were charged and {left} are held"));
            }
            state::VOIDED => {}
            _ => problem("has transfers but no record".into()),
        }
    }
    Ok(())
}

fn check_end(id: RequestId, cost: i64, end: Option<&[u8]>, problem: &mut impl FnMut(String)) {
    match end.map(End::decode_body) {
        None => problem("settled without an End".into()),
        Some(Err(error)) => problem(format!("its End does not decode: {error}")),
        Some(Ok(end)) if end.request_id != id => problem(format!("its End is that of {}", end.request_id)),
        Some(Ok(end)) if end.cost.0 != cost => {
            problem(format!("charged {cost} nano-USD, its End says {}", end.cost.0));
        }
        Some(Ok(_)) => {}
    }
}
