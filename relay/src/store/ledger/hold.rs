//! Setting money aside before a provider is called.

use super::budget::{self, Budget, Room};
use super::cap::{self, Cap};
use super::chain::Chain;
use super::credits;
use super::provider_keys::{self, SealedKey};
use super::rates::{RateRefusal, Rates, Remaining};
use super::request::{self, Offer};
use super::standing::{Standing, Tier, standing, suspend};
use super::{Boot, state};
use crate::store::StoreError;
use crate::store::ledger::usage::Class;
use crate::store::sessions;
use crate::store::sessions::turn::{self, Question};
use belay_protocol::calendar;
use belay_protocol::id::{DeviceId, RequestId, SessionId};
use belay_protocol::money::NanoUsd;
use rusqlite::{Connection, OptionalExtension};
use std::sync::Arc;

/// A request that wants to run.
#[derive(Debug, Clone)]
pub struct HoldRequest {
    /// Names it for ever.
    pub request_id: RequestId,
    /// Who asks.
    pub device: DeviceId,
    /// The API key that it is asked under.
    pub key: Option<String>,
    /// SHA-256 of what is asked: the same id must come with the same digest.
    pub digest: [u8; 32],
    /// This process.
    pub boot: Boot,
    /// The wall clock.
    pub now_ms: u64,
    /// Who may serve it, the first choice first, and at which prices.
    pub offers: Vec<Offer>,
    /// Multipliers by tier, in basis points.
    pub multipliers: Multipliers,
    /// What the free tier has in a month, in nano-USD.
    pub allowance: NanoUsd,
    /// The most input tokens that the provider can count.
    pub input_bound: u64,
    /// It refers to what its provider keeps: under a key that several tenants share, nobody knows whose
    /// that is.
    pub refers: Option<&'static str>,
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
    /// What it asks in a session.
    pub question: Option<Question>,
    /// The caller's own limit for the cost.
    pub cost_cap: Option<NanoUsd>,
    /// The tenant's requests of the last minute, in memory for as long as they matter; a restart of
    /// the relay forgets them. A hold that the store has to run again, for the fault of a neighbour, counts
    /// twice.
    pub rates: Arc<Rates>,
    /// Requests and tokens per minute where no budget says otherwise.
    pub per_minute: PerMinute,
    /// Requests at once.
    pub at_once: u32,
}

/// How often a tenant may ask, where no budget of its own says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PerMinute {
    /// Requests in any minute.
    pub requests: u32,
    /// Tokens in any minute; `None`: as many as can be paid.
    pub tokens: Option<u32>,
}

/// A multiplier for each tier, in basis points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Multipliers {
    /// For the free tier.
    pub free: u32,
    /// For tenants that pay with the relay's keys.
    pub managed: u32,
    /// For tenants with keys of their own.
    pub byok: u32,
}

impl Multipliers {
    /// That of a tier.
    #[must_use]
    pub fn of(self, tier: Tier) -> u32 {
        match tier {
            Tier::Free => self.free,
            Tier::Managed => self.managed,
            Tier::Byok => self.byok,
        }
    }
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HoldOutcome {
    /// The money is set aside.
    Held(Held),
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

/// Money set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// How much, in nano-USD.
    pub amount: NanoUsd,
    /// The cap to send to the provider, in tokens.
    pub output_cap: u32,
    /// Tokens that it was counted as, for the limits per minute.
    pub counted: u64,
    /// What is left of the limits per minute.
    pub remaining: Vec<Remaining>,
    /// Which of the offers may be taken: the request's terms number them in this order.
    pub usable: Vec<Usable>,
}

/// An offer that may be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usable {
    /// Its place among the request's offers.
    pub place: usize,
    /// The tenant's own key for its provider, if that is what the tenant pays with.
    pub key: Option<SealedKey>,
}

