//! What is known of tenants at Stripe.

use super::parsed;
use crate::store::StoreError;
use crate::store::ledger::time;
use belay_protocol::id::TenantId;
use belay_protocol::money::NanoUsd;
use rusqlite::{Connection, OptionalExtension, params};

/// A tenant as a customer of Stripe's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Customer {
    /// Stripe's name of it.
    pub customer: String,
    /// A stored way to pay.
    pub payment_method: Option<String>,
}

/// When money is added without being asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AutoTopUp {
    /// Who pays.
    pub tenant: TenantId,
    /// Below this balance.
    pub threshold: NanoUsd,
    /// So much.
    pub amount: NanoUsd,
    /// At most so much in a calendar month.
    pub monthly_cap: NanoUsd,
    /// After a refusal, not before then (milliseconds since 1970).
    pub not_before_ms: i64,
    /// Why the last one was refused.
    pub last_error: String,
}

/// An attempt whose outcome is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Its number, within the tenant.
    pub number: i64,
    /// How much.
    pub amount: NanoUsd,
    /// When it was written down, milliseconds since 1970.
    pub at_ms: i64,
}

/// Usage on its way to Stripe's meter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metered {
    /// Its name, for ever.
    pub identifier: String,
    /// Whose, by Stripe's name.
    pub customer: String,
    /// What it cost.
    pub value: NanoUsd,
    /// When it was put there, milliseconds since 1970.
    pub at_ms: i64,
}

/// The tenant's customer, if it has one.
pub fn customer(connection: &Connection, tenant: &TenantId) -> Result<Option<Customer>, StoreError> {
    let sql = "SELECT customer, payment_method FROM stripe_customer WHERE tenant = ?1";
    let read = |row: &rusqlite::Row<'_>| Ok(Customer { customer: row.get(0)?, payment_method: row.get(1)? });
    Ok(connection.prepare_cached(sql)?.query_row([tenant.as_str()], read).optional()?)
}

/// Remembers a customer; the first one stays. Returns the one that there is.
pub fn set_customer(
    connection: &Connection,
    tenant: &TenantId,
    customer_id: &str,
    now_ms: u64,
) -> Result<Option<Customer>, StoreError> {
    if !super::tenant_exists(connection, tenant)? {
        return Ok(None);
    }
    let sql = "INSERT INTO stripe_customer (tenant, customer, created_ms) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING";
    connection.execute(sql, params![tenant.as_str(), customer_id, time(now_ms)])?;
    customer(connection, tenant)
}

/// Remembers how the tenant paid last.
pub fn set_payment_method(connection: &Connection, tenant: &TenantId, method: &str) -> Result<(), StoreError> {
    let sql = "UPDATE stripe_customer SET payment_method = ?2 WHERE tenant = ?1";
    connection.execute(sql, params![tenant.as_str(), method])?;
    Ok(())
}

/// Remembers whose payment it is, before it is credited. False: there is no such tenant.
pub fn set_payment(
    connection: &Connection,
    tenant: &TenantId,
    payment_intent: &str,
    amount: NanoUsd,
    now_ms: u64,
) -> Result<bool, StoreError> {
    if !super::tenant_exists(connection, tenant)? {
        return Ok(false);
    }
    let sql = "INSERT INTO stripe_payment (payment_intent, tenant, amount_nano, at_ms) VALUES (?1, ?2, ?3, ?4)
               ON CONFLICT DO NOTHING";
    connection.execute(sql, params![payment_intent, tenant.as_str(), amount.0, time(now_ms)])?;
    Ok(true)
}

/// Whose payment it is.
pub fn payment(connection: &Connection, payment_intent: &str) -> Result<Option<TenantId>, StoreError> {
    let sql = "SELECT tenant FROM stripe_payment WHERE payment_intent = ?1";
    Ok(connection.prepare_cached(sql)?.query_row([payment_intent], |row| parsed(row, 0)).optional()?)
}

fn auto_of(row: &rusqlite::Row<'_>) -> rusqlite::Result<AutoTopUp> {
    Ok(AutoTopUp {
        tenant: parsed(row, 0)?,
        threshold: NanoUsd(row.get(1)?),
        amount: NanoUsd(row.get(2)?),
        monthly_cap: NanoUsd(row.get(3)?),
        not_before_ms: row.get(4)?,
        last_error: row.get(5)?,
    })
}

