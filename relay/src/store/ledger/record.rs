//! Usage outside of the relay that a tenant's computers record: local inference, knowledge indexing. It
//! is priced by the relay's own configuration, never by the caller, and charged at once.

use super::chain::Chain;
use super::hold::{PerMinute, refresh_credits};
use super::rates::{RateRefusal, Rates, limits};
use super::request::{self, Offer, Opened};
use super::settle::{Settled, Settlement, settle};
use super::standing::standing;
use super::usage::Class;
use super::{Boot, budget, state};
use crate::store::StoreError;
use belay_protocol::codec::Message;
use belay_protocol::id::{DeviceId, RequestId};
use belay_protocol::message::{End, Outcome, UsageLine};
use belay_protocol::money::NanoUsd;
use rusqlite::Connection;
use std::sync::Arc;

/// Usage that is to be recorded.
#[derive(Debug, Clone)]
pub struct Record {
    /// Names it for ever, among requests too.
    pub request_id: RequestId,
    /// Who says so.
    pub device: DeviceId,
    /// The API key that it is recorded under.
    pub key: Option<String>,
    /// SHA-256 of what is recorded: the same id must come with the same digest.
    pub digest: [u8; 32],
    /// What kind of usage.
    pub class: Class,
    /// Where it ran, with the price, multiplier included.
    pub offer: Offer,
    /// What the free tier has in a month, in nano-USD.
    pub allowance: NanoUsd,
    /// What was used.
    pub usage: Vec<UsageLine>,
    /// This process.
    pub boot: Boot,
    /// The wall clock.
    pub now_ms: u64,
    /// The tenant's requests of the last minute; a record counts as one.
    pub rates: Arc<Rates>,
    /// Requests per minute where no budget says otherwise.
    pub per_minute: PerMinute,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordOutcome {
    /// It is in the book, now or since before.
    Recorded(Box<Settled>),
    /// The balance, or a budget, does not cover it.
    Short {
        /// How much is missing, in nano-USD.
        missing: NanoUsd,
    },
    /// Too many requests and records in this minute.
    RateLimited(RateRefusal),
    /// The same id was another record or a request.
    Conflict,
    /// The tenant is suspended.
    Suspended,
}

/// Records usage, in the caller's transaction.
pub fn record(connection: &Connection, record: &Record) -> Result<RecordOutcome, StoreError> {
    if let Some(stored) = request::find(connection, record.request_id)? {
        let is_same = stored.device == record.device.as_str() && stored.digest == record.digest;
        return match (stored.state, stored.end) {
            (state::SETTLED, Some(end_bytes)) if is_same => {
                let end = End::decode_body(&end_bytes)?;
                let (absorbed, provider) = (stored.absorbed, stored.provider.unwrap_or_default());
                Ok(RecordOutcome::Recorded(Box::new(Settled { end, end_bytes, absorbed, provider, is_repeated: true })))
            }
            _ => Ok(RecordOutcome::Conflict),
        };
    }
    let mut chain = Chain::at(connection, record.now_ms)?;
    let mut standing = standing(connection, &chain)?;
    if standing.terms.suspended {
        return Ok(RecordOutcome::Suspended);
    }
    if refresh_credits(connection, &standing, record.allowance, record.now_ms)? {
        chain = Chain::at(connection, record.now_ms)?;
        standing = super::standing::standing(connection, &chain)?;
    }
    let cost = record.offer.price.cost(&record.offer.price.with_call(&record.usage))?;
    let budgets = budget::of(connection, &standing, &record.device, record.key.as_deref())?;
    let room = budget::room(connection, &budgets, chain.now_ms())?.map_or(NanoUsd(i64::MAX), |room| room.left);
    // What costs nothing is covered by whatever there is.
    if let Some(missing) = standing.missing(cost).max((cost > room).then(|| cost - room)) {
        return Ok(RecordOutcome::Short { missing });
    }
    let bounds = limits(&budgets, record.per_minute);
    if let Err(refusal) = record.rates.take(&bounds, 0, record.now_ms) {
        return Ok(RecordOutcome::RateLimited(refusal));
    }
    hold(connection, record, cost, cost.min(standing.credits), &mut chain)?;
    let settlement = Settlement {
        request_id: record.request_id,
        offer: 0,
        outcome: Outcome::COMPLETE,
        message: String::new(),
        usage: record.usage.clone(),
        estimated: false,
        events: 0,
        first_event_ms: None,
        answer: Arc::default(),
        now_ms: record.now_ms,
    };
    Ok(RecordOutcome::Recorded(Box::new(settle(connection, &settlement)?)))
}

/// Sets exactly the cost aside, to be settled in the same transaction.
fn hold(
    connection: &Connection,
    record: &Record,
    cost: NanoUsd,
    from_credits: NanoUsd,
    chain: &mut Chain<'_>,
) -> Result<(), StoreError> {
    let opened = Opened {
        request_id: record.request_id,
        device: record.device.as_str(),
        key: record.key.as_deref().unwrap_or(""),
        class: record.class,
        digest: record.digest,
        boot: record.boot.to_text(),
        terms: request::keep_terms(connection, std::slice::from_ref(&record.offer))?,
        input_bytes: 0,
        held: cost,
        from_credits,
        created_ms: super::time(record.now_ms),
    };
    request::set_aside(connection, &opened, chain)
}
