//! Corrections of charges that were made by estimate, once the provider's own figures are known. The
//! recorded `End` stays as it is; the book gets entries beside it, and the sums of usage of that day
//! change.

use super::chain::{Chain, Evidence, Hash, Transfer};
use super::request::{self, Stored};
use super::settle::headroom;
use super::usage::{self, Totals};
use super::{Account, TransferKind, outbox, state, time};
use crate::store::StoreError;
use belay_protocol::codec::Message;
use belay_protocol::id::RequestId;
use belay_protocol::message::{End, UsageLine};
use belay_protocol::money::NanoUsd;
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};

/// A charge by estimate that nobody has corrected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Estimated {
    /// Which request.
    pub request_id: RequestId,
    /// When it was settled, milliseconds since 1970.
    pub at_ms: i64,
    /// Which device asked.
    pub device: String,
    /// Which provider served it.
    pub provider: String,
    /// Which model.
    pub model: String,
    /// What it was taken to have used.
    pub usage: Vec<UsageLine>,
    /// What was charged, in nano-USD.
    pub cost: NanoUsd,
}

/// What a correction came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Corrected {
    /// What was charged before, in nano-USD.
    pub before: NanoUsd,
    /// What is charged now, in nano-USD.
    pub after: NanoUsd,
}

/// Charges by estimate that were settled from then up to, not including, then.
pub fn estimated(connection: &Connection, from_ms: i64, until_ms: i64) -> Result<Vec<Estimated>, StoreError> {
    let sql = format!(
        "SELECT {} FROM request WHERE state = 1 AND estimated = 1 AND finished_ms >= ?1 AND finished_ms < ?2
             AND request.id NOT IN (SELECT request FROM correction) ORDER BY finished_ms, request.id",
        request::COLUMNS
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query([from_ms, until_ms])?;
    let mut found = vec![];
    while let Some(row) = rows.next()? {
        let stored = Stored::read(row)?;
        found.push(Estimated {
            request_id: stored.request_id,
            at_ms: stored.finished_ms.unwrap_or(0),
            usage: end_of(&stored)?.usage,
            device: stored.device,
            provider: stored.provider.unwrap_or_default(),
            model: stored.model.unwrap_or_default(),
            cost: stored.cost,
        });
    }
    Ok(found)
}

fn end_of(stored: &Stored) -> Result<End, StoreError> {
    let missing =
        || StoreError::Corrupt { what: "a settled request", why: format!("{} has no End", stored.request_id) };
    Ok(End::decode_body(stored.end.as_deref().ok_or_else(missing)?)?)
}

/// A correction as it stands in the book.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Correction {
    /// Charged after it, in nano-USD.
    pub(crate) cost: i64,
    /// Borne by the relay after it, in nano-USD.
    pub(crate) absorbed: i64,
    /// What was used, as JSON.
    pub(crate) usage: String,
    pub(crate) at_ms: i64,
}

impl Correction {
    /// What the entry of a correction proves of it.
    pub(crate) fn evidence(&self, request_id: RequestId) -> Hash {
        Evidence::new("correct")
            .bytes(&request_id.0)
            .number(self.cost)
            .number(self.absorbed)
            .text(&self.usage)
            .number(self.at_ms)
            .finish()
    }

    pub(crate) fn lines(&self) -> Result<Vec<UsageLine>, StoreError> {
        serde_json::from_str(&self.usage)
            .map_err(|error| StoreError::Corrupt { what: "a correction", why: error.to_string() })
    }

    /// What it adds to the sums of usage.
    pub(crate) fn difference(&self, stored: &Stored, end: &End) -> Result<Totals, StoreError> {
        let before = Totals::of(&end.usage, stored.cost, stored.absorbed, stored.estimated);
        let after = Totals::of(&self.lines()?, NanoUsd(self.cost), NanoUsd(self.absorbed), false);
        Ok(after.less(&before))
    }
}

/// The correction of a request, if there is one.
pub(crate) fn find(connection: &Connection, row: i64) -> Result<Option<Correction>, StoreError> {
    Ok(connection
        .prepare_cached("SELECT cost_nano, absorbed_nano, usage, at_ms FROM correction WHERE request = ?1")?
        .query_row([row], |row| {
            Ok(Correction { cost: row.get(0)?, absorbed: row.get(1)?, usage: row.get(2)?, at_ms: row.get(3)? })
        })
        .optional()?)
}

