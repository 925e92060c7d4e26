//! What was used and what it cost, summed up by day and by month as it is settled, so that no question
//! has to read all requests. [`verify`](super::verify) recomputes every row.

use crate::store::StoreError;
use belay_protocol::calendar;
use belay_protocol::dialect::usage::MOST_UNITS;
use belay_protocol::message::{UnitKind, UsageLine};
use belay_protocol::money::NanoUsd;
use rusqlite::{Connection, Row, params};
use serde::{Deserialize, Serialize};
use std::sync::LazyLock;

/// What kind of usage it is; each has its own multiplier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(i64)]
pub enum Class {
    /// A request that the relay sent to a provider.
    Cloud = 1,
    /// Inference on the tenant's own computers, recorded by them.
    Local = 2,
    /// Indexing, embedding and search of knowledge, recorded by the tenant's computers.
    Knowledge = 3,
    /// A request that the relay sent to a provider under the tenant's own key: charged is a licence, the
    /// provider bills the tenant.
    Byok = 4,
}

impl Class {
    pub(crate) fn read(number: i64) -> Result<Self, StoreError> {
        match number {
            1 => Ok(Self::Cloud),
            2 => Ok(Self::Local),
            3 => Ok(Self::Knowledge),
            4 => Ok(Self::Byok),
            other => Err(StoreError::Corrupt { what: "a class of usage", why: format!("there is no class {other}") }),
        }
    }

    /// Its stable name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cloud => "cloud",
            Self::Local => "local",
            Self::Knowledge => "knowledge",
            Self::Byok => "byok",
        }
    }
}

/// Who and what a sum is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Subject {
    pub(crate) device: String,
    /// Empty: no key.
    pub(crate) key: String,
    pub(crate) class: Class,
    pub(crate) provider: String,
    pub(crate) model: String,
}

/// Sums of usage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Totals {
    /// Requests and records.
    pub requests: i64,
    /// Of these, charged by estimate and not corrected since.
    pub estimated: i64,
    /// Input of every kind but from and to a cache.
    pub input: i64,
    /// Output of every kind.
    pub output: i64,
    /// Read from a provider's cache.
    pub cache_read: i64,
    /// Written to a provider's cache.
    pub cache_write: i64,
    /// Of the output, reasoning.
    pub reasoning: i64,
    /// Charged, in nano-USD.
    pub cost_nano: i64,
    /// Borne by the relay, in nano-USD.
    pub absorbed_nano: i64,
}

/// Columns of [`Totals`], in its order.
pub(crate) const SUMS: &str = "sum(requests), sum(estimated), sum(input), sum(output), sum(cache_read), \
    sum(cache_write), sum(reasoning), sum(cost_nano), sum(absorbed_nano)";

impl Totals {
    /// Of one settled request or record.
    pub(crate) fn of(usage: &[UsageLine], cost: NanoUsd, absorbed: NanoUsd, estimated: bool) -> Self {
        let mut totals = Self {
            requests: 1,
            estimated: i64::from(estimated),
            cost_nano: cost.0,
            absorbed_nano: absorbed.0,
            ..Self::default()
        };
        for line in usage {
            let slot = match line.kind {
                UnitKind::INPUT | UnitKind::INPUT_AUDIO | UnitKind::INPUT_IMAGE => &mut totals.input,
                UnitKind::OUTPUT | UnitKind::OUTPUT_AUDIO | UnitKind::OUTPUT_IMAGE => &mut totals.output,
                UnitKind::CACHE_READ => &mut totals.cache_read,
                UnitKind::CACHE_WRITE_5M | UnitKind::CACHE_WRITE_1H => &mut totals.cache_write,
                UnitKind::REASONING => &mut totals.reasoning,
                _ => continue,
            };
            // Eight million requests of that size have room in a sum.
            *slot += i64::try_from(line.units.min(MOST_UNITS)).unwrap_or(0);
        }
        totals
    }

    /// Reads [`SUMS`], the first of which is column `at`. No row gives zeros.
    pub(crate) fn read(row: &Row<'_>, at: usize) -> rusqlite::Result<Self> {
        let sum = |offset| row.get::<_, Option<i64>>(at + offset).map(Option::unwrap_or_default);
        Ok(Self {
            requests: sum(0)?,
            estimated: sum(1)?,
            input: sum(2)?,
            output: sum(3)?,
            cache_read: sum(4)?,
            cache_write: sum(5)?,
            reasoning: sum(6)?,
            cost_nano: sum(7)?,
            absorbed_nano: sum(8)?,
        })
    }

