//! How long an answer may be: what the caller asks for, what there is money for, and what is fair to
//! those that ask at the same time.

use super::budget::Room;
use super::hold::HoldRequest;
use super::request::Offer;
use super::standing::Standing;
use crate::store::StoreError;
use belay_protocol::dialect::usage::BYTES_PER_ESTIMATED_TOKEN;
use belay_protocol::money::{MoneyError, NanoUsd};

/// Below this, an answer is not worth its price: where the caller named no cap, rather refuse.
const LEAST_OUTPUT: u64 = 16;
/// Where the caller named no cap, one request takes at most this part of what there is, with what is
/// set aside already: so many can run at once, and each gets the same.
const FAIR_SHARE: i64 = 10;
/// A fair share that buys fewer output tokens than this is of no use to anybody: as many as that may be
/// taken from what is left.
const USEFUL_OUTPUT: u64 = 64;

/// What is to be set aside, and for how many output tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cap {
    pub(crate) output_cap: u32,
    pub(crate) amount: NanoUsd,
}

/// What is too small for the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Short {
    Money { missing: NanoUsd },
    Budget { missing: NanoUsd },
    CostCap { missing: NanoUsd },
}

/// Chooses the cap, and what to set aside for it: the most that it can cost at the dearest of the
/// offers.
pub(crate) fn choose(
    request: &HoldRequest,
    offers: &[Offer],
    standing: &Standing,
    room: Option<&Room>,
) -> Result<Result<Cap, Short>, StoreError> {
    let available = standing.available();
    let bounds = [Some(available), room.map(|room| room.left), request.cost_cap];
    let spendable = bounds.into_iter().flatten().min().unwrap_or(available);
    let wanted = request.asked_output.unwrap_or(request.default_output);
    let affordable = |money: NanoUsd| affordable(request, offers, money);
    let (cap, least) = match request.asked_output {
        Some(asked) if !request.may_reduce => (u64::from(asked), u64::from(asked)),
        Some(asked) => (affordable(spendable)?.min(asked.into()), LEAST_OUTPUT.min(asked.into())),
        None => {
            let whole = available.0.saturating_add(standing.held.0);
            let share = affordable(spendable.min(NanoUsd(whole / FAIR_SHARE)))?;
            let fair = share.max(affordable(spendable)?.min(USEFUL_OUTPUT));
            (fair.min(wanted.into()), LEAST_OUTPUT.min(wanted.into()))
        }
    };
    let output_cap = u32::try_from(cap.max(least)).unwrap_or(u32::MAX);
    let amount = most(request, offers, output_cap)?;
    if let Some(missing) = standing.missing(amount) {
        return Ok(Err(Short::Money { missing }));
    }
    match (room, request.cost_cap) {
        (Some(room), _) if amount > room.left => Ok(Err(Short::Budget { missing: amount - room.left })),
        (_, Some(limit)) if amount > limit => Ok(Err(Short::CostCap { missing: amount - limit })),
        _ => Ok(Ok(Cap { output_cap, amount })),
    }
}

/// The output tokens that the provider may bill at that cap.
fn total_output(request: &HoldRequest, cap: u32) -> u64 {
    (u64::from(cap) * u64::from(request.choices)).saturating_add(request.extra_output)
}

fn most(request: &HoldRequest, offers: &[Offer], cap: u32) -> Result<NanoUsd, MoneyError> {
    let output = total_output(request, cap);
    offers.iter().try_fold(NanoUsd::ZERO, |most, offer| Ok(most.max(offer.price.most(request.input_bound, output)?)))
}

/// How long an answer `money` buys, whichever of the offers gives it.
fn affordable(request: &HoldRequest, offers: &[Offer], money: NanoUsd) -> Result<u64, MoneyError> {
    offers.iter().try_fold(u64::MAX, |least, offer| {
        let output = offer.price.affordable_output(money, request.input_bound)?;
        Ok(least.min(output.saturating_sub(request.extra_output) / u64::from(request.choices)))
    })
}

/// Tokens that a request is counted as until its usage is known: its text, and a quarter of what it may
/// answer (few answers are as long as they may be).
pub(crate) fn estimated_tokens(request: &HoldRequest, output_cap: u32) -> u64 {
    request.input_bytes / BYTES_PER_ESTIMATED_TOKEN + total_output(request, output_cap) / 4
}
