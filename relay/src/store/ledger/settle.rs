//! Turning a hold into a charge, or giving it back.

use super::chain::{Chain, Hash, Transfer};
use super::request::{self, Stored};
use super::standing::standing;
use super::usage::{self, Totals};
use super::{Account, TransferKind, budget, credits, outbox, state, time};
use crate::pricing::PriceSnapshot;
use crate::store::StoreError;
use crate::store::sessions::turn;
use belay_protocol::codec::Message;
use belay_protocol::id::RequestId;
use belay_protocol::message::{End, Outcome, UsageLine};
use belay_protocol::money::NanoUsd;
use rusqlite::{Connection, params};
use std::sync::Arc;

/// How a request came to its end.
#[derive(Debug, Clone)]
pub struct Settlement {
    /// Which request.
    pub request_id: RequestId,
    /// Which of its offers was taken, by its place.
    pub offer: usize,
    /// How it ended.
    pub outcome: Outcome,
    /// Why, for people.
    pub message: String,
    /// What was used.
    pub usage: Vec<UsageLine>,
    /// At least one figure is an estimate.
    pub estimated: bool,
    /// Events or chunks of the answer.
    pub events: u64,
    /// Milliseconds from the hold to the first event.
    pub first_event_ms: Option<u32>,
    /// What it said, for its session; empty: nothing, or it has none.
    pub answer: Arc<str>,
    /// The wall clock.
    pub now_ms: u64,
}

/// A settled request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// What the caller gets; also when it was settled before.
    pub end: End,
    /// Its frame body, as kept in the book.
    pub end_bytes: Vec<u8>,
    /// What the relay had to bear, in nano-USD.
    pub absorbed: NanoUsd,
    /// Who served it.
    pub provider: String,
    /// It was settled before.
    pub is_repeated: bool,
}

/// Settles a hold: charges the usage at the terms it was taken at, gives the rest back, keeps the
/// exact `End`. Credits pay first. Usage above the hold is charged as far as the floor and the
/// budgets allow; the rest is posted to `relay:absorbed`. Settling again returns the first answer.
///
/// Errors: `NoHold`.
pub fn settle(connection: &Connection, settlement: &Settlement) -> Result<Settled, StoreError> {
    let request_id = settlement.request_id;
    let no_hold = || StoreError::NoHold { request_id };
    let mut stored = request::find(connection, request_id)?.ok_or_else(no_hold)?;
    match (stored.state, stored.end.take()) {
        (state::OPEN, _) => {}
        (state::SETTLED, Some(end_bytes)) => {
            let provider = stored.provider.unwrap_or_default();
            let (end, absorbed, is_repeated) = (End::decode_body(&end_bytes)?, stored.absorbed, true);
            return Ok(Settled { end, end_bytes, absorbed, provider, is_repeated });
        }
        (state::SETTLED, None) => {
            return Err(StoreError::Corrupt { what: "a settled request", why: format!("{request_id} has no End") });
        }
        _ => return Err(no_hold()),
    }
    let (mut offers, terms) = request::terms(connection, stored.terms)?;
    let out_of_place = || StoreError::Corrupt { what: "terms", why: format!("there is no offer {}", settlement.offer) };
    if settlement.offer >= offers.len() {
        return Err(out_of_place());
    }
    let offer = offers.swap_remove(settlement.offer);
    let usage = offer.price.with_call(&settlement.usage);
    let (cost, is_absurd) = charge(&offer.price, &usage, stored.held);
    let mut chain = Chain::at(connection, settlement.now_ms)?;
    let estimated = settlement.estimated || is_absurd;
    let paid = pay(connection, &mut chain, &stored, (cost, estimated), settlement.now_ms)?;
    stored.provider = Some(offer.provider);
    stored.model = Some(offer.model);
    let ending = Ending { terms, usage, paid, estimated };
    finish(connection, &mut chain, stored, settlement, ending)
}

/// No request costs more, in nano-USD: a million dollars.
const MOST_COST: NanoUsd = NanoUsd(1_000_000_000_000_000);