    /// The difference to others.
    pub(crate) fn less(&self, others: &Self) -> Self {
        Self {
            requests: self.requests - others.requests,
            estimated: self.estimated - others.estimated,
            input: self.input - others.input,
            output: self.output - others.output,
            cache_read: self.cache_read - others.cache_read,
            cache_write: self.cache_write - others.cache_write,
            reasoning: self.reasoning - others.reasoning,
            cost_nano: self.cost_nano - others.cost_nano,
            absorbed_nano: self.absorbed_nano - others.absorbed_nano,
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.estimated += other.estimated;
        self.input += other.input;
        self.output += other.output;
        self.cache_read += other.cache_read;
        self.cache_write += other.cache_write;
        self.reasoning += other.reasoning;
        self.cost_nano += other.cost_nano;
        self.absorbed_nano += other.absorbed_nano;
    }
}

/// Adds to the sums of the day and the month of `at_ms`.
pub(crate) fn add(connection: &Connection, at_ms: u64, subject: &Subject, more: &Totals) -> Result<(), StoreError> {
    static SQL: LazyLock<[String; 2]> =
        LazyLock::new(|| [("usage_day", "day"), ("usage_month", "month")].map(|(table, period)| upsert(table, period)));
    for (sql, number) in SQL.iter().zip([calendar::day(at_ms), calendar::month(at_ms)]) {
        connection.prepare_cached(sql)?.execute(params![
            number,
            subject.device,
            subject.key,
            subject.class as i64,
            subject.provider,
            subject.model,
            more.requests,
            more.estimated,
            more.input,
            more.output,
            more.cache_read,
            more.cache_write,
            more.reasoning,
            more.cost_nano,
            more.absorbed_nano,
        ])?;
    }
    Ok(())
}

fn upsert(table: &str, period: &str) -> String {
    format!(
        "INSERT INTO {table} ({period}, device, key, class, provider, model, requests, estimated, input, output,
                              cache_read, cache_write, reasoning, cost_nano, absorbed_nano)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)
         ON CONFLICT DO UPDATE SET requests = requests + excluded.requests,
             estimated = estimated + excluded.estimated, input = input + excluded.input,
             output = output + excluded.output, cache_read = cache_read + excluded.cache_read,
             cache_write = cache_write + excluded.cache_write, reasoning = reasoning + excluded.reasoning,
             cost_nano = cost_nano + excluded.cost_nano, absorbed_nano = absorbed_nano + excluded.absorbed_nano"
    )
}

/// By what sums are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Grouping {
    /// One sum of everything.
    All,
    /// By day.
    Day,
    /// By month.
    Month,
    /// By provider and model.
    Model,
    /// By device.
    Device,
    /// By API key.
    Key,
    /// By class.
    Class,
}

/// A sum and what it is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// A day (`2026-11-25`), a month, `provider/model`, a device, a key or a class; empty for everything.
    pub name: String,
    /// The sums.
    #[serde(flatten)]
    pub totals: Totals,
}

/// Sums of the days from `from` up to, not including, `until` (days since 1970). Whole months are read
/// as such.
pub fn report(connection: &Connection, from: i64, until: i64, by: Grouping) -> Result<Vec<Group>, StoreError> {
    let months = by != Grouping::Day && whole_months(from, until).is_some();
    let (table, period, (from, until)) = match whole_months(from, until) {
        Some(span) if months => ("usage_month", "month", span),
        _ => ("usage_day", "day", (from, until)),
    };
    let name = match by {
        Grouping::All => "''",
        Grouping::Day => "day",
        Grouping::Month if months => "month",
        // The sums of days are put together below.
        Grouping::Month => "day",
        Grouping::Model => "provider || '/' || model",
        Grouping::Device => "device",
        Grouping::Key => "key",
        Grouping::Class => "class",
    };
    let sql = format!(
        "SELECT {name}, {SUMS} FROM {table} WHERE {period} >= ?1 AND {period} < ?2 GROUP BY {name} ORDER BY {name}"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query([from, until])?;
    let mut groups: Vec<Group> = vec![];
    while let Some(row) = rows.next()? {
        let name = match by {
            Grouping::Day => calendar::day_text(row.get(0)?),
            Grouping::Month if months => calendar::month_text(row.get(0)?),
            Grouping::Month => calendar::month_text(calendar::month(calendar::day_start_ms(row.get(0)?))),
            Grouping::Class => Class::read(row.get(0)?)?.name().into(),
            _ => row.get(0)?,
        };
        let totals = Totals::read(row, 1)?;
        match groups.last_mut() {
            Some(last) if last.name == name => last.totals.add(&totals),
            _ => groups.push(Group { name, totals }),
        }
    }
    Ok(groups)
}

/// Requests to a provider under the relay's own key in some days, by day and model.
pub fn of_provider(
    connection: &Connection,
    provider: &str,
    from: i64,
    until: i64,
) -> Result<Vec<(i64, String, Totals)>, StoreError> {
    let sql = format!(
        "SELECT day, model, {SUMS} FROM usage_day WHERE provider = ?1 AND class = ?2 AND day >= ?3 AND day < ?4
         GROUP BY day, model ORDER BY day, model"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let rows = statement.query_map(params![provider, Class::Cloud as i64, from, until], |row| {
        Ok((row.get(0)?, row.get(1)?, Totals::read(row, 2)?))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Sums of everything.
pub fn all_time(connection: &Connection) -> Result<Totals, StoreError> {
    let sql = format!("SELECT {SUMS} FROM usage_month");
    Ok(connection.prepare_cached(&sql)?.query_row([], |row| Totals::read(row, 0))?)
}

/// The months that a span of days is made of, if it is made of whole ones.
fn whole_months(from: i64, until: i64) -> Option<(i64, i64)> {
    let border = |day: i64| {
        let month = calendar::month(calendar::day_start_ms(day));
        (calendar::day(calendar::month_start_ms(month)) == day).then_some(month)
    };
    Some((border(from)?, border(until)?))
}
