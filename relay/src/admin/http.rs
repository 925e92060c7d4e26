//! The admin service as HTTP on a Unix socket of mode 0600 in the state directory.

use super::service::{AdminError, AdminService, TermsChange};
use crate::store::central::usage::CentralGrouping;
use crate::store::ledger::budget::{Measure, Scope};
use crate::store::ledger::money::Operation;
use crate::store::ledger::usage::Grouping;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Json, Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Router, serve};
use belay_protocol::id::{DeviceId, TenantId};
use belay_protocol::money::NanoUsd;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path as FilePath;
use std::sync::Arc;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

/// An error as it stands in an answer.
#[derive(Debug, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What went wrong, for people.
    pub error: String,
}

/// Creates a tenant.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateTenant {
    /// Its name.
    pub id: TenantId,
}

/// Moves a tenant's money.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Money {
    /// Which way, and why.
    pub what: Operation,
    /// In nano-USD.
    pub amount_nano_usd: i64,
    /// Makes a retry harmless.
    pub operation: Option<String>,
    /// For the book.
    pub note: Option<String>,
}

/// Grants a tenant credits that expire.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// In nano-USD.
    pub amount_nano_usd: i64,
    /// When they end, milliseconds since 1970.
    pub expires_ms: u64,
    /// Makes a retry harmless.
    pub operation: Option<String>,
    /// For the book.
    pub note: Option<String>,
}

/// Sets a budget, or takes it away.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetBudget {
    /// Whom it binds.
    pub scope: Scope,
    /// What it bounds.
    pub measure: Measure,
    /// Nano-USD, requests or tokens; absent: no bound any more.
    pub amount: Option<i64>,
}

/// Asks for the usage of some days.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsageQuery {
    /// The first, days since 1970.
    pub from: i64,
    /// The one after the last.
    pub until: i64,
    /// By what it is told apart.
    pub by: Grouping,
}

/// Asks for a page of a book.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EntriesQuery {
    /// The first day, days since 1970.
    pub from: i64,
    /// The one after the last.
    pub until: i64,
    /// The last entry that is known.
    pub after: i64,
}

/// Asks for the usage of all tenants, as central knows it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CentralQuery {
    /// Only this one's.
    pub tenant: Option<TenantId>,
    /// The first day, days since 1970.
    pub from: i64,
    /// The one after the last.
    pub until: i64,
    /// By what it is told apart.
    pub by: CentralGrouping,
}

/// Suspends a tenant, or lets it go on.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suspend {
    /// Which of the two.
    pub suspended: bool,
}

/// Revokes a device.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revoke {
    /// For the record.
    pub why: String,
}

/// Says that the relay is being worked on, or no longer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Maintenance {
    /// Which of the two.
    pub on: bool,
    /// Until then, milliseconds since 1970; 0: unknown.
    pub until_ms: u64,
    /// Why, for people.
    pub reason: String,
}

/// Chooses a tenant, or all.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfTenant {
    /// Only this one.
    pub tenant: Option<TenantId>,
}

impl IntoResponse for AdminError {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::NoTenant(_) | Self::NoDevice(_) | Self::NoKey(_) => StatusCode::NOT_FOUND,
            Self::TenantExists(_) => StatusCode::CONFLICT,
            Self::Invalid(_) => StatusCode::BAD_REQUEST,
            Self::Config(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Store(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(ErrorBody { error: self.to_string() })).into_response()
    }
}

pub(super) fn bad_request(error: &dyn std::fmt::Display) -> Response {
    (StatusCode::BAD_REQUEST, Json(ErrorBody { error: error.to_string() })).into_response()
}

pub(super) type Service = State<Arc<AdminService>>;
pub(super) type Body<T> = Result<Json<T>, JsonRejection>;

/// Binds the socket. A socket file that a killed process left is replaced: the state lock says
/// that nobody listens on it.
pub fn bind(path: &FilePath) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves until `stop`.
pub async fn run(listener: UnixListener, service: Arc<AdminService>, stop: CancellationToken) -> io::Result<()> {
    serve(listener, router(service).merge(super::page::files())).with_graceful_shutdown(stop.cancelled_owned()).await
}

pub(super) fn router(service: Arc<AdminService>) -> Router {
    Router::new()
        .route("/status", get(status))
        .route("/maintenance", post(maintenance))
        .route("/metrics", get(metrics))
        .route("/reload", post(reload))
        .route("/tenants", get(tenants).post(create_tenant))
        .route("/tenants/{id}/money", post(money))
        .route("/tenants/{id}/grants", post(grant))
        .route("/tenants/{id}/terms", post(terms))
        .route("/tenants/{id}/budgets", get(budgets).post(set_budget))
        .route("/tenants/{id}/usage", get(usage))
        .route("/tenants/{id}/entries", get(entries))
        .route("/tenants/{id}/flush", post(flush))
        .route("/usage", get(central_usage))
        .route("/tenants/{id}/suspended", post(suspend))
        .route("/tenants/{id}/invites", post(invite))
        .route("/devices", get(devices))
        .route("/devices/{id}/revoke", post(revoke))
        .route("/ledger/verify", get(verify))
        .merge(super::audit::routes())
        .merge(super::authority::routes())
        .merge(super::copies::routes())
        .merge(super::doctor::routes())
        .merge(super::erase::routes())
        .merge(super::keys::routes())
        .merge(super::labels::routes())
        .merge(super::page::routes())
        .merge(super::reconcile::routes())
        .with_state(service)
}

async fn reload(State(service): Service) -> Result<Response, AdminError> {
    Ok(Json(service.reload().await?).into_response())
}

