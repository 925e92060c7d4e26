//! Copies of databases for a backup, made by the relay that owns them.

use super::http::{Body, Service, bad_request};
use super::service::{AdminError, AdminService};
use crate::backup::take::{Copied, CopyRequest};
use crate::store::StoreError;
use crate::store::executor::Db;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use belay_certs::file::create_private_dir;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where copies lie until somebody takes them away, in a state directory.
pub(crate) fn copies_dir(state: &Path) -> PathBuf {
    state.join("copies")
}

impl AdminService {
    /// Copies a database, unless nothing was written to it since. The copy is for whoever asks to take away; what is left
    /// is removed at the next start.
    pub async fn copy(&self, request: CopyRequest) -> Result<Copied, AdminError> {
        let tenant = match request.tenant {
            Some(tenant) => Some(self.tenant(&tenant).await?.id),
            None => None,
        };
        let db = tenant.clone().map_or(Db::Central, Db::Tenant);
        let sealed = self.store.sealed(tenant.as_ref()).await?;
        let before = self.store.stamp(&db);
        if before.is_some() && before == request.known {
            return Ok(Copied { file: None, stamp: before, sealed });
        }
        let state = std::path::absolute(&self.config().state_dir).unwrap_or_else(|_| self.config().state_dir.clone());
        let dir = copies_dir(&state);
        let failed = |why: String| StoreError::Failed { operation: "copy a database", why };
        create_private_dir(&dir).map_err(|error| failed(error.to_string()))?;
        let file = dir.join(format!("{:032x}.db", u128::from_le_bytes(self.random().bytes())));
        self.store.copy(&db, file.clone()).await?;
        // Of a state in between nobody knows whether it is the one that was copied.
        let stamp = before.filter(|before| self.store.stamp(&db).as_ref() == Some(before));
        Ok(Copied { file: Some(file), stamp, sealed })
    }
}

pub(super) fn routes() -> Router<Arc<AdminService>> {
    Router::new().route("/copies", post(copy))
}

async fn copy(State(service): Service, body: Body<CopyRequest>) -> Result<Response, AdminError> {
    match body {
        Ok(Json(body)) => Ok(Json(service.copy(body).await?).into_response()),
        Err(error) => Ok(bad_request(&error)),
    }
}
