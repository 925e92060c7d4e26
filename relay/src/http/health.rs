//! Whether the relay lives, whether it is ready, and how a tenant stands with it.

use super::Http;
use super::money::{BalanceAnswer, Nothing, balance_of};
use super::reply::{Asked, json};
use super::shapes::Problems;
use crate::store::central::keys::KeyScope;
use axum::extract::{Request, State};
use axum::response::Response;
use belay_http::refusal::Refusal;
use belay_protocol::vitals::RelayState;
use http::StatusCode;
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// How the relay is.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Health {
    /// `ok`, `degraded` or `maintenance`.
    status: String,
    /// Why it is not `ok`; empty if it is.
    reason: String,
    version: String,
}

fn health_of(http: &Http) -> Health {
    let (status, reason) = match http.shared.escalator.state() {
        RelayState::Healthy => ("ok", String::new()),
        RelayState::Degraded { reason } => ("degraded", reason),
        RelayState::Maintenance { reason, .. } => ("maintenance", reason),
    };
    Health { status: status.into(), reason, version: env!("CARGO_PKG_VERSION").into() }
}

fn answered(health: &Health, ready: bool) -> Response {
    let mut response = json(health).unwrap_or_else(|refusal| super::reply::own(&refusal));
    if !ready {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response
}

/// The process lives.
#[utoipa::path(get, path = "/health", tag = "router", responses((status = 200, body = Health)))]
pub(super) async fn health(State(http): State<Arc<Http>>) -> Response {
    answered(&health_of(&http), true)
}

/// It takes new requests.
#[utoipa::path(get, path = "/ready", tag = "router",
    responses((status = 200, body = Health), (status = 503, body = Health)))]
pub(super) async fn ready(State(http): State<Arc<Http>>) -> Response {
    let escalator = &http.shared.escalator;
    let books = http.can_read_books().await;
    let ready = books && !escalator.draining.is_cancelled();
    let mut health = health_of(&http);
    if !books {
        (health.status, health.reason) = ("degraded".into(), "the central books cannot be read".into());
    }
    answered(&health, ready)
}

/// How a tenant stands with the relay.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct StatusAnswer {
    relay: Health,
    balance: BalanceAnswer,
    /// Names that can be asked.
    models: Vec<String>,
    /// Computers of the tenant that are connected now.
    tunnels: u32,
}

/// How the tenant stands with the relay.
#[utoipa::path(get, path = "/v1/status", tag = "router",
    responses((status = 200, body = StatusAnswer), Problems), security(("key" = [])))]
pub(super) async fn status(State(http): State<Arc<Http>>, request: Request) -> Response {
    let mut asked = Asked::new(request);
    let answered: Result<Response, Refusal> = async {
        let (admitted, Nothing {}) = asked.queried(&http, KeyScope::Read).await?;
        let admitted = &admitted;
        let offers = http.shared.escalator.config().offers(http.now_ms());
        let live = http.shared.registry.list();
        let tunnels = live.iter().filter(|live| live.tenant == admitted.caller.tenant).count();
        json(&StatusAnswer {
            relay: health_of(&http),
            balance: balance_of(&http, admitted).await?,
            models: offers.into_iter().map(|offer| offer.name).collect(),
            tunnels: u32::try_from(tunnels).unwrap_or(u32::MAX),
        })
    }
    .await;
    asked.done(&http, answered).await
}