/// Why a request may not run. Nothing was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HoldRefusal {
    /// The balance does not cover it.
    PaymentRequired {
        /// How much is missing, in nano-USD.
        missing: NanoUsd,
        /// What could be spent.
        available: NanoUsd,
        /// What the tenant pays with.
        tier: Tier,
        /// It was suspended for that.
        suspended: bool,
    },
    /// A budget does not cover it.
    OverBudget {
        /// How much is missing, in nano-USD.
        missing: NanoUsd,
        /// Which budget, and when it begins anew.
        room: Room,
        /// Until then, in milliseconds.
        retry_after_ms: u64,
    },
    /// It would cost more than the caller's own limit.
    AboveCostCap {
        /// By how much, in nano-USD.
        missing: NanoUsd,
    },
    /// Too many requests or tokens in this minute.
    RateLimited(RateRefusal),
    /// Too many requests at once.
    TooManyAtOnce,
    /// The tenant has no key of its own for any of the providers.
    NoProviderKey {
        /// One of them.
        provider: String,
    },
    /// It refers to what a provider keeps under a key that tenants share.
    SharedKey {
        /// By which field.
        field: &'static str,
    },
    /// The same id came with another body or from another device.
    Conflict,
    /// The same request is running.
    InProgress,
    /// The tenant is suspended.
    Suspended,
    /// Its session takes no question.
    Session {
        /// Which one.
        name: SessionId,
        /// Why not.
        refusal: sessions::Refusal,
    },
}

/// Checks everything and sets the money aside, in the caller's transaction.
pub fn hold(connection: &Connection, request: &HoldRequest) -> Result<HoldOutcome, StoreError> {
    let mut chain = Chain::at(connection, request.now_ms)?;
    let mut standing = standing(connection, &chain)?;
    let refused = |refusal| Ok(HoldOutcome::Refused(refusal));
    if standing.terms.suspended {
        return refused(HoldRefusal::Suspended);
    }
    if let Known::Answer(outcome) = known(connection, request)? {
        return Ok(outcome);
    }
    if let Some(question) = &request.question
        && let Err(refusal) = turn::check(connection, question)?
    {
        return refused(HoldRefusal::Session { name: question.session.clone(), refusal });
    }
    if standing.open >= i64::from(request.at_once) {
        return refused(HoldRefusal::TooManyAtOnce);
    }
    let tier = standing.terms.tier;
    if let Some(field) = request.refers.filter(|_| tier != Tier::Byok) {
        return refused(HoldRefusal::SharedKey { field });
    }
    let (usable, priced) = usable(connection, request, tier)?;
    if priced.is_empty() {
        let provider = request.offers.first().map(|offer| offer.provider.clone()).unwrap_or_default();
        return refused(HoldRefusal::NoProviderKey { provider });
    }
    if refresh_credits(connection, &standing, request.allowance, request.now_ms)? {
        chain = Chain::at(connection, request.now_ms)?;
        standing = self::standing(connection, &chain)?;
    }
    let budgets = budget::of(connection, &standing, &request.device, request.key.as_deref())?;
    let room = budget::room(connection, &budgets, chain.now_ms())?;
    let Cap { output_cap, amount } = match cap::choose(request, &priced, &standing, room.as_ref())? {
        Ok(cap) => cap,
        Err(short) => return Ok(HoldOutcome::Refused(refuse(connection, request, &standing, room, short)?)),
    };
    let counted = cap::estimated_tokens(request, output_cap);
    let remaining = match take_rates(request, &budgets, counted) {
        Ok(remaining) => remaining,
        Err(refusal) => return refused(HoldRefusal::RateLimited(refusal)),
    };
    set_aside(connection, request, (tier, &priced), amount, standing.credits, &mut chain)?;
    if let Some(question) = &request.question {
        turn::ask(connection, request.request_id, question, request.now_ms)?;
    }
    Ok(HoldOutcome::Held(Held { amount, output_cap, counted, remaining, usable }))
}

enum Known {
    Answer(HoldOutcome),
    /// Unknown, or voided before: it may run.
    MayRun,
}

fn known(connection: &Connection, request: &HoldRequest) -> Result<Known, StoreError> {
    type Row = (String, Vec<u8>, i64, Option<Vec<u8>>, Option<String>, Option<String>);
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
        (state::SETTLED, Some(end)) => {
            let (provider, model) = (provider.unwrap_or_default(), model.unwrap_or_default());
            Ok(Known::Answer(HoldOutcome::Finished { end, provider, model }))
        }
        (state::SETTLED, None) => {
            Err(StoreError::Corrupt { what: "a settled request", why: format!("{} has no End", request.request_id) })
        }
        _ => Ok(Known::MayRun),
    }
}

