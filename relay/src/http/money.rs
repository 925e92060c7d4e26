//! Balance, usage and statements.

use super::Http;
use super::access::Admitted;
use super::inside::{ask, rows};
use super::reply::{Asked, json};
use super::shapes::{Cents, Problems, Tokens};
use crate::store::central::keys::KeyScope;
use axum::extract::{Request, State};
use axum::response::Response;
use belay_http::refusal::Refusal;
use belay_protocol::calendar;
use belay_protocol::kind::StreamKind;
use belay_protocol::message::{
    Balance, BalanceRequest, Done, StatementLine, StatementRequest, UsageBy, UsageGroup, UsagePeriod, UsageRequest,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::{IntoParams, ToSchema};

/// Entries of a statement in one answer.
const STATEMENT_PAGE: u32 = 500;

/// A tenant's money.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BalanceAnswer {
    tenant: String,
    /// Its own money; below zero by at most the ceiling.
    balance_cents: Cents,
    balance_nano_usd: i64,
    /// Credits that have not expired; they are used first.
    credits_nano_usd: i64,
    /// Set aside for running requests, in neither of the two.
    held_nano_usd: i64,
    open_holds: u32,
    /// Charged since the book began.
    charged_nano_usd: i64,
    /// `free`, `managed` or `byok`.
    pays_with: String,
    ceiling_nano_usd: i64,
}

impl From<Balance> for BalanceAnswer {
    fn from(balance: Balance) -> Self {
        Self {
            tenant: balance.tenant.into(),
            balance_cents: Cents(balance.balance),
            balance_nano_usd: balance.balance.0,
            credits_nano_usd: balance.credits.0,
            held_nano_usd: balance.held.0,
            open_holds: balance.open_holds,
            charged_nano_usd: balance.charged.0,
            pays_with: balance.pays_with.name().to_owned(),
            ceiling_nano_usd: balance.ceiling.0,
        }
    }
}

/// Nothing is asked but what the address says.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

/// The tenant's money.
#[utoipa::path(get, path = "/v1/billing/balance", tag = "billing",
    responses((status = 200, body = BalanceAnswer), Problems), security(("key" = [])))]
pub(super) async fn balance(State(http): State<Arc<Http>>, request: Request) -> Response {
    let mut asked = Asked::new(request);
    let answered: Result<Response, Refusal> = async {
        let (admitted, Nothing {}) = asked.queried(&http, KeyScope::Read).await?;
        json(&balance_of(&http, &admitted).await?)
    }
    .await;
    asked.done(&http, answered).await
}

pub(super) async fn balance_of(http: &Http, admitted: &Admitted) -> Result<BalanceAnswer, Refusal> {
    let question = BalanceRequest { reserved: 0 };
    let found: Balance = ask(&http.shared, &admitted.caller, StreamKind::Billing, &question).await?;
    Ok(found.into())
}

/// Which usage is asked for.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct UsageQuery {
    /// `day`, `week`, `month` (the default) or `all`.
    period: Option<String>,
    /// By what it is told apart: `all`, `day`, `month`, `model` (the default), `device`, `key` or `class`.
    by: Option<String>,
}

/// What was used.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct UsageAnswer {
    total: UsageRow,
    by: String,
    groups: Vec<UsageRow>,
}

/// A sum of usage.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct UsageRow {
    /// A day, a month, `provider/model`, a device, a key or a class; empty: everything.
    name: String,
    requests: u64,
    /// Of these, charged by estimate and not corrected since.
    estimated: u64,
    tokens: Tokens,
    cost_cents: Cents,
    cost_nano_usd: i64,
}

impl From<UsageGroup> for UsageRow {
    fn from(group: UsageGroup) -> Self {
        Self {
            name: group.name,
            requests: group.requests,
            estimated: group.estimated,
            tokens: Tokens {
                input: group.input,
                output: group.output,
                cache_read: group.cache_read,
                cache_write: group.cache_write,
                reasoning: group.reasoning,
            },
            cost_cents: Cents(group.cost),
            cost_nano_usd: group.cost.0,
        }
    }
}

/// What was used, and what it cost.
#[utoipa::path(get, path = "/v1/billing/usage", tag = "billing", params(UsageQuery),
    responses((status = 200, body = UsageAnswer), Problems), security(("key" = [])))]
pub(super) async fn usage(State(http): State<Arc<Http>>, request: Request) -> Response {
    usage_of(&http, request).await
}

/// The same as `/v1/billing/usage`.
#[utoipa::path(get, path = "/v1/usage", tag = "router", params(UsageQuery),
    responses((status = 200, body = UsageAnswer), Problems), security(("key" = [])))]
pub(super) async fn router_usage(State(http): State<Arc<Http>>, request: Request) -> Response {
    usage_of(&http, request).await
}

