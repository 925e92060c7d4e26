//! What Stripe tells, and when a balance is topped up by itself.

use super::Http;
use super::money::Nothing;
use super::reply::{Asked, json, raw};
use super::shapes::{CENT, Cents, Problems};
use crate::store::central::keys::KeyScope;
use crate::store::central::stripe::AutoTopUp;
use crate::stripe::{Stripe, WebhookError};
use axum::extract::{Request, State};
use axum::response::Response;
use belay_http::refusal::Refusal;
use belay_protocol::message::FailureCode;
use belay_protocol::money::NanoUsd;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use tracing::warn;
use utoipa::ToSchema;

/// The largest event that is read, in bytes, and how long it may take to come.
const MOST: usize = 256 << 10;
const WITHIN: Duration = Duration::from_secs(10);
/// Events that are read at once: whoever sends them has not been asked who he is.
pub(super) const AT_ONCE: usize = 64;

fn service(http: &Http) -> Result<&Arc<Stripe>, Refusal> {
    http.shared.escalator.stripe.as_ref().ok_or_else(|| {
        let message = "this relay takes no payments";
        Refusal::new(StatusCode::NOT_FOUND, FailureCode::UNSUPPORTED.name(), message)
            .remedy("ask the operator of the relay")
    })
}

fn unavailable(message: &str) -> Refusal {
    let mut refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, FailureCode::STORE_UNAVAILABLE.name(), message);
    refusal.retry_after_ms = Some(1000);
    refusal
}

/// An event of Stripe's, signed by it. Answered once what it tells is in the books for good; whatever is answered with
/// 503 is to be sent again.
pub(super) async fn webhook(State(http): State<Arc<Http>>, request: Request) -> Response {
    let mut asked = Asked::new(request);
    let answered: Result<Response, Refusal> = async {
        let stripe = service(&http)?;
        let signature = asked.head.headers.get("stripe-signature").and_then(|value| value.to_str().ok());
        let signature = signature.unwrap_or_default().to_owned();
        // One that cannot be Stripe's is not read.
        stripe.looks_signed(&signature).map_err(|error| Refusal::bad_request(error.to_string()))?;
        let Ok(_place) = http.hooks.try_acquire() else {
            return Err(unavailable("too many events at once; send it again"));
        };
        let body = raw(&mut asked, MOST, WITHIN).await?;
        match stripe.webhook(&signature, &body).await {
            Ok(()) => json(&serde_json::json!({ "received": true })),
            Err(error @ (WebhookError::Signature(_) | WebhookError::Malformed)) => {
                warn!(%error, "a webhook is not taken");
                Err(Refusal::bad_request(error.to_string()))
            }
            Err(error) => {
                warn!(%error, "a webhook is to come again");
                Err(unavailable("what is told cannot be booked now; send it again"))
            }
        }
    }
    .await;
    asked.done(&http, answered).await
}

/// When a balance is topped up by itself.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AutoAnswer {
    enabled: bool,
    threshold_nano_usd: Option<i64>,
    amount_nano_usd: Option<i64>,
    amount_cents: Option<Cents>,
    monthly_cap_nano_usd: Option<i64>,
    /// Why the last attempt was refused; the next one waits for a day.
    last_error: Option<String>,
}

impl AutoAnswer {
    fn of(auto: Option<AutoTopUp>) -> Self {
        let enabled = auto.is_some();
        let number = |read: fn(&AutoTopUp) -> NanoUsd| auto.as_ref().map(|auto| read(auto).0);
        Self {
            enabled,
            threshold_nano_usd: number(|auto| auto.threshold),
            amount_nano_usd: number(|auto| auto.amount),
            amount_cents: auto.as_ref().map(|auto| Cents(auto.amount)),
            monthly_cap_nano_usd: number(|auto| auto.monthly_cap),
            last_error: auto.map(|auto| auto.last_error).filter(|why| !why.is_empty()),
        }
    }
}

/// When the balance is topped up by itself, with the way to pay that was stored with the last payment.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"enabled": true, "threshold_nano_usd": 5_000_000_000i64, "amount_nano_usd": 20_000_000_000i64,
    "monthly_cap_nano_usd": 100_000_000_000i64}))]
pub(super) struct AutoBody {
    enabled: bool,
    /// Below this balance.
    #[serde(default)]
    threshold_nano_usd: Option<i64>,
    /// So much; whole cents.
    #[serde(default)]
    amount_nano_usd: Option<i64>,
    /// At most so much in a calendar month (UTC).
    #[serde(default)]
    monthly_cap_nano_usd: Option<i64>,
}

/// When the balance is topped up by itself.
#[utoipa::path(get, path = "/v1/billing/auto-topup", tag = "billing",
    responses((status = 200, body = AutoAnswer), Problems), security(("key" = [])))]
pub(super) async fn auto_topup(State(http): State<Arc<Http>>, request: Request) -> Response {
    let mut asked = Asked::new(request);
    let answered: Result<Response, Refusal> = async {
        let (admitted, Nothing {}) = asked.queried(&http, KeyScope::Read).await?;
        shown(service(&http)?, &admitted).await
    }
    .await;
    asked.done(&http, answered).await
}

async fn shown(stripe: &Stripe, admitted: &super::access::Admitted) -> Result<Response, Refusal> {
    let auto = stripe.auto_topup(&admitted.caller.tenant).await;
    json(&AutoAnswer::of(auto.map_err(|_| unavailable("the relay cannot read its books"))?))
}

/// Sets when the balance is topped up by itself.
#[utoipa::path(post, path = "/v1/billing/auto-topup", tag = "billing", request_body = AutoBody,
    responses((status = 200, body = AutoAnswer), Problems), security(("key" = [])))]
pub(super) async fn set_auto_topup(State(http): State<Arc<Http>>, request: Request) -> Response {
    let mut asked = Asked::new(request);
    let answered: Result<Response, Refusal> = async {
        let (admitted, body): (_, AutoBody) = asked.posted(&http, KeyScope::Admin).await?;
        let stripe = service(&http)?;
        let wanted = match (body.enabled, body.threshold_nano_usd, body.amount_nano_usd, body.monthly_cap_nano_usd) {
            (false, ..) => None,
            (true, Some(threshold), Some(amount), Some(cap)) => {
                if threshold < 0 || amount < 100 * CENT || amount % CENT != 0 || cap < amount {
                    let why = "the threshold must not be below zero, the amount at least a dollar in whole cents, and the \
                         monthly cap no less than the amount";
                    return Err(Refusal::bad_request(why));
                }
                Some((NanoUsd(threshold), NanoUsd(amount), NanoUsd(cap)))
            }
            _ => return Err(Refusal::bad_request("name threshold_nano_usd, amount_nano_usd and monthly_cap_nano_usd")),
        };
        let set = stripe.set_auto_topup(&admitted.caller.tenant, wanted).await;
        set.map_err(|_| unavailable("the relay cannot write its books"))?;
        shown(stripe, &admitted).await
    }
    .await;
    asked.done(&http, answered).await
}
