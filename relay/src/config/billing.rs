//! What is charged.

use super::check::Wrong;
use super::models::set;
use super::raw::{RawBilling, RawPrice, RawRecorded, RawRecordedClass};
use crate::pricing::PriceList;
use crate::store::ledger::hold::Multipliers;
use crate::tenants::FlushPolicy;
use belay_protocol::money::NanoUsd;
use std::collections::BTreeMap;

/// What is charged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Billing {
    /// Applied to every price line of a request, by the tenant's tier, in basis points.
    pub multipliers: Multipliers,
    /// What a tenant of the free tier has in a month, in nano-USD.
    pub free_allowance: NanoUsd,
    /// When usage is handed to central.
    pub flush: FlushPolicy,
    /// For inference on tenants' own computers.
    pub local: Recorded,
    /// For indexing, embedding and search of knowledge.
    pub knowledge: Recorded,
    /// Where a tenant can pay; `None`: only the operator adds money.
    pub topup_url: Option<String>,
    /// For models that have no price of their own, neither here nor in the catalogue.
    pub default_price: Option<PriceList>,
    /// The output cap where the caller names none, in tokens.
    pub default_max_output: u32,
}

pub(super) fn billing(raw: &RawBilling, raw_recorded: &RawRecorded) -> Result<Billing, Wrong> {
    let multiplier = |key, value: Option<u32>, default: u32| {
        let value = value.unwrap_or(default);
        let why = "must be from 1 to 1000000; 10000 charges the price itself";
        if (1..=1_000_000).contains(&value) { Ok(value) } else { Err((key, why.to_owned())) }
    };
    let dollars = |key, text: Option<&str>, default: &str| {
        let text = text.unwrap_or(default);
        let amount = text.parse().ok().filter(|amount| *amount >= NanoUsd::ZERO);
        amount.ok_or_else(|| (key, format!("{text:?} is no amount of dollars; write for example \"1.00\"")))
    };
    let free = RawPrice { input: "0".into(), output: "0".into(), ..RawPrice::default() };
    Ok(Billing {
        multipliers: Multipliers {
            free: multiplier("billing.multiplier_free", raw.multiplier_free, 10_000)?,
            managed: multiplier("billing.multiplier_managed", raw.multiplier_managed, 10_300)?,
            byok: multiplier("billing.multiplier_byok", raw.multiplier_byok, 3_000)?,
        },
        free_allowance: dollars("billing.free_allowance", raw.free_allowance.as_deref(), "0")?,
        flush: FlushPolicy {
            at: dollars("billing.flush_at", raw.flush_at.as_deref(), "5")?,
            after_ms: raw.flush_after_s.unwrap_or(60).saturating_mul(1000),
        },
        local: recorded(
            ("recorded.local", &raw_recorded.local),
            multiplier("billing.multiplier_local", raw.multiplier_local, 10_000)?,
            // The tenant has paid for its electricity already.
            Some(&free),
        )?,
        knowledge: recorded(
            ("recorded.knowledge", &raw_recorded.knowledge),
            multiplier("billing.multiplier_knowledge", raw.multiplier_knowledge, 13_000)?,
            None,
        )?,
        topup_url: topup_url(raw)?,
        default_price: raw
            .default_price
            .as_ref()
            .map(|price| Ok(PriceList(vec![set(price).map_err(|why| ("billing.default_price", why))?])))
            .transpose()?,
        default_max_output: raw.default_max_output_tokens.unwrap_or(4096),
    })
}

/// What is charged for usage that the relay did not see, by the kind of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// Applied to every price line, in basis points.
    pub multiplier: u32,
    /// For all models but those below; `None`: they are refused.
    pub price: Option<PriceList>,
    /// By the model's name.
    pub models: BTreeMap<String, PriceList>,
}

fn recorded(
    (key, raw): (&'static str, &RawRecordedClass),
    multiplier: u32,
    default: Option<&RawPrice>,
) -> Result<Recorded, Wrong> {
    let list = |price| Ok(PriceList(vec![set(price).map_err(|why| (key, why))?]));
    let price = raw.price.as_ref().or(default).map(list).transpose()?;
    let models = raw.models.iter().map(|(name, price)| Ok((name.clone(), list(price)?)));
    Ok(Recorded { multiplier, price, models: models.collect::<Result<_, Wrong>>()? })
}

fn topup_url(raw: &RawBilling) -> Result<Option<String>, Wrong> {
    let Some(url) = &raw.topup_url else { return Ok(None) };
    let parsed = reqwest::Url::parse(url).ok().filter(|url| url.scheme() == "https");
    if parsed.is_none() || url.len() > 2000 {
        return Err(("billing.topup_url", format!("{url:?} is no https address")));
    }
    Ok(Some(url.clone()))
}
