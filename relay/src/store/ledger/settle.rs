//! Turning a hold into a charge, or giving it back.

use super::{Account, Transfer, TransferKind, balance, state, time};
use crate::pricing::PriceSnapshot;
use crate::store::StoreError;
use belay_protocol::codec::Message;
use belay_protocol::id::RequestId;
use belay_protocol::message::{End, Outcome, UsageLine};
use belay_protocol::money::NanoUsd;
use rusqlite::{Connection, OptionalExtension, params};

/// How a request came to its end.
#[derive(Debug, Clone)]
pub struct Settlement {
    /// Which request.
    pub request_id: RequestId,
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
}

struct Open {
    provider: String,
    model: String,
    price: PriceSnapshot,
    held: NanoUsd,
    created_ms: i64,
}

/// Settles a hold: charges the usage at the snapshot's prices, gives the rest back, keeps the
/// exact `End`. Usage above the hold is charged as far as the balance reaches; the rest is posted
/// to `relay:absorbed`. Settling again returns the first answer.
///
/// Errors: `Failed` if there is no such hold.
pub fn settle(connection: &Connection, settlement: &Settlement) -> Result<Settled, StoreError> {
    let request_id = settlement.request_id;
    if let Some(settled) = settled_before(connection, request_id)? {
        return Ok(settled);
    }
    let open = open_hold(connection, request_id)?;
    let cost = open.price.cost(&settlement.usage)?;
    let absorbed = charge(connection, settlement, open.held, cost)?;
    let elapsed = time(settlement.now_ms).saturating_sub(open.created_ms);
    let end = End {
        request_id,
        outcome: settlement.outcome,
        message: settlement.message.chars().take(1000).collect(),
        provider: open.provider,
        model: open.model,
        usage: settlement.usage.clone(),
        cost: cost - absorbed,
        balance: balance(connection, Account::Prepaid)?,
        estimated: settlement.estimated,
        events: settlement.events,
        first_event_ms: settlement.first_event_ms,
        total_ms: u32::try_from(elapsed).unwrap_or(0),
    };
    let end_bytes = end.encode_body()?;
    connection
        .prepare_cached(
            "UPDATE request SET state = 1, cost_nano = ?2, absorbed_nano = ?3, estimated = ?4, end = ?5, finished_ms = ?6
             WHERE request_id = ?1",
        )?
        .execute(params![
            request_id.0,
            end.cost.0,
            absorbed.0,
            settlement.estimated,
            end_bytes,
            time(settlement.now_ms)
        ])?;
    Ok(Settled { end, end_bytes, absorbed })
}

/// Posts the charge and returns what the relay bears of it.
fn charge(
    connection: &Connection,
    settlement: &Settlement,
    held: NanoUsd,
    cost: NanoUsd,
) -> Result<NanoUsd, StoreError> {
    let transfer = |kind, amount| {
        Transfer::of_request(settlement.now_ms, kind, settlement.request_id).amount(amount).post(connection)
    };
    transfer(TransferKind::Settle, cost.min(held))?;
    transfer(TransferKind::Release, held - cost.min(held))?;
    let excess = cost - cost.min(held);
    let paid = excess.min(balance(connection, Account::Prepaid)?.max(NanoUsd::ZERO));
    transfer(TransferKind::Excess, paid)?;
    transfer(TransferKind::Absorb, excess - paid)?;
    Ok(excess - paid)
}

/// Gives a hold back: the request never ran, or failed with nothing to pay. The same id may run
/// again. Voiding what is not open changes nothing.
pub fn void(connection: &Connection, request_id: RequestId, now_ms: u64) -> Result<(), StoreError> {
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
    void_hold(connection, request_id, Some(made_ms), now_ms)
}

fn void_hold(
    connection: &Connection,
    request_id: RequestId,
    made_ms: Option<u64>,
    now_ms: u64,
) -> Result<(), StoreError> {
    let held: Option<i64> = connection
        .prepare_cached(
            "SELECT held_nano FROM request
             WHERE request_id = ?1 AND state = 0 AND created_ms = coalesce(?2, created_ms)",
        )?
        .query_row(params![request_id.0, made_ms.map(time)], |row| row.get(0))
        .optional()?;
    let Some(held) = held else { return Ok(()) };
    Transfer::of_request(now_ms, TransferKind::Void, request_id).amount(NanoUsd(held)).post(connection)?;
    connection
        .prepare_cached("UPDATE request SET state = ?2, finished_ms = ?3 WHERE request_id = ?1")?
        .execute(params![request_id.0, state::VOIDED, time(now_ms)])?;
    Ok(())
}

fn settled_before(connection: &Connection, request_id: RequestId) -> Result<Option<Settled>, StoreError> {
    let row: Option<(Vec<u8>, i64)> = connection
        .prepare_cached("SELECT end, absorbed_nano FROM request WHERE request_id = ?1 AND state = 1")?
        .query_row([request_id.0], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    row.map(|(end_bytes, absorbed)| {
        Ok(Settled { end: End::decode_body(&end_bytes)?, end_bytes, absorbed: NanoUsd(absorbed) })
    })
    .transpose()
}

fn open_hold(connection: &Connection, request_id: RequestId) -> Result<Open, StoreError> {
    let row: Option<(String, String, String, i64, i64)> = connection
        .prepare_cached(
            "SELECT provider, model, price, held_nano, created_ms FROM request WHERE request_id = ?1 AND state = 0",
        )?
        .query_row([request_id.0], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)))
        .optional()?;
    let Some((provider, model, price, held, created_ms)) = row else {
        return Err(StoreError::Failed { operation: "settle", why: format!("there is no open hold {request_id}") });
    };
    let price = serde_json::from_str(&price)
        .map_err(|error| StoreError::Corrupt { what: "a price snapshot", why: error.to_string() })?;
    Ok(Open { provider, model, price, held: NanoUsd(held), created_ms })
}