/// The offers whose provider may be called for the tenant, at its multiplier: with keys of its own, those
/// it has a key for.
fn usable(connection: &Connection, request: &HoldRequest, tier: Tier) -> Result<(Vec<Usable>, Vec<Offer>), StoreError> {
    let (mut usable, mut priced) = (vec![], vec![]);
    for (place, offer) in request.offers.iter().enumerate() {
        let needs_key = tier == Tier::Byok && !offer.keyless;
        let key = if needs_key { provider_keys::get(connection, &offer.provider)? } else { None };
        if !needs_key || key.is_some() {
            usable.push(Usable { place, key });
            priced.push(offer.multiplied(request.multipliers.of(tier)));
        }
    }
    Ok((usable, priced))
}

/// Grants the free tier its allowance of the month, once, and takes back credits that have expired. True
/// if anything changed.
pub fn refresh(connection: &Connection, allowance: NanoUsd, now_ms: u64) -> Result<bool, StoreError> {
    let standing = standing(connection, &Chain::at(connection, now_ms)?)?;
    refresh_credits(connection, &standing, allowance, now_ms)
}

pub(super) fn refresh_credits(
    connection: &Connection,
    standing: &Standing,
    allowance: NanoUsd,
    now_ms: u64,
) -> Result<bool, StoreError> {
    let granted = standing.terms.tier == Tier::Free && allow(connection, allowance, now_ms)?;
    // Without credits there is nothing that could have expired.
    let expired = standing.credits > NanoUsd::ZERO && credits::expire(connection, now_ms)?;
    Ok(granted || expired)
}

/// Grants the allowance of this month, once. True if it did.
fn allow(connection: &Connection, allowance: NanoUsd, now_ms: u64) -> Result<bool, StoreError> {
    let month = calendar::month(now_ms);
    let name = format!("allowance-{}", calendar::month_text(month));
    if allowance == NanoUsd::ZERO || credits::is_granted(connection, &name)? {
        return Ok(false);
    }
    credits::grant(connection, allowance, &name, None, calendar::month_start_ms(month + 1), now_ms)?;
    Ok(true)
}

/// Says what was too small, and suspends the tenant if that is what its terms want.
fn refuse(
    connection: &Connection,
    request: &HoldRequest,
    standing: &Standing,
    room: Option<Room>,
    short: cap::Short,
) -> Result<HoldRefusal, StoreError> {
    match (short, room) {
        (cap::Short::CostCap { missing }, _) => Ok(HoldRefusal::AboveCostCap { missing }),
        (cap::Short::Budget { missing }, Some(room)) => {
            let retry_after_ms = room.renews_ms.saturating_sub(request.now_ms);
            Ok(HoldRefusal::OverBudget { missing, room, retry_after_ms })
        }
        (cap::Short::Budget { missing } | cap::Short::Money { missing }, _) => {
            let terms = standing.terms;
            let suspended = terms.suspend_at_ceiling && standing.is_at_ceiling();
            if suspended {
                suspend(connection)?;
            }
            let available = standing.available();
            Ok(HoldRefusal::PaymentRequired { missing, available, tier: terms.tier, suspended })
        }
    }
}

fn take_rates(request: &HoldRequest, budgets: &[Budget], tokens: u64) -> Result<Vec<Remaining>, RateRefusal> {
    let limits = super::rates::limits(budgets, request.per_minute);
    request.rates.take(&limits, tokens, request.now_ms)
}

/// Moves the money and writes the request down: first what the credits cover.
fn set_aside(
    connection: &Connection,
    request: &HoldRequest,
    (tier, offers): (Tier, &[Offer]),
    amount: NanoUsd,
    credits: NanoUsd,
    chain: &mut Chain<'_>,
) -> Result<(), StoreError> {
    let from_credits = amount.min(credits);
    let opened = request::Opened {
        request_id: request.request_id,
        device: request.device.as_str(),
        key: request.key.as_deref().unwrap_or(""),
        class: if tier == Tier::Byok { Class::Byok } else { Class::Cloud },
        digest: request.digest,
        boot: request.boot.to_text(),
        terms: request::keep_terms(connection, offers)?,
        input_bytes: i64::try_from(request.input_bytes).unwrap_or(i64::MAX),
        held: amount,
        from_credits,
        created_ms: super::time(request.now_ms),
    };
    request::set_aside(connection, &opened, chain)
}