const AUTO: &str =
    "SELECT tenant, threshold_nano, amount_nano, monthly_cap_nano, not_before_ms, last_error FROM auto_topup";

/// All tenants whose balance is topped up by itself, or one of them.
pub fn auto_topups(connection: &Connection, tenant: Option<&TenantId>) -> Result<Vec<AutoTopUp>, StoreError> {
    let mut statement =
        connection.prepare_cached(&format!("{AUTO} WHERE ?1 IS NULL OR tenant = ?1 ORDER BY tenant"))?;
    let rows = statement.query_map([tenant.map(TenantId::as_str)], auto_of)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Sets when it is, or with `None` that it never is.
pub fn set_auto_topup(
    connection: &Connection,
    tenant: &TenantId,
    wanted: Option<(NanoUsd, NanoUsd, NanoUsd)>,
) -> Result<(), StoreError> {
    match wanted {
        None => connection.execute("DELETE FROM auto_topup WHERE tenant = ?1", [tenant.as_str()])?,
        Some((threshold, amount, cap)) => connection.execute(
            "INSERT INTO auto_topup (tenant, threshold_nano, amount_nano, monthly_cap_nano) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (tenant) DO UPDATE SET threshold_nano = ?2, amount_nano = ?3, monthly_cap_nano = ?4,
                                                not_before_ms = 0, last_error = ''",
            params![tenant.as_str(), threshold.0, amount.0, cap.0],
        )?,
    };
    Ok(())
}

/// The attempt whose outcome is not known; or a new one, if `wanted` and this month's cap has room for it.
pub fn attempt(
    connection: &Connection,
    auto: &AutoTopUp,
    wanted: bool,
    month: i64,
    now_ms: u64,
) -> Result<Option<Attempt>, StoreError> {
    let open = "SELECT number, amount_nano, at_ms FROM auto_topup_attempt WHERE tenant = ?1 AND state = 0 ORDER BY number LIMIT 1";
    let read =
        |row: &rusqlite::Row<'_>| Ok(Attempt { number: row.get(0)?, amount: NanoUsd(row.get(1)?), at_ms: row.get(2)? });
    let found = connection.prepare_cached(open)?.query_row([auto.tenant.as_str()], read).optional()?;
    if found.is_some() || !wanted || auto.not_before_ms > time(now_ms) {
        return Ok(found);
    }
    let spent: i64 = connection
        .prepare_cached(
            "SELECT coalesce(sum(amount_nano), 0) FROM auto_topup_attempt WHERE tenant = ?1 AND month = ?2 AND state != 2",
        )?
        .query_row(params![auto.tenant.as_str(), month], |row| row.get(0))?;
    if spent.saturating_add(auto.amount.0) > auto.monthly_cap.0 {
        return Ok(None);
    }
    let number: i64 = connection
        .prepare_cached("SELECT coalesce(max(number), 0) + 1 FROM auto_topup_attempt WHERE tenant = ?1")?
        .query_row([auto.tenant.as_str()], |row| row.get(0))?;
    connection.execute(
        "INSERT INTO auto_topup_attempt (tenant, number, month, amount_nano, at_ms) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![auto.tenant.as_str(), number, month, auto.amount.0, time(now_ms)],
    )?;
    Ok(Some(Attempt { number, amount: auto.amount, at_ms: time(now_ms) }))
}

/// What became of an attempt; after a refusal, the next one comes not before then. One that was given up has no words.
pub fn attempted(
    connection: &Connection,
    tenant: &TenantId,
    number: i64,
    refused: Option<(&str, u64)>,
) -> Result<(), StoreError> {
    let state = if refused.is_some() { 2 } else { 1 };
    // What was paid stays paid, whatever is told later.
    let changed = connection.execute(
        "UPDATE auto_topup_attempt SET state = ?3 WHERE tenant = ?1 AND number = ?2 AND state != 1",
        params![tenant.as_str(), number, state],
    )?;
    if let (Some((why, not_before_ms)), 1) = (refused.filter(|(why, _)| !why.is_empty()), changed) {
        connection.execute(
            "UPDATE auto_topup SET not_before_ms = ?2, last_error = ?3 WHERE tenant = ?1",
            params![tenant.as_str(), time(not_before_ms), why],
        )?;
    }
    Ok(())
}

/// A tenant that may pay later, and what was metered of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owing {
    /// Which one.
    pub tenant: TenantId,
    /// Stripe's name of it.
    pub customer: String,
    /// Metered, all of it ever.
    pub metered: NanoUsd,
    /// Of bills for it that were paid.
    pub billed: NanoUsd,
}