/// Corrects a charge by estimate: prices what was really used at the request's own terms, gives back what
/// was too much, and takes what was too little as far as the hold was large enough, and floor and budgets
/// allow. `None`: it was not estimated, or was corrected before; nothing changes.
///
/// Errors: `Failed` if there is no such settled request.
pub fn correct(
    connection: &Connection,
    request_id: RequestId,
    usage: &[UsageLine],
    now_ms: u64,
) -> Result<Option<Corrected>, StoreError> {
    let unknown =
        || StoreError::Failed { operation: "correct", why: format!("there is no settled request {request_id}") };
    let stored = request::find(connection, request_id)?;
    let stored = stored.filter(|stored| stored.state == state::SETTLED).ok_or_else(unknown)?;
    if !stored.estimated || find(connection, stored.row)?.is_some() {
        return Ok(None);
    }
    let end = end_of(&stored)?;
    let offers = request::terms(connection, stored.terms)?;
    let is_its = |offer: &&request::Offer| {
        stored.provider.as_ref() == Some(&offer.provider) && stored.model.as_ref() == Some(&offer.model)
    };
    let offer = offers.iter().find(is_its).ok_or_else(unknown)?;
    // It was never asked for more than was held.
    let most = stored.held.max(stored.cost + stored.absorbed);
    let cost = offer.price.cost(usage)?.min(most);
    let mut chain = Chain::at(connection, now_ms)?;
    let (charged, absorbed) = move_money(connection, &mut chain, &stored, cost, now_ms)?;
    let correction = Correction {
        cost: charged.0,
        absorbed: absorbed.0,
        usage: serde_json::to_string(usage)
            .map_err(|error| StoreError::Failed { operation: "encode usage", why: error.to_string() })?,
        at_ms: chain.at_ms(),
    };
    let proof = Transfer::new(TransferKind::Correct, Account::Revenue, Account::Prepaid, NanoUsd::ZERO);
    chain.record(&proof.of(request_id).proving(correction.evidence(request_id)))?;
    chain.finish()?;
    connection
        .prepare_cached(
            "INSERT INTO correction (request, cost_nano, absorbed_nano, usage, at_ms) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![stored.row, correction.cost, correction.absorbed, correction.usage, correction.at_ms])?;
    let difference = correction.difference(&stored, &end)?;
    let subject = stored.subject()?;
    // On the day on which it was charged, where the provider counts it too.
    let day_ms = stored.finished_ms.unwrap_or_else(|| time(now_ms));
    usage::add(connection, u64::try_from(day_ms).unwrap_or(0), &subject, &difference)?;
    outbox::put(connection, request_id, day_ms, &subject, &difference)?;
    Ok(Some(Corrected { before: stored.cost, after: charged }))
}

/// Moves what is between the charge before and the right one. Returns what the tenant pays, and what the
/// relay bears.
fn move_money(
    connection: &Connection,
    chain: &mut Chain<'_>,
    stored: &Stored,
    cost: NanoUsd,
    now_ms: u64,
) -> Result<(NanoUsd, NanoUsd), StoreError> {
    let transfer = |from, to, amount| Transfer::new(TransferKind::Correct, from, to, amount).of(stored.request_id);
    let before = stored.cost + stored.absorbed;
    if cost <= before {
        // What the relay bore comes back first, then the tenant's money.
        let unborne = (before - cost).min(stored.absorbed);
        let back = before - cost - unborne;
        chain.post(&transfer(Account::Revenue, Account::Absorbed, unborne))?;
        chain.post(&transfer(Account::Revenue, Account::Prepaid, back))?;
        return Ok((stored.cost - back, stored.absorbed - unborne));
    }
    let more = cost - before;
    let paid = more.min(headroom(connection, chain, stored, now_ms)?);
    chain.post(&transfer(Account::Prepaid, Account::Revenue, paid))?;
    chain.post(&transfer(Account::Absorbed, Account::Revenue, more - paid))?;
    Ok((stored.cost + paid, stored.absorbed + (more - paid)))
}
