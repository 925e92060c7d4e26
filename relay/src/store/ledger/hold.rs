//! Setting money aside before a provider is called.

use super::{Account, Boot, Transfer, TransferKind, state, time};
use crate::ops::rate::{Limit, Rate};
use crate::pricing::PriceSnapshot;
use crate::store::StoreError;
use belay_protocol::id::{DeviceId, RequestId};
use belay_protocol::money::NanoUsd;
use rusqlite::{Connection, OptionalExtension, params};
use std::sync::Arc;

/// Below this, an answer is not worth its price: where the caller named no cap, rather refuse.
const LEAST_OUTPUT: u64 = 16;
/// Where the caller named no cap, one request takes at most this part of the balance, so that
/// others that run beside it get something too.
const FAIR_SHARE: i64 = 8;
/// A fair share that buys fewer output tokens than this is too small to be fair: the whole balance
/// may be used.
const USEFUL_OUTPUT: u64 = 256;

/// A request that wants to run.
#[derive(Debug, Clone)]
pub struct HoldRequest {
    /// Names it for ever.
    pub request_id: RequestId,
    /// Who asks.
    pub device: DeviceId,
    /// SHA-256 of what is asked: the same id must come with the same digest.
    pub digest: [u8; 32],
    /// This process.
    pub boot: Boot,
    /// The wall clock.
    pub now_ms: u64,
    /// The provider's name.
    pub provider: String,
    /// The provider's model.
    pub model: String,
    /// The prices that will be charged.
    pub price: PriceSnapshot,
    /// The most input tokens that the provider can count.
    pub input_bound: u64,
    /// Bytes of input, for an estimate if the provider never counts.
    pub input_bytes: u64,
    /// The cap that the caller named.
    pub asked_output: Option<u32>,
    /// The cap where the caller named none: model's ceiling and operator's default, the smaller.
    pub default_output: u32,
    /// A smaller cap is better than a refusal.
    pub may_reduce: bool,
    /// Answers asked for; each may use the whole cap.
    pub choices: u32,
    /// Output tokens billed beyond the cap.
    pub extra_output: u64,
    /// The caller's own limit for the cost.
    pub cost_cap: Option<NanoUsd>,
    /// The tenant's requests of the last minute. Kept in memory for as long as it matters; a restart
    /// of the relay forgets it.
    pub rate: Arc<Rate>,
    /// Requests per minute.
    pub per_minute: u32,
    /// Requests at once.
    pub at_once: u32,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HoldOutcome {
    /// The money is set aside.
    Held {
        /// How much, in nano-USD.
        amount: NanoUsd,
        /// The cap to send to the provider, in tokens.
        output_cap: u32,
    },
    /// The request was settled before: its recorded `End`, byte for byte.
    Finished {
        /// The encoded `End`.
        end: Vec<u8>,
        /// Provider and model that ran it.
        provider: String,
        /// See `provider`.
        model: String,
    },
    /// It may not run.
    Refused(HoldRefusal),
}

/// Why a request may not run. Nothing was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HoldRefusal {
    /// The balance does not cover it.
    PaymentRequired {
        /// How much is missing, in nano-USD.
        missing: NanoUsd,
        /// What is there.
        balance: NanoUsd,
    },
    /// It would cost more than the caller's own limit.
    AboveCostCap {
        /// By how much, in nano-USD.
        missing: NanoUsd,
    },
    /// Too many requests in this minute.
    RateLimited {
        /// Try again after this long.
        retry_after_ms: u64,
    },
    /// Too many requests at once.
    TooManyAtOnce,
    /// The same id came with another body or from another device.
    Conflict,
    /// The same request is running.
    InProgress,
    /// The tenant is suspended.
    Suspended,
}

/// Checks everything and sets the money aside, in the caller's transaction.
pub fn hold(connection: &Connection, request: &HoldRequest) -> Result<HoldOutcome, StoreError> {
    let standing = standing(connection)?;
    if standing.suspended {
        return Ok(HoldOutcome::Refused(HoldRefusal::Suspended));
    }
    let known = known(connection, request)?;
    if let Known::Answer(outcome) = known {
        return Ok(outcome);
    }
    if standing.open >= i64::from(request.at_once) {
        return Ok(HoldOutcome::Refused(HoldRefusal::TooManyAtOnce));
    }
    let output_cap = match output_cap(request, standing.prepaid)? {
        Ok(cap) => cap,
        Err(refusal) => return Ok(HoldOutcome::Refused(refusal)),
    };
    let limit = Limit::per_minute(request.per_minute);
    if let Err(wait_us) = request.rate.take(limit, request.now_ms.saturating_mul(1000)) {
        return Ok(HoldOutcome::Refused(HoldRefusal::RateLimited { retry_after_ms: wait_us.div_ceil(1000) }));
    }
    let amount = request.price.most(request.input_bound, total_output(request, output_cap))?;
    Transfer::of_request(request.now_ms, TransferKind::Hold, request.request_id).amount(amount).post(connection)?;
    write_request(connection, request, amount)?;
    Ok(HoldOutcome::Held { amount, output_cap })
}

