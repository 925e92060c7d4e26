//! What callers are told of a request that did not run.

use super::session;
use crate::store::StoreError;
use crate::store::ledger::budget::Measure;
use crate::store::ledger::hold::HoldRefusal;
use crate::store::ledger::rates::RateRefusal;
use crate::store::ledger::standing::Tier;
use belay_protocol::id::RequestId;
use belay_protocol::message::{Failed, FailureCode};
use belay_protocol::money::NanoUsd;
use tracing::warn;

/// A failure with its request, ready to be sent.
pub(crate) fn failed(id: RequestId, code: FailureCode, message: impl Into<String>, remedy: &str) -> Failed {
    Failed {
        code,
        message: message.into(),
        remedy: remedy.to_owned(),
        request_id: Some(id),
        retry_after_ms: None,
        missing: None,
    }
}

/// The books cannot be written or read.
pub(super) fn store_failed(id: RequestId, error: &StoreError) -> Failed {
    warn!(request = %id, %error, "the store failed");
    let mut failure = failed(
        id,
        FailureCode::STORE_UNAVAILABLE,
        "the relay could not write its books",
        "try again with the same request id; it is charged once at most",
    );
    failure.retry_after_ms = Some(1000);
    failure
}

/// Too many requests or tokens in this minute.
pub(super) fn rate_limited(id: RequestId, refusal: &RateRefusal) -> Failed {
    let RateRefusal { bound, retry_after_ms } = refusal;
    let what = if bound.measure == Measure::TokensMinute { "tokens" } else { "requests" };
    Failed {
        retry_after_ms: Some(*retry_after_ms),
        ..failed(
            id,
            FailureCode::RATE_LIMITED,
            format!("too many {what} in this minute: {} may have {}", bound.scope, bound.count),
            "wait as long as retry_after_ms says",
        )
    }
}

/// The book says no.
pub(super) fn refused(id: RequestId, refusal: &HoldRefusal) -> Failed {
    let make = |code, message: String, remedy: &str| failed(id, code, message, remedy);
    match refusal {
        HoldRefusal::PaymentRequired { missing, available, tier, suspended } => {
            let has = if *tier == Tier::Free { "this month's allowance" } else { "the balance" };
            let then = if *suspended { "; the tenant is suspended" } else { "" };
            let remedy = match tier {
                Tier::Free => "wait for the next month's allowance, or ask the operator for a paid tier",
                Tier::Managed | Tier::Byok => "top up, ask for fewer output tokens, or allow a smaller answer",
            };
            Failed {
                missing: Some(*missing),
                ..make(
                    FailureCode::PAYMENT_REQUIRED,
                    format!("{has} of {available} does not cover this request; {missing} is missing{then}"),
                    remedy,
                )
            }
        }
        HoldRefusal::OverBudget { missing, room, retry_after_ms } => Failed {
            missing: Some(*missing),
            retry_after_ms: Some(*retry_after_ms),
            ..make(
                FailureCode::PAYMENT_REQUIRED,
                format!(
                    "the budget of {} for this {} is {}, with {} left; {missing} is missing",
                    room.budget.scope,
                    if room.budget.measure == Measure::SpendDay { "day" } else { "month" },
                    NanoUsd(room.budget.amount),
                    room.left
                ),
                "wait until the budget begins anew, ask for fewer output tokens, or have it raised",
            )
        },
        HoldRefusal::AboveCostCap { missing } => Failed {
            missing: Some(*missing),
            ..make(
                FailureCode::PAYMENT_REQUIRED,
                format!("the request could cost {missing} more than its own cost cap"),
                "raise the cost cap, ask for fewer output tokens, or allow a smaller answer",
            )
        },
        HoldRefusal::RateLimited(refusal) => rate_limited(id, refusal),
        HoldRefusal::NoProviderKey { provider } => make(
            FailureCode::PAYMENT_REQUIRED,
            format!("the tenant pays with keys of its own and has none for provider {provider}"),
            "have one set, or choose a model of another provider",
        ),
        HoldRefusal::SharedKey { field } => make(
            FailureCode::INVALID_REQUEST,
            format!("the request names {field}, which the provider keeps under a key that tenants share"),
            "send the content itself, or use a provider key of your own",
        ),
        HoldRefusal::Session { name, refusal } => {
            let (code, message, remedy) = session::refused(name, refusal);
            make(code, message, remedy)
        }
        HoldRefusal::TooManyAtOnce => Failed {
            retry_after_ms: Some(1000),
            ..make(FailureCode::RATE_LIMITED, "too many requests at once".into(), "wait until one has ended")
        },
        HoldRefusal::Conflict => make(
            FailureCode::CONFLICT,
            "this request id was used before, with another body or by another device".into(),
            "make a new request id for every new request",
        ),
        HoldRefusal::InProgress => Failed {
            retry_after_ms: Some(1000),
            ..make(FailureCode::IN_PROGRESS, "this request is running already".into(), "wait for its end and ask again")
        },
        HoldRefusal::Suspended => {
            make(FailureCode::SUSPENDED, "the tenant is suspended".into(), "ask the operator of the relay")
        }
    }
}
