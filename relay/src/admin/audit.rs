//! The audit log, for operators to read and export.

use super::http::{Service, bad_request};
use super::service::{AdminError, AdminService};
use crate::store::central::audit::{Deed, Entry, note, page};
use crate::store::executor::Db;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use belay_protocol::id::TenantId;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Asks for a page.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditQuery {
    /// The last entry that is known.
    pub after: i64,
    /// Only what concerns this one.
    pub tenant: Option<TenantId>,
    /// From then on, milliseconds since 1970.
    pub from_ms: u64,
    /// Up to, not including, then.
    pub until_ms: u64,
}

pub(super) fn routes() -> Router<Arc<AdminService>> {
    Router::new().route("/audit", get(audit))
}

async fn audit(
    State(service): Service,
    query: Result<Query<AuditQuery>, QueryRejection>,
) -> Result<Response, AdminError> {
    match query {
        Ok(Query(query)) => Ok(Json(service.audit(query).await?).into_response()),
        Err(error) => Ok(bad_request(&error)),
    }
}

impl AdminService {
    /// A page of the audit log; empty: there is no more.
    pub async fn audit(&self, wanted: AuditQuery) -> Result<Vec<Entry>, AdminError> {
        let AuditQuery { after, tenant, from_ms, until_ms } = wanted;
        let read = move |connection: &_| page(connection, after, tenant.as_ref(), (from_ms, until_ms));
        Ok(self.store.run(Db::Central, read).await?)
    }

    /// Notes what an operator asks for, before it is done. Errors: it cannot be noted, and so must not be done.
    pub(super) async fn asked(&self, deed: Deed) -> Result<(), AdminError> {
        let now_ms = self.now_ms();
        Ok(self.store.run(Db::Central, move |connection| note(connection, &deed, now_ms)).await?)
    }
}
