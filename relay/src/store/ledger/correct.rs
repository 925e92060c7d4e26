//! Corrections of charges that were made by estimate, once the provider's own figures are known. The
//! recorded `End` stays as it is; the book gets entries beside it, and the sums of usage of that day
//! change.

use super::chain::{Chain, Evidence, Hash, Transfer};
use super::request::{self, Stored};
use super::settle::{charge, headroom};
use super::usage::{self, Class, Totals};
use super::{Account, TransferKind, credits, outbox, state, time};
use crate::pricing::PriceSnapshot;
use crate::store::StoreError;
use crate::store::sessions::turn;
use belay_protocol::codec::Message;
use belay_protocol::id::RequestId;
use belay_protocol::message::{End, UnitKind, UsageLine};
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
    /// It ran under the tenant's own key: the provider bills the tenant.
    pub own_key: bool,
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
            own_key: stored.class == Class::Byok as i64,
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
    let (offers, _) = request::terms(connection, stored.terms)?;
    let offer = stored.ran(&offers).ok_or_else(unknown)?;
    let usage = complete(usage, &end.usage);
    let cost = price(&offer.price, &usage, &stored);
    credits::expire(connection, now_ms)?;
    // On the day on which it was charged, where the provider and the budgets count it too.
    let day_ms = stored.finished_ms.unwrap_or_else(|| time(now_ms));
    let day = u64::try_from(day_ms).unwrap_or(0);
    let mut chain = Chain::at(connection, now_ms)?;
    let (charged, absorbed) = move_money(connection, &mut chain, &stored, cost, day)?;
    let correction = Correction {
        cost: charged.0,
        absorbed: absorbed.0,
        usage: serde_json::to_string(&usage)
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
    usage::add(connection, day, &subject, &difference)?;
    outbox::put(connection, request_id, day_ms, &subject, &difference)?;
    if stored.has_session {
        turn::correct(connection, &stored, charged - stored.cost)?;
    }
    Ok(Some(Corrected { before: stored.cost, after: charged }))
}

/// What the corrected usage costs: it was never asked for more than was held.
pub(super) fn price(price: &PriceSnapshot, usage: &[UsageLine], stored: &Stored) -> NanoUsd {
    let most = stored.held.max(stored.cost + stored.absorbed);
    charge(price, usage, most).0.min(most)
}

/// A provider's bill has tokens by four kinds. What else was used, such as calls that have a price of their
/// own, is as it was told, and is not input or output once more; input that was all written to the cache of
/// an hour was that.
fn complete(usage: &[UsageLine], told: &[UsageLine]) -> Vec<UsageLine> {
    const BILLED: [UnitKind; 5] =
        [UnitKind::INPUT, UnitKind::OUTPUT, UnitKind::CACHE_READ, UnitKind::CACHE_WRITE_5M, UnitKind::CACHE_WRITE_1H];
    let tells = |kind| told.iter().any(|line| line.kind == kind);
    let only_hours = tells(UnitKind::CACHE_WRITE_1H) && !tells(UnitKind::CACHE_WRITE_5M);
    let is_billed = |kind| BILLED.contains(&kind) || usage.iter().any(|line| line.kind == kind);
    let kept = || told.iter().filter(|line| !is_billed(line.kind));
    let of =
        |kinds: [UnitKind; 2]| kept().filter(|line| kinds.contains(&line.kind)).map(|line| line.units).sum::<u64>();
    let billed = usage.iter().map(|line| match line.kind {
        UnitKind::CACHE_WRITE_5M if only_hours => UsageLine { kind: UnitKind::CACHE_WRITE_1H, ..*line },
        UnitKind::INPUT => line.less(of([UnitKind::INPUT_AUDIO, UnitKind::INPUT_IMAGE])),
        UnitKind::OUTPUT => line.less(of([UnitKind::OUTPUT_AUDIO, UnitKind::OUTPUT_IMAGE])),
        _ => *line,
    });
    billed.chain(kept().copied()).collect()
}

/// Moves what is between the charge before and the right one: credits pay first, and what they paid too
/// much goes back to their grants. Returns what the tenant pays, and what the relay bears.
fn move_money(
    connection: &Connection,
    chain: &mut Chain<'_>,
    stored: &Stored,
    cost: NanoUsd,
    day_ms: u64,
) -> Result<(NanoUsd, NanoUsd), StoreError> {
    let transfer = |from, to, amount| Transfer::new(TransferKind::Correct, from, to, amount).of(stored.request_id);
    let before = stored.cost + stored.absorbed;
    let of_credits = |cost: NanoUsd| cost.min(stored.from_credits);
    if cost <= before {
        // What the relay bore comes back first, then the tenant's money, its credits last.
        let unborne = (before - cost).min(stored.absorbed);
        let back = before - cost - unborne;
        let after = stored.cost - back;
        let credits_back = of_credits(stored.cost) - of_credits(after);
        chain.post(&transfer(Account::Revenue, Account::Absorbed, unborne))?;
        chain.post(&transfer(Account::Revenue, Account::Credits, credits_back))?;
        chain.post(&transfer(Account::Revenue, Account::Prepaid, back - credits_back))?;
        credits::release(connection, stored.row, of_credits(after), false)?;
        return Ok((after, stored.absorbed - unborne));
    }
    let more = cost - before;
    let (payable, room) = headroom(connection, chain, stored, day_ms)?;
    let by_credits = more.min(chain.balance(Account::Credits)).min(room);
    let by_balance = (more - by_credits).min(payable).min(room - by_credits);
    if by_credits > NanoUsd::ZERO {
        credits::draw(connection, stored.request_id, by_credits)?;
    }
    // All of it is gone for good.
    credits::release(connection, stored.row, of_credits(stored.cost) + by_credits, false)?;
    let paid = by_credits + by_balance;
    chain.post(&transfer(Account::Credits, Account::Revenue, by_credits))?;
    chain.post(&transfer(Account::Prepaid, Account::Revenue, by_balance))?;
    chain.post(&transfer(Account::Absorbed, Account::Revenue, more - paid))?;
    Ok((stored.cost + paid, stored.absorbed + (more - paid)))
}