/// What decides whether anything may run.
struct Standing {
    suspended: bool,
    /// Holds that are open.
    open: i64,
    prepaid: NanoUsd,
}

/// In one statement: a request waits for it.
fn standing(connection: &Connection) -> Result<Standing, StoreError> {
    let standing = connection
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM meta WHERE key = 'suspended' AND value = '1'),
                    (SELECT count(*) FROM request WHERE state = 0),
                    (SELECT balance_nano FROM account WHERE id = ?1)",
        )?
        .query_row([Account::Prepaid as i64], |row| {
            Ok(Standing { suspended: row.get(0)?, open: row.get(1)?, prepaid: NanoUsd(row.get(2)?) })
        })?;
    Ok(standing)
}

enum Known {
    Answer(HoldOutcome),
    /// Unknown, or voided before: it may run.
    MayRun,
}

fn known(connection: &Connection, request: &HoldRequest) -> Result<Known, StoreError> {
    type Row = (String, Vec<u8>, i64, Option<Vec<u8>>, String, String);
    let row: Option<Row> = connection
        .prepare_cached("SELECT device, digest, state, end, provider, model FROM request WHERE request_id = ?1")?
        .query_row([request.request_id.0], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?))
        })
        .optional()?;
    let Some((device, digest, state, end, provider, model)) = row else {
        return Ok(Known::MayRun);
    };
    let refused = |refusal| Ok(Known::Answer(HoldOutcome::Refused(refusal)));
    if device != request.device.as_str() || digest != request.digest {
        return refused(HoldRefusal::Conflict);
    }
    match (state, end) {
        (state::OPEN, _) => refused(HoldRefusal::InProgress),
        (state::SETTLED, Some(end)) => Ok(Known::Answer(HoldOutcome::Finished { end, provider, model })),
        (state::SETTLED, None) => {
            Err(StoreError::Corrupt { what: "a settled request", why: format!("{} has no End", request.request_id) })
        }
        _ => Ok(Known::MayRun),
    }
}

/// The output tokens that the provider may bill at that cap.
fn total_output(request: &HoldRequest, cap: u32) -> u64 {
    (u64::from(cap) * u64::from(request.choices)).saturating_add(request.extra_output)
}

/// The cap that is asked for, or that the money allows.
fn output_cap(request: &HoldRequest, available: NanoUsd) -> Result<Result<u32, HoldRefusal>, StoreError> {
    let spendable = request.cost_cap.map_or(available, |cap| cap.min(available));
    let affordable = |money: NanoUsd| -> Result<u64, StoreError> {
        let output = request.price.affordable_output(money, request.input_bound)?;
        Ok(output.saturating_sub(request.extra_output) / u64::from(request.choices))
    };
    let wanted = request.asked_output.unwrap_or(request.default_output);
    let (cap, least) = match request.asked_output {
        Some(asked) if !request.may_reduce => (u64::from(asked), u64::from(asked)),
        Some(asked) => (affordable(spendable)?.min(asked.into()), LEAST_OUTPUT.min(asked.into())),
        None => {
            let share = affordable(NanoUsd(spendable.0 / FAIR_SHARE))?;
            let fair = if share >= USEFUL_OUTPUT { share } else { affordable(spendable)?.min(USEFUL_OUTPUT) };
            (fair.min(wanted.into()), LEAST_OUTPUT.min(wanted.into()))
        }
    };
    let needed_cap = u32::try_from(cap.max(least)).unwrap_or(u32::MAX);
    let needed = request.price.most(request.input_bound, total_output(request, needed_cap))?;
    if needed > available {
        return Ok(Err(HoldRefusal::PaymentRequired { missing: needed - available, balance: available }));
    }
    match request.cost_cap {
        Some(limit) if needed > limit => Ok(Err(HoldRefusal::AboveCostCap { missing: needed - limit })),
        _ => Ok(Ok(needed_cap)),
    }
}

fn write_request(connection: &Connection, request: &HoldRequest, amount: NanoUsd) -> Result<(), StoreError> {
    let price = serde_json::to_string(&request.price)
        .map_err(|error| StoreError::Failed { operation: "encode a price", why: error.to_string() })?;
    connection
        .prepare_cached(
            "INSERT INTO request (request_id, device, digest, state, boot, provider, model, price, input_bytes,
                                  held_nano, created_ms)
             VALUES (?1, ?2, ?3, 0, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
             ON CONFLICT (request_id) DO UPDATE SET state = 0, boot = excluded.boot, provider = excluded.provider,
                 model = excluded.model, price = excluded.price, input_bytes = excluded.input_bytes,
                 held_nano = excluded.held_nano, created_ms = excluded.created_ms, finished_ms = NULL",
        )?
        .execute(params![
            request.request_id.0,
            request.device.as_str(),
            request.digest,
            request.boot.to_text(),
            request.provider,
            request.model,
            price,
            i64::try_from(request.input_bytes).unwrap_or(i64::MAX),
            amount.0,
            time(request.now_ms),
        ])?;
    Ok(())
}
