//! Budgets: what a tenant, one of its devices or one of its keys may spend in a day or a month, and how
//! much it may ask for in a minute. Read in the transaction that sets money aside; what is set aside
//! already counts as spent.

use super::standing::Standing;
use crate::store::StoreError;
use belay_protocol::calendar;
use belay_protocol::id::DeviceId;
use belay_protocol::money::NanoUsd;
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Whom a budget binds.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Scope {
    /// All of the tenant.
    Tenant,
    /// One device.
    Device(String),
    /// One API key, by its id.
    Key(String),
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tenant => f.write_str("tenant"),
            Self::Device(id) => write!(f, "device:{id}"),
            Self::Key(id) => write!(f, "key:{id}"),
        }
    }
}

impl From<Scope> for String {
    fn from(scope: Scope) -> Self {
        scope.to_string()
    }
}

impl TryFrom<String> for Scope {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "tenant" => Ok(Self::Tenant),
            Some(("device", id)) if !id.is_empty() => Ok(Self::Device(id.into())),
            Some(("key", id)) if !id.is_empty() => Ok(Self::Key(id.into())),
            _ => Err(format!("{text:?} is not \"tenant\", \"device:ID\" or \"key:ID\"")),
        }
    }
}

/// What is bounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Nano-USD in a calendar day, UTC.
    SpendDay,
    /// Nano-USD in a calendar month, UTC.
    SpendMonth,
    /// Requests in any minute.
    RequestsMinute,
    /// Tokens, in and out, in any minute.
    TokensMinute,
}

impl Measure {
    const ALL: [(Self, &'static str); 4] = [
        (Self::SpendDay, "spend_day"),
        (Self::SpendMonth, "spend_month"),
        (Self::RequestsMinute, "requests_minute"),
        (Self::TokensMinute, "tokens_minute"),
    ];

    /// Its stable name.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.into_iter().find(|(measure, _)| *measure == self).map_or("", |(_, name)| name)
    }

    fn named(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(_, name)| *name == text).map(|(measure, _)| measure)
    }
}

/// A bound, as the operator set it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    /// Whom it binds.
    pub scope: Scope,
    /// What it bounds.
    pub measure: Measure,
    /// Nano-USD, requests or tokens.
    pub amount: i64,
}

/// Sets a bound, or takes it away.
pub fn set(connection: &Connection, scope: &Scope, measure: Measure, amount: Option<i64>) -> Result<(), StoreError> {
    match amount {
        Some(amount) => connection.execute(
            "INSERT INTO budget (scope, measure, amount) VALUES (?1, ?2, ?3)
             ON CONFLICT (scope, measure) DO UPDATE SET amount = excluded.amount",
            params![scope.to_string(), measure.name(), amount],
        )?,
        None => connection.execute(
            "DELETE FROM budget WHERE scope = ?1 AND measure = ?2",
            params![scope.to_string(), measure.name()],
        )?,
    };
    Ok(())
}

/// All bounds of the tenant.
pub fn all(connection: &Connection) -> Result<Vec<Budget>, StoreError> {
    read(connection, "SELECT scope, measure, amount FROM budget ORDER BY scope, measure", &[])
}

/// Those that bind a request of that device and key.
pub(crate) fn of(
    connection: &Connection,
    standing: &Standing,
    device: &DeviceId,
    key: Option<&str>,
) -> Result<Vec<Budget>, StoreError> {
    // Most tenants have none, and each question costs a lone request as much as writing a row.
    if !standing.has_budgets {
        return Ok(vec![]);
    }
    let device = Scope::Device(device.to_string()).to_string();
    let key = key.map(|key| Scope::Key(key.to_owned()).to_string());
    // Not IN: SQLite would make a table of the list, each time.
    let sql = "SELECT scope, measure, amount FROM budget WHERE scope = 'tenant' UNION ALL
        SELECT scope, measure, amount FROM budget WHERE scope = ?1 UNION ALL
        SELECT scope, measure, amount FROM budget WHERE scope = ?2";
    read(connection, sql, &[&Some(device), &key])
}

fn read(connection: &Connection, sql: &str, values: &[&Option<String>]) -> Result<Vec<Budget>, StoreError> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(rusqlite::params_from_iter(values))?;
    let mut budgets = vec![];
    while let Some(row) = rows.next()? {
        let (scope, measure): (String, String) = (row.get(0)?, row.get(1)?);
        let corrupt = |why| StoreError::Corrupt { what: "a budget", why };
        let scope = scope.parse().map_err(corrupt)?;
        let measure = Measure::named(&measure).ok_or_else(|| corrupt(format!("there is no measure {measure:?}")))?;
        budgets.push(Budget { scope, measure, amount: row.get(2)? });
    }
    Ok(budgets)
}

/// The tightest of the budgets for money.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// What may still be set aside, in nano-USD; not below zero.
    pub left: NanoUsd,
    /// Which budget says so.
    pub budget: Budget,
    /// When it begins anew, milliseconds since 1970.
    pub renews_ms: u64,
}

/// What the budgets for money leave. `None`: there is none.
pub(crate) fn room(connection: &Connection, budgets: &[Budget], now_ms: u64) -> Result<Option<Room>, StoreError> {
    let mut tightest: Option<Room> = None;
    for budget in budgets {
        let (table, period, now, renews_ms) = match budget.measure {
            Measure::SpendDay => {
                let day = calendar::day(now_ms);
                ("usage_day", "day", day, calendar::day_start_ms(day + 1))
            }
            Measure::SpendMonth => {
                let month = calendar::month(now_ms);
                ("usage_month", "month", month, calendar::month_start_ms(month + 1))
            }
            Measure::RequestsMinute | Measure::TokensMinute => continue,
        };
        let used = spent(connection, table, period, now, &budget.scope)? + held(connection, &budget.scope)?;
        let left = NanoUsd(budget.amount.saturating_sub(used).max(0));
        if tightest.as_ref().is_none_or(|room| left < room.left) {
            tightest = Some(Room { left, budget: budget.clone(), renews_ms });
        }
    }
    Ok(tightest)
}

/// The clause that selects a scope's rows, and its parameter.
fn condition(scope: &Scope) -> (&'static str, &str) {
    match scope {
        Scope::Tenant => ("?1 = ''", ""),
        Scope::Device(id) => ("device = ?1", id),
        Scope::Key(id) => ("key = ?1", id),
    }
}

fn spent(connection: &Connection, table: &str, period: &str, now: i64, scope: &Scope) -> Result<i64, StoreError> {
    let (condition, id) = condition(scope);
    let sql = format!("SELECT coalesce(sum(cost_nano), 0) FROM {table} WHERE {condition} AND {period} = ?2");
    Ok(connection.prepare_cached(&sql)?.query_row(params![id, now], |row| row.get(0))?)
}

fn held(connection: &Connection, scope: &Scope) -> Result<i64, StoreError> {
    let (condition, id) = condition(scope);
    let sql = format!("SELECT coalesce(sum(held_nano), 0) FROM request WHERE {condition} AND state = 0");
    Ok(connection.prepare_cached(&sql)?.query_row([id], |row| row.get(0))?)
}
