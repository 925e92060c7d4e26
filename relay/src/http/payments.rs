//! Usage that is recorded, money that is added, and usage that is handed over.

use super::Http;
use super::inside::ask;
use super::money::{BalanceAnswer, Nothing, balance_of};
use super::reply::{Asked, json};
use super::shapes::{CENT, Cents, LlmProblems, Problems};
use crate::store::StoreError;
use crate::store::central::audit::{self, Deed};
use crate::store::central::keys::KeyScope;
use crate::store::executor::Db;
use crate::store::ledger::money::Operation;
use axum::extract::{Request, State};
use axum::response::Response;
use belay_http::refusal::Refusal;
use belay_protocol::kind::StreamKind;
use belay_protocol::message::{
    End, FlushRequest, Flushed, RecordRequest, TopUp, TopUpRequest, UnitKind, UsageClass, UsageLine,
};
use belay_protocol::money::NanoUsd;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tracing::warn;
use utoipa::ToSchema;

/// Usage outside of the relay.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"request_id": "rec-1", "class": "local", "model": "llama-3", "tokens": {"input": 1000, "output": 500}}))]
pub(super) struct Record {
    /// Names it for ever: recorded again, it is charged once.
    request_id: String,
    /// `local` (inference on the tenant's own computers) or `knowledge` (indexing, embedding, search).
    class: String,
    /// What did the work.
    model: String,
    tokens: RecordedTokens,
}

/// What was used.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
pub(super) struct RecordedTokens {
    input: u64,
    output: u64,
    cache_read: u64,
    reasoning: u64,
    calls: u64,
}

/// What a record cost.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RecordAnswer {
    request_id: String,
    cost_cents: Cents,
    cost_nano_usd: i64,
    balance_cents: Cents,
    balance_nano_usd: i64,
}

/// Records usage outside of the relay, at the operator's prices for it.
#[utoipa::path(post, path = "/v1/billing/record", tag = "billing", request_body = Record,
    responses((status = 200, body = RecordAnswer), Problems, LlmProblems), security(("key" = [])))]
pub(super) async fn record(State(http): State<Arc<Http>>, request: Request) -> Response {
    let mut asked = Asked::new(request);
    let answered: Result<Response, Refusal> = async {
        let (admitted, record): (_, Record) = asked.posted(&http, KeyScope::Write).await?;
        let admitted = &admitted;
        let class = UsageClass::from_name(&record.class).filter(|class| *class != UsageClass::CLOUD);
        let class = class.ok_or_else(|| {
            Refusal::bad_request(format!("class is {:?}; it must be local or knowledge", record.class))
        })?;
        let tokens = &record.tokens;
        let usage = [
            (UnitKind::INPUT, tokens.input),
            (UnitKind::OUTPUT, tokens.output),
            (UnitKind::CACHE_READ, tokens.cache_read),
            (UnitKind::REASONING, tokens.reasoning),
            (UnitKind::CALLS, tokens.calls),
        ];
        let usage = usage.into_iter().filter(|(_, units)| *units > 0);
        let question = RecordRequest {
            request_id: http.request_id(&admitted.caller, Some(("record", &record.request_id))),
            class,
            model: record.model,
            usage: usage.map(|(kind, units)| UsageLine { kind, units }).collect(),
        };
        let end: End = ask(&http.shared, &admitted.caller, StreamKind::Billing, &question).await?;
        json(&RecordAnswer {
            request_id: record.request_id,
            cost_cents: Cents(end.cost),
            cost_nano_usd: end.cost.0,
            balance_cents: Cents(end.balance),
            balance_nano_usd: end.balance.0,
        })
    }
    .await;
    asked.done(&http, answered).await
}

/// Money to be added.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TopUpBody {
    /// In nano-dollars.
    #[serde(default)]
    amount_nano_usd: Option<i64>,
    /// Or in cents.
    #[serde(default)]
    amount_cents: Option<u32>,
    /// Names the credit, so that asking again adds nothing: where a key with the scope `admin` adds the money itself.
    #[serde(default)]
    operation: Option<String>,
}

/// What became of it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TopUpAnswer {
    /// True: the money was added. False: it is once it was paid at `url`.
    credited: bool,
    url: Option<String>,
    balance: BalanceAnswer,
}

/// Adds money: at once for a key with the scope `admin`, else after it was paid at the address in the answer.
#[utoipa::path(post, path = "/v1/billing/topup", tag = "billing", request_body = TopUpBody,
    responses((status = 200, body = TopUpAnswer), Problems), security(("key" = [])))]