async fn usage_of(http: &Http, request: Request) -> Response {
    let mut asked = Asked::new(request);
    let answered: Result<Response, Refusal> = async {
        let (admitted, query): (_, UsageQuery) = asked.queried(http, KeyScope::Read).await?;
        let admitted = &admitted;
        let wrong = |name: &str, value: &str, known: &str| {
            Refusal::bad_request(format!("{name} is {value:?}; it must be one of {known}"))
        };
        let period = query.period.as_deref().unwrap_or("month");
        let found = UsagePeriod::from_name(period).filter(|period| *period != UsagePeriod::DAYS);
        let period = found.ok_or_else(|| wrong("period", period, "day, week, month, all"))?;
        let by = query.by.as_deref().unwrap_or("model");
        let names: Vec<&str> = UsageBy::ALL.iter().map(|by| by.name()).collect();
        let by = UsageBy::from_name(by).ok_or_else(|| wrong("by", by, &names.join(", ")))?;
        let asking = async |by| {
            let question = UsageRequest { period, from_day: 0, until_day: 0, by };
            rows::<_, UsageGroup, Done>(&http.shared, &admitted.caller, StreamKind::Billing, &question).await
        };
        let (total, _) = asking(UsageBy::TOTAL).await?;
        let (groups, _) = asking(by).await?;
        json(&UsageAnswer {
            total: total.into_iter().next().unwrap_or_default().into(),
            by: by.name().to_owned(),
            groups: groups.into_iter().map(UsageRow::from).collect(),
        })
    }
    .await;
    asked.done(http, answered).await
}

/// Which entries are asked for.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct StatementQuery {
    /// The first day (UTC), as `2026-11-26`; the first of this month where it is not named.
    from: Option<String>,
    /// The one after the last; tomorrow where it is not named.
    until: Option<String>,
    /// Only entries above this number: `next` of the page before.
    after: Option<u64>,
}

/// A page of the tenant's book.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct StatementAnswer {
    entries: Vec<EntryRow>,
    /// Where the next page begins; absent on the last.
    next: Option<u64>,
}

/// Money that moved from one account to another.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EntryRow {
    entry: u64,
    at_ms: u64,
    /// `hold`, `settle`, `credit` …
    kind: String,
    from: String,
    to: String,
    amount_cents: Cents,
    amount_nano_usd: i64,
    /// The tenant's own money right after.
    balance_nano_usd: i64,
    request_id: Option<String>,
    model: String,
    operation: String,
    note: String,
}

impl From<StatementLine> for EntryRow {
    fn from(line: StatementLine) -> Self {
        Self {
            entry: line.entry,
            at_ms: line.at_ms,
            kind: line.kind,
            from: line.from,
            to: line.to,
            amount_cents: Cents(line.amount),
            amount_nano_usd: line.amount.0,
            balance_nano_usd: line.balance.0,
            request_id: line.request_id.map(|id| id.to_string()),
            model: line.model,
            operation: line.operation,
            note: line.note,
        }
    }
}

/// The entries of the tenant's book, page by page.
#[utoipa::path(get, path = "/v1/billing/statement", tag = "billing", params(StatementQuery),
    responses((status = 200, body = StatementAnswer), Problems), security(("key" = [])))]
pub(super) async fn statement(State(http): State<Arc<Http>>, request: Request) -> Response {
    let mut asked = Asked::new(request);
    let answered: Result<Response, Refusal> = async {
        let (admitted, query): (_, StatementQuery) = asked.queried(&http, KeyScope::Read).await?;
        let admitted = &admitted;
        let day = |name: &str, text: Option<&str>, default: i64| match text {
            None => Ok(default),
            Some(text) => calendar::parse_day(text)
                .ok_or_else(|| Refusal::bad_request(format!("{name} is {text:?}; write a day as 2026-11-26"))),
        };
        let now_ms = http.now_ms();
        let month = calendar::day(calendar::month_start_ms(calendar::month(now_ms)));
        let days = (
            day("from", query.from.as_deref(), month)?,
            day("until", query.until.as_deref(), calendar::day(now_ms) + 1)?,
        );
        let unsigned = |day: i64| u32::try_from(day).unwrap_or(0);
        let question = StatementRequest {
            from_day: unsigned(days.0),
            until_day: unsigned(days.1),
            after: query.after.unwrap_or(0),
        };
        let lines = super::inside::some_rows::<_, StatementLine, Done>(
            &http.shared,
            &admitted.caller,
            StreamKind::Billing,
            &question,
            STATEMENT_PAGE as usize,
        );
        let (lines, is_last) = lines.await?;
        let next = lines.last().map(|line| line.entry).filter(|_| !is_last);
        json(&StatementAnswer { entries: lines.into_iter().map(EntryRow::from).collect(), next })
    }
    .await;
    asked.done(&http, answered).await
}