/// What usage costs. Figures that nobody can have meant are charged as what was held, and true is returned:
/// a settlement must not fail for what a provider says.
pub(super) fn charge(price: &PriceSnapshot, usage: &[UsageLine], held: NanoUsd) -> (NanoUsd, bool) {
    match price.cost(usage) {
        Ok(cost) if cost <= MOST_COST => (cost, false),
        _ => (held, true),
    }
}

/// How it ended, beside the settlement.
struct Ending {
    terms: Hash,
    usage: Vec<UsageLine>,
    paid: Paid,
    estimated: bool,
}

/// Who pays for what.
struct Paid {
    /// Out of the hold.
    settled: NanoUsd,
    /// By the tenant, above the hold.
    excess: NanoUsd,
    /// By the relay.
    absorbed: NanoUsd,
}

/// Gives back what was held and not used, and takes what was used and not held.
fn pay(
    connection: &Connection,
    chain: &mut Chain<'_>,
    stored: &Stored,
    (cost, estimated): (NanoUsd, bool),
    now_ms: u64,
) -> Result<Paid, StoreError> {
    let id = stored.request_id;
    let transfer = |kind, from, to, amount| Transfer::new(kind, from, to, amount).of(id);
    let settled = cost.min(stored.held);
    let by_credits = settled.min(stored.from_credits);
    let by_balance = settled - by_credits;
    let credits_back = stored.from_credits - by_credits;
    let balance_back = stored.held - stored.from_credits - by_balance;
    chain.post(&transfer(TransferKind::ReleaseCredits, Account::Held, Account::Credits, credits_back))?;
    chain.post(&transfer(TransferKind::Release, Account::Held, Account::Prepaid, balance_back))?;
    if stored.from_credits > NanoUsd::ZERO {
        credits::release(connection, stored.row, by_credits, estimated)?;
    }
    let above = cost - settled;
    let excess = if above > NanoUsd::ZERO {
        // What was given back counts.
        above.min(headroom(connection, chain, stored, now_ms)?.0)
    } else {
        NanoUsd::ZERO
    };
    chain.post(&transfer(TransferKind::Excess, Account::Prepaid, Account::Revenue, excess))?;
    chain.post(&transfer(TransferKind::Absorb, Account::Absorbed, Account::Revenue, above - excess))?;
    Ok(Paid { settled, excess, absorbed: above - excess })
}

/// What the tenant's balance can still pay within its budgets, and what these leave. The request's own hold
/// counts as spent.
pub(super) fn headroom(
    connection: &Connection,
    chain: &Chain<'_>,
    stored: &Stored,
    now_ms: u64,
) -> Result<(NanoUsd, NanoUsd), StoreError> {
    let standing = standing(connection, chain)?;
    let device = stored.device.parse().map_err(|error: belay_protocol::id::IdError| StoreError::Corrupt {
        what: "a device",
        why: error.to_string(),
    })?;
    let key = Some(stored.key.as_str()).filter(|key| !key.is_empty());
    let budgets = budget::of(connection, &standing, &device, key)?;
    let room = budget::room(connection, &budgets, now_ms)?.map_or(NanoUsd(i64::MAX), |room| room.left);
    Ok((standing.payable().min(room), room))
}