pub(super) async fn topup(State(http): State<Arc<Http>>, request: Request) -> Response {
    let mut asked = Asked::new(request);
    let answered: Result<Response, Refusal> = async {
        let (admitted, body): (_, TopUpBody) = asked.posted(&http, KeyScope::Read).await?;
        let admitted = &admitted;
        let amount = match (body.amount_nano_usd, body.amount_cents) {
            (Some(nanos), None) => NanoUsd(nanos),
            (None, Some(cents)) => NanoUsd(i64::from(cents) * CENT),
            (None, None) => NanoUsd::ZERO,
            (Some(_), Some(_)) => return Err(Refusal::bad_request("name amount_nano_usd or amount_cents, not both")),
        };
        if !(0..=MOST_NANO).contains(&amount.0) {
            return Err(Refusal::bad_request("the amount must be from zero to a million dollars"));
        }
        let tenant = &admitted.caller.tenant;
        if admitted.may(KeyScope::Admin) {
            let Some(operation) = body.operation.filter(|_| amount > NanoUsd::ZERO) else {
                let why = "name the amount and an operation: asked again under the same name, it adds nothing";
                return Err(Refusal::bad_request(why));
            };
            if operation.is_empty() || operation.len() > 200 || operation.chars().any(char::is_control) {
                return Err(Refusal::bad_request("operation must have 1 to 200 bytes and no control characters"));
            }
            let named = format!("http {operation}");
            let escalator = &http.shared.escalator;
            let books = escalator.tenants.books();
            let by = admitted.caller.key.as_deref().unwrap_or("a token");
            let note = Some(format!("by API key {by}"));
            let deed = Deed::of(format!("key:{by}"), "money.credit", Some(tenant)).on(&named);
            let (deed, now_ms) = (deed.with(amount.to_string()), http.now_ms());
            let noted =
                escalator.store.run(Db::Central, move |connection| audit::note(connection, &deed, now_ms)).await;
            noted.map_err(|error| not_added(&error))?;
            books.operate(tenant, Operation::Credit, amount, (named, note)).await.map_err(|error| not_added(&error))?;
            let balance = balance_of(&http, admitted).await?;
            return json(&TopUpAnswer { credited: true, url: None, balance });
        }
        let question = TopUpRequest { amount };
        let page: TopUp = ask(&http.shared, &admitted.caller, StreamKind::Billing, &question).await?;
        let balance = balance_of(&http, admitted).await?;
        json(&TopUpAnswer { credited: false, url: Some(page.url), balance })
    }
    .await;
    asked.done(&http, answered).await
}

/// Why money was not added. What the store says of it is for the operator.
fn not_added(error: &StoreError) -> Refusal {
    match error {
        StoreError::Failed { operation: "move money", .. } => {
            let message = "this operation was another one before";
            Refusal::new(StatusCode::CONFLICT, "conflict", message)
                .remedy("choose another operation for another credit")
        }
        error => {
            warn!(%error, "money was not added");
            let message = "the relay could not write its books";
            let mut refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "store_unavailable", message);
            refusal.retry_after_ms = Some(1000);
            refusal.remedy("ask again under the same operation: it is done once")
        }
    }
}

/// The most that is added at once: a million dollars.
const MOST_NANO: i64 = 1_000_000_000_000_000;

/// What waits to be handed over.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct FlushAnswer {
    /// Rows that came meanwhile and wait for the next time.
    waiting_rows: u64,
    waiting_cents: Cents,
    waiting_nano_usd: i64,
}

/// Hands the tenant's usage over to the relay's central books now.
#[utoipa::path(post, path = "/v1/billing/flush", tag = "billing", request_body = Option<Nothing>,
    responses((status = 200, body = FlushAnswer), Problems), security(("key" = [])))]
pub(super) async fn flush(State(http): State<Arc<Http>>, request: Request) -> Response {
    let mut asked = Asked::new(request);
    let answered: Result<Response, Refusal> = async {
        let (admitted, Nothing {}) = asked.posted(&http, KeyScope::Write).await?;
        let admitted = &admitted;
        let question = FlushRequest { reserved: 0 };
        let flushed: Flushed = ask(&http.shared, &admitted.caller, StreamKind::Billing, &question).await?;
        json(&FlushAnswer {
            waiting_rows: flushed.waiting_rows,
            waiting_cents: Cents(flushed.waiting),
            waiting_nano_usd: flushed.waiting.0,
        })
    }
    .await;
    asked.done(&http, answered).await
}
