//! What a tenant brings along from the deployment that came before: its balance, and what it used there.
//!
//! Taking the same in again changes nothing, and taking in what has come to it since adds that: the balance moves by
//! the difference to what was brought in before, a row of usage is known by its name.

use super::money::{Operation, operate};
use super::outbox;
use super::usage::{self, Class, Subject, Totals};
use super::{TransferKind, time};
use crate::store::StoreError;
use belay_certs::sha256;
use belay_protocol::id::RequestId;
use belay_protocol::money::NanoUsd;
use rusqlite::{Connection, Row, params};

/// What operations that bring a balance in begin with.
const OPENING: &str = "imported:opening:";
/// The device that imported usage counts under.
pub const DEVICE: &str = "imported";

/// Brings the imported balance to `target`, whatever became of the rest since. True if money moved.
///
/// Errors: `Failed`: the amounts leave the range of the ledger.
pub fn opening(connection: &Connection, target: NanoUsd, now_ms: u64) -> Result<bool, StoreError> {
    let (count, sum): (i64, i64) = connection
        .prepare_cached(
            "SELECT count(*), coalesce(sum(CASE kind WHEN ?2 THEN amount_nano ELSE -amount_nano END), 0)
             FROM transfer WHERE operation_id GLOB ?1",
        )?
        .query_row(params![format!("{OPENING}*"), TransferKind::Credit as i64], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let difference = target.0.checked_sub(sum).ok_or_else(|| StoreError::Failed {
        operation: "take a balance in",
        why: "the amounts are outside the range of the ledger".into(),
    })?;
    let what = match difference {
        0 => return Ok(false),
        more if more > 0 => Operation::Credit,
        // Of the two that may go below the floor, the one that accuses nobody.
        _ => Operation::Refund,
    };
    let amount = NanoUsd(difference.saturating_abs());
    let name = format!("{OPENING}{}", count + 1);
    operate(connection, what, amount, &name, Some("balance of the deployment before"), now_ms)?;
    Ok(true)
}

/// Usage of the deployment before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedUsage {
    /// What it was called there.
    pub source: String,
    /// When, milliseconds since 1970.
    pub at_ms: u64,
    /// The API key that it was asked under; empty: not known.
    pub key: String,
    /// What kind of usage.
    pub class: Class,
    /// Which provider.
    pub provider: String,
    /// Which model.
    pub model: String,
    /// The figures, of one request.
    pub totals: Totals,
}

impl ImportedUsage {
    /// The name that it goes to central under.
    pub(crate) fn request_id(&self) -> RequestId {
        let digest = sha256(format!("imported usage\n{}", self.source).as_bytes());
        let mut id = [0; 16];
        id.copy_from_slice(&digest[..16]);
        RequestId(id)
    }

    pub(crate) fn subject(&self) -> Subject {
        Subject {
            device: DEVICE.into(),
            key: self.key.clone(),
            class: self.class,
            provider: self.provider.clone(),
            model: self.model.clone(),
        }
    }
}

/// Takes usage in. Returns how many rows are new, and how many are there already and say something else: those stay
/// as they are.
pub fn usage(connection: &Connection, rows: &[ImportedUsage]) -> Result<(u64, u64), StoreError> {
    let (mut new, mut other) = (0, 0);
    for row in rows {
        let totals = &row.totals;
        let inserted = connection
            .prepare_cached(
                "INSERT INTO imported_usage (source, request_id, at_ms, key, class, provider, model, input, output,
                                             cache_read, cache_write, reasoning, cost_nano)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13) ON CONFLICT DO NOTHING",
            )?
            .execute(params![
                row.source,
                row.request_id().0,
                time(row.at_ms),
                row.key,
                row.class as i64,
                row.provider,
                row.model,
                totals.input,
                totals.output,
                totals.cache_read,
                totals.cache_write,
                totals.reasoning,
                totals.cost_nano,
            ])?;
        if inserted == 1 {
            usage::add(connection, row.at_ms, &row.subject(), totals)?;
            outbox::put(connection, row.request_id(), time(row.at_ms), &row.subject(), totals)?;
            new += 1;
        } else if find(connection, row.request_id())?.as_ref() != Some(row) {
            other += 1;
        }
    }
    Ok((new, other))
}

const COLUMNS: &str =
    "source, at_ms, key, class, provider, model, input, output, cache_read, cache_write, reasoning, cost_nano";