/// Writes down how it ended, with the entry that proves it.
fn finish(
    connection: &Connection,
    chain: &mut Chain<'_>,
    mut stored: Stored,
    settlement: &Settlement,
    Ending { terms, usage, paid, estimated }: Ending,
) -> Result<Settled, StoreError> {
    let elapsed = time(settlement.now_ms).saturating_sub(stored.created_ms);
    let cost = paid.settled.checked_add(paid.excess)?;
    let end = End {
        request_id: stored.request_id,
        outcome: settlement.outcome,
        message: settlement.message.chars().take(1000).collect(),
        provider: stored.provider.clone().unwrap_or_default(),
        model: stored.model.clone().unwrap_or_default(),
        usage,
        cost,
        balance: chain.balance(Account::Prepaid).checked_add(chain.balance(Account::Credits))?,
        estimated,
        events: settlement.events,
        first_event_ms: settlement.first_event_ms,
        total_ms: u32::try_from(elapsed).unwrap_or(0),
    };
    let end_bytes = end.encode_body()?;
    stored.state = state::SETTLED;
    (stored.cost, stored.absorbed, stored.estimated) = (cost, paid.absorbed, estimated);
    stored.end = Some(end_bytes.clone());
    stored.finished_ms = Some(chain.at_ms());
    let transfer = Transfer::new(TransferKind::Settle, Account::Held, Account::Revenue, paid.settled);
    chain.record(&transfer.of(stored.request_id).proving(stored.evidence(&terms)))?;
    chain.finish()?;
    write(connection, &stored)?;
    let at_ms = u64::try_from(chain.at_ms()).unwrap_or(0);
    let totals = Totals::of(&end.usage, cost, paid.absorbed, estimated);
    let subject = stored.subject()?;
    usage::add(connection, at_ms, &subject, &totals)?;
    outbox::put(connection, stored.request_id, chain.at_ms(), &subject, &totals)?;
    if stored.has_session {
        turn::answer(connection, &stored, &end, &settlement.answer, settlement.now_ms)?;
    }
    let provider = stored.provider.unwrap_or_default();
    Ok(Settled { end, end_bytes, absorbed: paid.absorbed, provider, is_repeated: false })
}

/// Writes the end of a request into its row.
pub(super) fn write(connection: &Connection, stored: &Stored) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "UPDATE request SET state = ?2, provider = ?3, model = ?4, cost_nano = ?5, absorbed_nano = ?6,
                 estimated = ?7, end = ?8, finished_ms = ?9 WHERE id = ?1",
        )?
        .execute(params![
            stored.row,
            stored.state,
            stored.provider,
            stored.model,
            stored.cost.0,
            stored.absorbed.0,
            stored.estimated,
            stored.end,
            stored.finished_ms,
        ])?;
    Ok(())
}

/// Gives a hold back: the request never ran, or failed with nothing to pay. The same id may run
/// again. Voiding what is not open changes nothing. False if it was settled before.
pub fn void(connection: &Connection, request_id: RequestId, now_ms: u64) -> Result<bool, StoreError> {
    void_hold(connection, request_id, None, now_ms)
}

/// The same for a hold of which nobody knows whether it came to be: only if it was made at
/// `made_ms`, since its caller may have tried again meanwhile.
pub fn void_made_at(
    connection: &Connection,
    request_id: RequestId,
    made_ms: u64,
    now_ms: u64,
) -> Result<(), StoreError> {
    void_hold(connection, request_id, Some(made_ms), now_ms)?;
    Ok(())
}

fn void_hold(
    connection: &Connection,
    request_id: RequestId,
    made_ms: Option<u64>,
    now_ms: u64,
) -> Result<bool, StoreError> {
    let is_that_one = |stored: &Stored| made_ms.is_none_or(|made_ms| stored.created_ms == time(made_ms));
    let found = request::find(connection, request_id)?;
    let was_settled = found.as_ref().is_some_and(|stored| stored.state == state::SETTLED);
    let open = found.filter(|stored| stored.state == state::OPEN);
    let Some(mut stored) = open.filter(is_that_one) else { return Ok(!was_settled) };
    let terms = request::proof_of_terms(connection, stored.terms)?;
    let mut chain = Chain::at(connection, now_ms)?;
    let back = |kind, to, amount| Transfer::new(kind, Account::Held, to, amount).of(request_id);
    chain.post(&back(TransferKind::ReleaseCredits, Account::Credits, stored.from_credits))?;
    if stored.from_credits > NanoUsd::ZERO {
        credits::release(connection, stored.row, NanoUsd::ZERO, false)?;
    }
    stored.state = state::VOIDED;
    stored.finished_ms = Some(chain.at_ms());
    let rest = stored.held - stored.from_credits;
    chain.record(&back(TransferKind::Void, Account::Prepaid, rest).proving(stored.evidence(&terms)))?;
    chain.finish()?;
    write(connection, &stored)?;
    if stored.has_session {
        turn::forget(connection, &stored)?;
    }
    Ok(true)
}