/// All tenants with a ceiling and a customer at Stripe.
pub fn owing(connection: &Connection) -> Result<Vec<Owing>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT customer.tenant, customer.customer,
                (SELECT coalesce(sum(value_nano), 0) FROM stripe_meter WHERE tenant = customer.tenant),
                (SELECT coalesce(sum(amount_nano), 0) FROM stripe_bill WHERE tenant = customer.tenant)
         FROM stripe_customer AS customer JOIN tenant ON tenant.id = customer.tenant AND tenant.ceiling_nano > 0",
    )?;
    let rows = statement.query_map([], |row| {
        Ok(Owing {
            tenant: parsed(row, 0)?,
            customer: row.get(1)?,
            metered: NanoUsd(row.get(2)?),
            billed: NanoUsd(row.get(3)?),
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Puts what a tenant owes into the outbox, under a name for ever.
pub fn meter(connection: &Connection, owing: &Owing, due: NanoUsd, now_ms: u64) -> Result<(), StoreError> {
    let count: i64 = connection
        .prepare_cached("SELECT count(*) FROM stripe_meter WHERE tenant = ?1")?
        .query_row([owing.tenant.as_str()], |row| row.get(0))?;
    connection.execute(
        "INSERT INTO stripe_meter (identifier, tenant, customer, value_nano, at_ms) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![format!("{}-{}", owing.tenant, count + 1), owing.tenant.as_str(), owing.customer, due.0, time(now_ms)],
    )?;
    Ok(())
}

/// Whose customer it is.
pub fn tenant_of(connection: &Connection, customer: &str) -> Result<Option<TenantId>, StoreError> {
    let sql = "SELECT tenant FROM stripe_customer WHERE customer = ?1";
    Ok(connection.prepare_cached(sql)?.query_row([customer], |row| parsed(row, 0)).optional()?)
}

/// What was metered and no other bill was paid for; of a bill that is known, what it was credited with.
pub fn unbilled(connection: &Connection, tenant: &TenantId, invoice: &str) -> Result<NanoUsd, StoreError> {
    let sql = "SELECT coalesce((SELECT amount_nano FROM stripe_bill WHERE invoice = ?2),
                   (SELECT coalesce(sum(value_nano), 0) FROM stripe_meter WHERE tenant = ?1)
                   - (SELECT coalesce(sum(amount_nano), 0) FROM stripe_bill WHERE tenant = ?1))";
    Ok(connection.prepare_cached(sql)?.query_row(params![tenant.as_str(), invoice], |row| row.get(0).map(NanoUsd))?)
}

/// A bill for metered usage was paid.
pub fn billed(connection: &Connection, tenant: &TenantId, invoice: &str, amount: NanoUsd) -> Result<(), StoreError> {
    let sql = "INSERT INTO stripe_bill (invoice, tenant, amount_nano) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING";
    connection.execute(sql, params![invoice, tenant.as_str(), amount.0])?;
    Ok(())
}

/// What waits to be sent after a row, the oldest first.
pub fn unmetered(connection: &Connection, after: Option<&Metered>, most: u32) -> Result<Vec<Metered>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT identifier, customer, value_nano, at_ms FROM stripe_meter
         WHERE state = 0 AND (at_ms, identifier) > (?1, ?2) ORDER BY at_ms, identifier LIMIT ?3",
    )?;
    let (at_ms, identifier) = after.map_or((i64::MIN, ""), |row| (row.at_ms, row.identifier.as_str()));
    let rows = statement.query_map(params![at_ms, identifier, most], |row| {
        Ok(Metered { identifier: row.get(0)?, customer: row.get(1)?, value: NanoUsd(row.get(2)?), at_ms: row.get(3)? })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// It was sent.
pub fn sent(connection: &Connection, identifier: &str) -> Result<(), StoreError> {
    connection.execute("UPDATE stripe_meter SET state = 1 WHERE identifier = ?1", [identifier])?;
    Ok(())
}
