//! What people call tenants.

use super::http::{Body, Service, bad_request};
use super::service::{AdminError, AdminService, TenantInfo};
use crate::store::central::audit::Deed;
use crate::store::central::import::set_label;
use crate::store::executor::Db;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use belay_protocol::id::TenantId;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The longest label, in bytes.
const LONGEST: usize = 200;

/// Changes what people call a tenant.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Label {
    /// Empty: nothing else than its name.
    pub label: String,
}

pub(super) fn routes() -> Router<Arc<AdminService>> {
    Router::new().route("/tenants/{id}/label", post(label))
}

async fn label(State(service): Service, Path(id): Path<TenantId>, body: Body<Label>) -> Result<Response, AdminError> {
    match body {
        Ok(Json(Label { label })) => Ok(Json(service.set_label(&id, label).await?).into_response()),
        Err(error) => Ok(bad_request(&error)),
    }
}

impl AdminService {
    /// Changes what people call a tenant.
    pub async fn set_label(&self, id: &TenantId, label: String) -> Result<TenantInfo, AdminError> {
        if label.len() > LONGEST || label.chars().any(char::is_control) {
            return Err(AdminError::Invalid(format!("a label is a line of at most {LONGEST} bytes")));
        }
        self.tenant(id).await?;
        self.not_erased(id).await?;
        // Not the label itself: the log stays when the tenant is erased.
        self.asked(Deed::operator("tenant.label", Some(id))).await?;
        let tenant = id.clone();
        self.store.run(Db::Central, move |connection| set_label(connection, &tenant, &label)).await?;
        self.tenant(id).await
    }
}
