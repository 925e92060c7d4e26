//! Erasing a tenant.

use super::http::Service;
use super::service::{AdminError, AdminService};
use crate::store::StoreError;
use crate::store::central;
use crate::store::central::audit::Deed;
use crate::store::erase::Erased;
use crate::store::executor::Db;
use crate::sync::SyncError;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use belay_protocol::id::TenantId;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long requests may take to end, and how often they are looked at.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(50);

pub(super) fn routes() -> Router<Arc<AdminService>> {
    Router::new().route("/tenants/{id}/erase", post(erase))
}

async fn erase(State(service): Service, Path(id): Path<TenantId>) -> Result<Response, AdminError> {
    Ok(Json(service.erase(&id).await?).into_response())
}

impl AdminService {
    /// Erases what a tenant has said and kept, and who its devices and keys were; its book stays. It can do nothing
    /// afterwards, for ever. May be done again, if something of it failed.
    pub async fn erase(&self, id: &TenantId) -> Result<Erased, AdminError> {
        self.tenant(id).await?;
        self.asked(Deed::operator("tenant.erase", Some(id))).await?;
        // Whatever runs has ended before anything goes.
        self.escalator.suspend(id, true).await?;
        let (of, now_ms) = (id.clone(), self.now_ms());
        self.store.run(Db::Central, move |connection| central::erase::erase(connection, &of, now_ms)).await?;
        // A request that ends adds what was said to its session.
        let until = Instant::now() + PATIENCE;
        while self.tenant(id).await?.open_holds > 0 {
            if Instant::now() > until {
                return Err(AdminError::Invalid("requests of this tenant still end; do it again in a minute".into()));
            }
            sleep(LOOK).await;
        }
        self.flush(id).await?;
        let erased = self.sync.erase(id).await.map_err(|error| {
            let why = match error {
                SyncError::Invalid(why, _) => why,
                SyncError::Refused(refusal) => refusal.to_string(),
                SyncError::Blob(error) => error.to_string(),
                SyncError::Store(error) => error.to_string(),
            };
            StoreError::Failed { operation: "erase all of a tenant; do it again", why }
        })?;
        // What its devices and keys were called stands between the rows there.
        self.store.compact(&Db::Central).await?;
        Ok(erased)
    }

    /// Errors: the tenant was erased, so nothing may be done for it.
    pub(super) async fn not_erased(&self, id: &TenantId) -> Result<(), AdminError> {
        let of = id.clone();
        match self.store.run(Db::Central, move |connection| central::erase::erased_ms(connection, &of)).await? {
            None => Ok(()),
            Some(_) => Err(AdminError::Invalid(format!("the tenant {id} was erased; make another one"))),
        }
    }
}