async fn metrics(State(service): Service) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(http::header::CONTENT_TYPE, kind)], service.metrics()).into_response()
}

async fn status(State(service): Service) -> Response {
    Json(service.status()).into_response()
}

async fn maintenance(State(service): Service, body: Body<Maintenance>) -> Response {
    match body {
        Ok(Json(body)) => {
            service.set_maintenance(body.on.then_some((body.until_ms, body.reason)));
            Json(service.status()).into_response()
        }
        Err(error) => bad_request(&error),
    }
}

async fn tenants(State(service): Service) -> Result<Response, AdminError> {
    Ok(Json(service.tenants().await?).into_response())
}

async fn create_tenant(State(service): Service, body: Body<CreateTenant>) -> Result<Response, AdminError> {
    match body {
        Ok(Json(body)) => Ok(Json(service.create_tenant(body.id).await?).into_response()),
        Err(error) => Ok(bad_request(&error)),
    }
}

async fn money(State(service): Service, Path(id): Path<TenantId>, body: Body<Money>) -> Result<Response, AdminError> {
    match body {
        Ok(Json(Money { what, amount_nano_usd, operation, note })) => {
            Ok(Json(service.operate(&id, what, NanoUsd(amount_nano_usd), operation, note).await?).into_response())
        }
        Err(error) => Ok(bad_request(&error)),
    }
}

async fn grant(State(service): Service, Path(id): Path<TenantId>, body: Body<Grant>) -> Result<Response, AdminError> {
    match body {
        Ok(Json(Grant { amount_nano_usd, expires_ms, operation, note })) => {
            Ok(Json(service.grant(&id, NanoUsd(amount_nano_usd), expires_ms, operation, note).await?).into_response())
        }
        Err(error) => Ok(bad_request(&error)),
    }
}

async fn terms(
    State(service): Service,
    Path(id): Path<TenantId>,
    body: Body<TermsChange>,
) -> Result<Response, AdminError> {
    match body {
        Ok(Json(change)) => Ok(Json(service.change_terms(&id, change).await?).into_response()),
        Err(error) => Ok(bad_request(&error)),
    }
}

async fn set_budget(
    State(service): Service,
    Path(id): Path<TenantId>,
    body: Body<SetBudget>,
) -> Result<Response, AdminError> {
    match body {
        Ok(Json(body)) => {
            Ok(Json(service.set_budget(&id, body.scope, body.measure, body.amount).await?).into_response())
        }
        Err(error) => Ok(bad_request(&error)),
    }
}

async fn budgets(State(service): Service, Path(id): Path<TenantId>) -> Result<Response, AdminError> {
    Ok(Json(service.budgets(&id).await?).into_response())
}

async fn usage(
    State(service): Service,
    Path(id): Path<TenantId>,
    query: Result<Query<UsageQuery>, QueryRejection>,
) -> Result<Response, AdminError> {
    match query {
        Ok(Query(query)) => Ok(Json(service.usage(&id, (query.from, query.until), query.by).await?).into_response()),
        Err(error) => Ok(bad_request(&error)),
    }
}

async fn entries(
    State(service): Service,
    Path(id): Path<TenantId>,
    query: Result<Query<EntriesQuery>, QueryRejection>,
) -> Result<Response, AdminError> {
    match query {
        Ok(Query(EntriesQuery { from, until, after })) => {
            Ok(Json(service.entries(&id, (from, until), after).await?).into_response())
        }
        Err(error) => Ok(bad_request(&error)),
    }
}

async fn flush(State(service): Service, Path(id): Path<TenantId>) -> Result<Response, AdminError> {
    let pending = service.flush(&id).await?;
    Ok(Json(serde_json::json!({ "waiting_rows": pending.rows, "waiting_nano_usd": pending.cost.0 })).into_response())
}

async fn central_usage(
    State(service): Service,
    query: Result<Query<CentralQuery>, QueryRejection>,
) -> Result<Response, AdminError> {
    match query {
        Ok(Query(CentralQuery { tenant, from, until, by })) => {
            Ok(Json(service.central_usage(tenant, (from, until), by).await?).into_response())
        }
        Err(error) => Ok(bad_request(&error)),
    }
}

async fn suspend(
    State(service): Service,
    Path(id): Path<TenantId>,
    body: Body<Suspend>,
) -> Result<Response, AdminError> {
    match body {
        Ok(Json(body)) => Ok(Json(service.suspend(&id, body.suspended).await?).into_response()),
        Err(error) => Ok(bad_request(&error)),
    }
}

async fn invite(State(service): Service, Path(id): Path<TenantId>) -> Result<Response, AdminError> {
    Ok(Json(service.invite(&id).await?).into_response())
}

async fn devices(
    State(service): Service,
    query: Result<Query<OfTenant>, QueryRejection>,
) -> Result<Response, AdminError> {
    match query {
        Ok(Query(query)) => Ok(Json(service.devices(query.tenant).await?).into_response()),
        Err(error) => Ok(bad_request(&error)),
    }
}

async fn revoke(State(service): Service, Path(id): Path<DeviceId>, body: Body<Revoke>) -> Result<Response, AdminError> {
    match body {
        Ok(Json(body)) => {
            service.revoke(&id, &body.why).await?;
            Ok(Json(serde_json::json!({ "revoked": id })).into_response())
        }
        Err(error) => Ok(bad_request(&error)),
    }
}

async fn verify(
    State(service): Service,
    query: Result<Query<OfTenant>, QueryRejection>,
) -> Result<Response, AdminError> {
    match query {
        Ok(Query(query)) => Ok(Json(service.verify(query.tenant).await?).into_response()),
        Err(error) => Ok(bad_request(&error)),
    }
}