fn read(row: &Row<'_>) -> Result<ImportedUsage, StoreError> {
    let totals = Totals {
        requests: 1,
        input: row.get(6)?,
        output: row.get(7)?,
        cache_read: row.get(8)?,
        cache_write: row.get(9)?,
        reasoning: row.get(10)?,
        cost_nano: row.get(11)?,
        ..Totals::default()
    };
    Ok(ImportedUsage {
        source: row.get(0)?,
        at_ms: u64::try_from(row.get::<_, i64>(1)?).unwrap_or(0),
        key: row.get(2)?,
        class: Class::read(row.get(3)?)?,
        provider: row.get(4)?,
        model: row.get(5)?,
        totals,
    })
}

/// Imported usage by the name that it goes to central under.
pub(crate) fn find(connection: &Connection, id: RequestId) -> Result<Option<ImportedUsage>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM imported_usage WHERE request_id = ?1");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query([id.0])?;
    rows.next()?.map(read).transpose()
}

/// Every row of it.
pub(crate) fn each_usage(connection: &Connection, mut each: impl FnMut(ImportedUsage)) -> Result<(), StoreError> {
    let mut statement = connection.prepare(&format!("SELECT {COLUMNS} FROM imported_usage ORDER BY id"))?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        each(read(row)?);
    }
    Ok(())
}

/// How many there are.
pub(crate) fn count(connection: &Connection) -> Result<i64, StoreError> {
    Ok(connection.query_row("SELECT count(*) FROM imported_usage", [], |row| row.get(0))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::ledger::outbox::{batch, pending};
    use crate::store::ledger::usage::{Grouping, all_time, report};
    use crate::store::ledger::verify::verify;
    use crate::store::ledger::{Account, balance};
    use crate::store::schema::{Kind, scratch};

    fn row(source: &str, cost_nano: i64) -> ImportedUsage {
        ImportedUsage {
            source: source.into(),
            at_ms: 1_790_000_000_000,
            key: "k".into(),
            class: Class::Cloud,
            provider: "openai".into(),
            model: "gpt-4".into(),
            totals: Totals { requests: 1, input: 10, output: 20, cost_nano, ..Totals::default() },
        }
    }

    #[test]
    fn a_balance_comes_once_and_follows_what_it_was_there() {
        let connection = scratch(Kind::Tenant).expect("made");
        let has = || balance(&connection, Account::Prepaid).expect("read");
        for (target, moved) in
            [(5_000, true), (5_000, false), (7_000, true), (-2_000, true), (-2_000, false), (0, true)]
        {
            assert_eq!(opening(&connection, NanoUsd(target), 1).expect("taken in"), moved, "{target}");
            assert_eq!(has(), NanoUsd(target));
        }
        // What happens here is not touched.
        operate(&connection, Operation::Credit, NanoUsd(300), "paid", None, 2).expect("credited");
        assert!(opening(&connection, NanoUsd(40), 3).expect("taken in"));
        assert_eq!(has(), NanoUsd(340));
        assert_eq!(verify(&connection, None, 0).expect("verified").problems, Vec::<String>::new());
    }

    #[test]
    fn usage_counts_once_and_the_book_says_the_same_everywhere() {
        let connection = scratch(Kind::Tenant).expect("made");
        let rows = [row("1", 100), row("2", 200)];
        assert_eq!(usage(&connection, &rows).expect("taken in"), (2, 0));
        assert_eq!(usage(&connection, &rows).expect("taken in"), (0, 0));
        assert_eq!(usage(&connection, &[row("2", 201), row("3", 1)]).expect("taken in"), (1, 1));
        let groups = report(&connection, 0, 100_000, Grouping::Device).expect("read");
        assert_eq!(groups.len(), 1);
        assert_eq!((groups[0].name.as_str(), groups[0].totals.requests, groups[0].totals.cost_nano), (DEVICE, 3, 301));
        assert_eq!(all_time(&connection).expect("read"), groups[0].totals);
        assert_eq!(pending(&connection).expect("read").rows, 3);
        assert_eq!(batch(&connection, 10).expect("read").rows[0].totals, rows[0].totals);
        assert_eq!(verify(&connection, None, 0).expect("verified").problems, Vec::<String>::new());
        for (sql, part) in [
            ("UPDATE outbox SET cost_nano = 5 WHERE number = 2", "row 2 on its way"),
            ("UPDATE usage_day SET input = input + 1", "the usage of day"),
            ("DELETE FROM outbox WHERE number = 3", "3 charges and corrections were made, 2 were put"),
        ] {
            connection.execute_batch(&format!("SAVEPOINT s; {sql}")).expect("changed");
            let problems = verify(&connection, None, 0).expect("verified").problems;
            assert!(problems.iter().any(|problem| problem.contains(part)), "{problems:?}");
            connection.execute_batch("ROLLBACK TO s").expect("undone");
        }
        let changed = connection.execute("UPDATE imported_usage SET cost_nano = 0", []);
        assert!(changed.expect_err("refused").to_string().contains("append only"));
    }
}
